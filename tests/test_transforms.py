"""Transforms of fine-tuning and testing; those of pre-training are tested in test_samples.py."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from painted_source import PaintedSource

from vmae_jax.data import samplers, transforms
from vmae_jax.data.clip_maker import ClipMaker
from vmae_jax.data.sample_numbers import sample_rng
from vmae_jax.data.video.augment import fit_into, resized_crop, sample_resized_crop_box
from vmae_jax.data.video.rand_augment import parse_policy
from vmae_jax.data.video.views import view_crops
from vmae_jax.errors import SettingError

POLICY = parse_policy("rand-m9-n4-mstd0.5-inc1")
RANGES = {"scale": (0.2, 0.9), "ratio": (0.8, 1.25)}


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def apply(transform, frames, seed=3):
    return pickle.loads(pickle.dumps(transform))(frames, np.random.default_rng(seed))


@pytest.mark.parametrize("policy", [None, POLICY])
def test_each_repetition_is_augmented_anew(policy):
    frames, rng = noise(4, 40, 56, 3), np.random.default_rng(3)
    made = apply(transforms.augmented_clips((16, 24), 3, policy=policy, **RANGES), frames)
    assert list(made) == ["video"]
    assert made["video"].shape == (3, 4, 16, 24, 3)
    assert made["video"].dtype == np.uint8
    for clip in made["video"]:
        augmented = frames if policy is None else policy(frames, rng)
        box = sample_resized_crop_box(40, 56, rng, **RANGES)
        np.testing.assert_array_equal(clip, resized_crop(augmented, box, (16, 24)))


@pytest.mark.parametrize("canvas", [(40, 56), (48, 60), (20, 60)])
def test_with_a_policy_each_repetition_has_its_canvas(canvas):
    frames, rng = noise(4, 40, 56, 3), np.random.default_rng(3)
    transform = transforms.augmented_clips((16, 24), 3, policy=POLICY, canvas=canvas, **RANGES)
    made = apply(transform, frames)
    assert made["video"].shape == (3, 4, *canvas, 3)
    assert made["boxes"].shape == (3, 1, 4)
    assert made["boxes"].dtype == np.int32
    shrunk = fit_into(frames, canvas)
    height, width = shrunk.shape[1:3]
    for shown, (box,) in zip(made["video"], made["boxes"], strict=True):
        np.testing.assert_array_equal(shown[:, :height, :width], POLICY(shrunk, rng))
        assert not shown[:, height:].any()
        assert not shown[:, :, width:].any()
        assert tuple(box) == sample_resized_crop_box(height, width, rng, **RANGES)


def test_without_a_policy_all_repetitions_share_a_canvas():
    frames, rng = noise(4, 40, 56, 3), np.random.default_rng(3)
    transform = transforms.augmented_clips((16, 24), 3, policy=None, canvas=(44, 56), **RANGES)
    made = apply(transform, frames)
    assert made["video"].shape == (1, 4, 44, 56, 3)
    assert made["boxes"].shape == (1, 3, 4)
    np.testing.assert_array_equal(made["video"][0, :, :40], frames)
    for box in made["boxes"][0]:
        assert tuple(box) == sample_resized_crop_box(40, 56, rng, **RANGES)


@pytest.mark.parametrize(("num_segments", "num_crops"), [(1, 1), (2, 3), (5, 2)])
def test_views_are_ordered_clip_by_clip(num_segments, num_crops):
    frames = noise(num_segments * 4, 20, 36, 3)
    made = apply(transforms.view_clips((16, 16), num_segments, num_crops), frames)
    assert made["video"].shape == (num_segments * num_crops, 4, 16, 16, 3)
    for s in range(num_segments):
        crops = view_crops(frames[4 * s : 4 * s + 4], (16, 16), num_crops)
        for k in range(num_crops):
            np.testing.assert_array_equal(made["video"][s * num_crops + k], crops[k])


def test_clip_makers_of_fine_tuning_validation_and_testing():
    source = PaintedSource(3, num_frames=100, height=16, width=40)  # green tells the frame
    train = ClipMaker(
        source,
        samplers.fine_tuning_frames(4, 2, "dense"),
        transforms.augmented_clips((16, 16), 2, policy=None, **RANGES),
    )
    made = pickle.loads(pickle.dumps(train))(1, 0, 7)["video"]
    expected = samplers.fine_tuning_frames(4, 2, "dense")
    with source.open(1) as reader:
        expected = expected(reader, sample_rng(0, 7))
    assert made[:, :, 8, 8, 1].tolist() == [expected.tolist()] * 2
    assert not np.array_equal(made[0], made[1])  # blue tells the column

    held_out = ClipMaker(
        source, samplers.validation_frames(4, 2, "tsn"), transforms.view_clips((16, 16), 1, 1)
    )
    made = held_out(1, 0, 7)["video"]
    assert made[0, :, 0, 0, 1].tolist() == [12, 37, 62, 87]
    assert (made[0, :, 0, 0, 2] == 5 * 12).all()

    test = ClipMaker(
        source, samplers.view_frames(4, 2, "dense", 5), transforms.view_clips((16, 16), 5, 3)
    )
    made = test(1, 0, 7)["video"]
    # 50 strided, 46 free: starts int(k * 11.5) of them; columns 0, 12, 24
    assert made[::3, 0, 0, 0, 1].tolist() == [0, 22, 46, 68, 92]
    assert made[:3, 0, 0, 0, 2].tolist() == [0, 60, 120]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeat": 0}, "repeat=0 must be at least 1"),
        ({"canvas": (0, 10)}, r"canvas=\(0, 10\) must be \(height, width\)"),
        ({"scale": (0, 1)}, r"scale=\(0, 1\) must be \(low, high\) with 0 < low <= high <= 1"),
        ({"scale": (0.5, 1.5)}, r"scale=\(0.5, 1.5\) must be .* <= 1"),
        ({"ratio": (2, 0.5)}, r"ratio=\(2, 0.5\) must be \(low, high\) with 0 < low <= high\."),
    ],
)
def test_what_cannot_work_is_named(options, message):
    with pytest.raises(SettingError, match=message):
        transforms.augmented_clips((16, 16), **{"repeat": 1, "policy": None, **RANGES, **options})


@pytest.mark.parametrize(("numbers", "name"), [((0, 3), "num_segments"), ((5, 0), "num_crops")])
def test_no_views_are_refused(numbers, name):
    with pytest.raises(SettingError, match=f"{name}=0 must be at least 1 view"):
        transforms.view_clips((16, 16), *numbers)
