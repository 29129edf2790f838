"""The views of validation and testing against OpenCV and slices, as the original has them."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from vmae_jax.data.video.views import cover_short_side, view_crops
from vmae_jax.errors import SettingError


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def original_resize(frames, side):
    """functional.py, resize_clip and get_resize_sizes, on arrays."""
    height, width = frames.shape[1:3]
    if min(height, width) == side:
        return frames
    if width < height:
        size = (side, int(side * height / width))  # OpenCV's: (width, height)
    else:
        size = (int(side * width / height), side)
    return np.stack([cv2.resize(x, size, interpolation=cv2.INTER_LINEAR) for x in frames])


def original_test_crop(frames, side, number, num_crops):
    """kinetics.py, VideoClsDataset.__getitem__ in test mode, one spatial crop."""
    frames = original_resize(frames, side)
    step = 1.0 * (max(frames.shape[1], frames.shape[2]) - side) / (num_crops - 1)
    start = int(number * step)
    if frames.shape[1] >= frames.shape[2]:
        return frames[:, start : start + side]
    return frames[:, :, start : start + side]


def original_centre_crop(frames, side):
    """video_transforms.py, Resize and CenterCrop."""
    frames = original_resize(frames, side)
    left = round((frames.shape[2] - side) / 2.0)
    top = round((frames.shape[1] - side) / 2.0)
    return frames[:, top : top + side, left : left + side]


SIZES = [(60, 80), (80, 60), (64, 64), (32, 57), (57, 32), (33, 47), (20, 31), (240, 427), (90, 33)]


@pytest.mark.parametrize("size", SIZES)
def test_the_short_side_is_covered_as_the_original_does(size):
    frames = noise(3, *size, 3)
    result = cover_short_side(frames, 32)
    assert min(result.shape[1:3]) == 32
    np.testing.assert_array_equal(result, original_resize(frames, 32))


@pytest.mark.parametrize("long", range(640, 700))
def test_the_long_side_is_cut_off_not_rounded(long):
    frames = np.zeros((1, 480, long, 1), np.uint8)
    assert cover_short_side(frames, 32).shape[1:3] == (32, math.floor(32 * long / 480))
    assert cover_short_side(frames.swapaxes(1, 2), 32).shape[1:3] == (32 * long // 480, 32)


def test_frames_that_fit_are_given_back():
    frames = noise(2, 32, 40, 3)
    assert cover_short_side(frames, 32) is frames


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_crops", [2, 3, 4, 7])
def test_crops_are_those_of_the_original(size, num_crops):
    frames = noise(3, *size, 3)
    result = view_crops(frames, (32, 32), num_crops)
    assert result.shape == (num_crops, 3, 32, 32, 3)
    assert result.dtype == np.uint8
    for k in range(num_crops):
        np.testing.assert_array_equal(result[k], original_test_crop(frames, 32, k, num_crops))


@pytest.mark.parametrize("size", SIZES)
def test_one_crop_is_the_centre_crop_of_the_original(size):
    frames = noise(3, *size, 3)
    (result,) = view_crops(frames, (32, 32), 1)
    np.testing.assert_array_equal(result, original_centre_crop(frames, 32))


@pytest.mark.parametrize(
    ("long", "num_crops", "starts"),
    [
        (398, 3, [0, 87, 174]),
        (299, 3, [0, 37, 75]),
        (224, 3, [0, 0, 0]),
        # halves round to even: (225 - 224) / 2 = 0.5, (227 - 224) / 2 = 1.5, 2.5
        (225, 1, [0]),
        (227, 1, [2]),
        (229, 1, [2]),
    ],
)
def test_places_along_the_long_side(long, num_crops, starts):
    frames = np.zeros((1, 224, long, 3), np.uint8)
    frames[..., 0], frames[..., 1] = np.arange(long) // 256, np.arange(long) % 256
    for turned in (frames, frames.swapaxes(1, 2)):
        views = view_crops(turned, (224, 224), num_crops)
        assert views.shape == (num_crops, 1, 224, 224, 3)
        corner = views[:, 0, 0, 0].astype(int)
        assert (256 * corner[:, 0] + corner[:, 1]).tolist() == starts


@pytest.mark.parametrize(
    ("size", "image_size", "covered"),
    [
        ((60, 80), (16, 32), (24, 32)),
        ((60, 80), (32, 16), (32, 42)),  # 42.67
        ((80, 60), (16, 32), (42, 32)),
        ((60, 120), (16, 32), (16, 32)),
        ((60, 90), (16, 32), (21, 32)),  # 21.33
    ],
)
def test_sizes_that_are_not_square_are_covered(size, image_size, covered):
    frames = noise(2, *size, 3)
    resized = np.stack(
        [cv2.resize(x, covered[::-1], interpolation=cv2.INTER_LINEAR) for x in frames]
    )
    down, right = covered[0] - image_size[0], covered[1] - image_size[1]
    views = view_crops(frames, image_size, 3)
    for k, view in enumerate(views):
        top, left = int(k * (down / 2)), int(k * (right / 2))
        part = resized[:, top : top + image_size[0], left : left + image_size[1]]
        np.testing.assert_array_equal(view, part)


def test_no_crops_are_refused():
    with pytest.raises(SettingError, match="num_crops=0 must be at least 1"):
        view_crops(noise(1, 8, 8, 3), (8, 8), 0)
