"""What can end a run from outside or from within: a scheduler's signal, Ctrl-C, a step that hangs.

None of them is handled the obvious way. With several processes a Python handler for SIGTERM would
replace the one by which JAX agrees on a common last step; and a hanging step may hold Python's
lock, so that only the kernel can end it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator

from vmae_jax.errors import SettingError
from vmae_jax.processes.exit_codes import INTERRUPTED, PREEMPTED

logger = logging.getLogger(__name__)


class Preempted(Exception):
    """The run ends before its last step because it was asked to; all is saved."""

    exit_code = PREEMPTED

    def __init__(self, step: int):
        super().__init__(f"saved at step {step}; the same command goes on from there.")


class Interrupted(Preempted):
    """Likewise, and by Ctrl-C: it is not started again."""

    exit_code = INTERRUPTED

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it in a notebook, in place of the stack."""
        return [f"{type(self).__name__}: {self}"]


class Preemption:
    """Whether the run was asked to save and end, by the scheduler (SIGTERM) or by Ctrl-C.

        with Preemption(jax.process_count()) as preemption:
            for step in ...:
                ...
                if preemption.requested(step):
                    ...  # save
                    raise preemption.error(step)

    The signals do nothing by themselves. Another SIGTERM does not cut the save short, and another
    Ctrl-C does: it is KeyboardInterrupt at once.

    Args:
      process_count: of the run. One process listens itself, while the context is open: in its main
        thread, as in others Python hears no signals, and to Ctrl-C where it is not ignored, as by
        what a shell starts in the background. Several rely on JAX for SIGTERM, whose
        `jax.distributed.initialize` comes first, and leave Ctrl-C as it is.
    """

    def __init__(self, process_count: int = 1):
        self._process_count = process_count
        self._restore = contextlib.ExitStack()
        self._terminated = self._interrupted = False

    def __enter__(self) -> Preemption:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self._process_count == 1 and in_main_thread:
            self._listen(signal.SIGTERM, self._terminate)
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                self._listen(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_) -> None:
        self._restore.close()

    def _listen(self, number: signal.Signals, handler: Callable) -> None:
        before = signal.signal(number, handler)
        # None: a handler that Python did not install, and cannot put back
        self._restore.callback(signal.signal, number, before or signal.SIG_DFL)

    # No lock, no event, no logging in these: a second signal may interrupt any line of them.

    def _terminate(self, *_) -> None:
        self._terminated = True

    def _interrupt(self, *_) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def requested(self, step: int) -> bool:
        """Whether to save now and end; asked once after every step.

        Args:
          step: that was done. All processes ask for the same ones and get the same answer, a step
            or more after the signal.
        """
        if self._process_count == 1:
            return self._terminated or self._interrupted
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    @property
    def error(self) -> type[Preempted]:
        """What the run ends with once it has saved: Interrupted after Ctrl-C, else Preempted."""
        return Interrupted if self._interrupted else Preempted


class StuckWatchdog:
    """Ends the process with SIGALRM, after the stacks of all its threads, if a step takes too long.

        with StuckWatchdog(600) as watchdog:
            for step in ...:
                ...
                watchdog.alive()
                if saves:
                    with watchdog.paused(): ...

    The kernel does both, so it also works where Python itself is stuck. (The timer of
    `faulthandler` would end with code 1, as a wrong flag does, which no one should retry.)

    Args:
      seconds: from one `alive` to the next; 0 switches it off.
      long_seconds: until the first `alive`, as something is compiled before, and while paused;
        never less than `seconds`.
    """

    def __init__(self, seconds: float, *, long_seconds: float = 3600):
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise SettingError(f"seconds={seconds} is no limit; choose 0 (none) or more.")
        self._seconds = seconds
        self._long_seconds = max(long_seconds, seconds)
        self._pauses = 0

    def __enter__(self) -> StuckWatchdog:
        if self._seconds:
            # by number, as a test or a notebook may have put something else for sys.stderr; chain:
            # the handler before, which is the system's own, then ends the process
            faulthandler.register(signal.SIGALRM, file=2, all_threads=True, chain=True)
            signal.setitimer(signal.ITIMER_REAL, self._long_seconds)
            logger.info(
                "a step of more than %g s ends the run, with SIGALRM and all stacks", self._seconds
            )
        return self

    def __exit__(self, *_) -> None:
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.unregister(signal.SIGALRM)

    def alive(self) -> None:
        """Starts the time anew."""
        if self._seconds:
            limit = self._long_seconds if self._pauses else self._seconds
            signal.setitimer(signal.ITIMER_REAL, limit)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Allows `long_seconds` for what is done inside (saving, evaluating)."""
        self._pauses += 1
        self.alive()
        try:
            yield
        finally:
            self._pauses -= 1
            self.alive()
