"""kill -9, in the middle of everything: of the only process, and of one of two."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.chaos import faults
from tests.chaos.campaign import Scene
from tests.chaos.faults import Fault
from tests.chaos.hooks import SAVE_PLACES
from tests.chaos.runs import SETTINGS
from tests.chaos.watch import Watch

EVERY = SETTINGS["run.save_every_steps"]
ORPHANS_GONE = 5.0  # seconds
SURVIVOR_GONE = 15.0  # seconds
_KILL = "kill -9"


def plan(count: int, seed: int, processes: int = 1) -> list[Fault]:
    """Kills, half of them in saves, and in each process in turn."""
    rng = random.Random(seed)
    chosen = []
    for number in range(count):
        step = EVERY * (number + 1)
        process = (number // 2) % processes
        if number % 2:
            place = _save_places(processes, process)[number // 2 // processes % 4]
            chosen.append(Fault(_KILL, step, place, process, rng.randint(1, 12)))
        else:
            chosen.append(Fault(_KILL, step + rng.randint(1, EVERY), process=process))
    return chosen


def _save_places(processes: int, process: int) -> Sequence[str]:
    if processes == 1:
        return [place for place in SAVE_PLACES if place not in ("room", "renaming")]
    if process == 0:
        return ["writing", "renaming", "renamed", "deleting"]
    return ["save", "writing", "writing", "save"]  # the folder is the other one's


def one_process(scene: Scene, count: int = 20) -> None:
    """The run decodes videos in processes of its own, which must not outlive it."""
    settings = {
        "data__name": "video_folder",
        "data__path": str(scene.shared.videos()),
        "schedule__num_steps": EVERY * (count + 2),
    }
    run = scene.run("run", faults=plan(count, seed=1), supervise=6, **settings)
    watch = Watch(run.folder)
    run.done(say=scene.say, watch=watch, deadline=120 + 60 * count)
    problem = run.differs_from(scene.shared.clean(**settings))
    for one in faults.happened(run.folder):
        orphans = watch.orphans(one, within=ORPHANS_GONE)
        scene.check_all(
            [one.fault],
            "same losses, clips and state",
            problem or (orphans and f"left running: {orphans}"),
        )
    scene.say(f"{sum(len(o.children) for o in faults.happened(run.folder))} decoders ended with it")


def two_processes(scene: Scene, count: int = 12) -> None:
    """Each under a supervisor of its own, as on two hosts."""
    settings = {
        "count": 2,
        "schedule__num_steps": EVERY * (count + 2),
    }
    run = scene.run("run", faults=plan(count, seed=2, processes=2), supervise=6, **settings)
    watch = Watch(run.folder)
    run.done(say=scene.say, watch=watch, deadline=180 + 90 * count)
    problem = run.differs_from(scene.shared.clean(**settings))
    slowest = 0.0
    for one in faults.happened(run.folder):
        seconds = watch.seconds_to_end(one, 1 - one.fault.process)
        slowest = max(slowest, seconds or 0.0)
        late = seconds is None or seconds > SURVIVOR_GONE
        scene.check_all(
            [one.fault],
            "the other ended in time, same losses, clips and state",
            problem or (late and f"the other process ended after {seconds} s"),
        )
    scene.say(f"the slowest survivor took {slowest:.1f} s")
