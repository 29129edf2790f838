"""Augmentations on the device: clips mirrored, and parts of them replaced by noise.

Everything random of a clip comes from its own key, so the batch may be cut in any way.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vmae_jax import randomness

_FLIP, _ERASING = 0, 1  # purposes of a clip's key
_TRIES = 100  # of a box that fits


def random_flip(video: jax.Array, keys: jax.Array, probability: float = 0.5) -> jax.Array:
    """Clips mirrored left to right with this probability, all frames of a clip alike.

    Args:
      video: [B, T, H, W, C], any dtype.
      keys: PRNG keys [B].
      probability: in [0, 1]; static, 0 costs nothing.
    Returns:
      As `video`.

    Source: VideoMAE, video_transforms.py, horizontal_flip.
    """
    if probability == 0:
        return video
    flip = randomness.uniform(randomness.fold_in(keys, _FLIP), ()) < probability
    return jnp.where(flip[:, None, None, None, None], video[:, :, :, ::-1], video)


def random_erasing(
    video: jax.Array,
    keys: jax.Array,
    *,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> jax.Array:
    """One box of a clip replaced by noise with this probability, the same box in all frames.

    The box's share of the frame is uniform in `area`, the logarithm of its height over its width
    (not width over height, as with crops) in `aspect`, and its place among all that fit. It must be
    lower and narrower than the frame; of a hundred draws the first that is counts, and a clip for
    which none is stays as it is. The noise is standard normal, fresh for each frame, pixel and
    channel.

    Args:
      video: fp32 [B, T, H, W, C], normalised, so that the noise has the spread of pixels.
      keys: PRNG keys [B].
      probability: in [0, 1]; static, 0 costs nothing.
      area: (lowest, highest), static.
      aspect: (lowest, highest), static.
    Returns:
      As `video`.

    Source: Random Erasing, arXiv 1708.04896; VideoMAE, random_erasing.py, mode "pixel" with one box
    ("cube").
    """
    if probability == 0:
        return video

    def erased(clip: jax.Array, key: jax.Array) -> jax.Array:
        draws, noise = jax.random.split(key)
        chance, *draws = jnp.split(jax.random.uniform(draws, 3 + 2 * _TRIES), [1, 3, 3 + _TRIES])
        top, left, height, width = _box(clip.shape[1:3], *draws, area, aspect)
        y, x = jnp.arange(clip.shape[1])[:, None], jnp.arange(clip.shape[2])
        box = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        box &= chance < probability
        return jnp.where(box[..., None], jax.random.normal(noise, clip.shape, clip.dtype), clip)

    return jax.vmap(erased)(video, randomness.fold_in(keys, _ERASING))


def _box(
    size: tuple[int, int],
    place: jax.Array,
    share: jax.Array,
    shape: jax.Array,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[jax.Array, ...]:
    """(top, left, height, width), int32 scalars: as `random_erasing` has them; 0 high for none.

    place [2], share [tries] and shape [tries] are uniform in [0, 1).
    """
    pixels = size[0] * size[1] * (area[0] + share * (area[1] - area[0]))
    ratio = aspect[0] * (aspect[1] / aspect[0]) ** shape
    heights = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
    fits = (heights < size[0]) & (widths < size[1])
    first = jnp.argmax(fits)
    height, width = jnp.where(fits[first], heights[first], 0), widths[first]
    free = jnp.stack([size[0] - height, size[1] - width])
    top, left = jnp.floor(place * (free + 1)).astype(jnp.int32)
    return top, left, height, width
