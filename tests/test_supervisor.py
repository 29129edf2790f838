"""The supervisor over tiny scripts in place of a trainer."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bucket import mount

from vmae_jax.running import supervisor
from vmae_jax.running.supervisor import newest_step, supervise

REPOSITORY = str(Path(supervisor.__file__).parents[1])

# Life number n of the child ends with the n-th of the given ends; "70+" has made a step before.
CHILD = """
import os, signal, sys
folder, *ends = sys.argv[1:]
life = len(os.listdir(folder + "/lives"))
open(f"{folder}/lives/{life}", "w").close()
end = ends[min(life, len(ends) - 1)]
if end.endswith("+"):
    os.mkdir(f"{folder}/checkpoints/{10 * (life + 1)}")
if end.startswith("SIG"):
    os.kill(os.getpid(), signal.Signals[end.rstrip("+")])
os._exit(int(end.rstrip("+")))
"""


class Run:
    """A child with a list of ends, in a folder that counts its lives."""

    def __init__(self, folder, ends):
        self.folder = folder
        for name in ("lives", "checkpoints"):
            (folder / name).mkdir()
        self.command = [sys.executable, "-S", "-c", CHILD, str(folder), *ends]
        self.slept = []

    def supervise(self, restarts, sleep=None):
        return supervise(
            self.command,
            restarts=restarts,
            progress=lambda: newest_step(str(self.folder / "checkpoints")),
            sleep=sleep or self.slept.append,
        )

    @property
    def lives(self):
        return len(os.listdir(self.folder / "lives"))


@pytest.mark.parametrize(
    ("ends", "code", "lives"),
    [
        (["0"], 0, 1),
        (["70", "0"], 0, 2),
        (["75", "0"], 0, 2),
        (["SIGKILL", "SIGABRT", "0"], 0, 3),
        (["137", "0"], 0, 2),  # killed below a shell
        (["76", "0"], 76, 1),
        (["77", "0"], 77, 1),
        (["78", "0"], 78, 1),
        (["1", "0"], 1, 1),
        (["130", "0"], 130, 1),  # Ctrl-C
        (["SIGINT", "0"], 130, 1),
        (["70", "76", "0"], 76, 2),
        (["70"], 70, 3),  # two restarts and no more
        (["70", "75", "SIGKILL"], 137, 3),
        (["70", "70", "70+", "70", "70", "0"], 70, 5),  # counted anew from the step on
        (["70", "70", "70+", "70", "0"], 0, 5),
        (["70+", "70+", "70+", "70+", "0"], 0, 5),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_a_run_is_started_again_when_that_may_help(ends, code, lives, tmp_path):
    run = Run(tmp_path, ends)
    assert run.supervise(restarts=2) == code
    assert run.lives == lives


def test_steps_done_again_are_no_progress(tmp_path):
    # each life reaches a step below the one that was reached at first
    reached = iter([0, 50, 40, 45, 50])
    run = Run(tmp_path, ["70"])
    code = supervise(
        run.command, restarts=2, progress=lambda: next(reached), sleep=run.slept.append
    )
    assert (code, run.lives) == (70, 3)


def test_zero_restarts_are_none_even_with_progress(tmp_path):
    run = Run(tmp_path, ["70+", "0"])
    assert run.supervise(restarts=0) == 70
    assert run.lives == 1


def test_pauses_grow_up_to_a_minute_and_start_anew_with_progress(tmp_path):
    run, pauses = Run(tmp_path, [*["70"] * 7, "70+", "0"]), []
    for line in record_lines(lambda: run.supervise(restarts=10)):
        pauses.append(float(line.split()[-2]))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 1]
    assert sum(run.slept) == pytest.approx(sum(pauses))


def record_lines(call):
    """What a call logs."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    supervisor.logger.addHandler(handler)
    try:
        call()
    finally:
        supervisor.logger.removeHandler(handler)
    return lines


def test_every_restart_is_one_line(tmp_path):
    run = Run(tmp_path, ["70+", "SIGKILL", "75"])
    assert record_lines(lambda: run.supervise(restarts=2)) == [
        "exit code 70 (crash) at step 10; restart 1 of 2 in 1 s",
        "killed by SIGKILL at step 10; restart 2 of 2 in 2 s",
        "exit code 75 (preempted, saved) at step 10; not started again: 2 restarts in a row "
        "brought no progress",
    ]


def test_what_is_not_retried_is_said_and_success_is_not(tmp_path):
    run = Run(tmp_path, ["76", "0"])
    assert record_lines(lambda: run.supervise(restarts=2)) == [
        "exit code 76 (loss or gradient not finite) at step 0; not started again"
    ]
    assert record_lines(lambda: run.supervise(restarts=2)) == []


