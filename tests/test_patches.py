"""Pixels as tubelets, and the targets: against naive loops and the official rule in numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from small_clips import CONFIG, make_video, naive_tubelets, official_targets

from vmae_jax.config import VideoMAEConfig
from vmae_jax.losses import mean_loss
from vmae_jax.patches import (
    denormalize,
    normalize,
    patch_statistics,
    patchify,
    pixel_targets,
    scale_pixels,
    unpatchify,
)

pytestmark = pytest.mark.usefixtures("hasty_compiler")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("tubelet_size", "patch_size"), [(2, 4), (1, 2), (4, 2)])
def test_patchify_equals_a_naive_loop(tubelet_size, patch_size, channels):
    video = make_video(2, CONFIG.replace(num_channels=channels))
    tubelets = patchify(jnp.asarray(video), tubelet_size, patch_size)
    np.testing.assert_array_equal(tubelets, naive_tubelets(video, tubelet_size, patch_size))
    assert tubelets.dtype == jnp.uint8


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_unpatchify_undoes_patchify(dtype, channels):
    video = jnp.asarray(make_video(2, CONFIG.replace(num_channels=channels)), dtype)
    again = unpatchify(patchify(video, 2, 4), CONFIG.grid, 2, 4)
    assert again.dtype == dtype
    assert jnp.array_equal(again, video)


def test_pixels_become_floats_up_to_one():
    scaled = scale_pixels(jnp.array([0, 51, 255], jnp.uint8))
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, [0, 0.2, 1], rtol=1e-7)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalize_goes_by_channel_and_denormalize_undoes_it(channels):
    statistics = {"image_mean": (0.1, 0.4, 0.7, 0.2), "image_std": (0.2, 0.3, 0.4, 0.5)}
    config = CONFIG.replace(
        num_channels=channels, **{k: v[:channels] for k, v in statistics.items()}
    )
    video = np.random.default_rng(0).uniform(size=(2, 4, 8, 12, channels)).astype(np.float32)
    normalised = (video - config.image_mean) / config.image_std  # channels last: plain broadcasting
    tubelets = normalize(patchify(jnp.asarray(video), 2, 4), config)
    np.testing.assert_allclose(unpatchify(tubelets, config.grid, 2, 4), normalised, atol=1e-6)
    again = denormalize(tubelets, config)
    np.testing.assert_allclose(unpatchify(again, config.grid, 2, 4), video, atol=1e-6)
    assert denormalize(tubelets.astype(jnp.bfloat16), config).dtype == jnp.float32


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_targets_are_those_of_the_official_rule(channels):
    config = CONFIG.replace(num_channels=channels)
    pixels = np.random.default_rng(0).uniform(size=(2, 12, 32 * channels)).astype(np.float32)
    pixels[0, 0] = 0.5 + 1e-5 * (pixels[0, 0] - 0.5)  # where the 1e-6 counts
    targets = pixel_targets(jnp.asarray(pixels), config)
    assert targets.dtype == jnp.float32
    expected = official_targets(pixels, channels)
    np.testing.assert_allclose(targets[:, 1:], expected[:, 1:], atol=2e-5)
    np.testing.assert_allclose(targets[0, 0], expected[0, 0], atol=2e-2)
    by_channel = np.asarray(targets[:, 1:]).reshape(2, 11, 32, channels)  # the channel is fastest
    np.testing.assert_allclose(by_channel.mean(axis=2), 0, atol=1e-5)
    np.testing.assert_allclose(by_channel.std(axis=2, ddof=1), 1, atol=1e-4)


def test_small_standard_deviations_are_not_blown_up():
    # two values a and -a have the unbiased deviation a * sqrt(2)
    config = CONFIG.replace(num_channels=1)
    a = 1e-6
    targets = pixel_targets(jnp.array([[[a, -a]]]), config)
    np.testing.assert_allclose(targets[0, 0, 0], a / (a * np.sqrt(2) + 1e-6), rtol=1e-5)


def test_a_constant_tubelet_gives_zeros():
    targets = pixel_targets(jnp.full((1, 2, 96), 0.25), CONFIG)
    np.testing.assert_array_equal(targets, np.zeros((1, 2, 96)))


def test_targets_without_normalisation_are_the_pixels():
    pixels = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 2, 96)), jnp.float32)
    assert jnp.array_equal(pixel_targets(pixels, CONFIG.replace(norm_pix_loss=False)), pixels)


def test_patch_statistics_undo_the_targets():
    pixels = np.random.default_rng(0).uniform(size=(2, 5, 96)).astype(np.float32)
    mean, std = patch_statistics(jnp.asarray(pixels), 3)
    assert mean.shape == std.shape == (2, 5, 1, 3)
    x = pixels.reshape(2, 5, 32, 3)
    np.testing.assert_allclose(mean[..., 0, :], x.mean(axis=2), atol=1e-6)
    np.testing.assert_allclose(std[..., 0, :], x.std(axis=2, ddof=1), atol=1e-6)
    targets = np.asarray(pixel_targets(jnp.asarray(pixels), CONFIG)).reshape(x.shape)
    np.testing.assert_allclose(targets * (std + 1e-6) + mean, x, atol=1e-5)


def test_predicting_zero_for_noise_costs_what_it_must():
    # n pixels with unbiased variance 1 have a mean square of (n - 1) / n; n = 2 * 16 * 16 here
    config = VideoMAEConfig()
    pixels = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 4, 1536)), jnp.float32)
    targets = pixel_targets(pixels, config)
    loss = mean_loss(jnp.zeros_like(targets), targets)
    assert float(loss) == pytest.approx(511 / 512, abs=1e-5)
