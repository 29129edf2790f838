"""Samplers give the frames that the rules of `clips` choose, and can be pickled."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from vmae_jax.data import samplers
from vmae_jax.data.video import clips
from vmae_jax.errors import SettingError


def reader(num_frames, frame_step=1, frame_phase=0):
    return SimpleNamespace(num_frames=num_frames, frame_step=frame_step, frame_phase=frame_phase)


def sample(sampler, num_frames, seed=0, **kept):
    sampler = pickle.loads(pickle.dumps(sampler))
    return sampler(reader(num_frames, **kept), np.random.default_rng(seed))


@pytest.mark.parametrize("num_frames", [1, 7, 40, 64, 65, 300])
def test_frames_are_those_of_the_rules(num_frames):
    def rng():
        return np.random.default_rng(5)

    step = {"frame_step": 2, "frame_phase": 0}
    pairs = [
        (
            sample(samplers.pretraining_frames(16, 4), num_frames, 5, **step),
            clips.pretraining_indices(num_frames, 16, 4, rng(), **step),
        ),
        (
            sample(samplers.centre_frames(16, 4), num_frames, 5, **step),
            clips.centre_indices(num_frames, 16, 4, **step),
        ),
        (
            sample(samplers.fine_tuning_frames(16, 4, "dense"), num_frames, 5),
            clips.dense_indices(num_frames, 16, 4, rng()),
        ),
        (
            sample(samplers.fine_tuning_frames(16, 4, "tsn"), num_frames, 5),
            clips.tsn_indices(num_frames, 16, rng()),
        ),
        (
            sample(samplers.validation_frames(16, 4, "dense"), num_frames),
            clips.dense_centre_indices(num_frames, 16, 4),
        ),
        (
            sample(samplers.validation_frames(16, 4, "tsn"), num_frames),
            clips.tsn_centre_indices(num_frames, 16),
        ),
    ]
    for found, expected in pairs:
        np.testing.assert_array_equal(found, expected)


def test_a_fine_tuning_clip_stands_where_the_original_puts_it():
    # behaviour of the original for 65 frames and stride 4: the one span possible, from 0 to 64
    expected = [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]
    assert sample(samplers.fine_tuning_frames(16, 4, "dense"), 65).tolist() == expected


def test_dense_views_follow_one_another():
    # 300 frames, stride 4: 75 strided, 59 free; starts int(k * 59 / 4) of them
    frames = sample(samplers.view_frames(16, 4, "dense", 5), 300).reshape(5, 16)
    assert frames[:, 0].tolist() == [0, 56, 116, 176, 236]
    assert (np.diff(frames, axis=1) == 4).all()


def test_tsn_views_follow_one_another():
    # 160 frames: ticks of 10; view k at k / 2 of each
    frames = sample(samplers.view_frames(16, 4, "tsn", 2), 160).reshape(2, 16)
    assert frames[0].tolist() == list(range(0, 160, 10))
    assert frames[1].tolist() == list(range(5, 160, 10))


@pytest.mark.parametrize("sampling", ["dense", "tsn"])
def test_one_view_is_allowed(sampling):
    assert len(sample(samplers.view_frames(16, 4, sampling, 1), 100)) == 16


@pytest.mark.parametrize(
    "make", [samplers.fine_tuning_frames, samplers.validation_frames, samplers.view_frames]
)
def test_an_unknown_sampling_is_named(make):
    rest = (2,) if make is samplers.view_frames else ()
    with pytest.raises(SettingError, match="sampling='uniform' is unknown; choose from dense, tsn"):
        make(16, 4, "uniform", *rest)


@pytest.mark.parametrize(
    ("make", "numbers", "message"),
    [
        (samplers.pretraining_frames, (0, 4), "num_frames=0 must be at least 1 frame"),
        (samplers.centre_frames, (16, 0), "frame_stride=0 must be at least 1 frame"),
        (samplers.fine_tuning_frames, (16, 0, "dense"), "frame_stride=0 must be at least 1 frame"),
        (samplers.validation_frames, (-1, 4, "tsn"), "num_frames=-1 must be at least 1 frame"),
        (samplers.view_frames, (16, 4, "tsn", 0), "num_segments=0 must be at least 1 view"),
    ],
)
def test_counts_below_one_are_named(make, numbers, message):
    with pytest.raises(SettingError, match=message):
        make(*numbers)
