"""Exit codes, the lock of a workdir, preemption and the watchdog."""

import contextlib
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vmae_jax.data.bad_clips import TooManyBadClips
from vmae_jax.processes import exit_codes
from vmae_jax.processes.exit_codes import exit_code
from vmae_jax.running import workdir_lock
from vmae_jax.running.run_control import Preemption, StuckWatchdog
from vmae_jax.running.workdir_lock import WorkdirInUse, lock_workdir

REPOSITORY = str(Path(exit_codes.__file__).parents[1])


@pytest.fixture
def start():
    """(script, **Popen's) -> a Python process that runs it; killed at the end if it is not over."""
    with contextlib.ExitStack() as stack:

        def start(script, **options):
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(script)],
                text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": REPOSITORY},
                **options,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


# Exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FloatingPointError("loss=nan"), 76),
        (ValueError("image_size=225 is not a multiple of patch_size=16."), 78),
        (TypeError("make_source() got an unexpected keyword argument 'sped'"), 78),
        (OSError(errno.ENOSPC, "No space left on device"), 78),
        (OSError(errno.EROFS, "Read-only file system"), 78),
        (OSError(errno.EACCES, "Permission denied"), 78),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 78),
        (TooManyBadClips("500 of 1000"), 78),
        (WorkdirInUse("workdir='a'"), 78),
        (ImportError("Please install gcsfs to access Google Storage"), 78),
        (OSError(errno.EIO, "Input/output error"), 70),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 70),
        (RuntimeError("anything"), 70),
        (MemoryError(), 70),
        # the last three: texts and types as JAX 0.10.2 and Orbax 0.12.8 raised them, when the other
        # of two processes was killed, on a full tmpfs, and (shortened) for a device out of memory
        (
            ValueError(
                "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:538] "
                "Read error [127.0.0.1]:7393: Connection reset by peer"
            ),
            70,
        ),
        (
            ValueError(
                'RESOURCE_EXHAUSTED: Failed writing: "/w/1.orbax-checkpoint-tmp/d/e34": Failed to '
                "write 5312512 bytes to file 7: No space left on device [os_error_code='28']"
            ),
            78,
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."), 70),
    ],
    ids=lambda value: str(value)[:40],
)
def test_exit_codes_tell_machines_from_settings(error, code):
    assert exit_code(error) == code


def test_an_unusable_checkpoint_has_its_own_code():
    checkpoint = pytest.importorskip("vmae_jax.checkpoints.checkpoint")
    assert exit_code(loading.CheckpointError("damaged")) == 77
    assert exit_code(loading.CheckpointMismatch("another model")) == 77


def test_codes_are_known_without_jax(start):
    process = start("""
        import sys
        from vmae_jax.running import run_control, supervisor
        from vmae_jax.processes.exit_codes import exit_code
        print(exit_code(FloatingPointError()), exit_code(KeyError()))
        heavy = {"jax", "flax", "orbax", "numpy", "vmae_jax.checkpoints.checkpoint"}
        print(heavy & set(sys.modules))
    """)
    assert process.communicate()[0].splitlines() == ["76 70", "set()"], process.stderr


def test_only_crashes_preemptions_and_signals_are_retried():
    retried = [code for code in range(256) if exit_codes.is_retried(code)]
    signals = sorted(128 + number for number in signal.Signals)  # as shells count
    assert retried == [70, 75, *signals]


def test_codes_are_described():
    killed = exit_codes.from_returncode(-signal.SIGKILL)
    assert killed == 137
    assert exit_codes.describe(killed) == "killed by SIGKILL"
    assert exit_codes.describe(70) == "exit code 70 (crash)"
    assert exit_codes.describe(142) == "killed by SIGALRM (a step took too long)"
    assert exit_codes.describe(3) == "exit code 3"
    assert exit_codes.from_returncode(76) == 76


# The lock

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


# Preemption

