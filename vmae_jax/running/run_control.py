"""What can end a run from outside or from within: a scheduler's signal, and a step that hangs.

Neither may be handled the obvious way. With several processes a Python handler for SIGTERM would
replace the one by which JAX agrees on a common last step; and a hanging step may hold Python's
lock, so that only the kernel can end it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import math
import signal
from collections.abc import Iterator, Sequence

from vmae_jax.errors import SettingError
from vmae_jax.processes.exit_codes import PREEMPTED

logger = logging.getLogger(__name__)


class Preempted(Exception):
    """The run ends before its last step because it was asked to; all is saved."""

    exit_code = PREEMPTED

    def __init__(self, step: int):
        super().__init__(f"saved at step {step}; the same command goes on from there.")


class Preemption:
    """Whether the scheduler has asked the run to save and end.

        with Preemption(jax.process_count()) as preemption:
            for step in ...:
                ...
                if preemption.requested(step): ...  # save, leave

    The signal does nothing by itself, and another one does not cut the save short. Ctrl-C is left
    as it is.

    Args:
      process_count: of the run. One process listens itself, in its main thread, while the context
        is open. Several rely on JAX, whose `jax.distributed.initialize` comes first.
      signals: to listen for, of SIGTERM, SIGUSR1 and SIGUSR2 (some sites have SLURM send one of
        those); several processes hear SIGTERM only.
    """

    def __init__(
        self, process_count: int = 1, signals: Sequence[signal.Signals] = (signal.SIGTERM,)
    ):
        known = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        known = known[:1] if process_count > 1 else known
        if unknown := [number for number in signals if number not in known]:
            raise SettingError(
                f"signals={unknown} cannot be listened for by process_count={process_count}; "
                f"choose from {[number.name for number in known]}."
            )
        self._process_count = process_count
        self._signals = signals if process_count == 1 else ()
        self._restore = contextlib.ExitStack()
        self._received = 0

    def __enter__(self) -> Preemption:
        for number in self._signals:
            before = signal.signal(number, self._receive)
            # None: a handler that Python did not install, and cannot put back
            self._restore.callback(signal.signal, number, before or signal.SIG_DFL)
        return self

    def __exit__(self, *_) -> None:
        self._restore.close()

    def _receive(self, number: int, _) -> None:
        # No lock, no event, no logging: a second signal may interrupt this very line.
        self._received = number

    def requested(self, step: int) -> bool:
        """Whether to save now and end; asked once after every step.

        Args:
          step: that was done. All processes ask for the same ones and get the same answer, a step
            or more after the signal.
        """
        if self._process_count == 1:
            return self._received != 0
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


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
