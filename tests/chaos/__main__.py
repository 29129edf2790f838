"""Runs the campaign, or some rows of it; 0 if all held."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import (
    damage,
    disks,
    kills,
    layouts,
    neighbours,
    nonfinite,
    partial_restore,
    preemption,
    report,
    silence,
    soak,
)  # fmt: skip
from tests.chaos.campaign import Row, run_rows
from tests.chaos.mounts import end_by_signals, with_own_mounts

SAME = "same losses, clips and state as a run that nothing happened to"
ROWS = [
    Row("T1", "kill -9 of one process, half of them in a save",
        f"{SAME}; no decoder left behind", kills.one_process, 250),
    Row("T2", "kill -9 of either of two processes, each with a supervisor",
        f"the other ends in 15 s; unattended; {SAME}", kills.two_processes, 250, alone=True),
    Row("T3", "SIGTERM to one, all, or the process group of two processes that decode",
        "code 75 in 10 s, one more checkpoint, no step lost", preemption.two_processes, 120,
        alone=True),
    Row("T4", "damage of every file of a checkpoint", "never silently wrong; newest intact step; "
        "one line each", damage.every_file, 120),
    Row("T5", "full or read-only disk, a file in the way",
        "goes on, or ends in 15 s and says why; old steps load; nothing left over",
        disks.all_kinds, 150),
    Row("T6", "exception, freeze, hang of either of two processes",
        "both end within the limits, with stacks for a hang; unattended", silence.either_process,
        180, alone=True),
    Row("T7", "1, 2, 4 processes, 8 devices in several meshes; resumed on another number",
        "every clip once an epoch; losses within 1e-5", layouts.numbers_of_processes, 400,
        alone=True),
    Row("T8", "another number of threads on resume", SAME, layouts.numbers_of_threads, 40),
    Row("T9", "loss or gradient not finite", "same state as without those steps; a streak ends "
        "the run with code 76 and the clips", nonfinite.steps_and_streaks, 60),
    Row("T10", "restoring parts of other models", "every array named; none made up",
        partial_restore.mismatches, 40),
    Row("T11", "a second trainer and an evaluator on a workdir in use",
        "refused at once; saves undisturbed", neighbours.visitors, 90, alone=True),
    Row("soak", "fifty random faults under a supervisor", SAME, soak.random_faults, 450),
    Row("soak-ft", "twelve random faults while fine-tuning", SAME, soak.fine_tuning, 150),
]  # fmt: skip


def main() -> int:
    """Parses, runs, writes."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="e.g. T1 soak; all by default")
    parser.add_argument("--out", type=Path, help="JSON of all outcomes")
    parser.add_argument("--page", type=Path, help="the same to be read, Markdown")
    parser.add_argument("--folder", type=Path, help="for the runs; a temporary one by default")
    arguments = parser.parse_args()
    names = {row.name for row in ROWS}
    if unknown := set(arguments.rows) - names:
        parser.error(f"unknown rows {sorted(unknown)}; choose from {sorted(names)}")
    with_own_mounts()
    rows = [row for row in ROWS if not arguments.rows or row.name in arguments.rows]
    started, date = time.monotonic(), time.strftime("%Y-%m-%d")
    with tempfile.TemporaryDirectory(prefix="chaos_") as temporary:
        end_by_signals(Path(temporary))
        results = run_rows(rows, arguments.folder or Path(temporary))
    found = report.as_json(
        results,
        command=shlex.join(["python", "-m", "tests.chaos", *sys.argv[1:]]),
        date=date,
        seconds=time.monotonic() - started,
    )
    print(report.as_markdown(found))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.page:
        arguments.page.write_text(report.as_markdown(found))
    return 0 if found["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
