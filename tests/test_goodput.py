"""Time by use, within one start and over restarts; expected figures by hand."""

from __future__ import annotations

import json
import time

import pytest

from vmae_jax.running import goodput
from vmae_jax.running.goodput import Goodput, summarize

NOTHING = dict.fromkeys(goodput.USES, 0.0)


@pytest.fixture
def clock(monkeypatch):
    """Both clocks, at 1000 s; the process began 10 s before."""
    now = [1000.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(goodput.time, "time", lambda: now[0] + 1e6)
    monkeypatch.setattr(goodput, "_process_start", lambda: now[0] + 1e6 - 10)
    return now


def record(began, from_step, step, **seconds):
    return json.dumps({"began": began, "from_step": from_step, "step": step} | NOTHING | seconds)


def test_every_moment_has_one_use(clock):
    run = Goodput(None, 0)
    clock[0] += 5
    with run.time("compile"):
        clock[0] += 20
    for step in range(1, 11):
        clock[0] += 2
        run.step(step, waited=0.5 if step > 1 else 0)
    with run.time("save"):
        clock[0] += 3
        with run.time("evaluate"):
            clock[0] += 7
    clock[0] += 1
    assert run.seconds() == pytest.approx(
        # starting: 10 s before, 5 s after, and the first step, whose compiling was timed
        {"start": 17, "compile": 20, "steps": 18 - 4.5 + 1, "data": 4.5, "save": 3, "evaluate": 7}
    )
    with pytest.raises(ValueError, match=r"use='sleep' is not known; choose from .*'evaluate'"):
        run.time("sleep").__enter__()


def test_the_first_step_may_wait_and_nothing_is_ever_negative(clock):
    run = Goodput(None, 0)
    clock[0] += 6
    run.step(1, waited=5)  # of the 6 s, which were no step yet
    assert run.seconds() == NOTHING | {"start": 11, "data": 5}
    clock[0] += 2
    run.step(2, waited=3)  # more than there was
    assert run.seconds() == NOTHING | {"start": 11, "data": 7}
    assert run.line().startswith("goodput 0.0 % ")


def test_an_error_ends_its_use(clock):
    run = Goodput(None, 0)
    run.step(1)

    def fail():
        with run.time("save"):
            clock[0] += 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock[0] += 2
    assert run.seconds()["steps"] == 2


def test_shares_of_a_run_without_restarts():
    summary = summarize([record(0, 0, 50, steps=10), record(0, 0, 100, steps=80, data=5, start=15)])
    assert summary.seconds == NOTHING | {"steps": 80, "data": 5, "start": 15, "lost": 0}
    assert summary.restarts == 0
    assert summary.share("steps") == pytest.approx(0.8)


def test_steps_done_again_and_the_pause_between_are_lost():
    lines = [
        record(0, 0, 100, steps=100, start=20),
        record(0, 0, 200, steps=180, data=20, start=20),  # 220 s after the beginning
        record(300, 150, 200, steps=50, start=10),
    ]
    summary = summarize(lines)
    # kept: up to step 150, half way between the two records
    expected = {"steps": 140 + 50, "data": 10, "start": 30, "lost": (40 + 10) + 80}
    assert summary.seconds == NOTHING | expected
    assert summary.restarts == 1
    assert sum(summary.seconds.values()) == 360  # from 0 to the last line


def test_falling_back_further_costs_the_start_between_as_well():
    lines = [
        record(0, 0, 100, steps=100),
        record(100, 80, 120, steps=40, save=5),
        record(150, 50, 60, steps=10),
    ]
    summary = summarize(lines)
    expected = {"steps": 50 + 10, "save": 5, "lost": 50 + 40 + 5}
    assert summary.seconds == NOTHING | expected
    assert summary.restarts == 2


def test_broken_lines_and_empty_files_do_not_matter():
    lines = [record(0, 0, 100, steps=100), '{"began": 0, "from_st', "[]", "7", ""]
    assert summarize(lines).seconds["steps"] == 100
    assert summarize([]).line().startswith("goodput 0.0 % of 0.0 h")


def test_the_file_survives_a_kill_and_the_line_counts_all_starts(tmp_path, clock):
    first = Goodput(tmp_path, 0)
    first.step(1)
    clock[0] += 3600
    first.step(100)
    first.write()
    with open(tmp_path / "goodput.jsonl", "a") as file:
        file.write('{"began": 100')  # killed
    clock[0] += 1810  # the second one's process begins 10 s before it gets here
    second = Goodput(tmp_path, 50)
    second.step(51)
    clock[0] += 1800
    second.step(100)
    line = second.line()
    second.close()
    clock[0] += 100  # pictures are drawn
    second.close()
    # of 10 + 3600, 1800, 10 + 1800 s; half of the first 3600 is done again
    assert line == (
        "goodput 49.9 % of 2.0 h: steps 49.9 %, data 0.0 %, compiling 0.0 %, saving 0.0 %, "
        "evaluating 0.0 %, starting 0.3 %, lost to 1 restart 49.9 %"
    )
    lines = (tmp_path / "goodput.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [100, 100]
    assert summarize(lines).line() == line


def test_the_process_began_before_this_test():
    age = time.time() - goodput._process_start()
    assert 0 < age < 7200
