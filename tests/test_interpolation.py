"""Interpolation of hidden pixels, against scipy's griddata and values by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.interpolate import griddata

from vmae_jax.config import VideoMAEConfig
from vmae_jax.interpolation import interpolate_visible, interpolation_weights
from vmae_jax.masking import MASKS, Mask


def make_config(image_size=(16, 24), patch_size=4, channels=3):
    return VideoMAEConfig(
        image_size=image_size, patch_size=patch_size, num_channels=channels, num_frames=6
    )


def make_video(config, seed=0, num_clips=2):
    shape = (num_clips, config.num_frames, *config.frame_size, config.num_channels)
    return np.random.default_rng(seed).random(shape, np.float32)


def mask_of(hidden, config):
    """The mask of bool [t, h, w] for one clip."""
    return Mask.from_bool(np.asarray(hidden, bool).reshape(1, config.num_tokens))


def hidden_pixels(mask, config):
    """bool [B, T, H, W], by plain loops."""
    t, h, w = config.grid
    p = config.patch_size
    tokens = np.asarray(mask.to_bool()).reshape(-1, t, h, w)
    pixels = np.zeros((len(tokens), config.num_frames, *config.frame_size), bool)
    for b, i, row, column in np.argwhere(tokens):
        pixels[b, 2 * i : 2 * i + 2, row * p : row * p + p, column * p : column * p + p] = True
    return pixels


@pytest.mark.parametrize("mask_name", ["tube", "random"])
def test_each_frame_is_what_griddata_makes_of_it(mask_name):
    config = make_config()
    video = make_video(config)
    mask = MASKS[mask_name](jax.random.key(1), 2, config.grid, 0.7)
    found = interpolate_visible(video, mask, config)
    hidden = hidden_pixels(mask, config)
    assert found.dtype == np.float32
    nowhere = True
    for b, frame in np.ndindex(2, config.num_frames):
        covered = hidden[b, frame]
        known, wanted = np.argwhere(~covered), np.argwhere(covered)
        for channel in range(3):
            image = video[b, frame, ..., channel]
            expected = griddata(known, image[~covered], wanted, method="linear")
            outside = np.isnan(expected)
            nowhere &= not outside.any()
            nearest = griddata(known, image[~covered], wanted, method="nearest")
            expected[outside] = nearest[outside]
            np.testing.assert_allclose(found[b, frame, ..., channel][covered], expected, atol=1e-6)
            np.testing.assert_array_equal(found[b, frame, ..., channel][~covered], image[~covered])
    assert not nowhere  # some pixels did lie outside the hull


def test_a_ramp_between_two_visible_columns_is_the_ramp():
    # columns 0 to 3 and 20 to 23 are visible, all of their rows: a plane is met exactly between
    config = make_config()
    hidden = np.ones((3, 4, 6), bool)
    hidden[:, :, [0, 5]] = False
    rows, columns = np.mgrid[:16, :24]
    ramp = (2 * rows + 3 * columns) / 100
    video = np.broadcast_to(ramp[:, :, None], (1, 6, 16, 24, 3))
    found = interpolate_visible(video, mask_of(hidden, config), config)
    np.testing.assert_allclose(found, video, atol=1e-6)


def test_one_visible_patch_is_extended_by_its_nearest_pixels():
    # the patch of rows and columns 4 to 7; every other pixel takes the nearest of its edge
    config = make_config()
    hidden = np.ones((3, 4, 6), bool)
    hidden[:, 1, 1] = False
    video = make_video(config, num_clips=1)
    found = interpolate_visible(video, mask_of(hidden, config), config)
    rows, columns = np.clip(np.arange(16), 4, 7), np.clip(np.arange(24), 4, 7)
    np.testing.assert_array_equal(found, video[:, :, rows][:, :, :, columns])


def test_visible_pixels_on_one_line_are_extended_too():
    # no triangle can be made of them; pixel (0, 0) says all of a row of patches of one pixel
    config = make_config(image_size=(1, 4), patch_size=1)
    hidden = np.array([False, True, True, False]).reshape(1, 1, 4).repeat(3, axis=0)
    video = make_video(config, num_clips=1)
    found = interpolate_visible(video, mask_of(hidden, config), config)
    np.testing.assert_array_equal(found, video[:, :, :, [0, 0, 3, 3]])


def test_a_frame_that_shows_nothing_takes_the_nearest_time_step_that_does():
    config = make_config()
    hidden = np.ones((3, 4, 6), bool)
    hidden[[0, 2]] = False
    video = make_video(config, num_clips=1)
    found = interpolate_visible(video, mask_of(hidden, config), config)
    # step 1 is as far from step 0 as from step 2
    np.testing.assert_array_equal(found, video[:, [0, 1, 0, 1, 4, 5]])
    for shown, expected in ((2, [4, 5, 4, 5, 4, 5]), ([0, 1], [0, 1, 2, 3, 2, 3])):
        hidden = np.ones((3, 4, 6), bool)
        hidden[shown] = False
        found = interpolate_visible(video, mask_of(hidden, config), config)
        np.testing.assert_array_equal(found, video[:, expected])


@pytest.mark.parametrize("mask_name", list(MASKS))
def test_hidden_pixels_have_no_influence(mask_name):
    config = make_config()
    mask = MASKS[mask_name](jax.random.key(2), 2, config.grid, 0.6)
    video, other = make_video(config, seed=0), make_video(config, seed=1)
    changed = np.where(hidden_pixels(mask, config)[..., None], other, video)
    assert (changed != video).any()
    np.testing.assert_array_equal(
        interpolate_visible(changed, mask, config), interpolate_visible(video, mask, config)
    )


def test_what_is_given_stays_as_it_was():
    config = make_config()
    hidden = np.ones((3, 4, 6), bool)
    hidden[:, 0] = False
    video = make_video(config, num_clips=1)
    before = video.copy()
    interpolate_visible(video, mask_of(hidden, config), config)
    np.testing.assert_array_equal(video, before)


def test_far_patches_follow_the_nearest_visible_one():
    # one visible tubelet in a row of 40: a Gaussian of fixed width would underflow to 0 / 0
    hidden = np.ones((1, 40), bool)
    hidden[0, 0] = False
    weights = interpolation_weights(Mask.from_bool(hidden), (1, 1, 40))
    np.testing.assert_array_equal(weights, np.ones((1, 39, 1)))
