"""Saving: what stays, what a failure costs, and that training may go on at once."""

from __future__ import annotations

import errno
import logging
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from process_group import ENVIRONMENT

from vmae_jax.checkpoints import finished_steps, loading, orbax_files, restoring, saving
from vmae_jax.processes.exit_codes import SETTINGS, exit_code

LOSS = "held_out/loss"


def make_state(seed: int) -> dict[str, jax.Array]:
    return {"w": jnp.full((4, 5), seed, jnp.float32), "step": jnp.asarray(seed, jnp.int32)}


def template(state=None) -> dict:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state or make_state(0)
    )


def save_all(checkpoints: saving.Checkpoints, steps, losses=()) -> None:
    losses = dict(losses)
    for step in steps:
        metrics = {LOSS: losses[step]} if step in losses else None
        checkpoints.save(make_state(step), step, {}, metrics)
    checkpoints.wait()


def test_the_best_survives_a_restart(tmp_path):
    rule = {"keep": 1, "keep_every": 4, "best_metric": LOSS}
    save_all(saving.Checkpoints(tmp_path, **rule), [1, 2, 3, 4], {1: 0.9, 2: 0.2, 3: 0.5})
    assert finished_steps.saved_steps(tmp_path) == [2, 4]
    save_all(saving.Checkpoints(tmp_path, **rule), [5, 6], {5: 0.3, 6: 0.4})
    assert finished_steps.saved_steps(tmp_path) == [2, 4, 6]
    save_all(saving.Checkpoints(tmp_path, **rule), [7], {7: 0.1})
    assert finished_steps.saved_steps(tmp_path) == [4, 7]
    assert loading.restore(tmp_path / "7", template()).info["metrics"] == {LOSS: 0.1}


# Training goes on.


def test_donating_the_state_at_once_does_no_harm(tmp_path):
    state = {"w": jnp.zeros((500, 1000)), "n": jnp.zeros((), jnp.int32)}
    like = template(state)
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = saving.Checkpoints(tmp_path, keep=9)
    for step in range(1, 6):
        state = advance(state)
        checkpoints.save(state, step, {})
        state = advance(advance(state))
    checkpoints.wait()
    for step in range(1, 6):
        restored = loading.restore(tmp_path / str(step), like).state
        np.testing.assert_array_equal(restored["w"], np.full((500, 1000), 3 * step - 2))
        assert int(restored["n"]) == 3 * step - 2


def test_a_step_in_flight_is_neither_listed_nor_disturbed_by_readers(tmp_path, monkeypatch):
    checkpoints = saving.Checkpoints(tmp_path, keep=9)
    save_all(checkpoints, [1])
    may_end, original, saved = threading.Event(), orbax_files.start_save, []

    def slow(*args):
        wait = original(*args)
        may_end.wait(60)
        saved.append(2)
        return wait

    monkeypatch.setattr(orbax_files, "start_save", slow)
    checkpoints.save(make_state(2), 2, {})
    assert saved == []  # it did not wait for the disk
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()  # of another save that takes its time
    assert finished_steps.saved_steps(tmp_path)[:1] == [1]
    assert loading.restore(tmp_path / "1", template()).step == 1
    assert finished_steps.find_step(tmp_path / "1") is not None
    assert (tmp_path / "3.orbax-checkpoint-tmp").exists()
    may_end.set()
    checkpoints.wait()
    assert finished_steps.saved_steps(tmp_path) == [1, 2]


