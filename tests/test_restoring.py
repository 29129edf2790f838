"""Checkpoints: what is saved comes back bit for bit, and damage is never loaded."""

from __future__ import annotations

import errno
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest
from checkpoint_states import Moments, assert_equal, make_state, save_steps, template

from vmae_jax.checkpoints import finished_steps, loading, orbax_files, restoring, saving


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Steps 10, 20, 30; made once, copied by those that damage them."""
    return save_steps(tmp_path_factory.mktemp("run") / "checkpoints", 10, 20, 30)


@pytest.fixture
def copy(saved, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def largest_file(directory: pathlib.Path) -> pathlib.Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(path: pathlib.Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)


def test_the_newest_comes_back_bit_for_bit(saved):
    restored = restoring.restore_newest(saved, template())
    assert restored.step == 30
    assert restored.info["config"] == {"seed": 30}
    assert isinstance(restored.state["opt_state"]["adam"], Moments)
    assert_equal(restored.state, make_state(30))


def test_no_checkpoint_is_none(tmp_path):
    assert restoring.restore_newest(tmp_path / "absent", template()) is None
    assert finished_steps.find_step(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = saving.Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(make_state(step), step, {})
    checkpoints.wait()
    assert finished_steps.saved_steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7])
def test_a_flipped_bit_costs_one_checkpoint_and_is_named(copy, position, caplog):
    flip_bit(largest_file(copy / "30"), position)
    restored = restoring.restore_newest(copy, template())
    if restored.step == 30:  # the bit was in padding: then the state must be exact
        assert_equal(restored.state, make_state(30))
        return
    assert restored.step == 20
    assert_equal(restored.state, make_state(20))
    assert "30 is damaged" in caplog.text
    assert (copy / "30.corrupt-0").exists()
    assert not (copy / "30").exists()


def test_a_truncated_file_falls_back(copy):
    path = largest_file(copy / "30")
    path.write_bytes(path.read_bytes()[:100])
    assert restoring.restore_newest(copy, template()).step == 20


def test_damaged_metadata_falls_back(copy):
    (copy / "30" / "_CHECKPOINT_METADATA").write_text("{")
    assert restoring.restore_newest(copy, template()).step == 20


def test_nothing_usable_names_every_step(copy):
    for step in (10, 20, 30):
        (copy / str(step) / "_CHECKPOINT_METADATA").write_text("{")
    for _ in range(2):  # a second start must not take the folder for a new one
        with pytest.raises(loading.CheckpointError, match=r"no usable checkpoint.*30.*20.*10"):
            restoring.restore_newest(copy, template())
    assert finished_steps.saved_steps(copy) == [10, 20, 30]


class HttpError(Exception):
    """As gcsfs has one for a store that is down."""

    __module__ = "gcsfs.retry"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        PermissionError("closed"),
        OSError(errno.ESTALE, "stale"),
        ConnectionResetError("by the other side"),
        ValueError("UNAVAILABLE: try again"),
        ValueError("UNKNOWN: reading [os_error_code='24']"),
        HttpError("503"),
    ],
    ids=repr,
)
def test_what_is_no_damage_is_not_taken_for_it(copy, error, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("wrapped") from error

    monkeypatch.setattr(orbax_files.ocp, "load_checkpointables", fail)
    with pytest.raises(RuntimeError, match="wrapped"):
        restoring.restore_newest(copy, template())
    assert finished_steps.saved_steps(copy) == [10, 20, 30]


def test_a_step_that_its_trainer_deletes_for_a_newer_one_is_no_end(copy, monkeypatch):
    listings = iter([[15], [30]])
    monkeypatch.setattr(restoring, "saved_steps", lambda _: next(listings))
    assert restoring.read_newest(copy, template()).step == 30
    monkeypatch.setattr(restoring, "saved_steps", lambda _: [15])
    with pytest.raises(loading.CheckpointError, match="no usable checkpoint"):
        restoring.read_newest(copy, template())


def test_another_model_is_refused_and_left_alone(copy):
    other = template()
    other["params"]["encoder"]["kernel"] = jax.ShapeDtypeStruct((3, 40, 51), jnp.float32)
    other["params"]["decoder"] = {"bias": jax.ShapeDtypeStruct((2,), jnp.float32)}
    del other["params"]["encoder"]["bias"]
    with pytest.raises(loading.CheckpointMismatch) as error:
        restoring.restore_newest(copy, other)
    for part in (
        "params/encoder/kernel is (3, 40, 50) float32 instead of (3, 40, 51)",
        "params/decoder/bias is missing",
        "params/encoder/bias has no place",
    ):
        assert part in str(error.value)
    assert finished_steps.saved_steps(copy) == [10, 20, 30]


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "FORMAT", 3)
    checkpoints = saving.Checkpoints(tmp_path, keep=1)
    checkpoints.save(make_state(1), 1, {})
    checkpoints.wait()
    monkeypatch.undo()
    with pytest.raises(
        loading.CheckpointMismatch, match=r"newer version \(format 3; this one reads up to 2\)"
    ):
        restoring.restore_newest(tmp_path, template())


def test_a_relative_path_will_do(saved, monkeypatch):
    monkeypatch.chdir(saved.parent.parent)
    step = finished_steps.find_step(saved.parent.name)
    assert loading.read_params(step)[1]["step"] == 30
    relative = f"{saved.parent.name}/checkpoints"
    assert restoring.restore_newest(relative, template()).step == 30
    assert loading.restore(f"{relative}/20", template()).step == 20


def test_parts_that_come_and_go_are_named_in_the_log(saved, caplog):
    caplog.set_level(logging.INFO)
    like = template()
    like = {"params": like["params"], "ema": like["params"]}
    restored = restoring.restore_newest(saved, like)
    assert_equal(restored.state["ema"], make_state(30)["params"])
    assert f"{saved}/30 starts ema as a copy of params" in caplog.text
    assert f"{saved}/30 also holds opt_state, which this run has no place for" in caplog.text
    caplog.clear()
    restoring.restore_newest(saved, template())
    restoring.read_newest(saved, {"params": template()["params"]})  # who asks for a part knows
    assert caplog.text == ""
