"""A sample of the fault campaign, `python -m tests.chaos`, which has all of them."""

from __future__ import annotations

import pytest

from tests.chaos import faults, kills, preemption, soak
from tests.chaos.campaign import Row, Scene, Shared
from tests.chaos.faults import Fault
from tests.chaos.watch import Watch


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Shared:
    return Shared(tmp_path_factory.mktemp("chaos"))


def outcomes_of(function, shared: Shared, *arguments) -> list:
    scene = Scene(Row(function.__name__, "", "", function, 0), shared)
    function(scene, *arguments)
    assert scene.result().held, scene.result().outcomes
    return scene.result().outcomes


def test_killed_between_saves_and_in_one_the_run_is_the_same(shared):
    outcomes = outcomes_of(kills.one_process, shared, 2)
    assert {outcome.kind for outcome in outcomes} == {
        "kill -9 between saves",
        "kill -9 in a save",
    }


def test_two_processes_outlive_a_kill_and_a_preemption_unattended(shared):
    settings = {"count": 2, "schedule__num_steps": 24, "run__keep_checkpoints": 9}
    plan = [
        Fault("kill -9", 8, process=0),
        Fault("SIGTERM", 13, process=1),
    ]
    run = shared.run("two", faults=plan, supervise=3, pace=0.1, **settings)
    watch = Watch(run.folder)
    run.done(watch=watch, deadline=300)
    assert run.differs_from(shared.clean(**settings), checkpoints=False) is None
    kill, preempted = (
        [watch.seconds_to_end(one, process) for process in (0, 1)]
        for one in faults.happened(run.folder)
    )
    assert max(kill) < kills.SURVIVOR_GONE
    assert max(preempted) < preemption.IN_TIME
    for index in (0, 1):
        assert run.output(index).count("exit code 75 (preempted, saved) at step") == 1


def test_fine_tuning_outlives_random_faults(shared):
    outcomes = outcomes_of(soak.fine_tuning, shared, 2)
    assert sum(outcome.count for outcome in outcomes) == 2