def test_a_new_start_removes_what_was_not_finished(tmp_path):
    for name in ("3.orbax-checkpoint-tmp", "4.deleted", "5.corrupt-0", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    save_all(saving.Checkpoints(tmp_path, keep=1), [1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "5.corrupt-0", "notes"]


def test_a_saved_step_is_not_saved_again(tmp_path):
    checkpoints = saving.Checkpoints(tmp_path, keep=2)
    save_all(checkpoints, [1])
    before = (tmp_path / "1" / "_CHECKPOINT_METADATA").stat().st_mtime_ns
    checkpoints.save(make_state(5), 1, {})
    checkpoints.wait()
    assert (tmp_path / "1" / "_CHECKPOINT_METADATA").stat().st_mtime_ns == before
    assert int(loading.restore(tmp_path / "1", template()).state["step"]) == 1


def test_what_a_save_took_is_known(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    checkpoints = saving.Checkpoints(tmp_path, keep=2)
    assert checkpoints.last_save is None
    save_all(checkpoints, [1, 2])
    assert checkpoints.last_save.step == 2
    assert checkpoints.last_save.blocked > 0
    assert checkpoints.last_save.background > 0
    assert "checkpoint 2: " in caplog.text


# Failures.


def fail_to_write(monkeypatch, error: Exception, times: int) -> None:
    """The next so many saves fail in the background, half way."""
    original, left = orbax_files.start_save, [times]

    def start_save(path, tree, info):
        left[0] -= 1
        if left[0] < 0:
            return original(path, tree, info)

        def wait():
            half = path.parent / f"{path.name}.orbax-checkpoint-tmp"
            half.mkdir()
            (half / "data").write_bytes(b"half")
            raise error

        return wait

    monkeypatch.setattr(orbax_files, "start_save", start_save)


def test_two_failures_cost_two_checkpoints(tmp_path, monkeypatch, caplog):
    checkpoints = saving.Checkpoints(tmp_path, keep=9)
    save_all(checkpoints, [1])
    fail_to_write(monkeypatch, OSError(errno.ENOSPC, "no space"), times=2)
    save_all(checkpoints, [2, 3, 4])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "4"]
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert errors == [
        f"checkpoint {step} was not saved: No space left on device (OSError: [Errno 28] no space)"
        for step in (2, 3)
    ]
    fail_to_write(monkeypatch, OSError(errno.ENOSPC, "no space"), times=2)
    save_all(checkpoints, [5, 6, 7])  # they are counted anew
    assert finished_steps.saved_steps(tmp_path) == [1, 4, 7]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no space"),
        ValueError("RESOURCE_EXHAUSTED: no space [os_error_code='28']"),
        PermissionError(errno.EACCES, "closed"),
    ],
)
def test_the_third_in_a_row_ends_the_run(tmp_path, monkeypatch, error):
    checkpoints = saving.Checkpoints(tmp_path, keep=9)
    save_all(checkpoints, [1])
    fail_to_write(monkeypatch, error, times=3)
    for step in (2, 3, 4):
        checkpoints.save(make_state(step), step, {})
    with pytest.raises(saving.SaveFailed, match=r"checkpoint 4 .* 3rd failure in a row") as caught:
        checkpoints.save(make_state(5), 5, {})
    assert exit_code(caught.value) == SETTINGS
    checkpoints.close()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert restoring.restore_newest(tmp_path, template()).step == 1


def test_a_run_does_not_end_well_without_its_last_checkpoint(tmp_path, monkeypatch):
    checkpoints = saving.Checkpoints(tmp_path, keep=9)
    fail_to_write(monkeypatch, OSError(errno.ENOSPC, "no space"), times=1)
    checkpoints.save(make_state(1), 1, {})
    with pytest.raises(saving.SaveFailed, match=r"the last checkpoint is missing: .*no space"):
        checkpoints.wait()


def test_closing_after_another_error_only_logs(tmp_path, monkeypatch, caplog):
    checkpoints = saving.Checkpoints(tmp_path, keep=9)
    fail_to_write(monkeypatch, OSError(errno.ENOSPC, "no space"), times=1)
    checkpoints.save(make_state(1), 1, {})
    checkpoints.close()
    checkpoints.close()
    assert "checkpoint 1 was not saved: No space left on device (OSError" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_noticed_before(tmp_path, monkeypatch, caplog):
    checkpoints = saving.Checkpoints(tmp_path, keep=9)
    state = {"w": jnp.zeros(1_000_000)}  # 4 MB, so 4.4 MB are needed
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4_300_000))
    checkpoints.check_room(state)
    checkpoints.save(state, 1, {})
    checkpoints.save(state, 2, {})
    assert caplog.text.count("has 4 MB free, and a checkpoint takes up to 4 MB; make room") == 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4_500_000))
    save_all(checkpoints, [3])
    assert finished_steps.saved_steps(tmp_path) == [3]


