"""What a run under test leaves behind, and how it differs from what another left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.chaos import faults, notes

# of metrics.jsonl; all others are the same each time
TIMES = {"clips_per_second", "data_wait_share", "eta_seconds"}


class Traces:
    """Of one run, or of one at whose workdir it was.

    Args:
      folder: with the plan, the notes, and what the processes have printed.
      workdir: of the run.
      count: processes.
    """

    def __init__(self, folder: Path, workdir: Path, count: int):
        self.folder, self.workdir, self.count = folder, workdir, count

    def output(self, index: int | None = None) -> str:
        """What one process has printed in all its starts, or all of them, one after another."""
        indices = range(self.count) if index is None else [index]
        paths = (self.folder / f"output_{i}.txt" for i in indices)
        return "\n".join(path.read_text(errors="replace") for path in paths if path.exists())

    def metrics(self) -> dict[int, dict[str, float]]:
        """Of each step, without times. AssertionError for a step that is there twice."""
        found: dict[int, dict[str, float]] = {}
        for line in (self.workdir / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            numbers = {name: value for name, value in record.items() if name not in TIMES}
            before = found.setdefault(numbers.pop("step"), {})
            assert not before.keys() & numbers.keys(), f"twice in metrics.jsonl: {record}"
            before |= numbers
        return found

    def losses(self) -> list[float]:
        """Of the steps, in their order."""
        return [numbers["loss"] for _, numbers in sorted(self.metrics().items())]

    def clips(self) -> dict[int, list[str]]:
        """Which clips each step was made of, in order; for one done again, the last time."""
        by_process: dict[tuple[int, int], list[str]] = {}
        for _, process, step, clip_ids in notes.read(self.folder, notes.BATCHES):
            by_process[step, process] = clip_ids
        found: dict[int, list[str]] = {}
        for (step, _), clip_ids in sorted(by_process.items()):
            found.setdefault(step, []).extend(clip_ids)
        return found

    def first_steps(self) -> list[int]:
        """The first step of each start of process 0 that came so far. AssertionError if one of them
        left a step out."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for pid, process, step, _ in notes.read(self.folder, notes.BATCHES):
            if process == 0:
                first.setdefault(pid, step)
                assert last.get(pid, step - 1) == step - 1, f"step {step} after {last[pid]}"
                last[pid] = step
        return list(first.values())

    def saved(self) -> list[int]:
        """Steps of finished checkpoints."""
        folder = self.workdir / "checkpoints"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit())

    def leftovers(self) -> list[str]:
        """What else is in the folder of checkpoints, but for those set aside as damaged."""
        names = (path.name for path in (self.workdir / "checkpoints").iterdir())
        return [name for name in names if not name.isdigit() and ".corrupt-" not in name]

    def fingerprint(self, step: int) -> dict[str, int]:
        """Of the arrays of a checkpoint, as they were saved."""
        path = self.workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
        return json.loads(path.read_text())["custom_metadata"]["fingerprint"]

    def differs_from(self, clean: Traces, *, checkpoints: bool = True) -> str | None:
        """The first thing in which a finished run differs from one that nothing has happened to.

        Args:
          checkpoints: whether those of the same steps must be there. The last one must in any case.
        Returns:
          None if they are the same, bit by bit.
        """
        try:
            if pending := faults.left(self.folder):
                return f"never happened: {', '.join(map(str, pending))}"
            self.first_steps()
            pairs = [
                ("clips", self.clips(), clean.clips()),
                ("metrics", self.metrics(), clean.metrics()),
                ("leftovers", self.leftovers(), []),
            ]
            if checkpoints:
                pairs.append(("checkpoints", self.saved(), clean.saved()))
            for what, mine, theirs in pairs:
                if mine != theirs:
                    return f"{what}: {_first_difference(mine, theirs)}"
            last = clean.saved()[-1]
            if self.fingerprint(last) != clean.fingerprint(last):
                return f"the state of step {last} is another"
        except AssertionError as error:
            return str(error)
        return None


def _first_difference(mine: Any, theirs: Any) -> str:
    if not isinstance(mine, dict):
        return f"{mine} instead of {theirs}"
    key = next(k for k in sorted(mine.keys() | theirs.keys()) if mine.get(k) != theirs.get(k))
    return f"step {key}: {mine.get(key)} instead of {theirs.get(key)}"
