"""Which faults happen to a run, when, and which have: files that both sides read.

A plan outlives the processes that it kills: each fault leaves a file before it happens, so that it
happens once, however often its run is started again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

_PLAN = "plan.json"
_HAPPENED = "happened"


class Fault(NamedTuple):
    """One fault.

    Attributes:
      kind: a name in `actions.ACTIONS` or `actions.DISK_FAULTS`.
      at: the first step at which it may happen.
      place: "step": before the batch of that step is asked for, while nothing is being saved; or a
        moment of a save, see `hooks.SAVE_PLACES`.
      process: that it happens to.
      detail: a number that some kinds and places want.
    """

    kind: str
    at: int
    place: str = "step"
    process: int = 0
    detail: int = 0

    def __str__(self) -> str:
        return f"{self.kind} at {self.place} {self.at} of process {self.process}"


class Happened(NamedTuple):
    """A fault that has happened.

    Attributes:
      fault: which.
      step: at which.
      time: of the system's clock.
      pid: of the process that it happened to.
      children: pids of all processes below that one.
    """

    fault: Fault
    step: int
    time: float
    pid: int
    children: list[int]


def write_plan(folder: Path, faults: Iterable[Fault]) -> None:
    """Before the run is started for the first time."""
    (folder / _HAPPENED).mkdir(parents=True, exist_ok=True)
    (folder / _PLAN).write_text(json.dumps(list(faults)))


def happened(folder: Path) -> list[Happened]:
    """The faults so far, in the order of their time."""
    found = []
    for path in (folder / _HAPPENED).glob("*.json"):
        if text := path.read_text():  # else it is being written just now
            fault, *rest = json.loads(text)
            found.append(Happened(Fault(*fault), *rest))
    return sorted(found, key=lambda one: one.time)


def left(folder: Path) -> list[Fault]:
    """The faults that have not happened."""
    return [fault for _, fault in _pending(folder)]


def take(folder: Path, place: str, step: int, process: int) -> Fault | None:
    """The fault that is due here and now, in the trainer; from then on it counts as happened."""
    for number, fault in _pending(folder):
        due = fault.place == place and fault.process == process and fault.at <= step
        if due and _claim(folder, number, fault, step):
            return fault
    return None


def children_of(pid: int) -> list[int]:
    """All processes below one, on Linux."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        found += direct
        for child in direct:
            found += children_of(child)
    return found


def whole_plan(folder: Path) -> list[Fault]:
    """All faults, whether they have happened or not."""
    return [Fault(*fault) for fault in json.loads((folder / _PLAN).read_text())]


def _pending(folder: Path) -> list[tuple[int, Fault]]:
    return [
        (number, fault)
        for number, fault in enumerate(whole_plan(folder))
        if not (folder / _HAPPENED / f"{number}.json").exists()
    ]


def _claim(folder: Path, number: int, fault: Fault, step: int) -> bool:
    pid = os.getpid()
    record: list[Any] = [fault, step, time.time(), pid, children_of(pid)]
    try:
        with open(folder / _HAPPENED / f"{number}.json", "x") as file:
            file.write(json.dumps(record))
    except FileExistsError:  # another thread of this process was faster
        return False
    return True