def test_a_file_where_a_folder_should_be(tmp_path, caplog):
    (tmp_path / "run").write_text("a file")
    for directory in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        with pytest.raises(OSError, match="run") as caught:
            saving.Checkpoints(directory, keep=1)
        assert exit_code(caught.value) == SETTINGS
    checkpoints = saving.Checkpoints(tmp_path / "other", keep=1)
    (tmp_path / "other" / "1").write_text("a file")
    checkpoints.save(make_state(1), 1, {})
    assert "other/1 is a file, not a folder; move it away" in caplog.text
    save_all(checkpoints, [2])
    assert (tmp_path / "other" / "1").read_text() == "a file"


def test_a_folder_that_became_read_only(tmp_path, monkeypatch):
    checkpoints = saving.Checkpoints(tmp_path, keep=1)
    save_all(checkpoints, [1])

    def write_bytes(path, data):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", write_bytes)
    with pytest.raises(OSError, match="Read-only"):
        saving.Checkpoints(tmp_path, keep=1)
    checkpoints.save(make_state(2), 2, {})
    checkpoints.save(make_state(3), 3, {})
    with pytest.raises(saving.SaveFailed, match="Read-only") as caught:
        checkpoints.save(make_state(4), 4, {})
    assert caught.value.errno == errno.EROFS
    assert loading.restore(tmp_path / "1", template()).step == 1


NO_ROOM_FOR_FILES = """
import logging, pathlib, resource, sys
logging.basicConfig(stream=sys.stdout, format="LOG %(message)s")
from vmae_jax.checkpoints import saving
from vmae_jax.processes.exit_codes import exit_code
import jax.numpy as jnp, numpy as np
state = {"w": jnp.asarray(np.random.default_rng(0).standard_normal(100_000), jnp.float32)}
checkpoints = saving.Checkpoints(sys.argv[1], keep=2)
checkpoints.save(state, 1, {})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    for step in range(2, 9):
        checkpoints.save(state, step, {})
except OSError as error:
    print("ENDED", step, exit_code(error), error)
    sys.exit(exit_code(error))
finally:
    checkpoints.close()
"""


def test_a_disk_that_really_fails_ends_the_process_soon(tmp_path):
    """The system refuses files above 100 kB, as a full disk would."""
    result = subprocess.run(
        [sys.executable, "-c", NO_ROOM_FOR_FILES, str(tmp_path)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert result.returncode == SETTINGS, result.stderr[-2000:]
    assert "ENDED 5 78 [Errno 27] checkpoint 4 was not saved, the 3rd failure" in result.stdout
    assert result.stdout.count("LOG checkpoint") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    assert len(result.stderr) < 5000, result.stderr


def test_a_save_that_fails_leaves_no_echoes(tmp_path):
    """Of a full disk, in place of which files may not grow beyond a few bytes."""
    result = subprocess.run(
        [sys.executable, "-c", ECHOES, str(tmp_path)],
        capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert "failed with 27" in result.stdout, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


ECHOES = """
import resource, signal, sys
import jax.numpy as jnp
from vmae_jax.checkpoints import saving
from vmae_jax.processes.exit_codes import errno_of
checkpoints = saving.Checkpoints(sys.argv[1], keep=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
try:
    checkpoints.save({str(i): jnp.arange(9000.0) * i for i in range(60)}, 1, {})
    checkpoints.wait()
except OSError as error:
    print("failed with", error.errno)
"""
