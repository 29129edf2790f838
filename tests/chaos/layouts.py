"""The same run on other numbers of processes, devices and threads, from the start or resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

from tests.chaos.campaign import Scene
from tests.chaos.faults import Fault
from tests.chaos.painted import NUM_RECORDS
from tests.chaos.runs import ROOT, Run

TOLERANCE = 1e-5  # relative, of losses: sums over devices are rounded in another order
STEPS, SAVED = 12, 6
SETTINGS = {
    "data__batch_size": 8,
    "schedule__num_steps": STEPS,
    "run__save_every_steps": SAVED,
}
_DEVICES = {"env": {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}}
# name -> how it is started
LAYOUTS: dict[str, dict[str, Any]] = {
    "1 process": {},
    "2 processes": {"count": 2},
    "4 processes": {"count": 4},
    "8 devices": _DEVICES,
}
RESUMES = [
    ("4 processes", "1 process"), ("4 processes", "2 processes"), ("1 process", "2 processes"),
    ("2 processes", "1 process"), ("1 process", "4 processes"), ("8 devices", "1 process"),
]  # fmt: skip


def numbers_of_processes(scene: Scene) -> None:
    """Whole runs, pairs of halves, and the train step on meshes of pretended devices."""
    runs: dict[str, Run] = {}
    for name, how in LAYOUTS.items():
        runs[name] = run = scene.run(name.replace(" ", "_"), **SETTINGS, **how).done()
        problem = _incomplete_epoch(run) or _differs(run, runs["1 process"])
        scene.check(name, "every clip once an epoch, same clips and losses", problem)
        scene.say(name)
    for before, after in RESUMES:
        folder = scene.folder / f"{before}_to_{after}".replace(" ", "_")
        _copy_half(runs[before], folder)
        run = Run(folder, scene.shared.cache, **SETTINGS, **LAYOUTS[after]).done()
        problem = _differs(run, runs["1 process"], from_step=SAVED + 1)
        if run.first_steps() != [SAVED + 1]:
            problem = f"resumed at step {run.first_steps()}"
        scene.check(f"{before}, resumed on {after}", "same clips and losses", problem)
        scene.say(f"{before} -> {after}")
    _meshes(scene)


def numbers_of_threads(scene: Scene, numbers=(0, 5, 1)) -> None:
    """Killed and resumed with another number of threads that decode, of two at first."""
    settings = {
        "data__name": "video_folder",
        "data__path": str(scene.shared.videos()),
        "schedule__num_steps": 10 * len(numbers) + 5,
    }
    plan = [Fault("kill -9", 10 * (n + 1) - 2) for n in range(len(numbers))]
    run = scene.run("run", faults=plan, **settings)
    before = [2, *numbers]
    for number in before:
        codes = run.finish(data__num_threads=number)
        assert codes == [0 if number == before[-1] else -signal.SIGKILL], run.output()[-3000:]
    problem = run.differs_from(scene.shared.clean(**settings))
    for a, b in zip(before, numbers, strict=False):
        scene.check(f"{a} threads, resumed with {b}", "same losses, clips and state", problem)


def _copy_half(run: Run, folder) -> None:
    """The workdir of a run as it was at its first checkpoint."""
    shutil.copytree(run.workdir, folder / "workdir", ignore=shutil.ignore_patterns(str(STEPS)))


def _incomplete_epoch(run: Run) -> str | None:
    """Of a whole run."""
    clips = [clip for _, clip_ids in sorted(run.clips().items()) for clip in clip_ids]
    size = NUM_RECORDS["train"]
    for start in range(0, len(clips) - size + 1, size):
        counts = Counter(clips[start : start + size])
        if len(counts) != size:
            return f"epoch {start // size} has {len(counts)} of {size} clips"
    return None


def _differs(run: Run, other: Run, from_step: int = 1) -> str | None:
    wanted = {step: sorted(ids) for step, ids in other.clips().items() if step >= from_step}
    if {step: sorted(ids) for step, ids in run.clips().items()} != wanted:
        return "other clips"
    worst = max(abs(a / b - 1) for a, b in zip(run.losses(), other.losses(), strict=True))
    return f"losses differ by {worst:.1e}" if worst > TOLERANCE else None


def _meshes(scene: Scene) -> None:
    for options in ([], ["--finetuning"]):
        _meshes_of(scene, options)


def _meshes_of(scene: Scene, options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "mesh_runs.py"), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runs = json.loads(done.stdout.splitlines()[-1])
    one = runs.pop("one")
    for name, run in runs.items():
        if "/" not in name:  # something else that it measures
            continue
        pairs = zip(run["losses"], one["losses"], strict=True)
        worst = max(abs(a / b - 1) for a, b in pairs)
        problem = f"losses differ by {worst:.1e}" if worst > TOLERANCE else None
        if run["masks"] != one["masks"]:
            problem = "other masks"
        mesh, accumulation = name.split("/")
        kind = f"mesh {mesh}, {accumulation} micro-batch{'es' * (accumulation != '1')}"
        kind += ", fine-tuning" * bool(options)
        scene.check(kind, "same masks and losses as one device", problem)
