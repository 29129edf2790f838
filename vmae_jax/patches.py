"""Pixels as tubelets: cut, normalised, and what the decoder should predict of them.

Pixels arrive as uint8 and are scaled and normalised here, on the device, and nowhere else. Targets
are fp32 whatever the model computes in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vmae_jax.config import VideoMAEConfig


def patchify(video: jax.Array, tubelet_size: int, patch_size: int) -> jax.Array:
    """Tubelets [B, N, P] of a video [B, T, H, W, C], any dtype.

    Tokens are in row-major (t, h, w) order; the P = tubelet_size * patch_size² * C values of one
    are in the order (time, row, column, channel), which is the targets' order in the originals (the
    weights of their Conv3d run (channel, time, row, column)).
    """
    B, T, H, W, C = video.shape
    t, h, w = T // tubelet_size, H // patch_size, W // patch_size
    x = video.reshape(B, t, tubelet_size, h, patch_size, w, patch_size, C)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, t * h * w, -1)


def unpatchify(
    tubelets: jax.Array, grid: tuple[int, int, int], tubelet_size: int, patch_size: int
) -> jax.Array:
    """The video [B, T, H, W, C] of tubelets [B, N, P]; undoes `patchify`. grid: (t, h, w)."""
    t, h, w = grid
    x = tubelets.reshape(len(tubelets), t, h, w, tubelet_size, patch_size, patch_size, -1)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(len(tubelets), t * tubelet_size, h * patch_size, w * patch_size, -1)


def scale_pixels(pixels: jax.Array) -> jax.Array:
    """fp32 in [0, 1] from uint8."""
    if pixels.dtype != jnp.uint8:
        raise ValueError(f"pixels have dtype {pixels.dtype}, but must be uint8 (0 to 255).")
    return pixels.astype(jnp.float32) / 255


def _per_value(statistics: tuple[float, ...], num_values: int) -> jax.Array:
    """One number per channel, repeated over a tubelet's P values (channel is the fastest axis)."""
    return jnp.tile(jnp.asarray(statistics, jnp.float32), num_values // len(statistics))


def normalize(tubelets: jax.Array, config: VideoMAEConfig) -> jax.Array:
    """(x - mean) / std per channel of tubelets [..., P] in [0, 1]."""
    mean = _per_value(config.image_mean, tubelets.shape[-1])
    return (tubelets - mean) / _per_value(config.image_std, tubelets.shape[-1])


def denormalize(tubelets: jax.Array, config: VideoMAEConfig) -> jax.Array:
    """Undoes `normalize`: fp32 [..., P] in [0, 1] from normalised values."""
    std = _per_value(config.image_std, tubelets.shape[-1])
    return tubelets.astype(jnp.float32) * std + _per_value(config.image_mean, tubelets.shape[-1])


def patch_statistics(tubelets: jax.Array, num_channels: int) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation (unbiased) of each tubelet and channel, [..., 1, C] each."""
    x = tubelets.reshape(*tubelets.shape[:-1], -1, num_channels)
    return x.mean(axis=-2, keepdims=True), x.std(axis=-2, ddof=1, keepdims=True)


def pixel_targets(tubelets: jax.Array, config: VideoMAEConfig) -> jax.Array:
    """What the decoder should predict for tubelets [..., P] of pixels in [0, 1]; fp32, same shape.

    With `norm_pix_loss` each channel of each tubelet has its own mean taken away and is divided by
    its standard deviation + 1e-6; otherwise the pixels themselves.
    Source: VideoMAE, section 3.1; engine_for_pretraining.py of the official code.
    """
    if not config.norm_pix_loss:
        return tubelets
    mean, std = patch_statistics(tubelets, config.num_channels)
    x = tubelets.reshape(*tubelets.shape[:-1], -1, config.num_channels)
    return ((x - mean) / (std + 1e-6)).reshape(tubelets.shape)
