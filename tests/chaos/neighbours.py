"""Others at a workdir where a trainer is at work: a second trainer, and those that only read."""

from __future__ import annotations

import time

from tests.chaos import notes
from tests.chaos.campaign import Scene
from tests.chaos.runs import Run

SETTINGS_NEED_A_HAND = 78
SETTINGS = {
    "schedule__num_steps": 120,
    "run__save_every_steps": 2,
    "evals__held_out__every_steps": 2,
}
PACE = 0.3  # seconds a step: as long as a few starts take
_HELD_OUT = "held_out/loss"


def visitors(scene: Scene) -> None:
    """Trainers and evaluators come as long as the trainer lives; it must not notice."""
    run = scene.run("run", pace=PACE, **SETTINGS)
    second = Visitor(scene, "second", run)
    evaluator = Visitor(scene, "evaluator", run, env={"CHAOS_EVALUATE_UNTIL": str(run.folder)})
    with run.start() as group:
        group.wait_for_text("checkpoint 2:", deadline=200)
        refused, problem = _send_trainers(second, until=lambda: run.saved()[-1] >= 10)
        scene.check("a second trainer", "refused at once, code 78", problem, refused)
        looker = evaluator.start("--evaluate")
        with looker:
            while not group.ended():
                time.sleep(0.1)
            (run.folder / "ended").touch()
            looked_code = looker.wait(deadline=120)
        code = group.wait()
    problem = f"exit codes {code}" if code != [0] else None
    if "was not saved" in run.output():
        problem = "a save failed"
    problem = problem or run.differs_from(scene.shared.clean(**SETTINGS))
    scene.check("saves beside them", "same losses, checkpoints and state", problem)
    held_out = {step: numbers.get(_HELD_OUT) for step, numbers in run.metrics().items()}
    seen = [fact[1:] for fact in notes.read(evaluator.folder, notes.EVALUATIONS)]
    wrong = [step for step, metrics in seen if metrics[_HELD_OUT] != held_out[step]]
    problem = f"exit codes {looked_code}: {evaluator.output()[-300:]}" if any(looked_code) else None
    problem = problem or (wrong and f"other numbers than the trainer's at steps {wrong}")
    scene.check("an evaluation", "same numbers as the trainer's own", problem, len(seen))


class Visitor(Run):
    """Another process at the workdir of a run."""

    def __init__(self, scene: Scene, name: str, run: Run, **arguments):
        super().__init__(scene.folder / name, scene.shared.cache, **SETTINGS, **arguments)
        self.workdir = run.workdir


def _send_trainers(second: Visitor, until) -> tuple[int, str | None]:
    """How many were sent until then, at least one; and what was wrong."""
    count, problem = 0, None
    while not count or not until():
        count += 1
        codes = second.finish()
        if codes != [SETTINGS_NEED_A_HAND] or second.output().count("is in use") != count:
            problem = f"exit codes {codes}: {second.output()[-300:]}"
    return count, problem
