"""Tensors that are still in their files, and the errors that say why one cannot be had.

Code that looks into a file calls `refuse` or `damaged`; `explained`, where the file was opened,
makes of it the one error that users see, with path and entry.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import ml_dtypes
import numpy as np

from vmae_jax.errors import SettingError

MAX_RANK = 16  # axes of a tensor
# numpy's dtypes that are read
DTYPES = {
    name: np.dtype(name)
    for name in ["float64", "float32", "float16", "bool"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (64, 32, 16, 8)]
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor still in its file.

    Attributes:
      shape: its sizes.
      dtype: numpy's name for it ("bfloat16": ml_dtypes'), or torch's for what is not read
        ("complex64", "float8_e4m3fn", ...).
      read: gives a copy of the values in that dtype, as long as the file is open; raises
        WeightFileError if they cannot be had.
      entry: where in its file the values are, if that has a name; tensors of torch that share
        memory have the same.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    entry: str | None = None


class WeightFileError(SettingError):
    """A weight file that cannot be used. The text names file, entry, reason and remedy."""

    def __init__(self, path: str, entry: str | None, reason: str):
        # All go to args, so that the error survives pickling between processes.
        super().__init__(path, entry, reason)
        self.path = path
        self.entry = entry
        self.reason = reason

    def __str__(self) -> str:
        entry = "" if self.entry is None else f", entry {shown(self.entry)}"
        return f"{self.path!r}{entry}: {self.reason}."


class WeightFileNotFound(WeightFileError, FileNotFoundError):
    """A weight file, or folder, that is not there."""


class WeightFileNotPermitted(WeightFileError, PermissionError):
    """A weight file that this user may not read."""


class Refusal(Exception):
    """Why something is not read; `explained` adds where."""

    def __init__(self, reason: str, entry: str | None = None):
        super().__init__(reason)
        self.entry = entry


def refuse(reason: str, entry: str | None = None) -> NoReturn:
    """Ends the reading: what the file holds is not read here."""
    raise Refusal(reason, entry)


def damaged(reason: str, entry: str | None = None) -> NoReturn:
    """Ends the reading: no writer makes such a file."""
    refuse(f"{reason}: the download or copy is incomplete or damaged; get the file again", entry)


@contextlib.contextmanager
def explained(path: str, entry: str | None = None) -> Iterator[None]:
    """Turns a refusal, and a path that is not there or not permitted, into the error for users."""
    try:
        yield
    except Refusal as refusal:
        # they hold what was parsed of a hostile file, for as long as someone keeps the error
        traceback.clear_frames(refusal.__traceback__)
        raise WeightFileError(path, refusal.entry or entry, str(refusal)) from None
    except WeightFileError:
        raise
    except FileNotFoundError as error:
        raise WeightFileNotFound(path, entry, "does not exist; check the path") from error
    except PermissionError as error:
        reason = "may not be read by this user; change its permissions, or its folder's"
        raise WeightFileNotPermitted(path, entry, reason) from error


def shown(name: str) -> str:
    """A name from the file, safe to print."""
    return repr(name if len(name) <= 100 else name[:100] + "...")


def some(names: Iterable[str], most: int) -> str:
    """The first few, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
