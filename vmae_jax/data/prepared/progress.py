"""Lines about long work: how far it is, how fast it goes, and when it will be done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

SECONDS_BETWEEN = 10.0


def readable_bytes(count: float) -> str:
    """1234567 -> "1.2 MB"."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(4, int(math.log10(count)) // 3)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"


def readable_seconds(seconds: float) -> str:
    """7384 -> "2 h 03 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


class Progress:
    """Watches the results of `preparation`, and says every few seconds how it goes.

    Args:
      total: results that are to come.
      say: is given the lines.
      clock: seconds that only grow.
    """

    def __init__(
        self, total: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ):
        self._total, self._say, self._clock = total, say, clock
        self._started = self._said = clock()
        self._done = self._bad = self._bytes = 0

    def watch(self, results: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The same results, counted as they pass."""
        for result in results:
            self._done += 1
            self._bad += "bad" in result
            self._bytes += len(result.get("record", ()))
            now = self._clock()
            if now - self._said >= SECONDS_BETWEEN or self._done == self._total:
                self._said = now
                self._say(self._line(now - self._started))
            yield result

    def _line(self, seconds: float) -> str:
        rate = self._done / max(seconds, 1e-9)
        left = readable_seconds((self._total - self._done) / rate)
        return (
            f"{self._done} of {self._total} videos, {self._bad} bad, "
            f"{readable_bytes(self._bytes)}, {rate:.1f} videos/s, {left} left"
        )
