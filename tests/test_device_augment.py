"""Flips and erasing on the device: what is drawn, and what is done with it."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.device_augment import random_erasing, random_flip


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def video(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("probability", "area", "aspect"))
def erase(clips, keys, **options):
    return random_erasing(clips, keys, **options)


def boxes(shape, n, seed=0, **options):
    """(top, left, height, width) of n erased clips [H, W]; asserts that they are whole boxes."""
    clips = jnp.full((n, 1, *shape, 1), 100.0)
    changed = np.asarray(erase(clips, keys(n, seed), **options))[:, 0, :, :, 0] != 100
    found = []
    for mask in changed:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            found.append((0, 0, 0, 0))
            continue
        box = (rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
        assert mask.sum() == box[2] * box[3]
        found.append(box)
    return np.array(found)


def test_half_of_the_clips_are_mirrored():
    clips = video(400, 2, 4, 6, 3)
    flipped = np.asarray(jax.jit(random_flip)(clips, keys(400)))
    mirrored = 0
    for clip, got in zip(clips, flipped, strict=True):
        if not np.array_equal(got, clip):
            np.testing.assert_array_equal(got, clip[:, :, ::-1])  # all of its frames
            mirrored += 1
    assert abs(mirrored - 200) < 4 * 10


@pytest.mark.parametrize(("probability", "share"), [(0, 0), (1, 1), (0.25, 0.25)])
def test_flips_have_their_probability(probability, share):
    clips = jnp.tile(jnp.arange(2, dtype=jnp.uint8).reshape(1, 1, 1, 2, 1), (1000, 1, 1, 1, 1))
    flipped = random_flip(clips, keys(1000), probability)
    assert flipped.dtype == jnp.uint8
    mirrored = (np.asarray(flipped)[:, 0, 0, 0, 0] == 1).mean()
    assert abs(mirrored - share) <= 4 * math.sqrt(share * (1 - share) / 1000)


def test_erased_is_one_box_of_fresh_normal_noise():
    clips = video(3, 4, 40, 60, 3)
    # a sixteenth of the area at one aspect: sqrt(150 * 1.5) = 15 high, sqrt(150 / 1.5) = 10 wide
    options = {"area": (1 / 16, 1 / 16), "aspect": (1.5, 1.5)}
    got = np.asarray(erase(clips, keys(3), probability=1.0, **options))
    noise = []
    for clip, after in zip(clips, got, strict=True):
        changed = (after != clip).all(-1)
        rows, columns = np.nonzero(changed[0])
        top, left = rows[0], columns[0]
        expected = clip.copy()
        expected[:, top : top + 15, left : left + 10] = after[:, top : top + 15, left : left + 10]
        assert changed[0].sum() == 150
        np.testing.assert_array_equal(after, expected)  # the box given, against numpy
        noise.append(after[:, top : top + 15, left : left + 10])
    noise = np.stack(noise)  # [clip, frame, row, column, channel]
    n = noise.size
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(noise.std() - 1) < 4 / math.sqrt(2 * n)
    assert abs((np.abs(noise) > 1).mean() - 0.3173) < 4 * math.sqrt(0.3173 * 0.6827 / n)
    for axis in range(5):  # no two are equal or alike
        a, b = np.moveaxis(noise, axis, 0)[:2].reshape(2, -1)
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)


def test_a_quarter_of_the_clips_are_erased():
    n = 2000
    erased = boxes((24, 24), n, probability=0.25)[:, 2] > 0
    assert abs(erased.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)


def test_sizes_and_places_follow_the_formulas():
    # No draw is refused: at most sqrt(10000 / 4 / 0.5) = 71 of 100.
    n, side = 2000, 100
    tops, lefts, heights, widths = boxes(
        (side, side), n, probability=1.0, area=(0.1, 0.25), aspect=(0.5, 2.0)
    ).T
    areas, aspects = heights * widths / side**2, np.log2(heights / widths)
    # uniform: mean and deviation; rounding to pixels moves logarithms by up to 0.04
    for values, low, high in (
        (areas, 0.1, 0.25),
        (aspects, -1, 1),
        (tops / (side - heights), 0, 1),
        (lefts / (side - widths), 0, 1),
    ):
        spread = (high - low) / math.sqrt(12)
        assert abs(values.mean() - (low + high) / 2) < 4 * spread / math.sqrt(n)
        assert abs(values.std() - spread) < 0.05 * spread
        assert low - 0.05 <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high + 0.05
    correlations = np.corrcoef([areas, aspects, tops / (side - heights), lefts / (side - widths)])
    assert np.abs(correlations - np.eye(4)).max() < 4.5 / math.sqrt(n)


def test_aspect_is_height_over_width():
    found = boxes((60, 60), 20, probability=1.0, area=(0.1, 0.1), aspect=(3.0, 3.0))
    # sqrt(360 * 3) = 32.9 high, sqrt(360 / 3) = 10.95 wide
    assert set(found[:, 2]) == {33}
    assert set(found[:, 3]) == {11}


def test_places_include_both_ends():
    # 4 x 4 of 6 x 5
    found = boxes((6, 5), 300, probability=1.0, area=(16 / 30, 16 / 30), aspect=(1.0, 1.0))
    assert set(map(tuple, found.tolist())) == {(y, x, 4, 4) for y in range(3) for x in range(2)}


def test_boxes_as_high_or_wide_as_the_frame_are_drawn_again():
    # Of 20 x 40, area 400 and aspect 2^-1..2: heights of 14 to 28, of which 20 and more do not fit.
    found = boxes((20, 40), 400, probability=1.0, area=(0.5, 0.5), aspect=(0.5, 2.0))
    assert found[:, 2].min() >= 14
    assert found[:, 2].max() == 19
    # log2 of height/width is uniform over what fits: -1 to log2(19.5² / 400)
    aspects = np.log2(found[:, 2] / found[:, 3])
    top = math.log2(19.5**2 / 400)
    assert abs(aspects.mean() - (top - 1) / 2) < 0.05


def test_what_never_fits_leaves_the_clip_as_it_is():
    for shape, aspect in (((10, 10), 1.0), ((1, 50), 1.0), ((50, 1), 1.0)):
        found = boxes(shape, 20, probability=1.0, area=(1.0, 1.0), aspect=(aspect, aspect))
        assert not found.any()


def test_probability_zero_costs_nothing():
    clips, given = video(2, 1, 4, 4, 3), keys(2)
    assert random_erasing(clips, given, probability=0) is clips
    assert random_flip(clips, given, 0) is clips


@pytest.mark.parametrize(
    "augment", [random_flip, functools.partial(random_erasing, probability=0.5)]
)
def test_a_clip_depends_on_its_own_key_alone(augment):
    clips, given = video(6, 2, 12, 12, 3), keys(6)
    augment = jax.jit(augment)
    whole = np.asarray(augment(clips, given))
    parts = np.concatenate([augment(clips[i : i + 2], given[i : i + 2]) for i in (0, 2, 4)])
    np.testing.assert_array_equal(whole, parts)
    order = np.array([3, 1, 5, 0, 4, 2])
    np.testing.assert_array_equal(augment(clips[order], given[order]), whole[order])


def test_flips_and_erasing_of_one_key_are_independent():
    n = 2000
    erased = boxes((12, 12), n, probability=0.5)[:, 2] > 0
    ramp = jnp.broadcast_to(jnp.arange(2.0).reshape(1, 1, 1, 2, 1), (n, 1, 1, 2, 1))
    flipped = np.asarray(random_flip(ramp, keys(n)))[:, 0, 0, 0, 0] == 1
    assert abs(np.corrcoef(erased, flipped)[0, 1]) < 4 / math.sqrt(n)
