"""What is noticed of a run's numbers, how late, and what is written down."""

from __future__ import annotations

import errno
import json
import math

import jax
import jax.numpy as jnp
import pytest

from vmae_jax.processes.exit_codes import NON_FINITE, exit_code
from vmae_jax.running.health import LAG, Health, NonFinite


def numbers(loss: float = 1.0, grad_norm: float = 0.5, streak: int = 0) -> dict[str, jax.Array]:
    values = {"loss": loss, "grad_norm": grad_norm, "learning_rate": 1e-3}
    return {name: jnp.float32(x) for name, x in values.items()} | {
        "skipped": jnp.int32(streak), "streak": jnp.int32(streak)
    }  # fmt: skip


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "health.jsonl").read_text().splitlines()]


def test_single_bad_steps_are_named_and_the_run_goes_on(tmp_path, caplog):
    health = Health(tmp_path, max_streak=3)
    for step in range(1, 11):
        bad = step in (4, 5, 8)
        streak = {4: 1, 5: 2, 8: 1}.get(step, 0)
        health.add(step, numbers(math.nan if bad else 1.0, streak=streak), [f"clip {step}"])
    assert health.metrics()["loss"] == 1.0
    assert [(r["step"], r["what"], r["loss"], r["clip_ids"]) for r in records(tmp_path)] == [
        (step, "skipped", "nan", [f"clip {step}"]) for step in (4, 5, 8)
    ]
    assert "step 4: skipped" in caplog.text


def test_a_streak_ends_the_run_with_steps_clips_and_checkpoint(tmp_path):
    health = Health(
        tmp_path,
        max_streak=3,
        gather=lambda text: [text, json.dumps(["clip of another host"])],
        saved_step=lambda: 40,
    )
    health.add(6, numbers(), ["fine"])
    for streak in (1, 2):
        health.add(6 + streak, numbers(grad_norm=math.inf, streak=streak), [f"bad {streak}"])
    health.add(9, numbers(grad_norm=math.inf, streak=3), ["bad 3"])
    with pytest.raises(NonFinite) as error:
        health.metrics()
    for part in ("grad_norm=inf at step 9", "3 in a row", "'bad 1'", "'bad 3'", "of step 40"):
        assert part in str(error.value)
    assert "fine" not in str(error.value)
    assert exit_code(error.value) == NON_FINITE
    streak = json.loads((tmp_path / "nonfinite_step_9.json").read_text())
    assert [r["step"] for r in streak] == [7, 8, 9]
    assert streak[0]["clip_ids"] == ["bad 1", "clip of another host"]
    assert streak[0]["grad_norm"] == "inf"


def test_the_host_looks_two_steps_late_and_no_later(tmp_path):
    health = Health(tmp_path, max_streak=1)
    health.add(1, numbers(math.nan, streak=1), ["a"])
    for step in range(2, LAG + 1):
        health.add(step, numbers(), ["b"])
    assert records(tmp_path) == []
    with pytest.raises(NonFinite, match="step 1"):
        health.add(LAG + 1, numbers(), ["b"])


def test_spikes_are_recorded_once_numbers_are_usual(tmp_path):
    health = Health(tmp_path, max_streak=3)
    for step in range(1, 301):
        loss = 1 + 0.01 * math.sin(step)
        loss = {50: 1.5, 250: 2.0, 260: 0.1}.get(step, loss)  # too early; a spike; a fall is none
        grad_norm = 30.0 if step == 270 else 0.5 + 0.05 * math.cos(step)
        health.add(step, numbers(loss, grad_norm), [str(step)])
    health.metrics()
    assert [(r["step"], r["what"]) for r in records(tmp_path)] == [
        (250, "loss spike"), (270, "grad_norm spike")
    ]  # fmt: skip
    assert records(tmp_path)[1]["usual"] == pytest.approx(0.5, abs=0.02)


def test_a_full_disk_does_not_hide_why_the_run_ends(tmp_path, monkeypatch, caplog):
    def fail(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vmae_jax.running.health.write_bytes", fail)
    health = Health(tmp_path, max_streak=1)
    health.add(1, numbers(math.nan, streak=1), ["a"])
    with pytest.raises(NonFinite, match="step 1"):
        health.metrics()
    assert "could not be written" in caplog.text


def test_steps_that_will_be_done_again_are_taken_off_the_list(tmp_path):
    for start, steps in ((0, (1, 2)), (1, (2,))):
        health = Health(tmp_path, start_step=start, max_streak=9)
        for step in steps:
            health.add(step, numbers(math.nan, streak=step), ["a"])
        health.metrics()
        health.close()
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_a_limit_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="max_skipped_in_a_row=0"):
        Health(None, max_streak=0)
