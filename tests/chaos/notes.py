"""What the processes of a run under test write down: one line of JSON for each fact.

A line is written at once and whole, so a kill loses at most the one being written.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCHES = "batches"  # process, step, clip ids, of each batch that was taken
STARTS = "starts"  # process, pid, the system's clock, of each trainer
EVALUATIONS = "evaluations"  # step, metrics, of each evaluation by an evaluator


def add(folder: Path, name: str, *fact: Any) -> None:
    """Adds a fact, with the pid of this process in front."""
    line = json.dumps([os.getpid(), *fact]).encode() + b"\n"
    descriptor = os.open(_path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read(folder: Path, name: str) -> Iterator[list[Any]]:
    """All facts, in their order: [pid, ...]."""
    path = _path(folder, name)
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # a killed process's last
            yield json.loads(line)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.jsonl"
