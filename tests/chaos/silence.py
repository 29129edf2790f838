"""One of two processes fails, stands still, or hangs: the other must not wait for it for ever."""

from __future__ import annotations

from tests.chaos import faults
from tests.chaos.campaign import Scene
from tests.chaos.faults import Fault
from tests.chaos.runs import ENVIRONMENT, Run
from tests.chaos.watch import Watch

STEP_TIMEOUT = 10  # seconds, as configured
HEARTBEAT = int(ENVIRONMENT["VMAE_HEARTBEAT"])
MAX_STOPPED = HEARTBEAT + 8  # seconds; the heartbeat ends the other process before
# kind -> seconds in which both processes have to end
LIMITS = {
    # at once, but for one that is not computing: it waits for a word of the other's
    "exception": HEARTBEAT + 5.0,
    "freeze": MAX_STOPPED + 10.0,
    "hang": STEP_TIMEOUT + 5.0,
    "hang with Python's lock": STEP_TIMEOUT + 5.0,
}
KINDS = [
    ("exception", 0), ("exception", 1), ("freeze", 0), ("freeze", 1), ("hang", 0),
    ("hang with Python's lock", 1),
]  # fmt: skip
OTHER_LIMIT = 20.0  # seconds, for the process that nothing has happened to


def either_process(scene: Scene, kinds=KINDS) -> None:
    """Each process has a supervisor, which starts it again: in the end nothing is lost."""
    settings = {"count": 2, "schedule__num_steps": 5 * len(kinds) + 10}
    plan = [Fault(kind, 5 * n + 8, process=process) for n, (kind, process) in enumerate(kinds)]
    run = scene.run(
        "run",
        faults=plan,
        supervise=6,
        env={"CHAOS_MAX_STOPPED": str(MAX_STOPPED)},
        run__step_timeout=float(STEP_TIMEOUT),
        **settings,
    )
    watch = Watch(run.folder)
    run.done(say=scene.say, watch=watch, deadline=900)
    problem = run.differs_from(scene.shared.clean(**settings))
    for one in faults.happened(run.folder):
        kind, process = one.fault.kind, one.fault.process
        seconds = [watch.seconds_to_end(one, process) for process in (0, 1)]
        scene.say(f"{kind} of process {process}: ended in {_rounded(seconds)} s")
        wrong = problem
        if None in seconds or max(seconds) > LIMITS[kind] or seconds[1 - process] > OTHER_LIMIT:
            wrong = f"ended after {_rounded(seconds)} s"
        elif kind.startswith("hang") and not shows_stacks(run, process):
            wrong = "no stacks of the thread that hangs"
        scene.check(
            f"{kind} of process {process}", "both ended in time, restarted, then the same", wrong
        )


def _rounded(seconds: list[float | None]) -> str:
    return " and ".join("never" if s is None else f"{s:.1f}" for s in seconds)


def shows_stacks(run: Run, process: int) -> bool:
    """Whether the watchdog has printed where a process hangs."""
    _, _, stacks = run.output(process).partition("(most recent call first)")
    return "hooks.py" in stacks
