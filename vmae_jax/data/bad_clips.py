"""Which records could not be used: each named once in a file, and a limit to how many may be."""

from __future__ import annotations

import json
import logging
import math
import os
import threading

from vmae_jax.errors import SettingError

logger = logging.getLogger(__name__)


class TooManyBadClips(SettingError):
    """More records are bad than the run allows: something is wrong with the data set, not with
    them."""


class BadClips:
    """The bad records of one source; used by all threads that make its samples.

    Args:
      path: of `bad_clips.jsonl`, which is added to; None to keep none. Ids that are in it already
        are not written again.
      num_records: of the source.
      max_share: how large a part of the records visited so far may be bad, in [0, 1]. Until all
        have been visited, a few more are allowed, as chance may bring (unless max_share is 0).
    Raises:
      SettingError: if max_share is out of range.
    """

    def __init__(self, path: str | os.PathLike | None, num_records: int, max_share: float):
        if not 0 <= max_share <= 1:
            raise SettingError(f"max_bad_share={max_share} must be in [0, 1].")
        self._path = path
        self._num_records = num_records
        self._max_share = max_share
        self._lock = threading.Lock()
        self._visited: set[int] = set()
        self._bad: dict[int, str] = {}
        self._last = ""
        self._named = _ids_in(path)

    @property
    def count(self) -> int:
        """Records that are known to be bad since the start."""
        return len(self._bad)

    def reason(self, i: int) -> str | None:
        """Why record i is known to be bad, or None."""
        return self._bad.get(i)

    def good(self, i: int) -> None:
        """Notes that record i could be used.

        Raises:
          TooManyBadClips: if that was the last record, and too many of all are bad.
        """
        with self._lock:
            if i not in self._visited:
                self._visited.add(i)
                self._check()

    def bad(self, i: int, clip_id: str, reason: str) -> None:
        """Notes that record i could not be used, for good.

        Raises:
          TooManyBadClips: if that makes too many.
        """
        with self._lock:
            if i in self._bad:
                return
            self._bad[i] = reason
            self._last = f"{clip_id!r}: {reason}"
            if clip_id not in self._named:
                self._named.add(clip_id)
                logger.warning("bad clip %s: %s", clip_id, reason)
                self._write({"clip_id": clip_id, "reason": reason})
            self._visited.add(i)
            self._check()

    def _check(self) -> None:
        bad, visited = len(self._bad), len(self._visited)
        expected = self._max_share * visited
        # Looked at after every record, two standard deviations alone would end every fourth run
        # whose share is just allowed; this ends one in a few hundred.
        by_chance = self._max_share > 0 and visited < self._num_records
        if bad > expected + by_chance * (2 + 3 * math.sqrt(expected)):
            raise TooManyBadClips(
                f"{bad} of {visited} records could not be used, and max_bad_share="
                f"{self._max_share}; the last was {self._last} "
                + (f"All are listed in {self._path}. " if self._path else "")
                + "Repair the data set, or raise data.max_bad_share."
            )

    def _write(self, record: dict[str, str]) -> None:
        if self._path is None:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:  # a full disk must not end a run here
            logger.warning("%s could not be written (%s)", self._path, error.strerror)


def _ids_in(path: str | os.PathLike | None) -> set[str]:
    ids: set[str] = set()
    if path is None or not os.path.exists(path):
        return ids
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                ids.add(json.loads(line)["clip_id"])
            except (ValueError, KeyError, TypeError):  # a line that a kill cut short
                continue
    return ids
