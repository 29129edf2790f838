"""metrics.jsonl, TensorBoard files, rates."""

from __future__ import annotations

import json

import pytest

from vmae_jax import writer


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_of_steps_that_will_be_done_again_are_cut(tmp_path):
    first = writer.MetricWriter(tmp_path, start_step=0)
    for step in (1, 2, 3):
        first.write(step, {"loss": 1 / step})
    first.close()
    path = tmp_path / "metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    second = writer.MetricWriter(tmp_path, start_step=2)
    second.write(3, {"loss": 0.25})
    second.close()
    assert read(path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.25},
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_losses_are_written_exactly(tmp_path):
    loss = 0.1 + 0.2
    log = writer.MetricWriter(tmp_path, start_step=0)
    log.write(1, {"loss": loss})
    log.close()
    assert read(tmp_path / "metrics.jsonl")[0]["loss"] == loss


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(writer.time, "perf_counter", lambda: now[0])
    return now


def test_rates(clock):
    progress = writer.Progress(start_step=10, num_steps=110, batch_size=32)
    clock[0] += 20
    progress.add_wait(5)
    assert progress.report(20) == {
        "clips_per_second": pytest.approx(16.0),  # 10 steps of 32 clips in 20 s
        "data_wait_share": pytest.approx(0.25),
        "eta_seconds": pytest.approx(180.0),  # 90 steps of 2 s
    }


def test_pauses_and_compiling_do_not_count(clock):
    progress = writer.Progress(start_step=0, num_steps=100, batch_size=1)
    clock[0] += 60
    assert progress.restart(1) == 60
    assert progress.report(1) == {}  # no step since: no rate
    clock[0] += 5
    with progress.pause():
        clock[0] += 1000
    clock[0] += 5
    assert progress.report(11)["clips_per_second"] == pytest.approx(1.0)


def test_the_line_says_it_all(clock):
    progress = writer.Progress(start_step=0, num_steps=1500, batch_size=1)
    metrics = {
        "loss": 0.95341, "grad_norm": 0.1, "learning_rate": 1.2e-3, "clips_per_second": 61.96,
        "data_wait_share": 0.031, "bad_clips": 2, "eta_seconds": 3671.9,
    }  # fmt: skip
    assert progress.line(120, metrics) == (
        "step 120/1500  loss 0.9534  grad norm 0.100  lr 1.20e-03  62.0 clips/s  data wait 3 %  "
        "bad clips 2  ETA 1:01:11"
    )
