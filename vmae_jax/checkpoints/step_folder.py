"""The folder of a run's checkpoints, kept in order: is there room, what was left over, what may
go."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Mapping
from typing import NamedTuple

from etils import epath

from vmae_jax.checkpoints import orbax_files
from vmae_jax.checkpoints.finished_steps import (
    COMMIT_FILE,
    absolute,
    is_finished,
    saved_steps,
)
from vmae_jax.checkpoints.retention import Retention
from vmae_jax.files.storage import is_remote
from vmae_jax.processes.exit_codes import errno_of

logger = logging.getLogger(__name__)

_ROOM = 1.1  # of the state's bytes have to be free before a save
_DELETED = ".deleted"  # follows the name of a step that is being deleted
_LEFTOVER = re.compile(rf"\d+({re.escape(orbax_files.TEMPORARY)}|{re.escape(_DELETED)})")
_PROBE = ".probe"
_LINE = 300  # characters of a message


class Failure(NamedTuple):
    """Why a step was not saved.

    Attributes:
      errno: the operating system's, if it had a part in it.
      message: one line.
    """

    errno: int | None
    message: str


def failure_of(error: BaseException) -> Failure:
    """What went wrong first."""
    number = errno_of(error)
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
        number = errno_of(error) or number
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    if number and os.strerror(number) not in message[:_LINE]:  # libraries have it at the end
        message = f"{os.strerror(number)} ({message[:_LINE]})"
    return Failure(number, message[:_LINE])


class StepFolder:
    """The folder, for the one process that writes it."""

    def __init__(self, directory: str | os.PathLike, retention: Retention):
        self.directory = absolute(directory)
        self._retention = retention
        self._metrics: dict[int, Mapping[str, float]] = {}
        self._failed: set[int] = set()

    def path(self, step: int) -> epath.Path:
        """Of a step's folder."""
        return self.directory / str(step)

    def open(self) -> None:
        """Makes it if needed, and removes what a killed process was writing or deleting.

        Raises:
          OSError: if nothing can be written there.
        """
        self._probe()
        # a bucket has no empty folders
        for path in self.directory.iterdir() if self.directory.is_dir() else ():
            unfinished = path.name.isdigit() and not is_finished(path)
            if unfinished or _LEFTOVER.match(path.name):
                _remove(path)
        self._metrics = {step: self._read_metrics(step) for step in saved_steps(self.directory)}

    def obstacle(self, step: int, num_bytes: int) -> Failure | bool:
        """Why a step of that size cannot be saved; True if it is saved already, else False."""
        path = self.path(step)
        try:
            if path.exists() and not path.is_dir():
                return Failure(errno.EEXIST, f"{path} is a file, not a folder; move it away.")
            if path.exists() and is_finished(path):
                return True
            self._probe()
            return self.lack_of_room(num_bytes) or False
        except OSError as error:
            return failure_of(error)

    def lack_of_room(self, num_bytes: int) -> Failure | None:
        """If the disk has less than such a checkpoint may take; a bucket has no end."""
        if is_remote(os.fspath(self.directory)):
            return None
        needed, free = int(_ROOM * num_bytes), shutil.disk_usage(self.directory).free
        if free > needed:
            return None
        return Failure(
            errno.ENOSPC,
            f"{self.directory} has {free / 1e6:.0f} MB free, and a checkpoint takes up to "
            f"{needed / 1e6:.0f} MB; make room, or lower run.keep_checkpoints.",
        )

    def remove_unfinished(self, step: int) -> None:
        """What a save that failed has left."""
        self._failed.add(step)
        final = self.path(step)
        for path in (final, self.directory / f"{step}{orbax_files.TEMPORARY}"):
            try:
                if path.exists() and not (path == final and is_finished(path)):
                    _remove(path)
            except OSError as error:
                logger.warning("%s cannot be removed: %s", path, failure_of(error).message)

    def tidy(self, step: int, metrics: Mapping[str, float]) -> None:
        """Deletes the steps that need not stay, now that this one is saved."""
        # Orbax does not wait for all writes of a save that has failed: some come after its removal
        for failed in self._failed - {step}:
            self.remove_unfinished(failed)
        self._failed.clear()
        self._metrics[step] = metrics
        for step in self._retention.expendable(self._metrics):
            del self._metrics[step]
            try:
                _delete_step(self.path(step))
            except OSError as error:
                logger.warning(
                    "checkpoint %d cannot be deleted: %s", step, failure_of(error).message
                )

    def _probe(self) -> None:
        """Writes a probe and removes it.

        Raises:
          OSError: if nothing can be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        probe = self.directory / _PROBE
        probe.write_bytes(bytes(4096))
        probe.unlink()

    def _read_metrics(self, step: int) -> Mapping[str, float]:
        if self._retention.best_metric is None:
            return {}
        try:
            info, _ = orbax_files.read_header(self.path(step))
            return dict(info.get("metrics", {}))
        except Exception:  # a damaged one is not the best; whoever loads it says what it has
            return {}


def _delete_step(path: epath.Path) -> None:
    """So that at no moment half of it looks like a checkpoint."""
    if is_remote(os.fspath(path)):
        (path / COMMIT_FILE).unlink(missing_ok=True)
    else:
        path = path.rename(path.parent / f"{path.name}{_DELETED}")
    _remove(path)


def _remove(path: epath.Path) -> None:
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink()
