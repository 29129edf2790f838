"""A profile of some steps of a run, for XProf and Perfetto."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable

from vmae_jax.errors import SettingError
from vmae_jax.files.storage import join, list_files, read_bytes, write_bytes

logger = logging.getLogger(__name__)


class Profile:
    """Traces the steps of a range.

        with Profile("100:105", os.path.join(workdir, "profile")) as profile:
            for step in ...:
                profile.before(step)
                state, metrics = train_step(state, batch)
                profile.after(step, lambda: jax.block_until_ready(metrics))

    Every process writes its own devices' trace. The first steps of a start compile, and are a poor
    choice. A start that goes on from a later step has nothing to trace; from one within the range,
    what is left of it.

    A trace that cannot be taken or written is a warning: it is not worth a run.

    Args:
      steps: "first:last", both traced, counted from 1 as in the log; "" for none.
      folder: local or remote; gets `plugins/profile/<time>/`.
    Raises:
      ValueError: for any other text.
    """

    def __init__(self, steps: str, folder: str | os.PathLike):
        self._first, self._last = _read_range(steps) if steps else (1, 0)
        self._folder = os.fspath(folder)
        self._cleanup = contextlib.ExitStack()
        self._local = ""
        self._running = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    @property
    def running(self) -> bool:
        """Whether a trace is being taken."""
        return self._running

    def before(self, step: int) -> None:
        """Starts the trace, if this step is in the range."""
        if not self._running and self._first <= step <= self._last:
            self._try(self._start)

    def after(self, step: int, wait: Callable[[], object]) -> None:
        """Ends the trace, if this step is the last in the range.

        Args:
          step: as `before` was told.
          wait: blocks until the devices have done the step; called in that case only.
        """
        if self._running and step >= self._last:
            wait()
            self._stop()

    def _start(self) -> None:
        import jax

        # JAX cannot write to every store, and stays in mid-trace where it cannot write
        self._local = self._cleanup.enter_context(tempfile.TemporaryDirectory())
        jax.profiler.start_trace(self._local)
        self._running = True

    def _stop(self) -> None:
        if self._running:
            self._running = False
            self._try(self._write)
            self._cleanup.close()

    def _write(self) -> None:
        import jax

        jax.profiler.stop_trace()
        for name in list_files(self._local):
            path = join(self._local, name)
            write_bytes(join(self._folder, name), read_bytes(path, os.path.getsize(path)))
        logger.info("profile: %s, for XProf and ui.perfetto.dev", self._folder)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # of the profiler, the disk, or a remote store
            self._last = 0  # once is enough
            logger.warning("no profile: %s", " ".join(str(error).split()))


def _read_range(steps: str) -> tuple[int, int]:
    first, _, last = steps.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise SettingError(
            f"profile={steps!r} is not first:last with 1 <= first <= last; try 100:105."
        )
    return int(first), int(last)
