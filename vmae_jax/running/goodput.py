"""Where the time of a run went, over all its restarts.

`Goodput` is the clock of one start: every moment since the process began belongs to one use of
time. `summarize` adds up what all starts have written, so it also knows what was lost between them,
which no process that is killed can write down.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vmae_jax.files.appended_file import AppendedFile
from vmae_jax.files.storage import join

NAME = "goodput.jsonl"
# in the order of the log's line, with its words
USES = {
    "steps": "steps",
    "data": "data",
    "compile": "compiling",
    "save": "saving",
    "evaluate": "evaluating",
    "start": "starting",
}


class Goodput:
    """The clock of one start of a run.

        goodput = Goodput(workdir if is_main() else None, start_step)
        for step in ...:
            with goodput.time("compile"): ...  # the first step
            goodput.step(step, waited=0.02)
            with goodput.time("save"): ...
            goodput.write()  # at each log
        logger.info(goodput.line())

    Time is "start" from the process's beginning up to the first `step`, "steps" from then on, and
    whatever is named where `time` is used. A call costs microseconds.

    Args:
      workdir: gets `goodput.jsonl`; local, remote, or None, which writes nothing.
      start_step: that the run goes on from.
    """

    def __init__(self, workdir: str | os.PathLike | None, start_step: int):
        self._began = _process_start()
        self._from_step = self._step = start_step
        self._seconds = dict.fromkeys(USES, 0.0)
        self._use, self._since = "start", time.perf_counter() - (time.time() - self._began)
        self._past: Summary | None = None
        self._file = (
            None
            if workdir is None
            else AppendedFile(join(os.fspath(workdir), NAME), start=self._read_past)
        )

    def _read_past(self, old: bytes) -> bytes:
        whole = old[: old.rfind(b"\n") + 1]  # a kill may have cut the last line short
        # a record of no time for this start, so that the steps that it repeats count as lost
        now = self._record(dict.fromkeys(USES, 0.0))
        self._past = summarize([*whole.decode(errors="replace").splitlines(), now])
        return whole

    @contextlib.contextmanager
    def time(self, use: str) -> Iterator[None]:
        """Counts what is done inside as one of `USES`.

        Raises:
          ValueError: for another use.
        """
        if use not in USES:
            raise ValueError(f"use={use!r} is not known; choose from {list(USES)}.")
        before = self._use
        self._switch(use)
        try:
            yield
        finally:
            self._switch(before)

    def step(self, step: int, waited: float = 0.0) -> None:
        """Counts a step as done, and `waited` seconds of the time before it as "data"."""
        use = self._use
        self._switch("steps" if use == "start" else use)
        self._step = step
        waited = min(waited, self._seconds[use])
        self._seconds[use] -= waited  # of "start", if it is the first step that waited
        self._seconds["data"] += waited

    def seconds(self) -> dict[str, float]:
        """How much time of this start has gone into each of `USES` so far."""
        self._switch(self._use)
        return dict(self._seconds)

    def write(self) -> None:
        """Appends how things stand; a write that fails is a warning, see `appended_file`."""
        if self._file is not None:
            self._file.append(self._record(self.seconds()).encode() + b"\n")

    def line(self) -> str:
        """The summary of all starts up to now, in one line for the log."""
        return summarize([self._record(self.seconds())]).after(self._past).line()

    def close(self) -> None:
        """Writes for the last time, after the last step; what comes later is not counted."""
        if self._file is not None:
            self.write()
            self._file.close()
            self._file = None

    def _record(self, seconds: Mapping[str, float]) -> str:
        record = {"began": self._began, "from_step": self._from_step, "step": self._step}
        return json.dumps(record | {use: round(value, 3) for use, value in seconds.items()})

    def _switch(self, use: str) -> None:
        now = time.perf_counter()
        self._seconds[self._use] += now - self._since
        self._use, self._since = use, now


@dataclasses.dataclass(frozen=True)
class Summary:
    """Seconds by `USES` and "lost"; all together they are the run's wall time."""

    seconds: Mapping[str, float]
    restarts: int

    def share(self, use: str) -> float:
        """Of the wall time, in [0, 1]."""
        return self.seconds[use] / max(sum(self.seconds.values()), 1e-9)

    def line(self) -> str:
        """E.g. "goodput 93.1 % of 4.2 h: steps 93.1 %, data 1.0 %, ..."."""
        hours = sum(self.seconds.values()) / 3600
        parts = [f"{word} {100 * self.share(use):.1f} %" for use, word in USES.items()]
        if self.restarts:
            times = f"{self.restarts} restart{'s' * (self.restarts > 1)}"
            parts.append(f"lost to {times} {100 * self.share('lost'):.1f} %")
        return f"goodput {100 * self.share('steps'):.1f} % of {hours:.1f} h: {', '.join(parts)}"

    def after(self, past: Summary | None) -> Summary:
        """Both together, where `past` counts up to the start of this one."""
        if past is None:
            return self
        both = {use: past.seconds[use] + self.seconds[use] for use in self.seconds}
        return Summary(both, past.restarts)


def summarize(lines: Iterable[str]) -> Summary:
    """Adds up the starts of a run.

    Lost are steps that were done again or whose results are gone, and the time from the last line
    of one start to the beginning of the next.

    Args:
      lines: of `goodput.jsonl`; broken ones do not count.
    """
    starts: dict[float, list[dict]] = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            record = json.loads(line)
            starts.setdefault(float(record["began"]), []).append(record)
    seconds = dict.fromkeys([*USES, "lost"], 0.0)
    kept_up_to, next_began = float("inf"), None  # of the last start all is kept
    for began, records in reversed(starts.items()):
        spent = {use: records[-1][use] for use in USES}
        if next_began is not None:
            seconds["lost"] += max(0.0, next_began - began - sum(spent.values()))
        for use in ("steps", "data"):
            kept = _seconds_at(kept_up_to, records, use)
            seconds["lost"] += spent[use] - kept
            spent[use] = kept
        for use in USES:
            seconds[use] += spent[use]
        kept_up_to = min(kept_up_to, records[0]["from_step"])
        next_began = began
    return Summary(seconds, max(0, len(starts) - 1))


def _seconds_at(step: float, records: list[dict], use: str) -> float:
    """What a use had taken when a step was done, in a straight line between two records."""
    before = {"step": records[0]["from_step"], use: 0.0}
    if step <= before["step"]:
        return 0.0
    for record in records:
        if record["step"] > step:
            part = (step - before["step"]) / (record["step"] - before["step"])
            return before[use] + part * (record[use] - before[use])
        before = record
    return before[use]


def _process_start() -> float:
    """When this process began, in seconds of `time.time()`; where that is not known, now."""
    if sys.platform != "linux":
        return time.time()
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age
