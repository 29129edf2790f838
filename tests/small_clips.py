"""A small model, videos for it, and the official rules of pixels in numpy."""

from __future__ import annotations

import numpy as np

from vmae_jax.config import VideoMAEConfig

CONFIG = VideoMAEConfig(
    image_size=(8, 12),
    patch_size=4,
    num_frames=4,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    decoder_hidden_size=12,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=3,
    decoder_intermediate_size=20,
    use_mean_pooling=False,
)


def make_video(batch_size=4, config=CONFIG, seed=0):
    shape = (batch_size, config.num_frames, *config.frame_size, config.num_channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def naive_tubelets(video, tubelet_size, patch_size):
    """Token by token, in the order (t, h, w); values in the order (time, row, column, channel)."""
    B, T, H, W, _ = video.shape
    clips = []
    for b in range(B):
        tokens = []
        for t in range(0, T, tubelet_size):
            for y in range(0, H, patch_size):
                for x in range(0, W, patch_size):
                    values = []
                    for dt in range(tubelet_size):
                        for dy in range(patch_size):
                            for dx in range(patch_size):
                                values.extend(video[b, t + dt, y + dy, x + dx])
                    tokens.append(values)
        clips.append(tokens)
    return np.array(clips, video.dtype)


def official_targets(tubelets, channels):
    """engine_for_pretraining.py in fp64: per token and channel, unbiased, 1e-6 outside the root."""
    x = np.asarray(tubelets, np.float64).reshape(*tubelets.shape[:-1], -1, channels)
    mean = x.mean(axis=-2, keepdims=True)
    variance = ((x - mean) ** 2).sum(axis=-2, keepdims=True) / (x.shape[-2] - 1)
    return ((x - mean) / (np.sqrt(variance) + 1e-6)).reshape(tubelets.shape)
