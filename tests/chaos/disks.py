"""Disks that are full, or cannot be written, and files where folders should be."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from tests.chaos import mounts
from tests.chaos.actions import BALLAST, fill_disk
from tests.chaos.campaign import Scene
from tests.chaos.faults import Fault
from tests.chaos.runs import Run

SETTINGS_NEED_A_HAND = 78
IN_TIME = 15.0  # seconds from the fault, or from the first line of a start, to the end
START = 30.0  # seconds that a start may take on a busy machine
MEGABYTES = 16
EVERY = 5  # steps between saves
SETTINGS = {"schedule__num_steps": 40, "run__save_every_steps": EVERY}
GOES_ON = "goes on; then the same"
ENDS = "code 78 in time with the reason; old steps load; freed, the same"
_NO_ROOM = ("free, and a checkpoint takes", "No space left")


def all_kinds(scene: Scene) -> None:
    """Those that need a small disk are left out where none can be had."""
    for rule in (_file_instead_of_step, _file_instead_of_folder):
        rule(scene)
    if reason := mounts.why_no_mounts():
        scene.say(f"left out, full and read-only disks: {reason}")
        return
    for rule in (_full_and_freed, _full_for_good, _full_at_start, _read_only_at_start,
                 _read_only_for_a_while, _read_only_for_good):  # fmt: skip
        scene.say(rule.__name__.strip("_").replace("_", " "))
        rule(scene)


def _full_and_freed(scene: Scene) -> None:
    places = [(10, "room"), (15, "save"), (25, "room"), (30, "save")]
    plan = [Fault("full disk", step, place) for step, place in places]
    run = scene.run("full", faults=plan, **SETTINGS)
    with mounts.small_disk(run.workdir, MEGABYTES):
        run.done(say=scene.say)
        problem = run.differs_from(scene.shared.clean(**SETTINGS))
        named = [line for line in run.output().splitlines() if "was not saved: " in line]
        if len(named) != len(plan) or not all(any(r in line for r in _NO_ROOM) for line in named):
            problem = f"failed saves are named so: {named}"
        elif "Traceback" in run.output():
            problem = "a traceback"
    scene.check_all(plan, GOES_ON, problem)


def _full_for_good(scene: Scene) -> None:
    run = scene.run("full_for_good", faults=[Fault("full disk", 10, "save", detail=1)], **SETTINGS)

    def free():
        (run.workdir / BALLAST).unlink()

    with mounts.small_disk(run.workdir, MEGABYTES):
        problem = _ends(run, _NO_ROOM) or _goes_on(scene, run, free, from_step=6)
    scene.check("full disk for good, three saves", ENDS, problem)


def _full_at_start(scene: Scene) -> None:
    run = scene.run("full_at_start", **SETTINGS)
    with mounts.small_disk(run.workdir, MEGABYTES):
        free = fill_disk(run.folder)
        problem = _ends(run, _NO_ROOM) or _goes_on(scene, run, free, from_step=1)
    scene.check("full disk at the start", ENDS, problem)


def _read_only_at_start(scene: Scene) -> None:
    clean = scene.shared.clean(**SETTINGS)
    run = scene.run("read_only", **SETTINGS)
    shutil.copytree(clean.workdir, run.workdir)
    shutil.rmtree(run.workdir / "checkpoints" / str(run.num_steps))
    with mounts.read_only(run.workdir):
        problem = _ends(run, ("Read-only file system",))
        codes = run.finish("--evaluate", evals__held_out__every_steps=10)
        if codes != [0] or f"evaluated at step {run.num_steps - EVERY}" not in run.output():
            problem = problem or f"an evaluation there ended with {codes}"
    run.done()
    if not problem and run.fingerprint(run.num_steps) != clean.fingerprint(run.num_steps):
        problem = "the state afterwards is another"
    scene.check("read-only workdir at the start", ENDS, problem)


def _read_only_for_a_while(scene: Scene) -> None:
    run = scene.run("read_only_for_a_while", pace=0.1, **SETTINGS)
    with run.start() as group:
        group.wait_for_text("checkpoint 10: ", deadline=120)
        with mounts.read_only(run.workdir / "checkpoints"):
            group.wait_for_text("was not saved: ", deadline=60)
        codes = group.wait(deadline=120)
    problem = f"exit codes {codes}" if codes != [0] else None
    problem = problem or run.differs_from(scene.shared.clean(**SETTINGS))
    scene.check("read-only checkpoints for a while", GOES_ON, problem)


def _read_only_for_good(scene: Scene) -> None:
    run = scene.run("read_only_for_good", pace=0.1, **SETTINGS)
    with run.start() as group:
        group.wait_for_text("checkpoint 10: ", deadline=120)
        with mounts.read_only(run.workdir / "checkpoints"):
            began = time.monotonic()
            codes = group.wait(deadline=120)
            seconds = time.monotonic() - began
    problem = _wrong_end(run, codes, seconds, ("Read-only file system",))
    problem = problem or _goes_on(scene, run, lambda: None, from_step=11)
    scene.check("read-only checkpoints for good, three saves", ENDS, problem)


def _file_instead_of_step(scene: Scene) -> None:
    run = scene.run("file_instead_of_step", **SETTINGS)
    path = run.workdir / "checkpoints" / "10"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    run.done()
    problem = run.differs_from(scene.shared.clean(**SETTINGS), checkpoints=False)
    if path.read_text() != "mine" or "10 is a file, not a folder" not in run.output():
        problem = "the file is gone, or not named"
    scene.check("a file in place of a checkpoint", GOES_ON, problem)


def _file_instead_of_folder(scene: Scene) -> None:
    for name in ("workdir/checkpoints", "workdir"):
        run = scene.run(f"file_instead_of_{name.replace('/', '_')}", **SETTINGS)
        path = run.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        problem = _ends(run, (path.name,)) or _goes_on(scene, run, path.unlink, from_step=1)
        scene.check(f"a file in place of {path.name}", ENDS, problem)


def _ends(run: Run, reasons: tuple[str, ...]) -> str | None:
    """What is wrong with the end of a run that cannot go on."""
    began = time.monotonic()
    codes = run.finish()
    return _wrong_end(run, codes, time.monotonic() - began, reasons)


def _wrong_end(run: Run, codes: list[int], seconds: float, reasons: tuple[str, ...]) -> str | None:
    last_lines = run.output().strip().splitlines()[-3:]
    if codes != [SETTINGS_NEED_A_HAND]:
        return f"exit codes {codes}; {last_lines}"
    if seconds > IN_TIME + START:
        return f"ended after {seconds:.0f} s"
    if not any(reason in line for reason in reasons for line in last_lines):
        return f"the reason is not among the last lines: {last_lines}"
    if "Traceback" in run.output():
        return "a traceback"
    return None


def _goes_on(scene: Scene, run: Run, undo: Callable[[], object], from_step: int) -> str | None:
    """What is wrong with a run once the obstacle is out of its way."""
    undo()
    run.done()
    if run.first_steps()[-1] != from_step:
        return f"went on from step {run.first_steps()[-1]}"
    return run.differs_from(scene.shared.clean(**SETTINGS))
