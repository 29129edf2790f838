import io
import os

import numpy as np
import pytest
from bucket import mount
from PIL import Image

from vmae_jax.data.datasets import make_source
from vmae_jax.files import storage


@pytest.fixture
def bucket(monkeypatch):
    """A function (name, bytes) that puts a file into gs://bucket."""
    files = mount(monkeypatch)
    return lambda name, data: files.pipe(f"gs://bucket/{name}", data)


def test_remote_files_are_listed_below_their_root(bucket):
    for name in ("data/b.mp4", "data/a/z.mkv", "data/a/b/c.mp4", "data_2/x.mp4", "y.mp4"):
        bucket(name, b"")
    expected = ["a/b/c.mp4", "a/z.mkv", "b.mp4"]
    assert storage.list_files("gs://bucket/data") == expected
    assert storage.list_files("gs://bucket/data/") == expected


def test_remote_videos_and_lists_become_sources(bucket):
    for name in ("run/b.mp4", "jump/a.mp4", "jump/notes.txt"):
        bucket(f"data/{name}", b"no video")
    source = make_source(
        "video_folder", "gs://bucket/data", "train", held_out_ratio=0, labels="folders"
    )
    assert [(r.path, r.clip_id, r.label) for r in source] == [
        ("gs://bucket/data/jump/a.mp4", "jump/a.mp4", 0),
        ("gs://bucket/data/run/b.mp4", "run/b.mp4", 1),
    ]
    bucket("lists/train.csv", b"run/b.mp4 7\n")
    options = {"format": "path_label", "root": "gs://bucket/data", "held_out_ratio": 0}
    (record,) = make_source("kinetics400", "gs://bucket/lists/train.csv", "train", **options)
    assert (record.path, record.label) == ("gs://bucket/data/run/b.mp4", 7)
    bucket("lists/all.jsonl", b'{"path": "run/b.mp4", "label": 1}')
    options = {"root": "gs://bucket/data", "held_out_ratio": 0}
    (record,) = make_source("manifest", "gs://bucket/lists/all.jsonl", "train", **options)
    assert record.path == "gs://bucket/data/run/b.mp4"


def test_remote_folders_of_pictures_are_read(bucket):
    for number in range(1, 13):
        picture = io.BytesIO()
        Image.new("RGB", (24, 16), (20 * number, 0, 0)).save(picture, "PNG")
        bucket(f"frames/video/{number}.png", picture.getvalue())
    for template in (None, "{}.png"):
        options = {"fps": 12, "held_out_ratio": 0, "template": template}
        source = make_source("frame_folders", "gs://bucket/frames", "train", **options)
        reader = source.open(0)
        assert (reader.num_frames, reader.height, reader.width) == (12, 16, 24)
        assert reader.read([0, 10])[:, 0, 0, 0].tolist() == [20, 220]


def test_a_remote_video_is_read(bucket):
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        for i in range(10):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), 20 * i, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    bucket("data/a.mp4", file.getvalue())
    source = make_source("video_folder", "gs://bucket/data", "train", held_out_ratio=0)
    reader = source.open(0)
    assert (reader.num_frames, reader.height, reader.width) == (10, 48, 64)
    assert np.abs(reader.read([5]).astype(int) - 100).max() < 8


@pytest.mark.parametrize("path", ["gs://bucket/missing", "gs://bucket/data/a.mp4"])
def test_remote_roots_that_are_no_folders_are_refused(bucket, path):
    bucket("data/a.mp4", b"")
    with pytest.raises(ValueError, match=rf"{path}.*(is not a folder|holds no video files)"):
        make_source("video_folder", path, "train")


def test_missing_remote_lists_are_refused(bucket):
    with pytest.raises(ValueError, match=r"gs://bucket/train\.csv.*cannot be read"):
        make_source("list", "gs://bucket/train.csv", "train", format="path_label")


def test_unknown_schemes_are_refused():
    with pytest.raises(ValueError, match=r"tape://x.*unknown scheme; use gs://"):
        storage.list_files("tape://x")


def test_large_files_are_refused_unread(bucket, tmp_path):
    bucket("large", bytes(11))
    (tmp_path / "large").write_bytes(bytes(11))
    for path in ("gs://bucket/large", str(tmp_path / "large")):
        assert storage.read_bytes(path, 11) == bytes(11)
        with pytest.raises(ValueError, match="has 11 bytes, above 10"):
            storage.read_bytes(path, 10)


def test_whole_files_are_written(bucket, tmp_path):
    for path in ("gs://bucket/a/b/file", str(tmp_path / "a" / "b" / "file")):
        for data in (b"first", b"2"):
            storage.write_bytes(path, data)
            assert storage.read_bytes(path, 10) == data


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for file in (root / "a" / "1", root / "a" / "deep" / "2", outside / "3"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (root / "b").symlink_to(outside)
    (root / "c").symlink_to(outside, target_is_directory=True)  # one folder under two names
    (root / "a" / "deep" / "up").symlink_to(root / "a")  # loops: to a folder above,
    (root / "a" / "self").symlink_to(root / "a" / "self")  # to itself,
    (outside / "back").symlink_to(tmp_path)  # and by way of a folder outside
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "file").symlink_to(outside / "3")
    found = ["a/1", "a/deep/2", "a/self", "b/3", "c/3", "file", "gone"]
    assert storage.list_files(str(root)) == found


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_folders_that_cannot_be_read_are_not_taken_for_empty(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(PermissionError):
        storage.list_files(str(tmp_path))