TRAIN = """
import signal, sys, time
from vmae_jax.running.run_control import Preemption
with Preemption(signals={signals}) as preemption:
    for step in range(1, 10_000):
        print(step, flush=True)
        time.sleep(0.01)
        if preemption.requested(step):
            print("saving", flush=True)
            sys.stdin.readline()
            print("saved", flush=True)
            sys.exit(75)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_ends_the_run_after_a_step_and_a_second_one_does_not_cut_the_save(name, start):
    process = start(TRAIN.format(signals=f"[signal.{name}]"))
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.Signals[name])
    while process.stdout.readline() != "saving\n":
        assert process.poll() is None
    for _ in range(3):
        process.send_signal(signal.Signals[name])
    assert process.communicate("go on\n")[0] == "saved\n"
    assert process.returncode == 75


def test_ctrl_c_still_interrupts_at_once(start):
    process = start(TRAIN.format(signals="[signal.SIGTERM]"))
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert "saving" not in output
    assert "KeyboardInterrupt" in errors


def test_nothing_is_requested_before_a_signal_and_handlers_are_put_back():
    def mine(*_):
        pass

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGUSR1, mine)
    try:
        with Preemption(signals=numbers[:2]) as preemption:
            assert not preemption.requested(1)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert preemption.requested(2)
            assert preemption.requested(3)
            assert signal.getsignal(signal.SIGINT) == before[2]
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert signal.getsignal(signal.SIGTERM) == before[0]
    finally:
        signal.signal(signal.SIGUSR1, before[1])


def test_several_processes_leave_the_signal_to_jax_and_ask_it_at_every_step(monkeypatch):
    from jax.experimental import multihost_utils

    asked = []
    monkeypatch.setattr(
        multihost_utils,
        "reached_preemption_sync_point",
        lambda step: asked.append(step) or step > 1,
    )
    before = signal.getsignal(signal.SIGTERM)
    with Preemption(2) as preemption:
        assert signal.getsignal(signal.SIGTERM) == before
        assert [preemption.requested(step) for step in (1, 2)] == [False, True]
    assert asked == [1, 2]


@pytest.mark.parametrize(("count", "number"), [(1, signal.SIGINT), (2, signal.SIGUSR1)])
def test_signals_that_cannot_be_listened_for_are_refused(count, number):
    with pytest.raises(ValueError, match=r"signals=.*choose from \['SIGTERM'"):
        Preemption(count, [number])


# The watchdog


def test_a_hanging_step_ends_the_process_with_the_stacks_of_all_threads(start):
    process = start("""
        import threading
        from vmae_jax.running.run_control import StuckWatchdog
        def decoding(): threading.Event().wait()
        def hanging(): threading.Event().wait()
        threading.Thread(target=decoding, daemon=True).start()
        with StuckWatchdog(0.3) as watchdog:
            watchdog.alive()
            hanging()
    """)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGALRM
    assert "in hanging" in errors
    assert "in decoding" in errors
    assert exit_codes.is_retried(exit_codes.from_returncode(process.returncode))


def test_a_step_that_holds_pythons_lock_is_ended_too(start):
    # PyDLL keeps the lock during the call: no other thread of Python's can run
    process = start("""
        import ctypes
        from vmae_jax.running.run_control import StuckWatchdog
        def hanging(): ctypes.PyDLL(None).sleep(60)
        with StuckWatchdog(0.3) as watchdog:
            watchdog.alive()
            hanging()
    """)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGALRM
    assert "in hanging" in errors


@pytest.mark.parametrize(
    "body",
    [
        "for _ in range(8): watchdog.alive(); time.sleep(0.2)",
        "time.sleep(1.5)",  # nothing was done yet: the first step is compiled
        "watchdog.alive()\n    with watchdog.paused(): time.sleep(1.5)",
        "watchdog.alive()\n    with watchdog.paused(): watchdog.alive(); time.sleep(1.5)",
        "with watchdog.paused():\n        with watchdog.paused(): pass\n        time.sleep(1.5)",
    ],
    ids=["steps", "compiling", "saving", "alive while saving", "nested"],
)
def test_what_may_take_its_time_is_left_alone(body, start):
    script = "import time\nfrom vmae_jax.running.run_control import StuckWatchdog\n"
    process = start(f"{script}with StuckWatchdog(1) as watchdog:\n    {body}\ntime.sleep(1.2)")
    errors = process.communicate(timeout=60)[1]  # the last sleep: none is armed afterwards
    assert process.returncode == 0, errors


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        ("0.3", "with watchdog.paused(): pass\n    time.sleep(60)"),
        ("0.3, long_seconds=0.5", "with watchdog.paused(): time.sleep(60)"),
        ("0.3, long_seconds=0.5", "time.sleep(60)"),
    ],
    ids=["after a pause", "saving for ever", "compiling for ever"],
)
def test_pauses_and_the_first_step_have_their_limits(limits, body, start):
    script = "import time\nfrom vmae_jax.running.run_control import StuckWatchdog\n"
    process = start(f"{script}with StuckWatchdog({limits}) as watchdog:\n    {body}")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGALRM


def test_zero_seconds_switch_the_watchdog_off():
    before = signal.getsignal(signal.SIGALRM)
    with StuckWatchdog(0) as watchdog:
        watchdog.alive()
        with watchdog.paused():
            assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == before


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_limits_that_are_none_are_refused(seconds):
    with pytest.raises(ValueError, match=f"seconds={seconds}"):
        StuckWatchdog(seconds)
