"""Lines about long work: how far it is, how fast it goes, and when it will be done.

They go to a log as well as to a terminal, which a bar that is drawn over itself does not.
"""

from __future__ import annotations

import datetime
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


def reported(
    results: Iterator[dict[str, Any]],
    total: int,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """The same results, with a line every SECONDS_BETWEEN and one at the end.

    Args:
      results: of `video_encoding.encoded_video`, one for each video.
      total: how many there will be.
      say: is given the lines.
      clock: seconds that only grow.
    """
    started = said = clock()
    bad = stored = 0
    for done, result in enumerate(results, start=1):
        bad += "bad" in result
        stored += len(result.get("record", ()))
        now = clock()
        if now - said >= SECONDS_BETWEEN or done == total:
            said = now
            rate = done / max(now - started, 1e-9)
            left = datetime.timedelta(seconds=round((total - done) / rate))
            say(
                f"{done} of {total} videos, {bad} bad, {readable_bytes(stored)}, "
                f"{rate:.1f} videos/s, {left} left"
            )
        yield result
