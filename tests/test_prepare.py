"""The work of preparing a set: killed, continued, shared, refused; and the search for damage."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
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
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from video_corpus import encode, painted_numbers

import vmae_jax
from vmae_jax.__main__ import main
from vmae_jax.data.prepared import preparation, shard_folder
from vmae_jax.data.prepared.preparation import prepare
from vmae_jax.data.prepared.prepared_source import PreparedSource
from vmae_jax.data.prepared.progress import readable_bytes, readable_seconds
from vmae_jax.data.prepared.verification import damage, psnr_to_source
from vmae_jax.data.prepared.video_encoding import Settings
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.running.writer import Progress

VIDEOS, FRAMES = 12, 40
SMALL = Settings(shard_size=3)
COMMAND = ("--option", "held_out_ratio=0", "--shard-size", "3", "--workers", "2")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with VIDEOS small videos, the first frame of number k showing 10 k."""
    folder = tmp_path_factory.mktemp("videos")
    for k in range(VIDEOS):
        encode(str(folder / f"{k:02}.mp4"), frames=FRAMES, size=(48, 64), first_number=10 * k)
    return folder


def source_of(folder):
    files = sorted(Path(folder).glob("*.mp4"))
    return VideoSource([VideoRecord(str(file), file.name) for file in files])


def quietly(source, dest, settings=SMALL, **options):
    return prepare(source, dest, settings, workers=2, say=lambda line: None, **options)


