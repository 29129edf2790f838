"""What all lists of videos share: limits, class names, errors of many lines told as one, ids that
differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vmae_jax.errors import SettingError
from vmae_jax.files import storage

MAX_LIST_BYTES = 1 << 30
MAX_PATH = 4096  # characters
SHOWN_PROBLEMS = 5


def check_path(path: str) -> None:
    """Looks at the characters of a path from a list.

    Raises:
      ValueError: if it is empty, too long, or has control characters.
    """
    if not 0 < len(path) <= MAX_PATH or min(path) < " ":
        raise ValueError(f"path={path[:80]!r} is empty, too long, or has control characters")


def class_names_of(classes: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of classes in the order of their numbers; () for None.

    Args:
      classes: the names, or a file, which may be remote, with one in each line.
    Raises:
      SettingError: if a name comes twice, or the file cannot be read.
    """
    if isinstance(classes, str):
        text = storage.read_text(classes, MAX_LIST_BYTES)
        classes = [line.strip() for line in text.split("\n") if line.strip()]
    names = tuple(classes or ())
    if len(set(names)) < len(names):
        raise SettingError("classes names a class twice; give each name once, by class number.")
    return names


class Problems:
    """Lines of a list that cannot be used, told together.

    Args:
      path: of the list.
      unit: what is counted, "line".
    """

    def __init__(self, path: str, unit: str):
        self._path, self._unit = path, unit
        self._count, self._first = 0, []

    def add(self, number: int, reason: str) -> None:
        """Notes one more, `reason` being what is wrong with the line of that number."""
        self._count += 1
        if self._count <= SHOWN_PROBLEMS:
            self._first.append(f"{self._unit} {number}: {reason}")

    def raise_any(self) -> None:
        """Ends the reading of the list if it had problems.

        Raises:
          SettingError: with their number and the first of them.
        """
        if self._count:
            more = self._count - len(self._first)
            raise SettingError(
                f"path={self._path!r} has {self._count} {self._unit}s that cannot be used: "
                + "; ".join(self._first)
                + (f"; and {more} more" if more else "")
                + ". Correct them or remove them."
            )


def distinct(clip_ids: Sequence[str]) -> list[str]:
    """The same ids, where those that occur again end in #2, #3, ..."""
    taken, counts, ids = set(clip_ids), Counter(), []
    for clip_id in clip_ids:
        counts[clip_id] += 1
        new = clip_id
        if counts[clip_id] > 1:
            while (new := f"{clip_id}#{counts[clip_id]}") in taken:
                counts[clip_id] += 1
            taken.add(new)
        ids.append(new)
    return ids
