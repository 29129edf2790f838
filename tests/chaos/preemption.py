"""SIGTERM, as a scheduler sends it: to one process, to all, or to all that they have started."""

from __future__ import annotations

from tests.chaos import faults
from tests.chaos.campaign import Scene
from tests.chaos.faults import Fault
from tests.chaos.watch import Watch

PREEMPTED = 75
IN_TIME = 10.0  # seconds
GAP = 30  # steps between two signals; JAX's processes agree on one within a second or two
PACE = 0.1
_ONE, _GROUP = "SIGTERM", "SIGTERM to the process group"
# signal -> the processes that get it
CASES = [(_ONE, [0]), (_ONE, [1]), (_ONE, [0, 1]), (_GROUP, [0]), (_GROUP, [1]), (_GROUP, [0, 1])]


def two_processes(scene: Scene, cases=CASES) -> None:
    """The run ends at each signal and is started again; no checkpoints are due in between."""
    settings = {
        "count": 2,
        "data__name": "video_folder",
        "data__path": str(scene.shared.videos()),
        "schedule__num_steps": GAP * (len(cases) + 1),
        "run__save_every_steps": 10 * GAP * len(cases),
        "run__keep_checkpoints": len(cases) + 1,
    }
    plan = [
        Fault(kind, GAP * (number + 1), process=process)
        for number, (kind, processes) in enumerate(cases)
        for process in processes
    ]
    run = scene.run("run", faults=plan, pace=PACE, **settings)
    watch = Watch(run.folder)
    found: list[tuple[str, str | None]] = []
    for kind, processes in cases:
        before = run.saved()
        codes = run.finish(watch=watch, say=scene.say)
        signalled = faults.happened(run.folder)[-1]
        seconds = [watch.seconds_to_end(signalled, process) for process in (0, 1)]
        new, last = sorted(set(run.saved()) - set(before)), max(run.clips())
        problem = None
        if codes != [PREEMPTED] * 2:
            problem = f"exit codes {codes}"
        elif None in seconds or max(seconds) > IN_TIME:
            problem = f"ended after {seconds} s"
        elif new != [last]:
            problem = f"after step {last}, the new checkpoints are {new}"
        who = "both processes" if len(processes) == 2 else f"process {processes[0]}"
        found.append((f"{kind} of {who}" if kind == _GROUP else f"{kind} to {who}", problem))
        scene.say(f"ended in {seconds[0]:.1f} and {seconds[1]:.1f} s with step {last} saved")
    run.done(watch=watch)
    steps = [step - 1 for step in run.first_steps()]
    problem = run.differs_from(scene.shared.clean(**settings), checkpoints=False)
    if steps != [0, *run.saved()[:-1]]:
        problem = f"started after steps {steps}, saved {run.saved()}"
    for kind, own in found:
        scene.check(kind, "code 75 in time, one checkpoint more, then the same", own or problem)
