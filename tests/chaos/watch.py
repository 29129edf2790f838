"""When processes end: those of a run, and all that were below them at a fault."""

from __future__ import annotations

import time
from pathlib import Path

from tests.chaos import faults, notes
from tests.chaos.faults import Happened


class Watch:
    """Looks again and again at the processes that a run's notes name.

    Args:
      folder: of the run.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._began: dict[int, str] = {}  # of the kernel's clock: a pid may come again
        self._ended: dict[int, float] = {}

    def look(self) -> None:
        """Several times a second."""
        pids = [pid for pid, *_ in notes.read(self._folder, notes.STARTS)]
        pids += [pid for one in faults.happened(self._folder) for pid in one.children]
        for pid in pids:
            if pid in self._ended:
                continue
            began = _began(pid)
            if began is None or self._began.setdefault(pid, began) != began:
                self._ended[pid] = time.time()

    def orphans(self, one: Happened, within: float) -> list[int]:
        """Which processes below that of a fault did not end with it."""
        return [
            pid for pid in one.children
            if pid not in self._ended or self._ended[pid] > one.time + within
        ]  # fmt: skip

    def seconds_to_end(self, one: Happened, process: int) -> float | None:
        """From a fault to the end of the trainer that was then process number `process`; None if it
        has not ended."""
        trainers = [
            pid for pid, index, began in notes.read(self._folder, notes.STARTS)
            if index == process and began <= one.time
        ]  # fmt: skip
        ended = self._ended.get(trainers[-1])
        return None if ended is None else ended - one.time


def _began(pid: int) -> str | None:
    """When a process began; None if it has ended."""
    try:
        # pid (name) state ...
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
