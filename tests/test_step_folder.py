"""The folder of checkpoints: what is left over goes, and a bucket is taken for what it is."""

from __future__ import annotations

import errno

import pytest
from bucket import mount

from vmae_jax.checkpoints import finished_steps, orbax_files
from vmae_jax.checkpoints.retention import Retention
from vmae_jax.checkpoints.step_folder import StepFolder, failure_of


@pytest.fixture
def bucket(monkeypatch):
    """A function (name, bytes) that puts a file into gs://bucket."""
    files = mount(monkeypatch)
    return lambda name, data: files.pipe(f"gs://bucket/{name}", data)


def test_what_a_failed_save_writes_late_goes_with_the_next_save(tmp_path):
    step_folder = StepFolder(tmp_path, Retention(2))
    (tmp_path / f"5{orbax_files.TEMPORARY}" / "state").mkdir(parents=True)
    step_folder.remove_unfinished(5)
    (tmp_path / f"5{orbax_files.TEMPORARY}" / "state").mkdir(parents=True)
    step_folder.tidy(6, {})
    assert not any(tmp_path.iterdir())


def test_the_reason_of_the_system_is_named_however_long_the_message():
    path = "/a/long/path" * 40
    failure = failure_of(ValueError(f"RESOURCE_EXHAUSTED: {path} [os_error_code='28']"))
    assert failure.errno == errno.ENOSPC
    assert failure.message.startswith("No space left on device (ValueError: RESOURCE_EXHAUSTED: /a")
    assert failure_of(OSError(errno.EROFS, "Read-only file system")).message == (
        "OSError: [Errno 30] Read-only file system"
    )


def test_steps_of_a_bucket(bucket):
    root = "gs://bucket/run/checkpoints"
    assert finished_steps.saved_steps(root) == []
    StepFolder(root, Retention(2)).open()  # where nothing is yet
    for step in (1, 2, 3, 4):
        bucket(f"run/checkpoints/{step}/_CHECKPOINT_METADATA", b"{}")
        bucket(f"run/checkpoints/{step}/state/data", b"x")
        if step != 3:  # which is still being written, or was when its writer was killed
            bucket(f"run/checkpoints/{step}/commit_success.txt", b"")
    assert finished_steps.saved_steps(root) == [1, 2, 4]
    assert str(finished_steps.find_step("gs://bucket/run")) == f"{root}/4"
    step_folder = StepFolder(root, Retention(2))
    assert step_folder.lack_of_room(10**18) is None
    step_folder.open()
    assert not (step_folder.path(3) / "state" / "data").exists()
    assert step_folder.obstacle(4, 10) is True
    assert step_folder.obstacle(5, 10) is False
    step_folder.tidy(4, {})
    assert finished_steps.saved_steps(root) == [2, 4]
    assert not (step_folder.path(1) / "_CHECKPOINT_METADATA").exists()
    step_folder.remove_unfinished(4)
    assert finished_steps.saved_steps(root) == [2, 4]
