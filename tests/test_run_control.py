"""Preemption, Ctrl-C and the watchdog."""

import os
import signal
import threading

import pytest
from process_group import scripts

from vmae_jax.processes import exit_codes
from vmae_jax.processes.exit_codes import exit_code
from vmae_jax.running.run_control import Interrupted, Preempted, Preemption, StuckWatchdog


@pytest.fixture
def start():
    """(script, **Popen's) -> a Python process that runs it; killed at the end if it is not over."""
    with scripts() as start:
        yield start


# Preemption

TRAIN = """
import sys, time
from vmae_jax.running.run_control import Preemption
with Preemption() as preemption:
    for step in range(1, 10_000):
        print(step, flush=True)
        time.sleep(0.01)
        if preemption.requested(step):
            print("saving", flush=True)
            sys.stdin.readline()
            print("saved", flush=True)
            sys.exit(preemption.error.exit_code)
"""


def test_a_signal_ends_the_run_after_a_step_and_a_second_one_does_not_cut_the_save(start):
    process = start(TRAIN)
    assert process.stdout.readline() == "1\n"
    process.terminate()
    while process.stdout.readline() != "saving\n":
        assert process.poll() is None
    for _ in range(3):
        process.terminate()
    assert process.communicate("go on\n")[0] == "saved\n"
    assert process.returncode == 75


def test_ctrl_c_ends_the_run_after_a_step_with_a_code_of_its_own(start):
    process = start(TRAIN)
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGINT)
    while process.stdout.readline() != "saving\n":
        assert process.poll() is None
    process.terminate()  # a scheduler's signal besides does not make it a preemption
    output, errors = process.communicate("go on\n")
    assert (output, errors, process.returncode) == ("saved\n", "", 130)
    assert not exit_codes.is_retried(process.returncode)


def test_a_second_ctrl_c_interrupts_at_once(start):
    process = start(TRAIN)
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGINT)
    while process.stdout.readline() != "saving\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert "saved" not in output
    assert "KeyboardInterrupt" in errors
    code = exit_codes.from_returncode(process.returncode)
    assert exit_codes.describe(code) == "exit code 130 (interrupted)"
    assert not exit_codes.is_retried(code)


def test_nothing_is_requested_before_a_signal_and_handlers_are_put_back():
    def mine(*_):
        pass

    before = signal.getsignal(signal.SIGINT)
    default = signal.signal(signal.SIGTERM, mine)
    try:
        for number, error in ((signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted)):
            with Preemption() as preemption:
                assert not preemption.requested(1)
                os.kill(os.getpid(), number)
                assert preemption.requested(2)
                assert preemption.requested(3)
                assert preemption.error is error
            assert signal.getsignal(signal.SIGTERM) is mine
            assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGTERM, default)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_where_ctrl_c_is_ignored_it_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not preemption.requested(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.error is Preempted
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_trains_without_hearing_signals():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    found = []

    def train():
        with Preemption() as preemption:
            found.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)])
            found.append(preemption.requested(1))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [before, False]


def test_what_ends_the_run_says_so_in_one_line_in_a_notebook_too():
    error = Interrupted(7)
    assert str(error) == "saved at step 7; the same command goes on from there."
    assert error._render_traceback_() == [f"Interrupted: {error}"]
    assert isinstance(error, Preempted)
    assert exit_code(error) == 130
    assert exit_code(Preempted(7)) == 75


def test_several_processes_leave_signals_to_jax_and_ask_it_at_every_step(monkeypatch):
    from jax.experimental import multihost_utils

    asked = []
    monkeypatch.setattr(
        multihost_utils,
        "reached_preemption_sync_point",
        lambda step: asked.append(step) or step > 1,
    )
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with Preemption(2) as preemption:
        assert [signal.getsignal(number) for number in numbers] == before
        assert [preemption.requested(step) for step in (1, 2)] == [False, True]
    assert asked == [1, 2]


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
