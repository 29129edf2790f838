"""Rows of faults: run one after another or two at a time, counted, and told how long it will take.

A row is a function that hurts some runs and reports of every fault whether what must hold did. An
assertion that fails, or a run that does not end, is a fault that did not hold: the campaign goes
on.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests import video_corpus
from tests.chaos.faults import Fault
from tests.chaos.runs import Run

NUM_VIDEOS = 20


class Row(NamedTuple):
    """One group of faults.

    Attributes:
      name: e.g. "T1".
      title: what happens.
      holds: what must hold, in a few words.
      function: does it all.
      seconds: that it takes on two idle cores.
      alone: whether it needs both cores; others run two at a time.
    """

    name: str
    title: str
    holds: str
    function: Callable[[Scene], None]
    seconds: float
    alone: bool = False


class Outcome(NamedTuple):
    """What became of some faults of one kind.

    Attributes:
      kind: of the faults.
      count: how many.
      outcome: the same for all.
      held: whether what must hold did.
    """

    kind: str
    count: int
    outcome: str
    held: bool


class Result(NamedTuple):
    """Of a row."""

    row: Row
    outcomes: list[Outcome]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether all did, and there were any."""
        return bool(self.outcomes) and all(outcome.held for outcome in self.outcomes)


class Shared:
    """What several rows need once: compiled programs, videos, runs that nothing happens to.

    Args:
      folder: for them, and one for each row.
    """

    def __init__(self, folder: Path):
        self.folder, self.cache = folder, folder / "compiled"
        self._lock = threading.Lock()
        self._clean: dict[str, tuple[threading.Lock, list[Run]]] = {}

    def videos(self) -> Path:
        """A folder of small video files, for decoders in processes of their own."""
        folder = self.folder / "videos"
        with self._lock:
            if not folder.exists():
                folder.mkdir()
                for i in range(NUM_VIDEOS):
                    path = str(folder / f"{i}.mp4")
                    video_corpus.encode(path, frames=12, size=(36, 48), first_number=i)
        return folder

    def run(self, name: str, **arguments: Any) -> Run:
        """A new run, see `Run`."""
        return Run(self.folder / name, self.cache, **arguments)

    def clean(self, **settings: Any) -> Run:
        """The finished run of these settings, see `Run`."""
        name = repr(sorted(settings.items()))
        with self._lock:
            number = len(self._clean)
            lock, runs = self._clean.setdefault(name, (threading.Lock(), []))
        with lock:
            if not runs:
                runs.append(self.run(f"clean_{number}", **settings).done())
        return runs[0]


class Scene:
    """Where a row takes place, and what it has found so far."""

    def __init__(self, row: Row, shared: Shared):
        self.row, self.shared = row, shared
        self.folder = shared.folder / row.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._found: Counter[tuple[str, str, bool]] = Counter()
        self._started = time.monotonic()

    def run(self, name: str, **arguments: Any) -> Run:
        """A new run, see `Run`."""
        return self.shared.run(f"{self.row.name}/{name}", **arguments)

    def say(self, text: object) -> None:
        """A line of progress."""
        say(f"  {self.row.name}: {text}")

    def holds(self, kind: str, outcome: str, count: int = 1) -> None:
        """Faults for which all held that must."""
        self._found[kind, outcome, True] += count

    def fails(self, kind: str, outcome: str, count: int = 1) -> None:
        """Others."""
        self.say(f"FAILS: {kind}: {outcome}")
        self._found[kind, outcome, False] += count

    def check(self, kind: str, outcome: str, problem: object, count: int = 1) -> None:
        """`holds`, unless there is a problem."""
        if problem:
            self.fails(kind, str(problem), count)
        else:
            self.holds(kind, outcome, count)

    def check_all(self, faults: Sequence[Fault], outcome: str, problem: object) -> None:
        """`check` of each fault of a run that has one end."""
        for kind, count in Counter(_kind(fault) for fault in faults).items():
            self.check(kind, outcome, problem, count)

    def result(self) -> Result:
        """All of it."""
        outcomes = [
            Outcome(kind, count, outcome, held)
            for (kind, outcome, held), count in self._found.items()
        ]
        return Result(self.row, outcomes, time.monotonic() - self._started)


def _kind(fault: Fault) -> str:
    if fault.place == "step":
        return f"{fault.kind} between saves" if fault.kind == "kill -9" else fault.kind
    return f"{fault.kind} in a save"


def say(text: str) -> None:
    """A line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run_rows(rows: Sequence[Row], folder: Path) -> list[Result]:
    """Runs them: first those that need the machine for themselves, then the others in pairs."""
    shared, clock = Shared(folder), _Clock(rows)
    results: dict[str, Result] = {}

    def run(row: Row) -> None:
        scene = Scene(row, shared)
        scene.say(f"{row.title}; {clock.left()}")
        try:
            row.function(scene)
        except Exception as error:
            traceback.print_exc()
            scene.fails("the row itself", f"{type(error).__name__}: {error}"[:300])
        result = results[row.name] = scene.result()
        clock.done(row)
        count = sum(outcome.count for outcome in result.outcomes)
        verdict = "all held" if result.held else "NOT ALL HELD"
        say(f"{row.name}: {count} faults, {verdict}, {result.seconds:.0f} s; {clock.left()}")

    alone = [row for row in rows if row.alone]
    for row in alone:
        run(row)
    with ThreadPoolExecutor(2) as pool:
        longest_first = sorted(set(rows) - set(alone), key=lambda row: -row.seconds)
        list(pool.map(run, longest_first))
    return [results[row.name] for row in rows]


class _Clock:
    """How long the rest will take, by what the rows before took in comparison."""

    def __init__(self, rows: Sequence[Row]):
        self._left = list(rows)
        self._total = self._cost()
        self._started = time.monotonic()

    def done(self, row: Row) -> None:
        self._left.remove(row)

    def left(self) -> str:
        passed, done = time.monotonic() - self._started, self._total - self._cost()
        pace = passed / done if done else 1.0
        return f"about {self._cost() * pace / 60:.0f} min to go"

    def _cost(self) -> float:
        return sum(row.seconds * (1 if row.alone else 0.5) for row in self._left)
