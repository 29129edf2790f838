"""Damage of a run's newest checkpoint: every file of it, in every way."""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from tests.chaos.campaign import Scene
from tests.chaos.runs import facts_of
from tests.checkpoint_damage import Damage, all_damages
from vmae_jax.checkpoints import finished_steps, loading, orbax_files, restoring
from vmae_jax.checkpoints.fingerprints import named_leaves

COUNT = 110
NAMES = {
    "flip": "a flipped bit",
    "truncate": "a missing end",
    "zero": "zeroed blocks",
    "delete": "a missing file",
}
SETTINGS = {"schedule__num_steps": 10, "run__keep_checkpoints": 2}  # of steps 5 and 10


def every_file(scene: Scene, count: int = COUNT) -> None:
    """Each is restored from in a process of its own, as the trainer does it."""
    clean = scene.shared.clean(**SETTINGS)
    found = facts_of("tests.chaos.damage", clean.workdir / "checkpoints", count)
    for (kind, outcome, problem), times in Counter(
        (fact["kind"], fact["outcome"], fact["problem"]) for fact in found
    ).items():
        scene.check(kind, outcome, problem, times)


def main(checkpoints: Path, count: int) -> None:
    """Prints what became of so many damages, each file in each way at least once."""
    older, newest = finished_steps.saved_steps(checkpoints)[-2:]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    _, stored = orbax_files.read_header(checkpoints / str(newest))
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored)
    exact = {
        step: _bytes(loading.restore(checkpoints / str(step), template).state)
        for step in (older, newest)
    }
    for damage in _chosen(checkpoints / str(newest), count):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(checkpoints, Path(folder) / "checkpoints"))
            damage.apply(copy / str(newest))
            outcome, problem = _restore(copy, template, exact)
        print(
            json.dumps(
                {
                    "kind": f"{NAMES[damage.kind]} in {_what(damage.file)}",
                    "outcome": outcome,
                    "problem": problem and f"{problem} ({damage})",
                }
            ),
            flush=True,
        )


def _chosen(step: Path, count: int) -> list[Damage]:
    each = all_damages(step)
    rng = random.Random(0)
    # more of those whose place in the file is a matter of chance
    more = [d for d in all_damages(step, per_kind=-(-count // len(each)) + 3) if d not in each]
    return each + rng.sample(more, max(0, min(len(more), count - len(each))))


def _restore(copy: Path, template, exact: dict[int, dict[str, bytes]]) -> tuple[str, str | None]:
    """What was restored, and what was wrong about that."""
    newest = max(exact)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        restored = restoring.restore_newest(copy, template)
    except Exception as error:
        return "ended", f"{type(error).__name__}: {error}"
    finally:
        logging.getLogger().removeHandler(handler)
    problem = None
    if _bytes(restored.state) != exact.get(restored.step):
        problem = f"the state of step {restored.step} is wrong"
    elif restored.step == newest:
        return "harmless, exact", f"logged {lines}" if lines else None
    elif len(lines) != 1 or f"{newest} is damaged: " not in lines[0] or len(lines[0]) > 1000:
        problem = f"logged {lines}"
    elif not (copy / f"{newest}.corrupt-0").exists():
        problem = "not set aside"
    return "named in one line, the step before is exact", problem


def _bytes(state) -> dict[str, bytes]:
    return {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(state).items()}


def _what(file: str) -> str:
    """What of a checkpoint a file is."""
    if Path(file).parent.name == "d":
        return "arrays"
    return "an index of arrays" if file.endswith(".ocdbt") else "what describes it"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
