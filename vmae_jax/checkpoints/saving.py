"""Writing the checkpoints of a run, in the background; `restoring` reads them.

A save that fails costs one interval, not the run: it is said in one line, what it left is removed,
and the next one is tried. Only the third in a row ends the run.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from vmae_jax.checkpoints import orbax_files
from vmae_jax.checkpoints.checkpoint_info import array_types, checksum
from vmae_jax.checkpoints.fingerprints import start_fingerprint, to_plain
from vmae_jax.checkpoints.migrations import FORMAT
from vmae_jax.checkpoints.retention import Retention
from vmae_jax.checkpoints.step_folder import Failure, StepFolder, failure_of
from vmae_jax.processes.background import Background
from vmae_jax.processes.distributed import all_gather_text, is_main

logger = logging.getLogger(__name__)

MAX_FAILURES = 3  # in a row
_PATIENCE = 5.0  # seconds between two looks at what the other processes say
_LAST_PATIENCE = 60.0  # seconds for a save of several processes when one of them ends early


class SaveFailed(OSError):
    """No checkpoint could be written; `errno` is that of the last try, if it had one."""


class LastSave(NamedTuple):
    """What the last successful save took.

    Attributes:
      step: that it saved.
      blocked: seconds for which training stood still.
      background: seconds from then until it was on disk.
    """

    step: int
    blocked: float
    background: float


class Checkpoints:
    """The checkpoints of one run.

    In a run of several processes all of them make one, and call `save` and `wait` for the same
    steps. There may be one at a time for a folder, for it removes what unfinished saves left.

    Attributes:
      last_save: None before the first.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int,
        keep_every: int | None = None,
        best_metric: str | None = None,
        best_mode: str = "min",
        keep_best: int = 1,
    ):
        """Opens the folder for writing.

        Args:
          directory: made if needed.
          keep: newest checkpoints that are kept.
          keep_every: steps that are multiples of it are kept for good; None for none.
          best_metric: among those given to `save`, e.g. "held_out/loss"; None for none.
          best_mode: "min" or "max", which of its values is best.
          keep_best: checkpoints with the best values that are kept.
        Raises:
          ValueError: see `Retention`.
          OSError: if nothing can be written there.
        """
        retention = Retention(keep, keep_every, keep_best, best_metric, best_mode)
        self._folder = StepFolder(directory, retention)
        self.last_save: LastSave | None = None
        self._failures = 0
        self._last_failure: Failure | None = None
        self._pending: tuple[int, Background] | None = None
        error: OSError | None = None
        if is_main():
            try:
                self._folder.open()
            except OSError as caught:
                error = caught
        said = all_gather_text("open", json.dumps(error and failure_of(error)))[0]
        if error is not None:
            raise error
        if (failure := json.loads(said)) is not None:
            raise OSError(*failure)

    def save(
        self,
        state: Any,
        step: int,
        info: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving; the state may be donated right after. A step that is saved already stays.

        Waits for the save before, if that still goes on.

        Args:
          state: a tree of arrays.
          step: names the folder.
          info: JSON that is saved with it.
          metrics: likewise; what `best_metric` is looked for in.
        Raises:
          SaveFailed: if this is the third time in a row that nothing could be written.
        """
        started = time.perf_counter()
        self._finish()
        obstacle, operation = self._obstacle(step, state)
        if isinstance(obstacle, Failure):
            self._count_failure(step, obstacle)
        elif obstacle:
            self._last_failure = None
        else:
            orbax_files.skip_operations(operation)
            about = {
                **info,
                "format": FORMAT,
                "step": step,
                "metrics": dict(metrics or {}),
                "arrays": array_types(state),
            }
            self._start(state, step, about, started)

    def wait(self) -> None:
        """Waits until everything is on disk; before the run ends well.

        Raises:
          SaveFailed: if the last save failed.
        """
        self._finish()
        if (failure := self._last_failure) is not None:
            raise SaveFailed(failure.errno, f"the last checkpoint is missing: {failure.message}")

    def close(self) -> None:
        """Waits for a save in flight, and logs how it ended; closing again does nothing.

        For runs that end in any way: it raises nothing, and waits for no other process for long.
        """
        if self._pending is None:
            return
        (step, background), self._pending = self._pending, None
        done = background.wait(None if jax.process_count() == 1 else _LAST_PATIENCE)
        if not done:
            logger.error("checkpoint %d was not saved within %.0f s", step, _LAST_PATIENCE)
        elif background.error is not None:
            message = failure_of(background.error).message
            logger.error("checkpoint %d was not saved: %s", step, message)
            if is_main():
                self._folder.remove_unfinished(step)

    def check_room(self, state: Any) -> None:
        """Logs a warning if the disk has no room for a checkpoint now.

        Args:
          state: arrays or `jax.ShapeDtypeStruct`.
        """
        if not is_main():  # the others may not see the folder yet
            return
        failure = self._folder.lack_of_room(_num_bytes(state))
        if failure is not None:
            logger.warning("%s", failure.message)

    # How a save goes.

    def _obstacle(self, step: int, state: Any) -> tuple[Failure | bool, int]:
        """(obstacle, operation), the same in all processes, as process 0 looks for all.

        Returns:
          obstacle: a Failure, why the step cannot be saved; True if it is saved already; or False.
          operation: the highest operation number of Orbax, which all go on from.
        """
        mine: list = [None, orbax_files.operation()]
        if is_main():
            mine[0] = self._folder.obstacle(step, _num_bytes(state))
        said = [json.loads(text) for text in all_gather_text("save", json.dumps(mine))]
        obstacle = said[0][0]
        operation = max(operation for _, operation in said)
        return (Failure(*obstacle) if isinstance(obstacle, list) else obstacle), operation

    def _start(self, state: Any, step: int, about: dict[str, Any], started: float) -> None:
        path, tree = self._folder.path(step), to_plain(state)
        read_prints = start_fingerprint(state)
        returned: queue.SimpleQueue[float] = queue.SimpleQueue()

        def finish(wait: Callable[[], None]) -> None:
            wait()
            done = time.perf_counter()
            moment = returned.get()
            self.last_save = LastSave(step, moment - started, done - moment)
            if is_main():
                logger.info(
                    "checkpoint %d: %.2f s, and %.1f s in the background",
                    step, self.last_save.blocked, self.last_save.background,
                )  # fmt: skip
                self._folder.tidy(step, about["metrics"])

        def start() -> Callable[[], None]:
            whole = {**about, "fingerprint": read_prints()}
            return orbax_files.start_save(path, tree, {**whole, "checksum": checksum(whole)})

        if jax.process_count() == 1:
            # Orbax spends a millisecond an array on preparations: more than it takes to copy them
            for leaf in jax.tree.leaves(tree):
                leaf.copy_to_host_async()
            tree = jax.tree.map(_on_host, tree)
            background = Background(lambda: finish(start()), "checkpoint")
        else:  # all processes have to meet there, each in the order of its calls
            wait = _later(start)
            background = Background(lambda: finish(wait), "checkpoint")
        returned.put(time.perf_counter())
        self._pending = step, background

    def _finish(self) -> None:
        """Waits for the save in flight, in all processes, and counts it if it failed in any."""
        if self._pending is None:
            return
        step, background = self._pending
        while True:
            # one that waits for a process whose save has failed would wait for minutes
            done = background.wait(None if jax.process_count() == 1 else _PATIENCE)
            failure = failure_of(background.error) if done and background.error else None
            said = [json.loads(t) for t in all_gather_text("saved", json.dumps([done, failure]))]
            failures = [Failure(*failure) for _, failure in said if failure is not None]
            if failures or all(done for done, _ in said):
                break
        self._pending = None
        if not failures:
            self._failures, self._last_failure = 0, None
            return
        if is_main():
            self._folder.remove_unfinished(step)
        # the others only say that they were let down
        self._count_failure(step, max(failures, key=lambda failure: failure.errno is not None))

    def _count_failure(self, step: int, failure: Failure) -> None:
        self._failures += 1
        self._last_failure = failure
        if self._failures == MAX_FAILURES:
            raise SaveFailed(
                failure.errno,
                f"checkpoint {step} was not saved, the {MAX_FAILURES}rd failure in a row: "
                f"{failure.message}",
            )
        if is_main():
            logger.error("checkpoint %d was not saved: %s", step, failure.message)


def _on_host(x: jax.Array) -> np.ndarray:
    """A copy that outlives the array."""
    value = np.asarray(x)
    is_view = next(iter(x.devices())).platform == "cpu"
    return value.copy() if is_view else value


def _later(act: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """What it returns; if it fails, a function that raises the error instead."""
    try:
        return act()
    except Exception as error:
        caught = error

    def fail() -> None:
        raise caught

    return fail


def _num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
