import json

import pytest
import tensorflow_datasets as tfds
from tfds_sets import NAMES, build_listed, refuse_network, write, write_listed, write_videos

from vmae_jax.data.sources.video_source import VideoRecord
from vmae_jax.data.tfds import shard_writing
from vmae_jax.data.tfds.tfds_source import TfdsSource
from vmae_jax.data.video.frame_reader import FrameNames
from vmae_jax.files import storage


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    refuse_network(monkeypatch)


@pytest.fixture
def listed(tmp_path):
    return write_listed(tmp_path)


def test_every_number_of_shards_and_threads_gives_the_same_records(listed):
    # 12 shards: more than 10, whose numbers sort differently as text; 40: more than records
    write_videos(listed / "videos", *(f"{i}.mp4" for i in range(30)))
    write(listed / "train.csv", "".join(f"{i}.mp4 {i % 3}\n" for i in range(30)))
    found = []
    for shards, threads in ((1, 1), (12, 5), (40, 2)):
        folder, _ = build_listed(listed, f"sets{shards}", num_shards=shards, num_threads=threads)
        source = TfdsSource(folder, "train")
        found.append([(r.clip_id, r.label, source.read_bytes(i)) for i, r in enumerate(source)])
        lengths = tfds.builder_from_directory(folder).info.splits["train"].shard_lengths
        assert len(lengths) == min(shards, 30)
        assert sum(lengths) == 30
    assert found[0] == found[1] == found[2]


def test_missing_and_unreadable_videos_are_skipped_and_reported(listed, monkeypatch):
    write(listed / "videos" / NAMES[1], b"")
    (listed / "videos" / NAMES[2]).unlink()
    (listed / "videos" / NAMES[2]).mkdir()
    read_bytes = storage.read_bytes

    def failing(path, max_bytes):
        if path.endswith("3.mp4"):
            raise PermissionError(13, "Permission denied", path)
        return read_bytes(path, max_bytes)

    monkeypatch.setattr(storage, "read_bytes", failing)
    folder, report = build_listed(listed, num_shards=7)  # the shard of 3.mp4 stays empty
    skipped = {x["clip_id"]: x["reason"] for split in report.values() for x in split["skipped"]}
    assert set(skipped) == {NAMES[1], NAMES[2], NAMES[3], "gone.mp4"}
    assert "empty" in skipped[NAMES[1]]
    assert "folder" in skipped[NAMES[2]]
    assert "Permission denied" in skipped[NAMES[3]]
    assert "No such file" in skipped["gone.mp4"]
    assert (report["train"]["listed"], report["train"]["written"]) == (7, 4)
    assert (report["val"]["listed"], report["val"]["written"]) == (4, 3)
    assert json.loads((listed / "sets/video_folder/1.0.0/report.json").read_text()) == report
    source = TfdsSource(folder, "train")
    for i, record in enumerate(source):
        assert source.read_bytes(i) == (listed / "videos" / record.clip_id).read_bytes()


def test_folders_of_pictures_and_too_large_files_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writing, "LARGEST_VIDEO", 9)
    small, large = write(tmp_path / "s", b"9" * 9), write(tmp_path / "l", b"9" * 10)
    records = [
        VideoRecord(str(small), "small"),
        VideoRecord(str(large), "large"),
        VideoRecord(str(tmp_path), "pictures", frames=FrameNames(25.0, None, 1)),
    ]
    kept, size, skipped = shard_writing.readable(records)
    assert (kept, size) == (records[:1], 9)
    assert [x["clip_id"] for x in skipped] == ["large", "pictures"]
    assert "10 bytes" in skipped[0]["reason"]
    assert "pictures" in skipped[1]["reason"]


def test_beam_builds_the_same_files(listed):
    plain, plain_report = build_listed(listed, "plain", num_shards=3)
    # DirectRunner: the name under which Beam would ask the network (refused here)
    beam, beam_report = build_listed(
        listed, "beam", num_shards=3, beam_options="runner=DirectRunner,job_name=test"
    )
    assert beam_report == plain_report
    files = {
        folder: {f.name: f.read_bytes() for f in (listed / folder).rglob("*") if f.is_file()}
        for folder in ("plain", "beam")
    }
    assert len([name for name in files["beam"] if "array_record-" in name]) == 6
    assert files["beam"] == files["plain"]
    assert TfdsSource(beam, "train").read_bytes(2) == TfdsSource(plain, "train").read_bytes(2)
