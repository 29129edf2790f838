"""Runs as older code wrote them, see `data/old_runs/README.md`."""

from __future__ import annotations

import json
import pathlib
import shutil
import zipfile

import numpy as np

DATA = pathlib.Path(__file__).parent / "data" / "old_runs"
FORMATS = (1, 2)
STEP = 8


def unpack(number: int, workdir: pathlib.Path) -> pathlib.Path:
    """Makes a workdir with the checkpoint, configuration and metrics of a format's run."""
    folder = DATA / f"format_{number}"
    workdir.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "checkpoints.zip") as archive:
        archive.extractall(workdir)
    shutil.copy(folder / "run_config.json", workdir)
    # up to the checkpoint and beyond, as a run leaves it that was killed after its last step
    shutil.copy(folder / "metrics.jsonl", workdir)
    return workdir


def losses(number: int) -> dict[tuple[int, str], float]:
    """{(step, name): value} of training and held-out losses, steps 1 to 12."""
    lines = (DATA / f"format_{number}" / "metrics.jsonl").read_text().splitlines()
    return {
        (record["step"], name): record[name]
        for record in map(json.loads, lines)
        for name in ("loss", "held_out/loss")
        if name in record
    }


def state() -> tuple[list[str], bytes]:
    """The names of all arrays of step 8, sorted, and their bytes one after the other."""
    with np.load(DATA / "state_8.npz") as file:
        return file["names"].tolist(), file["bytes"].tobytes()
