from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vmae_jax.augment import (
    centre_crop,
    crop_and_resize,
    multi_scale_corner_crop,
    sample_crop_box,
)

# A frame of 240 x 320 for a target of 112: sides int(240 * (1, .875, .75, .66)), none near 112.
A, B, C, D = 240, 210, 180, 158
PAIRS = {(A, A), (A, B), (B, A), (B, B), (B, C), (C, B), (C, C), (C, D), (D, C), (D, D)}
# Places (top, left) of the pair (C, B) = 180 x 210, by hand: steps (240-180)//4 = 15 down and
# (320-210)//4 = 27 right; corners, centre, edge middles, quarter points.
PLACES = {
    *[(0, 0), (0, 108), (60, 0), (60, 108), (30, 54)],
    *[(30, 0), (30, 108), (60, 54), (0, 54)],
    *[(15, 27), (15, 81), (45, 27), (45, 81)],
}


@pytest.fixture(scope="module")
def boxes():
    rng = np.random.default_rng(0)
    return [sample_crop_box(240, 320, (112, 112), rng) for _ in range(20000)]


def random_frames(*shape):
    # Smooth enough that resizing keeps structure, random enough that every pixel counts.
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_crop_sizes_are_the_ten_pairs_equally_often(boxes):
    counts = Counter(box[2:] for box in boxes)
    assert set(counts) == PAIRS
    # 2000 expected, standard deviation 42.4.
    assert max(abs(n - 2000) for n in counts.values()) < 4 * 42.4


def test_crop_places_are_the_thirteen_equally_often(boxes):
    counts = Counter(box[:2] for box in boxes if box[2:] == (C, B))
    assert set(counts) == PLACES
    expected = sum(counts.values()) / 13
    assert max(abs(n - expected) for n in counts.values()) < 4 * np.sqrt(expected)


def test_size_and_place_are_independent(boxes):
    # Of the pair (A, A), which touches top and bottom, nine columns remain from thirteen places:
    # steps of (320-240)//4 = 20; columns 0, 2, 4 come from three places each, 1 and 3 from two.
    counts = Counter(box[1] for box in boxes if box[2:] == (A, A))
    total = sum(counts.values())
    for left, places in {0: 3, 20: 2, 40: 3, 60: 2, 80: 3}.items():
        assert abs(counts[left] - total * places / 13) < 4 * np.sqrt(total * places / 13)


@pytest.mark.parametrize(
    ("height", "width", "image_size", "heights", "widths"),
    [
        # 256 * (1, .875, .75, .66) = 256, 224, 192, 168.96: nothing to snap.
        (256, 340, (224, 224), {256, 224, 192, 168}, {256, 224, 192, 168}),
        # 226: within 2 of 224, the others int(197.75), int(169.5), int(149.16).
        (226, 300, (224, 224), {224, 197, 169, 149}, {224, 197, 169, 149}),
        # 227: 3 away, stays.
        (227, 300, (224, 224), {227, 198, 170, 149}, {227, 198, 170, 149}),
        # 222 snaps up where there is room, which is only across.
        (222, 300, (224, 224), {222, 194, 166, 146}, {224, 194, 166, 146}),
        # Each axis has its own target: 128 * (1, .875, .75, .66) = 128, 112, 96, 84.48.
        (128, 200, (98, 126), {128, 112, 98, 84}, {126, 112, 96, 84}),
        # Upright frames: the short side is the width.
        (340, 256, (224, 224), {256, 224, 192, 168}, {256, 224, 192, 168}),
    ],
)
def test_sides_snap_to_the_target_within_two_pixels(height, width, image_size, heights, widths):
    rng = np.random.default_rng(0)
    boxes = np.array([sample_crop_box(height, width, image_size, rng) for _ in range(1000)])
    assert set(boxes[:, 2]) == heights
    assert set(boxes[:, 3]) == widths


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (112, 112), (113, 112), (720, 1280)])
def test_boxes_stay_inside_the_frame(size):
    rng = np.random.default_rng(0)
    for _ in range(500):
        top, left, height, width = sample_crop_box(*size, (112, 112), rng)
        assert min(top, left) >= 0
        assert min(height, width) >= 1
        assert top + height <= size[0]
        assert left + width <= size[1]


