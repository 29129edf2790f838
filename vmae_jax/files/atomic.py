"""Files that appear whole, under their final names, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO


def write_file(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Makes or replaces a file; on an error the old one stays, if there was one.

    Args:
      path: of the file, in a folder that exists.
      write: is given the open file.
    Raises:
      OSError: if the disk is full, or the folder may not be written to.
    """
    folder, name = os.path.split(os.fspath(path))
    write_files(folder or ".", {name: write})


def write_files(
    folder: str | os.PathLike,
    writers: Mapping[str, Callable[[BinaryIO], object]],
    *,
    obsolete: Callable[[str], bool] = lambda name: False,
) -> None:
    """Makes or replaces several files that belong together.

    All of them are on disk before the first gets its final name; on an error no old file is
    touched. (A machine that dies between two renames may leave some of them old.)

    Args:
      folder: made if needed.
      writers: name -> what writes the open file.
      obsolete: name -> whether a file of that name is to go, unless it is among the new ones.
    Raises:
      OSError: if the disk is full, or the folder may not be written to.
    """
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as staging:
        for name, write in writers.items():
            with open(os.path.join(staging, name), "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        gone = [name for name in os.listdir(folder) if obsolete(name) and name not in writers]
        with contextlib.ExitStack() as on_error:
            for name in gone:  # not deleted yet, and put back if a new file cannot get its name
                aside = os.path.join(staging, f"old-{name}")
                os.replace(os.path.join(folder, name), aside)
                on_error.callback(os.replace, aside, os.path.join(folder, name))
            for name in writers:
                os.replace(os.path.join(staging, name), os.path.join(folder, name))
            on_error.pop_all()


@contextlib.contextmanager
def write_folder(path: str | os.PathLike) -> Iterator[str]:
    """A folder to fill, which gets its name when the context ends without an error.

    All in it is on disk by then. If another writer has been first, its folder stays, and what was
    written here goes. A process that is killed leaves a hidden folder beside it, ".partial-*".

    Args:
      path: of the folder, which does not exist, or is empty; the folder above is made if needed.
    Raises:
      OSError: if the disk is full, or the folder above may not be written to.
    """
    above, name = os.path.split(os.path.abspath(path))
    os.makedirs(above, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=above, prefix=".partial-") as staging:
        folder = os.path.join(staging, name)
        os.mkdir(folder)
        yield folder
        os.sync()  # once for all files
        try:
            os.rename(folder, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
