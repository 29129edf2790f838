"""What is said about the speed of the input; the clock is ours."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from vmae_jax.data import input_probe
from vmae_jax.data.input_probe import InputRate, advice, measure


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(input_probe.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(input_probe, "_usable_cores", lambda: 8)
    return now


@pytest.mark.parametrize(
    ("cost", "repeat", "groups", "rate"),
    [
        (0.5, 1, 4, 2.0),  # 2 s hold four groups
        (0.5, 4, 4, 8.0),
        (0.75, 1, 3, 4 / 3),  # the third begins before 2 s are over
        (30.0, 2, 1, 2 / 30),  # at least one is timed
    ],
)
def test_groups_are_counted_after_the_first(clock, cost, repeat, groups, rate):
    asked = []

    def group(d):
        clock[0] += cost if asked else 1000  # the first starts processes
        asked.append(d)

    measured = measure(group, repeat)
    assert asked == list(range(groups + 1))
    assert measured.clips_per_second == pytest.approx(rate)
    assert measured.cores == 8


def test_the_line_says_what_all_cores_together_could_deliver():
    rate = InputRate(2.5, 8)
    assert rate.line(4) == "2.5 clips/s per core, 8 cores, 4 threads: about 10 clips/s at best"
    assert rate.line(100).endswith("about 20 clips/s at best")  # no more than there are cores
    assert rate.line(0).endswith("about 2 clips/s at best")  # 0 threads: this one


def settings(**changes):
    data = {
        "name": "video_folder",
        "num_threads": 8,
        "repeat": 1,
        "canvas_size": None,
        "cache_size": None,
    }
    return ConfigDict({**data, **changes})


def test_a_run_that_does_not_wait_gets_no_advice(clock):
    assert advice({"clips_per_second": 9.0, "data_wait_share": 0.09}, settings()) is None
    assert advice({}, settings(num_threads=1)) is None


def test_a_run_that_fills_its_cache_gets_no_advice(clock):
    waits = {"clips_per_second": 30.0, "data_wait_share": 0.9}
    assert advice(waits, settings()) is not None
    assert advice(waits, settings(cache_size=(64, 64))) is None


@pytest.mark.parametrize(
    ("changes", "given", "not_given"),
    [
        ({"num_threads": 2}, ["data.num_threads=8 (now 2)", "repeat=4"], []),
        ({}, ["prepared copy", "data.repeat=4"], ["num_threads", "canvas_size"]),
        ({"name": "prepared"}, ["data.repeat=4"], ["prepared copy"]),
        ({"repeat": 4}, ["data.canvas_size"], ["data.repeat"]),
        ({"repeat": 4, "canvas_size": (9, 9), "name": "prepared"}, ["more cores"], ["data."]),
    ],
)
def test_advice_names_what_would_help(clock, changes, given, not_given):
    text = advice({"clips_per_second": 30.0, "data_wait_share": 0.4}, settings(**changes))
    # 30 clips/s in 60 % of the time: 50 without waiting
    assert text.startswith(
        "the steps wait for data 40 % of the time: they could take 50 clips/s and get 30."
    )
    for part in given:
        assert part in text
    for part in not_given:
        assert part not in text


def test_a_run_that_only_waits_is_told_a_finite_number(clock):
    text = advice({"clips_per_second": 3.0, "data_wait_share": 1.0}, settings())
    assert "they could take 300 clips/s and get 3." in text
