"""Inside a trainer under test: where faults can happen; what happens is told in `actions`.

Nothing in the package knows of this: the functions that the trainer calls are replaced by ones
that look at the plan first (`faults`) and then call them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos import faults, notes
from tests.chaos.actions import DISK_FAULTS, act
from tests.chaos.faults import Fault
from vmae_jax.checkpoints import orbax_files, saving, step_folder
from vmae_jax.data import loader

# place -> the moment of a save
SAVE_PLACES = {
    "room": "before the trainer looks for room on the disk",
    "save": "before the first file is written",
    "writing": "when so many files are there (detail)",
    "renaming": "before the folder gets its name",
    "renamed": "when it has its name, before older steps are deleted",
    "deleting": "when an older step has lost its first file",
}


class Hooks:
    """The faults of one process of a run.

    Args:
      folder: with the plan.
      process: index of this one.
      pace: seconds that each step takes longer, for faults that come from outside.
    """

    def __init__(self, folder: Path, process: int, pace: float):
        self._folder, self._process, self._pace = folder, process, pace
        self._save: threading.Thread | None = None  # the last one, perhaps still going on
        self._armed: tuple[Fault, int] | None = None  # of the place "writing"

    def install(self) -> None:
        """From here on faults happen."""
        original = loader.training_batches
        loader.training_batches = lambda *args, start_step, **kwargs: _Batches(
            original(*args, start_step=start_step, **kwargs), start_step, self
        )
        self._install_in_saves()

    def before_step(self, step: int) -> None:
        """The place "step"."""
        time.sleep(self._pace)
        if fault := self._take("step", step):
            if self._save is not None:
                self._save.join()
            act(fault, self._folder)

    def note_batch(self, step: int, clip_ids: list[str]) -> None:
        """Which clips went into a step of this process."""
        notes.add(self._folder, notes.BATCHES, self._process, step, clip_ids)

    def _take(self, place: str, step: int) -> Fault | None:
        return faults.take(self._folder, place, step, self._process)

    def _install_in_saves(self) -> None:
        save = saving.Checkpoints.save

        def noted_save(checkpoints, *args):
            save(checkpoints, *args)
            if checkpoints._pending:
                _, self._save = checkpoints._pending

        saving.Checkpoints.save = noted_save
        orbax_files.start_save = self._around_save(orbax_files.start_save)
        obstacle = step_folder.StepFolder.obstacle

        def look_for_room(folder, step, num_bytes):
            with self._disk_fault("room", step):
                return obstacle(folder, step, num_bytes)

        step_folder.StepFolder.obstacle = look_for_room
        rename, rmtree = os.rename, shutil.rmtree

        def renamed(source, target, **kwargs):
            step = _step_being_written(source)
            if step is not None:
                self._fire_armed()
                self._fire("renaming", step)
            rename(source, target, **kwargs)
            if step is not None:
                self._fire("renamed", step)

        def deleted(path, *args, **kwargs):
            step, _, kind = os.path.basename(path).partition(".")
            if kind == "deleted" and (fault := self._take("deleting", int(step))):
                next(path for path in Path(path).rglob("*") if path.is_file()).unlink()
                act(fault, self._folder)
            rmtree(path, *args, **kwargs)

        os.rename, shutil.rmtree = renamed, deleted

    def _around_save(self, start_save: Callable) -> Callable:
        def start(path, tree, info):
            step = int(path.name)
            held = contextlib.ExitStack()
            try:
                if fault := self._take("writing", step):
                    self._armed = fault, step
                    threading.Thread(target=self._watch_files, args=(path,), daemon=True).start()
                held.enter_context(self._disk_fault("save", step))
                finish = start_save(path, tree, info)
            except BaseException:
                held.close()
                raise

            def until_done():
                with held:
                    return finish()

            return until_done

        return start

    def _watch_files(self, path) -> None:
        fault, _ = self._armed
        temporary = f"{path}{orbax_files.TEMPORARY}"
        while self._armed:
            if sum(len(files) for _, _, files in os.walk(temporary)) >= fault.detail:
                self._fire_armed()
            time.sleep(0.0005)

    def _fire_armed(self) -> None:
        armed, self._armed = self._armed, None
        if armed:
            act(armed[0], self._folder)

    def _fire(self, place: str, step: int) -> None:
        if fault := self._take(place, step):
            act(fault, self._folder)

    @contextlib.contextmanager
    def _disk_fault(self, place: str, step: int) -> Iterator[None]:
        """A fault that lasts as long as the context, if it is one of a disk; else it happens."""
        fault = self._take(place, step)
        if fault is None or fault.kind not in DISK_FAULTS:
            if fault:
                act(fault, self._folder)
            yield
            return
        undo = DISK_FAULTS[fault.kind](self._folder)
        try:
            yield
        finally:
            if not fault.detail:  # else it stays until somebody outside undoes it
                undo()


class _Batches:
    """A batch iterator that tells of each step."""

    def __init__(self, batches, start_step: int, hooks: Hooks):
        self._batches, self._step, self._hooks = batches, start_step, hooks

    def __iter__(self):
        return self

    def __next__(self):
        self._step += 1
        self._hooks.before_step(self._step)
        batch = next(self._batches)
        self._hooks.note_batch(self._step, batch["clip_id"])
        return batch

    def close(self) -> None:
        self._batches.close()


def _step_being_written(path) -> int | None:
    """Of the temporary folder of a checkpoint."""
    name = os.path.basename(os.fspath(path))
    number = name.removesuffix(orbax_files.TEMPORARY)
    return int(number) if number != name and number.isdigit() else None
