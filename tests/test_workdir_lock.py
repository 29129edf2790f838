"""One trainer for one workdir."""

import errno
import json
import logging
import os
import socket

import pytest
from process_group import scripts

from vmae_jax.processes.exit_codes import exit_code
from vmae_jax.running import workdir_lock
from vmae_jax.running.workdir_lock import WorkdirInUse, lock_workdir


@pytest.fixture
def start():
    """(script, **Popen's) -> a Python process that runs it; killed at the end if it is not over."""
    with scripts() as start:
        yield start


HOLD = """
import sys
from vmae_jax.running.workdir_lock import lock_workdir
with lock_workdir({workdir!r}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_trainer_is_refused_and_told_who_has_the_workdir(start, tmp_path):
    workdir = tmp_path / "runs" / "a"  # made by the first
    holder = start(HOLD.format(workdir=str(workdir)))
    assert holder.stdout.readline() == "held\n"
    written = json.loads((workdir / ".lock").read_text())
    with pytest.raises(WorkdirInUse) as info, lock_workdir(workdir):
        pass
    assert (written["host"], written["pid"]) == (socket.gethostname(), holder.pid)
    for part in (repr(str(workdir)), socket.gethostname(), str(holder.pid), written["started"]):
        assert part in str(info.value)
    # a refused one leaves the holder's name as it is
    assert json.loads((workdir / ".lock").read_text()) == written


def test_a_killed_trainer_leaves_no_lock_but_its_name(start, tmp_path):
    holder = start(HOLD.format(workdir=str(tmp_path)))
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid
    with lock_workdir(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_the_lock_ends_with_its_context_also_after_an_error(tmp_path):
    with pytest.raises(KeyError), lock_workdir(tmp_path):
        raise KeyError
    with lock_workdir(tmp_path), pytest.raises(WorkdirInUse), lock_workdir(tmp_path):
        pass
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_damage_in_the_lock_file_does_not_matter(text, tmp_path):
    (tmp_path / ".lock").write_text(text)
    with lock_workdir(tmp_path):
        (tmp_path / ".lock").write_text(text)
        with pytest.raises(WorkdirInUse, match="just started"), lock_workdir(tmp_path):
            pass


@pytest.mark.parametrize("lock_file", [False, True], ids=["fresh", "used before"])
def test_a_workdir_that_cannot_be_written_is_refused(lock_file, start, tmp_path):
    if lock_file:
        (tmp_path / ".lock").touch()
        (tmp_path / ".lock").chmod(0o666)
    tmp_path.chmod(0o555)
    # "." as the folders above are closed to others, and nothing is closed to root
    process = start(
        """
        import os
        from vmae_jax.processes.exit_codes import exit_code
        from vmae_jax.running.workdir_lock import lock_workdir
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            with lock_workdir("."):
                print("held")
        except OSError as error:
            print(exit_code(error), type(error).__name__, error)
        """,
        cwd=tmp_path,
    )
    found = process.communicate()[0]
    assert found.startswith("78 PermissionError"), process.stderr
    assert "workdir='.' cannot be written to (Permission denied)" in found


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workdir_lock.tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match=r"workdir=.*No space left.*make room") as info:
        lock_workdir(tmp_path).__enter__()
    assert exit_code(info.value) == 78
    monkeypatch.undo()
    with lock_workdir(tmp_path):  # the refusal kept no lock
        pass


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir_lock.fcntl, "flock", no_locks)
    with lock_workdir(tmp_path):
        pass
    assert "No locks available" in caplog.text


def test_a_remote_workdir_is_not_locked_which_is_logged_once(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO), lock_workdir("gs://bucket/run"):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        "gs://bucket/run cannot be locked; see to it that only one trainer writes there"
    ]
    assert os.listdir(tmp_path) == []
