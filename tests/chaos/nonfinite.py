"""Steps whose loss or gradient is not finite."""

from __future__ import annotations

import json

from tests.chaos.campaign import Scene
from tests.chaos.faults import Fault
from tests.chaos.poison import INF_LOSS, NAN_GRADIENT, NAN_LOSS, PLACE, SKIP

NON_FINITE = 76
STREAK = 5
SINGLE = [(NAN_LOSS, 7), (INF_LOSS, 12), (NAN_GRADIENT, 13), (NAN_GRADIENT, 20), (NAN_LOSS, 26)]
SETTINGS = {
    "schedule__num_steps": 30,
    "run__max_skipped_in_a_row": STREAK,
    "run__keep_checkpoints": 99,
}


def steps_and_streaks(scene: Scene) -> None:
    """Single ones and two in a row, which cost no more than themselves; and too many in a row."""
    plan = [Fault(kind, step, PLACE) for kind, step in SINGLE]
    skips = [Fault(SKIP, step, PLACE) for _, step in SINGLE]
    hurt = scene.run("single", faults=plan, **SETTINGS).done()
    left_out = scene.run("left_out", faults=skips, **SETTINGS).done()
    problem = None
    for step in hurt.saved():
        if hurt.fingerprint(step) != left_out.fingerprint(step):
            problem = problem or f"the state of step {step} is another"
    at = {fault.at for fault in plan}
    numbers = [{s: m for s, m in run.metrics().items() if s not in at} for run in (hurt, left_out)]
    if numbers[0] != numbers[1]:
        problem = "other steps have other numbers"
    named = [r["step"] for r in _lines(hurt.workdir / "health.jsonl") if r["what"] == "skipped"]
    if named != sorted(at):
        problem = f"health.jsonl names steps {named}"
    for kind, _ in SINGLE:
        scene.check(kind, "same state as a run that leaves the step out; clips named", problem)
    a_streak(scene)


def a_streak(scene: Scene) -> None:
    """As many in a row as end a run."""
    steps = range(11, 11 + STREAK)
    plan = [Fault(NAN_LOSS, step, PLACE) for step in steps]
    run = scene.run("streak", faults=plan, **SETTINGS)
    codes = run.finish()
    clean = scene.shared.clean(**SETTINGS)
    clips = [clip for step in steps for clip in clean.clips()[step]]
    problem = None
    path = run.workdir / f"nonfinite_step_{steps[-1]}.json"
    if codes != [NON_FINITE]:
        problem = f"exit codes {codes}"
    elif not path.exists():
        problem = f"{path.name} is missing"
    elif [clip for record in json.loads(path.read_text()) for clip in record["clip_ids"]] != clips:
        problem = f"{path.name} names other clips"
    elif clips[0] not in run.output():
        problem = "the clips are not printed"
    else:
        newest = run.saved()[-1]
        if newest >= steps[-1] or run.fingerprint(newest) != clean.fingerprint(newest):
            problem = f"the checkpoint {newest} is another than that of a clean run"
    scene.check(
        f"{NAN_LOSS}, {STREAK} in a row", "code 76, the exact clips, a clean checkpoint", problem
    )


def _lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