@pytest.mark.parametrize("number", supervisor.PASSED_ON, ids=lambda number: number.name)
def test_signals_are_passed_on_once_and_nothing_is_started_again(number, tmp_path):
    # the child counts signals, and ends with 75, which by itself would be retried
    process = start_supervisor(
        f"""
        import os, signal, sys, time
        received = []
        signal.signal(signal.{number.name}, lambda *_: received.append(1))
        print("ready", os.getpid(), flush=True)
        while not received: time.sleep(0.01)
        time.sleep(0.3)
        print("received", len(received), flush=True)
        os._exit(75)
        """
    )
    with process:
        assert process.stdout.readline().startswith("ready")
        # the whole group, as a terminal's Ctrl-C does
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=60)
    assert output == "received 1\n"
    assert process.returncode == 75
    assert errors == f"exit code 75 (preempted, saved) at step 0 after {number.name}\n"


def start_supervisor(child):
    """A supervisor of that script, as a process and the leader of its group."""
    script = f"""
import sys, textwrap
from vmae_jax.running.supervisor import supervise
command = [sys.executable, "-S", "-c", textwrap.dedent({child!r})]
sys.exit(supervise(command, restarts=3, progress=lambda: 0))
"""
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env={**os.environ, "PYTHONPATH": REPOSITORY},
    )


def test_a_child_that_dies_of_the_signal_it_was_passed_is_not_started_again():
    process = start_supervisor('import time; print("ready", flush=True); time.sleep(60)')
    with process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        output, errors = process.communicate(timeout=60)
    assert output == ""
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == "killed by SIGTERM at step 0 after SIGTERM\n"


def test_a_signal_during_a_pause_ends_it(tmp_path):
    run, slices = Run(tmp_path, ["70"]), []

    def sleep(seconds):
        slices.append(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    assert run.supervise(restarts=3, sleep=sleep) == 70
    assert (run.lives, len(slices)) == (1, 1)


def test_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in supervisor.PASSED_ON]
    assert Run(tmp_path, ["0"]).supervise(restarts=1) == 0
    assert [signal.getsignal(number) for number in supervisor.PASSED_ON] == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_a_child_does_not_outlive_a_killed_supervisor():
    process = start_supervisor(
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    with process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        assert gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_stopped_child_is_killed_and_one_that_goes_on_is_not(monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_STOPPED", 3)
    script = """
import os, signal, subprocess, sys
me = os.getpid()
if sys.argv[1] == "goes on":
    subprocess.Popen(["sh", "-c", f"sleep 1.5; kill -CONT {me}"])
os.kill(me, signal.SIGSTOP)
"""
    command = [sys.executable, "-S", "-c", script]
    assert supervise([*command, "goes on"], restarts=0, progress=lambda: 0) == 0
    assert supervise([*command, "stays"], restarts=0, progress=lambda: 0) == 128 + signal.SIGKILL


def gone(pid, seconds=60):
    """Whether a process ends in time; a zombie has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_the_childs_output_is_the_supervisors_and_it_gets_no_input(capfd):
    script = (
        "import sys; print('out'); print('err', file=sys.stderr); print(repr(sys.stdin.read()))"
    )
    assert supervise([sys.executable, "-c", script], restarts=0, progress=lambda: 0) == 0
    assert capfd.readouterr() == ("out\n''\n", "err\n")


def test_a_command_that_cannot_be_started_is_an_error(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FileNotFoundError):
        supervise([str(tmp_path / "none")], restarts=5, progress=lambda: 0)
    assert signal.getsignal(signal.SIGTERM) == before


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="restarts=-1"):
        supervise(["true"], restarts=-1, progress=lambda: 0)
    errors = []

    def call():
        with contextlib.suppress(ValueError):
            supervise(["true"], restarts=0, progress=lambda: 0)
            return
        errors.append("refused")

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert errors == ["refused"]


def test_the_newest_step_is_that_of_finished_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    assert newest_step(str(folder)) == 0
    folder.mkdir()
    assert newest_step(str(folder)) == 0
    for name in ("900", "1000", "1100.orbax-checkpoint-tmp", "1200.corrupt-0"):
        (folder / name).mkdir()
    assert newest_step(str(folder)) == 1000


def test_the_newest_step_of_a_bucket_is_that_of_now(monkeypatch):
    files, folder = mount(monkeypatch), "gs://bucket/run/checkpoints"
    assert newest_step(folder) == 0
    for before, step in ((0, 900), (900, 1000), (1000, 1100)):
        files.pipe(f"{folder}/{step}/_CHECKPOINT_METADATA", b"")
        assert newest_step(folder) == before  # not all of it is there yet
        files.pipe(f"{folder}/{step}/commit_success.txt", b"")
        assert newest_step(folder) == step


@pytest.mark.parametrize("kind", [OSError, Exception])  # stores have errors of their own
def test_a_folder_that_cannot_be_read_just_now_is_no_progress(kind, monkeypatch, caplog):
    def unreachable(_):
        raise kind("stale file handle")

    monkeypatch.setattr(supervisor, "newest_first", unreachable)
    assert newest_step("runs/a/checkpoints") == 0
    assert "stale file handle" in caplog.text
