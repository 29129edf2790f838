"""Which steps of a run are saved: one answer for those who write, read and supervise.

Neither jax nor Orbax is loaded here, for a supervisor wakes no devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from etils import epath

from vmae_jax.files.storage import is_remote, remote_path

METADATA_FILE = "_CHECKPOINT_METADATA"  # which every step has
COMMIT_FILE = "commit_success.txt"  # the last file of a step that is written to a bucket


def absolute(path: str | os.PathLike) -> epath.Path:
    """The path, local or remote; absolute, because Orbax takes a relative one for damage."""
    text = os.fspath(path)
    return remote_path(text) if is_remote(text) else epath.Path(os.path.abspath(text))


def is_finished(step: epath.Path) -> bool:
    """Whether the folder of a step is no longer being written."""
    # a folder here gets its name when all is written; a bucket has only the file that comes last
    return not is_remote(os.fspath(step)) or (step / COMMIT_FILE).exists()


def newest_first(directory: str | os.PathLike) -> Iterator[int]:
    """The steps that `saved_steps` lists, newest first; each is looked at when it is asked for.

    Args:
      directory: of a run's checkpoints; need not exist.
    Raises:
      OSError: if it cannot be read; remote file systems raise errors of their own besides.
    """
    directory = absolute(directory)
    if not directory.is_dir():
        return
    numbers = (int(path.name) for path in directory.iterdir() if path.name.isdecimal())
    for step in sorted(numbers, reverse=True):
        path = directory / str(step)
        if path.is_dir() and is_finished(path):
            yield step


def saved_steps(directory: str | os.PathLike) -> list[int]:
    """Steps whose folders are finished, oldest first; damaged ones may be among them.

    Args:
      directory: as of `newest_first`.
    Raises:
      OSError: as `newest_first`.
    """
    return list(newest_first(directory))[::-1]


def find_step(path: str | os.PathLike) -> epath.Path | None:
    """The folder of a step: `path` itself, or the newest of a workdir; None if it is neither.

    Raises:
      OSError: as `newest_first`.
    """
    path = absolute(path)
    if path.name.isdigit() and (path / METADATA_FILE).exists():
        return path
    for directory in (path / "checkpoints", path):
        if (directory / "config.json").exists():  # a folder of Hugging Face's
            continue
        for step in newest_first(directory):
            return directory / str(step)
    return None
