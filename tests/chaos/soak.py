"""Random faults, one after another, under a supervisor, until it is done."""

from __future__ import annotations

import contextlib
import random

from tests.chaos import mounts
from tests.chaos.campaign import Scene
from tests.chaos.faults import Fault
from tests.chaos.hooks import SAVE_PLACES
from tests.chaos.runs import FINE_TUNING, SETTINGS

EVERY = SETTINGS["run.save_every_steps"]
SEED = 7
_KINDS = [
    *3 * [("kill -9", "step")],
    *(("kill -9", place) for place in SAVE_PLACES if place != "room"),
    *3 * [("SIGTERM", "step")],
    *2 * [("freeze", "step")],
]


def plan(count: int, seed: int, disk: bool) -> list[Fault]:
    """Kinds by chance; two checkpoints are never damaged without a good one between them."""
    rng = random.Random(seed)
    chosen: list[Fault] = []
    for number in range(count):
        step = EVERY * (number + 1) + rng.randint(1, EVERY)
        before = chosen[-1].kind if chosen else ""
        kinds = [*_KINDS]
        if before == "full disk":  # a run may end for more of that, or if its last save fails
            kinds = [kind for kind in kinds if kind[0] != "SIGTERM"]
        elif disk:
            kinds += [("full disk", "room"), ("full disk", "save")]
        if chosen and before != "damaged checkpoint":
            kinds += 2 * [("damaged checkpoint", "step")]
        kind, place = rng.choice(kinds)
        # a disk that is full for a moment only; elsewhere a number of files, or which one
        detail = 0 if kind == "full disk" else rng.randint(1, 12)
        chosen.append(Fault(kind, step, place, detail=detail))
    return chosen


def fine_tuning(scene: Scene, count: int = 12, seed: int = SEED + 1) -> None:
    """The same of a run that fine-tunes, with mixing, repeated augmentation and averages."""
    changes = {name.replace(".", "__"): value for name, value in FINE_TUNING.items()}
    random_faults(scene, count, seed, **changes)


def random_faults(scene: Scene, count: int = 50, seed: int = SEED, **changes: object) -> None:
    """The workdir is a small disk, if there may be one, so that it can be full."""
    settings = {
        "schedule__num_steps": EVERY * (count + 4),
        "run__keep_checkpoints": 3,
        **changes,
    }
    reason = mounts.why_no_mounts()
    if reason:
        scene.say(f"no full disks: {reason}")
    faults = plan(count, seed, disk=reason is None)
    run = scene.run("run", faults=faults, supervise=6, **settings)
    disk = contextlib.nullcontext() if reason else mounts.small_disk(run.workdir, megabytes=64)
    with disk:
        run.done(say=scene.say, deadline=120 + 60 * count)
        problem = run.differs_from(scene.shared.clean(**settings), checkpoints=False)
    scene.check_all(faults, "same losses, clips and state", problem)
