"""The work of preparing a set: killed, continued, shared, refused."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from prepared_sets import (
    COMMAND,
    SMALL,
    VIDEOS,
    contents,
    quietly,
    source_of,
    twelve_videos,
    unbroken_set,
)
from video_corpus import painted_numbers

import vmae_jax
from vmae_jax.data.prepared import preparation
from vmae_jax.data.prepared.preparation import prepare
from vmae_jax.data.prepared.prepared_source import PreparedSource
from vmae_jax.data.prepared.verification import damage
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.errors import SettingError


@pytest.fixture(scope="module")
def videos():
    return twelve_videos()


@pytest.fixture(scope="module")
def unbroken():
    return unbroken_set()


def start(videos, dest, *more, **options):
    environment = {**os.environ, "PYTHONPATH": str(Path(vmae_jax.__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-m", "vmae_jax", "prepare", str(videos), str(dest), *COMMAND, *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def wait_for_end_of_group(process, seconds=60):
    """Until neither the process nor a child of it is left."""
    process.wait(seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("child processes live on")


def test_a_killed_run_goes_on_to_the_same_bytes(videos, unbroken, tmp_path):
    rng = random.Random(0)
    dest = tmp_path / "set"
    kills = 0
    # early; in the middle of the first shard; after a shard, by a random time more each
    for sign, delay in (("settings.json", 0.2), (".partial-*", 0.05), ("shard-*.json", 0.05)):
        process = start(videos, dest)
        while process.poll() is None and not list(dest.glob(sign)):
            time.sleep(0.002)
        time.sleep(rng.random() * delay)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        wait_for_end_of_group(process)  # its decoding processes end with it
    assert kills >= 2  # the last may have been too quick
    with start(videos, dest) as process:
        assert process.wait(60) == 0
    assert contents(dest) == unbroken


def test_an_interrupted_run_stops_cleanly(videos, tmp_path):
    many, dest = tmp_path / "many", tmp_path / "set"
    many.mkdir()
    for k in range(300):
        (many / f"{k}.mp4").symlink_to(videos / "00.mp4")
    process = start(many, dest)
    while process.poll() is None and not list(dest.glob(".partial-*record")):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    with process:
        output = process.stdout.read()
        wait_for_end_of_group(process)
    assert process.returncode == 130, output
    assert "goes on with the unfinished shards" in output
    assert "Traceback" not in output
    assert "index.json" not in contents(dest)
    assert not list(dest.glob(".partial*"))
    assert quietly(source_of(many), dest)["counts"]["videos"] == 300


def test_a_full_disk_is_told_and_leaves_finished_shards(videos, unbroken, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    with start(videos, tmp_path, preexec_fn=limit) as process:
        output = process.stdout.read()
    assert process.returncode == 1
    assert "could not be written" in output
    assert "Traceback" not in output
    assert set(contents(tmp_path)) == {"settings.json"}
    quietly(source_of(videos), tmp_path)
    assert contents(tmp_path) == unbroken


@pytest.mark.parametrize("lost", ["shard-00001.array_record", "shard-00002.json", "index.json"])
def test_what_is_lost_or_cut_is_made_again(videos, unbroken, tmp_path, lost):
    for name, data in unbroken.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / lost).write_bytes(unbroken[lost][: len(unbroken[lost]) // 2])
    quietly(source_of(videos), tmp_path)
    assert contents(tmp_path) == unbroken
    (tmp_path / lost).unlink()
    quietly(source_of(videos), tmp_path)
    assert contents(tmp_path) == unbroken


def test_what_a_killed_run_was_writing_does_not_stay(videos, unbroken, tmp_path):
    for name in ("shard-00001.array_record", "shard-00001.json", "index.json", "settings.json"):
        (tmp_path / f".partial-0-{name}").write_bytes(b"half" * 99_999)
    quietly(source_of(videos), tmp_path)
    assert contents(tmp_path) == unbroken


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_no_process_outlives_the_work(videos, tmp_path):
    def children():
        files = Path("/proc/self/task").glob("*/children")
        return {child for file in files for child in file.read_text().split()}

    before = children()
    quietly(source_of(videos), tmp_path)
    assert children() <= before


def test_a_second_run_does_nothing(videos, unbroken, tmp_path, monkeypatch):
    for name, data in unbroken.items():
        (tmp_path / name).write_bytes(data)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    monkeypatch.setattr(preparation, "Isolated", None)  # no process may be needed
    index = quietly(source_of(videos), tmp_path)
    assert index["counts"] == {"videos": VIDEOS, "bad": 0}
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_any_number_of_processes_makes_the_same(videos, unbroken, tmp_path):
    prepare(source_of(videos), tmp_path, SMALL, workers=1, say=lambda line: None)
    assert contents(tmp_path) == unbroken


def test_hosts_share_the_work(videos, unbroken, tmp_path):
    source = source_of(videos)
    assert quietly(source, tmp_path, host=(1, 2)) is None
    assert {name for name in contents(tmp_path) if name.endswith("record")} == {
        "shard-00001.array_record",
        "shard-00003.array_record",
    }
    with pytest.raises(ValueError, match="not finished"):
        PreparedSource(tmp_path)
    assert quietly(source, tmp_path, host=(0, 2)) is not None
    assert contents(tmp_path) == unbroken
    with pytest.raises(ValueError, match=r"host=\(2, 2\)"):
        quietly(source, tmp_path, host=(2, 2))


def test_the_size_is_estimated_and_a_small_disk_refused(videos, unbroken, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda path: usage)
    lines = []
    with pytest.raises(SettingError, match=r"12 videos will take about .* 50\.0 kB are free"):
        prepare(source_of(videos), tmp_path, SMALL, workers=2, say=lines.append)
    assert not list(tmp_path.glob("shard*"))
    # The shards' own sizes are rounded up to 64 KiB twice each, so compare the records'.
    estimate = float(lines[0].split("about ")[1].split(" kB")[0]) * 1000
    stored = 0
    for shard in range(4):
        data = np.frombuffer(unbroken[f"shard-0000{shard}.array_record"], np.uint8)
        stored += np.count_nonzero(data)
    assert 0.8 * stored < estimate < 1.25 * stored
    quietly(source_of(videos), tmp_path, force=True)
    assert contents(tmp_path) == unbroken


@pytest.fixture
def mixed(videos, tmp_path):
    """Four good files, and five others between them."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = (videos / "00.mp4").read_bytes()
    (folder / "0 cut.mp4").write_bytes(good[: len(good) // 2])
    (folder / "2 empty.mp4").write_bytes(b"")
    (folder / "4 text.mp4").write_text("no video")
    (folder / "6 zeros.mp4").write_bytes(bytes(5000))
    (folder / "8 page.mp4").write_text("<html>not found</html>")
    for number, k in ((1, 3), (3, 4), (5, 5), (7, 6)):
        shutil.copy(videos / f"{k:02}.mp4", folder / f"{number} good.mp4")
    return folder


def test_bad_files_are_listed_and_cost_nothing_else(mixed, tmp_path):
    source = source_of(mixed)
    index = quietly(source, tmp_path / "set")
    assert index["counts"] == {"videos": 4, "bad": 5}
    lines = (tmp_path / "set" / "bad_files.jsonl").read_text().splitlines()
    bad = [json.loads(line) for line in lines]
    names = ["0 cut.mp4", "2 empty.mp4", "4 text.mp4", "6 zeros.mp4", "8 page.mp4"]
    assert [entry["clip_id"] for entry in bad] == names
    assert "the file is empty" in bad[1]["reason"]
    assert all(entry["reason"] for entry in bad)
    prepared = PreparedSource(tmp_path / "set")
    assert [record.clip_id for record in prepared] == [f"{n} good.mp4" for n in (1, 3, 5, 7)]
    for i, k in enumerate((3, 4, 5, 6)):
        with prepared.open(i) as reader:
            numbers = painted_numbers(reader.read([reader.frame_phase]))
            assert numbers == [10 * k + reader.frame_phase]
    assert not damage(tmp_path / "set", 1)


def test_no_good_file_at_all_is_an_error(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"none of 3 videos .*bad_files\.jsonl"):
        quietly(source_of(tmp_path), tmp_path / "set")


class TreacherousSource(VideoSource):
    """Its records do to their process what their names say."""

    def open(self, i):
        name = self[i].clip_id
        if name == "hang":
            time.sleep(60)
        if name == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == "strange":
            raise KeyError("of a library")
        return super().open(i)


def test_crashes_and_hangs_cost_one_video_each(videos, tmp_path):
    file = str(videos / "01.mp4")
    names = ["a", "hang", "b", "crash", "c", "strange", "d"]
    source = TreacherousSource([VideoRecord(file, name) for name in names])
    index = quietly(source, tmp_path, timeout=2.0)
    assert index["counts"] == {"videos": 4, "bad": 3}
    bad = [json.loads(line) for line in (tmp_path / "bad_files.jsonl").read_text().splitlines()]
    assert {entry["clip_id"]: entry["reason"] for entry in bad} == {
        "hang": "decoding took longer than 2 s",
        "crash": "decoding ended its process (SIGSEGV)",
        "strange": "KeyError: 'of a library'",
    }
    assert [record.clip_id for record in PreparedSource(tmp_path)] == ["a", "b", "c", "d"]
