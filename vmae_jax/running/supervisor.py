"""Starts a run, and starts it again when it dies of something that a new start may mend.

    code = supervise([sys.executable, "train.py", ...], restarts=3,
                     progress=lambda: newest_step("runs/a/checkpoints"))

It stands outside the run and wakes no devices: a process that aborts, or is killed for its memory,
cannot restart itself. Call it in the main thread: only there signals arrive, and on Linux a child
that is to end with its parent ends with the thread that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence

from vmae_jax.checkpoints.finished_steps import newest_first
from vmae_jax.errors import SettingError
from vmae_jax.processes import exit_codes

logger = logging.getLogger(__name__)

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
MAX_PAUSE = 60.0  # seconds
MAX_STOPPED = 60  # seconds
_SLICE = 0.1  # seconds; how fast a signal ends a pause


def supervise(
    command: Sequence[str],
    *,
    restarts: int,
    progress: Callable[[], int],
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Runs a command until it is done, is asked to stop, or fails for good.

    It is started again after a crash, a preemption, or death by a signal other than Ctrl-C's (see
    `exit_codes`), after 1, 2, 4, ... seconds. One that stands still (SIGSTOP) for a minute is
    killed: nothing in it can end it, and the other processes of its run have left it behind. A
    signal to this process is passed on to the command, and whatever the command makes of it, that
    was its last start. If this process dies, so does the command.

    Args:
      command: program and arguments; the program itself, not a shell around it, which would take
        the signals. It inherits the output and the environment; it gets no input, and a process
        group of its own, as the terminal's Ctrl-C would reach it twice otherwise.
      restarts: in a row without progress; 0 for none at all.
      progress: the step up to which a new start would find the work done.
      sleep: waits for some seconds.
    Returns:
      The last exit code of the command; 128 + n after death by signal n.
    Raises:
      ValueError: for negative `restarts`, or outside the main thread.
      OSError: if the command cannot be started.
    """
    if restarts < 0:
        raise SettingError(f"restarts={restarts} is negative; choose 0 for none.")
    if threading.current_thread() is not threading.main_thread():
        raise SettingError(
            f"{threading.current_thread()} cannot supervise; call it in the main one."
        )
    furthest, in_a_row = progress(), 0
    with _Runner() as runner:
        while True:
            code = runner.run(command)
            what = exit_codes.describe(code)
            if (step := progress()) > furthest:
                furthest, in_a_row = step, 0
            if runner.stopped_by is not None:
                logger.warning("%s at step %d after %s", what, step, runner.stopped_by.name)
                return code
            if not exit_codes.is_retried(code):
                if code != exit_codes.DONE:
                    logger.error("%s at step %d; not started again", what, step)
                return code
            if in_a_row == restarts:
                logger.error(
                    "%s at step %d; not started again: %d restarts in a row brought no progress",
                    what, step, restarts,
                )  # fmt: skip
                return code
            pause = min(2.0**in_a_row, MAX_PAUSE)
            in_a_row += 1
            logger.warning(
                "%s at step %d; restart %d of %d in %g s", what, step, in_a_row, restarts, pause
            )
            while pause > 0 and runner.stopped_by is None:
                sleep(min(pause, _SLICE))
                pause -= _SLICE
            if runner.stopped_by is not None:
                return code


def newest_step(checkpoints: str) -> int:
    """The newest finished step in a run's folder of checkpoints, local or remote.

    0 if there is none, or the folder cannot be read just now, which then counts as no progress.
    """
    try:
        return next(newest_first(checkpoints), 0)
    except Exception as error:  # stores raise what they like, and the run is more than this number
        logger.warning("%s cannot be read (%s: %s)", checkpoints, type(error).__name__, error)
        return 0


class _Runner(contextlib.ExitStack):
    """Runs one command at a time, and passes signals on to it while the context is open."""

    def __init__(self):
        super().__init__()
        self.stopped_by: signal.Signals | None = None
        self._process: subprocess.Popen | None = None
        self._unsent: deque[int] = deque()

    def __enter__(self) -> _Runner:
        for number in PASSED_ON:
            before = signal.signal(number, self._receive)
            self.callback(signal.signal, number, before or signal.SIG_DFL)
        return self

    def run(self, command: Sequence[str]) -> int:
        with warnings.catch_warnings():
            # JAX, once imported, warns of any fork for fear of its threads; here it has none yet
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                process_group=0,
                preexec_fn=functools.partial(_die_with_parent, os.getpid())
                if sys.platform == "linux"
                else None,
            )
        self._process = process
        try:
            self._send()  # what arrived while it was started
            _wait_while_it_moves(process)
            return exit_codes.from_returncode(process.wait())
        finally:
            self._process = None
            if process.returncode is None:  # an error of our own
                process.kill()
                process.wait()

    def _receive(self, number: int, _) -> None:
        self.stopped_by = signal.Signals(number)
        self._unsent.append(number)
        self._send()

    def _send(self) -> None:
        # each is sent once, though a signal may interrupt this and send them itself
        while self._process is not None and self._unsent:
            with contextlib.suppress(IndexError):
                self._process.send_signal(self._unsent.popleft())


def _wait_while_it_moves(process: subprocess.Popen) -> None:
    """Until the process has ended, or has been killed for standing still."""
    if sys.platform != "linux":
        return
    events, standing = os.WEXITED | os.WSTOPPED | os.WNOWAIT, 0
    # a signal handler may have reaped it: `send_signal` looks whether it has ended
    with contextlib.suppress(ChildProcessError):
        while standing < MAX_STOPPED:
            # counted, not timed: where all are stopped, as by `scontrol suspend`, this one is too
            found = os.waitid(os.P_PID, process.pid, events | (os.WNOHANG if standing else 0))
            if found is None:
                standing = 0
            elif found.si_code != os.CLD_STOPPED:
                return
            else:
                standing += 1
                time.sleep(1)
        logger.warning("stopped for %d s; it is killed", MAX_STOPPED)
        process.kill()


_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # found before the fork


def _die_with_parent(parent: int) -> None:
    """In the child, before its program: SIGKILL, as nothing less is certain to end it."""
    pr_set_pdeathsig = 1
    _PRCTL(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that line
        os._exit(exit_codes.CRASH)