@pytest.mark.parametrize("box", [(0, 0, 60, 80), (7, 11, 42, 50), (20, 30, 28, 28), (3, 1, 16, 9)])
def test_crop_and_resize_agrees_with_pillow(box):
    frames = random_frames(3, 60, 80, 3)
    top, left, height, width = box
    result = crop_and_resize(frames, box, (28, 42))
    assert result.dtype == np.uint8
    assert result.shape == (3, 28, 42, 3)
    for frame, got in zip(frames, result, strict=True):
        part = Image.fromarray(frame).crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((42, 28), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(got, expected)


def test_a_crop_of_the_target_size_is_copied_unchanged():
    frames = random_frames(2, 40, 50, 3)
    result = crop_and_resize(frames, (5, 6, 32, 32), (32, 32))
    np.testing.assert_array_equal(result, frames[:, 5:37, 6:38])


def test_shrinking_is_antialiased():
    # A chequerboard shrunk by four is flat grey; without antialiasing it stays black and white.
    board = np.indices((64, 64)).sum(0) % 2 * 255
    frames = np.repeat(board[None, :, :, None], 3, axis=-1).astype(np.uint8)
    result = crop_and_resize(frames, (0, 0, 64, 64), (16, 16))
    assert np.abs(result.astype(int) - 127.5).max() < 3


def test_multi_scale_corner_crop_takes_the_drawn_box_of_every_frame():
    frames = random_frames(4, 60, 80, 3)
    for seed in range(20):
        box = sample_crop_box(60, 80, (32, 24), np.random.default_rng(seed))
        result = multi_scale_corner_crop(frames, (32, 24), np.random.default_rng(seed))
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, crop_and_resize(frames, box, (32, 24)))


def test_multi_scale_corner_crop_treats_all_frames_alike():
    frames = np.repeat(random_frames(1, 60, 80, 3), 5, axis=0)
    result = multi_scale_corner_crop(frames, (32, 32), np.random.default_rng(1))
    np.testing.assert_array_equal(result, np.repeat(result[:1], 5, axis=0))


def test_multi_scale_corner_crop_never_flips():
    # Brightness grows to the right in the frame, so it must do so in every crop.
    ramp = np.broadcast_to(
        np.arange(0, 160, 2, dtype=np.uint8)[None, None, :, None], (1, 60, 80, 3)
    )
    for seed in range(50):
        result = multi_scale_corner_crop(ramp, (32, 32), np.random.default_rng(seed))
        assert (np.diff(result[0, 0, :, 0].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ("size", "image_size", "resized", "top", "left"),
    [
        ((272, 640), (112, 112), (112, 263), 0, 75),  # 640 * 112 / 272 = 263.5
        ((640, 272), (112, 112), (263, 112), 75, 0),
        ((20, 40), (10, 30), (15, 30), 2, 0),  # the width decides
        ((20, 40), (15, 20), (15, 30), 0, 5),  # the height decides
        ((10, 12), (20, 20), (20, 24), 0, 2),  # enlarged
        ((32, 32), (32, 32), (32, 32), 0, 0),
    ],
)
def test_centre_crop_agrees_with_pillow(size, image_size, resized, top, left):
    frames = random_frames(2, *size, 3)
    result = centre_crop(frames, image_size)
    assert result.shape == (2, *image_size, 3)
    for frame, got in zip(frames, result, strict=True):
        image = Image.fromarray(frame).resize(resized[::-1], Image.Resampling.BILINEAR)
        right, bottom = left + image_size[1], top + image_size[0]
        np.testing.assert_array_equal(got, np.asarray(image.crop((left, top, right, bottom))))


@pytest.mark.parametrize("height", range(30, 60, 7))
@pytest.mark.parametrize("width", range(30, 60, 7))
@pytest.mark.parametrize("image_size", [(32, 32), (48, 16), (7, 61)])
def test_centre_crop_has_the_size_asked_for(height, width, image_size):
    assert centre_crop(np.zeros((1, height, width, 3), np.uint8), image_size).shape == (
        1,
        *image_size,
        3,
    )