@pytest.fixture(scope="module")
def unbroken(videos, tmp_path_factory):
    """What the folder holds after a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    quietly(source_of(videos), folder)
    found = contents(folder)
    assert set(found) == {
        *(f"shard-0000{k}.{kind}" for k in range(4) for kind in ("array_record", "json")),
        *("manifest.json", "settings.json", "bad_files.jsonl"),
    }
    return found


def contents(folder):
    return {
        file.name: file.read_bytes()
        for file in Path(folder).iterdir()
        if not file.name.startswith(".lock")
    }


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


# Killed and continued


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
    assert "manifest.json" not in contents(dest)
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


@pytest.mark.parametrize("lost", ["shard-00001.array_record", "shard-00002.json", "manifest.json"])
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
    for name in ("shard-00001.array_record", "shard-00001.json", "manifest.json", "settings.json"):
        (tmp_path / f".partial-0-{name}").write_bytes(b"half" * 99_999)
    quietly(source_of(videos), tmp_path)
    assert contents(tmp_path) == unbroken


def test_a_shard_appears_under_its_name_only_when_whole(videos, tmp_path, monkeypatch):
    def refuse(partial, name):
        raise OSError("no renaming today")

    monkeypatch.setattr(shard_folder.os, "replace", refuse)
    with pytest.raises(OSError, match="no renaming"):
        quietly(source_of(videos), tmp_path)
    assert not contents(tmp_path)


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
    manifest = quietly(source_of(videos), tmp_path)
    assert manifest["counts"] == {"videos": VIDEOS, "bad": 0}
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


def test_two_processes_cannot_make_the_same_shards(videos, tmp_path):
    with open(tmp_path / ".lock-0-of-1", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process"):
            quietly(source_of(videos), tmp_path)


# Refused


def test_other_settings_are_refused_with_the_difference(videos, unbroken, tmp_path):
    for name, data in unbroken.items():
        (tmp_path / name).write_bytes(data)
    source = source_of(videos)
    with pytest.raises(ValueError, match=r"quality=85 then, 90 now\)"):
        quietly(source, tmp_path, Settings(shard_size=3, quality=90))
    with pytest.raises(ValueError, match="num_videos=12 then, 11 now"):
        quietly(VideoSource(source.records[:-1]), tmp_path)
    relabelled = [VideoRecord(x.path, x.clip_id, label=1) for x in source]
    with pytest.raises(ValueError, match="videos_sha256"):
        quietly(VideoSource(relabelled), tmp_path)
    assert contents(tmp_path) == unbroken
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"no settings\.json"):
        quietly(source, tmp_path)


def test_the_size_is_estimated_and_a_small_disk_refused(videos, unbroken, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda path: usage)
    lines = []
    with pytest.raises(OSError, match=r"12 videos will take about .* 50\.0 kB are free"):
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


# Bad videos


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
    manifest = quietly(source, tmp_path / "set")
    assert manifest["counts"] == {"videos": 4, "bad": 5}
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
    manifest = quietly(source, tmp_path, timeout=2.0)
    assert manifest["counts"] == {"videos": 4, "bad": 3}
    bad = [json.loads(line) for line in (tmp_path / "bad_files.jsonl").read_text().splitlines()]
    assert {entry["clip_id"]: entry["reason"] for entry in bad} == {
        "hang": "decoding took longer than 2 s",
        "crash": "decoding ended its process (SIGSEGV)",
        "strange": "KeyError: 'of a library'",
    }
    assert [record.clip_id for record in PreparedSource(tmp_path)] == ["a", "b", "c", "d"]


# Verified


@pytest.fixture
def finished(unbroken, tmp_path):
    folder = tmp_path / "finished"
    folder.mkdir()
    for name, data in unbroken.items():
        (folder / name).write_bytes(data)
    return folder


def verify(folder, *more):
    return main(["verify", str(folder), "--option", "held_out_ratio=0", *map(str, more)])


def test_an_intact_set_passes(finished, videos, capsys):
    assert verify(finished) == 0
    assert "no damage" in capsys.readouterr().out
    assert verify(finished, "--source", videos) == 0
    assert "PSNR to the source: 4" in capsys.readouterr().out


def test_damage_is_listed_with_shard_and_record(finished, capsys):
    shard = finished / "shard-00002.array_record"
    data = bytearray(shard.read_bytes())
    data[15_000] ^= 4  # within the second of three records of 10 kB
    shard.write_bytes(data)
    (finished / "shard-00003.array_record").unlink()
    assert verify(finished) == 1
    captured = capsys.readouterr()
    first, second, *others = captured.out.splitlines()
    assert "shard-00002.array_record: sha256=" in first
    assert "shard-00002.array_record, record 1 (clip_id='07.mp4')" in second
    assert len(others) == 1
    assert "No such file" in others[0]
    assert "damaged in 3 places" in captured.err


def test_records_that_the_manifest_lists_otherwise_are_damage(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    entries = manifest["shards"][1]["records"]
    entries[0]["phase"] = entries[0]["phase"] + 1
    manifest["counts"]["videos"] = 13
    (finished / "manifest.json").write_text(json.dumps(manifest))
    lines = damage(finished, 2)
    assert len(lines) == 2
    assert "shard-00001.array_record, record 0: holds ('03.mp4'" in lines[0]
    assert "lists 12 records" in lines[1]


def test_damage_from_before_the_sums_were_made_is_found(finished):
    file = finished / "shard-00001.array_record"
    reader = ArrayRecordReader(str(file), "readahead_buffer_size:0,max_parallelism:0")
    records = [bytearray(record) for record in reader.read_all()]
    records[1][-20] ^= 1
    writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    for record in records:
        writer.write(bytes(record))
    writer.close()
    manifest = json.loads((finished / "manifest.json").read_text())
    manifest["shards"][1]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (finished / "manifest.json").write_text(json.dumps(manifest))
    (line,) = damage(finished, 1)
    assert "record 1 (clip_id='04.mp4'): part 9 does not have the checksum" in line


def test_psnr_is_that_of_the_stored_frames(videos, finished):
    found, lines = psnr_to_source(finished, source_of(videos), VIDEOS)
    assert not lines
    prepared, squares = PreparedSource(finished), []
    for i, original in enumerate(source_of(videos)):
        with prepared.open(i) as reader, source_of(videos).open(i) as source:
            assert original.clip_id == prepared[i].clip_id
            kept = range(reader.frame_phase, FRAMES, 4)  # ten frames, of which it compares eight
            error = reader.read(kept).astype(float) - source.read(kept)
            squares.append(np.mean(error**2))
    assert found == pytest.approx(10 * np.log10(255**2 / np.mean(squares)), abs=0.2)


def test_poor_and_foreign_sets_fail(videos, finished, tmp_path, capsys):
    poor = tmp_path / "poor"
    quietly(source_of(videos), poor, Settings(shard_size=30, quality=5))
    assert verify(poor) == 0  # nothing is broken
    assert verify(poor, "--source", videos) == 1
    assert "is below min_psnr=35.0; prepare it with more --quality" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        verify(poor, "--source", videos, "--num-videos", "0")
    assert "'0' is not a whole number from 1 on" in capsys.readouterr().err
    changed = tmp_path / "changed"
    shutil.copytree(videos, changed)
    shutil.copy(videos / "03.mp4", changed / "00.mp4")
    assert verify(finished, "--source", changed) == 1
    assert "00.mp4: the file is not the one that was prepared" in capsys.readouterr().out
    (changed / "00.mp4").rename(changed / "aa.mp4")
    for file in changed.glob("[01]*.mp4"):
        file.unlink()
    assert verify(finished, "--source", changed) == 1
    assert "none of the videos" in capsys.readouterr().err


# The commands


def test_the_command_prepares_as_the_function_does(videos, unbroken, tmp_path, capsys):
    assert main(["prepare", str(videos), str(tmp_path), *COMMAND]) == 0
    captured = capsys.readouterr()
    assert "12 videos will take about" in captured.err
    assert "12 of 12 videos, 0 bad" in captured.err
    assert f"{tmp_path}: 12 videos" in captured.out
    assert contents(tmp_path) == unbroken


def test_wrong_arguments_are_refused(videos, tmp_path, capsys):
    for wrong in (["--host", "3/3"], ["--option", "nothing"], ["--frame-step", "3"]):
        with pytest.raises(SystemExit):
            main(["prepare", str(videos), str(tmp_path), *wrong])
    assert main(["prepare", str(videos), str(tmp_path), "--option", "nothing=1"]) == 1
    assert main(["prepare", str(videos), str(tmp_path), "--encoding=h264", "--frame-step=2"]) == 1
    assert "frame_step=2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_address_is_no_place_for_a_set(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", str(videos), "gs://bucket/set"]) == 1
    assert "path='gs://bucket/set' is remote" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # no folder of that name, in particular


def test_video_encodings_keep_all_frames_by_default(videos, tmp_path):
    arguments = ["prepare", str(videos), str(tmp_path), *COMMAND, "--encoding", "h264"]
    assert main(arguments) == 0
    source = PreparedSource(tmp_path)
    with source.open(2) as reader:
        assert painted_numbers(reader.read([7])) == [27]


def test_decoding_processes_load_neither_jax_nor_torch():
    script = "import sys, vmae_jax.data.prepared.video_encoding; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(vmae_jax.__file__).parent.parent)}
    command = [sys.executable, "-c", script]
    loaded = set(subprocess.check_output(command, env=environment, text=True).split())
    assert "vmae_jax.data.prepared.video_encoding" in loaded
    assert not {"jax", "flax", "grain", "torch", "tensorflow"} & loaded


def test_progress_says_rate_and_time_left():
    times, lines = iter([0.0, 2.0, 12.0, 13.0, 20.0]), []
    results = [{"record": bytes(1500)}, {"bad": {}}, {"record": bytes(1500)}, {"bad": {}}]
    progress = Progress(5, lines.append, lambda: next(times))
    with contextlib.suppress(StopIteration):
        assert list(progress.watch(iter(results))) == results
    assert lines == ["2 of 5 videos, 1 bad, 1.5 kB, 0.2 videos/s, 18 s left"]
    assert [readable_bytes(x) for x in (0, 999, 1000, 2.5e9, 3e15)] == [
        *("0 B", "999 B", "1.0 kB", "2.5 GB"),
        "3000.0 TB",
    ]
    assert [readable_seconds(x) for x in (5, 65, 7384)] == ["5 s", "1 min 05 s", "2 h 03 min"]
