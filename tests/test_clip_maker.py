"""Samplers of timed clips on files of 25, of 30 and of varying frames a second, by hand."""

import pickle
from fractions import Fraction

import numpy as np
import pytest
from video_corpus import FRAMES, IRREGULAR, encode, painted_numbers

from vmae_jax.config import VideoMAEConfig
from vmae_jax.configs import default
from vmae_jax.data.samplers import timed_centre_frames, timed_frames, timed_view_frames
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.errors import SettingError
from vmae_jax.tasks.pretraining import Pretraining

RATES = {
    "25": {},
    "30": {"time_base": Fraction(1, 30), "ticks": int},
    "varying": IRREGULAR,  # frame i at 40 i + 17 (i % 3) ms, those after the 30th 900 ms later
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A record of each file, all of FRAMES = 72 frames that show their numbers."""
    folder = tmp_path_factory.mktemp("rates")
    for name, how in RATES.items():
        encode(str(folder / f"{name}.mp4"), **how)
    return VideoSource([VideoRecord(str(folder / f"{name}.mp4"), name) for name in RATES])


def shown(source, name, sampler, seed=0):
    """What the frames that a sampler chooses show."""
    with source.open(list(RATES).index(name)) as reader:
        assert reader.num_frames == FRAMES
        indices = sampler(reader, np.random.default_rng(seed))
        assert indices.dtype == np.int64
        return painted_numbers(reader.read(indices))


@pytest.mark.parametrize(
    ("name", "num_frames", "fps", "expected"),
    [
        # From 0 to 2.84 s in steps of 0.04: a clip of 0.7 s starts at 1.07 s, 26.75 frames.
        ("25", 8, 10, [27, 29, 32, 34, 37, 39, 42, 44]),
        # From 0 to 71 / 30 s: the clip starts at 5 / 6 s, 25 frames, and steps by 3.
        ("30", 8, 10, [25, 28, 31, 34, 37, 40, 43, 46]),
        # From 0 to 3.774 s: the clip of 1.8 s starts at 0.987 s, between frames 24 (0.960) and 25
        # (1.017), passes 29 (1.194) and 30 (1.2), and stands in the gap until 31 (2.157) comes
        # near; then 32 (2.214), 37 (2.397), 42 (2.58), and 47 (2.814), not 46 (2.757).
        ("varying", 10, 5, [24, 29, 30, 30, 31, 31, 32, 37, 42, 47]),
        # Longer than the file: from its first frame, then its last again and again.
        ("25", 6, 1.25, [0, 20, 40, 60, 71, 71]),
    ],
)
def test_the_clip_in_the_middle_goes_by_time(source, name, num_frames, fps, expected):
    assert shown(source, name, timed_centre_frames(num_frames, fps)) == expected


@pytest.mark.parametrize(
    ("name", "fps", "stride"), [("25", 12.5, 2), ("25", 6.25, 4), ("30", 30, 1), ("30", 7.5, 4)]
)
def test_a_part_of_the_rate_is_a_stride(source, name, fps, stride):
    sampler = timed_frames(5, fps)
    starts = set()
    for seed in range(20):
        frames = shown(source, name, sampler, seed)
        starts.add(frames[0])
        assert frames == [frames[0] + stride * k for k in range(5)]
    assert len(starts) > 5


def test_views_are_spread_evenly_from_the_first_frame_to_the_last(source):
    # A clip of 0.12 s in 2.84 s: starts at 0, 1.36 and 2.72 s.
    views = shown(source, "25", timed_view_frames(4, 25, 3))
    assert views == [0, 1, 2, 3, 34, 35, 36, 37, 68, 69, 70, 71]
    centre = shown(source, "30", timed_centre_frames(4, 15))
    assert shown(source, "30", timed_view_frames(4, 15, 1)) == centre
    # all the same where the record is too short
    assert shown(source, "25", timed_view_frames(6, 1.25, 2)) == [0, 20, 40, 60, 71, 71] * 2


class TimedReader:
    def __init__(self, times):
        self.times = np.asarray(times, np.float64)


def test_every_start_from_which_the_clip_fits_is_equally_likely():
    # 10 frames a second, of which the clip takes every second, 0.6 s: from frame 0, 1, 2 or 3.
    reader, rng = TimedReader(np.arange(10) * 0.1), np.random.default_rng(0)
    sampler = timed_frames(4, 5)
    found = np.array([sampler(reader, rng) for _ in range(2000)])
    np.testing.assert_array_equal(np.diff(found), 2)
    # 500 expected each, standard deviation 19.4
    assert np.abs(np.bincount(found[:, 0], minlength=4) - 500).max() < 4 * 19.4
    assert found[:, 0].max() == 3
    # and in floating point 9 / 25 - 1 / 12.5 lies below 7 / 25
    found = [timed_frames(2, 12.5)(TimedReader(np.arange(10) / 25), rng)[0] for _ in range(200)]
    assert set(found) == set(range(8))
    short = [sampler(TimedReader([0, 0.1, 0.2, 0.3]), rng).tolist() for _ in range(20)]
    assert short == [[0, 2, 3, 3]] * 20


def test_samplers_can_be_pickled():
    reader = TimedReader(np.arange(50) / 25)
    for sampler in (timed_frames(4, 5), timed_centre_frames(4, 5), timed_view_frames(4, 5, 2)):
        again = pickle.loads(pickle.dumps(sampler))
        np.testing.assert_array_equal(
            again(reader, np.random.default_rng(3)), sampler(reader, np.random.default_rng(3))
        )


@pytest.mark.parametrize("make", [timed_frames, timed_centre_frames])
@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1000.5])
def test_rates_out_of_range_are_refused_at_once(make, fps):
    with pytest.raises(SettingError, match=r"fps=.* must be in \(0, 1000\]"):
        make(4, fps)
    with pytest.raises(SettingError, match="fps="):
        timed_view_frames(4, fps, 2)


def test_counts_below_one_are_refused_at_once():
    with pytest.raises(SettingError, match="num_frames=0"):
        timed_frames(0, 8)
    with pytest.raises(SettingError, match="num_segments=0"):
        timed_view_frames(4, 8, 0)
    assert timed_frames(1, 1000)(TimedReader([0.0]), None).tolist() == [0]


@pytest.mark.parametrize("held_out", [False, True])
def test_a_task_goes_by_data_fps_where_it_is_given(source, held_out):
    config = default.get_config()
    model = VideoMAEConfig(num_frames=8, image_size=32)

    def chosen():
        make = Pretraining().samples(source, model, config.data, held_out=held_out)
        with source.open(1) as reader:
            return make.sampler(reader, np.random.default_rng(0)).tolist()

    assert np.diff(chosen()).tolist() == [4] * 7  # data.frame_stride
    config.data.fps = 10  # of 30
    assert np.diff(chosen()).tolist() == [3] * 7
    config.data.frame_stride = 2
    assert np.diff(chosen()).tolist() == [3] * 7
    config.data.fps = 2000
    with pytest.raises(SettingError, match="fps=2000"):
        chosen()
