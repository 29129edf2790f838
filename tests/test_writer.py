"""metrics.jsonl, TensorBoard files, rates."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest
from bucket import mount

from vmae_jax.running import goodput, writer


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


def read_events(data):
    """The events of a TensorBoard file, by its published framing."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_gets_the_same_numbers(tmp_path):
    log = writer.MetricWriter(tmp_path, start_step=7)
    log.write(8, {"loss": 0.5, "held_out/loss": 0.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    version, restart, *scalars = read_events(file.read_bytes())  # before it is closed
    log.close()
    assert version.file_version == "brain.Event:2"
    assert (restart.step, restart.session_log.status) == (8, restart.session_log.START)
    assert [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in scalars] == [
        (8, "loss", 0.5),
        (8, "held_out/loss", 0.25),
    ]
    assert file.name.startswith("events.out.tfevents.")


def test_tensorboards_checksums_are_those_of_its_own_library(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter

    log = writer.MetricWriter(tmp_path, start_step=0)
    log.write(1, {"loss": 0.5})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    again = RecordWriter(str(tmp_path / "again"))
    for event in read_events(file.read_bytes()):
        again.write(Event.SerializeToString(event))
    again.close()
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_a_remote_workdir_is_gone_on_with(monkeypatch):
    files = mount(monkeypatch)
    for start_step, steps in ((0, (1, 2, 3)), (2, (3,))):
        log = writer.MetricWriter("gs://bucket/run", start_step=start_step)
        for step in steps:
            log.write(step, {"loss": step + start_step})
        log.close()
    lines = files.cat("gs://bucket/run/metrics.jsonl").splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == [(1, 1), (2, 2), (3, 5)]
    assert read_events(files.cat(files.ls("gs://bucket/run/tensorboard", detail=False)[-1]))


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
    return now


def make_rates(**options):
    clock = goodput.Goodput(None, 0)
    clock.step(0)  # started
    return clock, writer.Rates(clock, **options)


def test_rates(clock):
    run, rates = make_rates(start_step=10, num_steps=110, batch_size=32)
    clock[0] += 20
    run.step(20, waited=5)
    assert rates.report(20) == {
        "clips_per_second": pytest.approx(16.0),  # 10 steps of 32 clips in 20 s
        "data_wait_share": pytest.approx(0.25),
        "eta_seconds": pytest.approx(180.0),  # 90 steps of 2 s
    }


def test_only_steps_and_their_waits_make_the_rates(clock):
    run, rates = make_rates(start_step=0, num_steps=100, batch_size=1)
    with run.time("compile"):
        clock[0] += 60
    assert rates.report(0) == {}  # no step since: no rate
    clock[0] += 5
    with run.time("save"):
        clock[0] += 1000
    clock[0] += 5
    assert rates.report(10)["clips_per_second"] == pytest.approx(1.0)


def test_the_line_says_it_all(clock):
    _, rates = make_rates(start_step=0, num_steps=1500, batch_size=1)
    metrics = {
        "loss": 0.95341, "grad_norm": 0.1, "learning_rate": 1.2e-3, "clips_per_second": 61.96,
        "data_wait_share": 0.031, "bad_clips": 2, "eta_seconds": 3671.9,
    }  # fmt: skip
    assert rates.line(120, metrics) == (
        "step 120/1500  loss 0.9534  grad norm 0.100  lr 1.20e-03  62.0 clips/s  data wait 3 %  "
        "bad clips 2  ETA 1:01:11"
    )


def test_tensorboard_files_do_without_pytorch(tmp_path):
    pytest.importorskip("torch")
    script = """
import sys
from vmae_jax.running.writer import MetricWriter
writer = MetricWriter(sys.argv[1], start_step=0)
writer.write(1, {"loss": 1.0})
writer.close()
print(sorted({"torch", "tensorboardX"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout == "['tensorboardX']\n"
