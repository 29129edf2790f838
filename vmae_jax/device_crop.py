"""Crops cut and resized on the device, from frames that left the host once for several crops.

With repeated sampling the host's resizing is half of its work. Here it sends each clip's frames as
they are, in the corner of a canvas of fixed size, and R boxes.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def num_clips(batch: Mapping[str, jax.Array]) -> int:
    """Clips in a batch: B, or B * R where the crops are left to the device."""
    return len(batch["video"]) * (batch["boxes"].shape[1] if "boxes" in batch else 1)


def crop_and_resize(canvas: jax.Array, boxes: jax.Array, image_size: tuple[int, int]) -> jax.Array:
    """Crops of clips, uint8 [B * R, T, *image_size, C], those of one clip one after another.

    Pillow's bilinear filter, as `augment.crop_and_resize` has it: a triangle that widens when it
    shrinks, and never sees a pixel outside its box. As two matrix products, columns first; rounded
    after each as Pillow does, with which it agrees within one grey level.

    Args:
      canvas: uint8 [B, T, H, W, C].
      boxes: int32 [B, R, 4]: top, left, height, width in pixels, inside the canvas.
      image_size: (height, width) of the result.
    """
    B, T, H, W, C = canvas.shape
    R = boxes.shape[1]
    top, left, height, width = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)  # each [B, R]
    rows = _weights(top, height, H, image_size[0])  # [B, R, h, H]
    columns = _weights(left, width, W, image_size[1])  # [B, R, w, W]
    precision = jax.lax.Precision.HIGHEST
    x = jnp.einsum("brxw,bthwc->brthxc", columns, canvas.astype(jnp.float32), precision=precision)
    x = _rounded(x)
    x = jnp.einsum("bryh,brthxc->brtyxc", rows, x, precision=precision)
    return _rounded(x).astype(jnp.uint8).reshape(B * R, T, *image_size, C)


def _weights(start: jax.Array, length: jax.Array, num_in: int, num_out: int) -> jax.Array:
    """What each output pixel takes of each input pixel, [..., num_out, num_in], rows sum to 1."""
    scale = (length / num_out)[..., None, None]
    start, length = start[..., None, None], length[..., None, None]
    centre = start + (jnp.arange(num_out, dtype=jnp.float32)[:, None] + 0.5) * scale
    pixel = jnp.arange(num_in, dtype=jnp.float32) + 0.5
    weight = jnp.maximum(0, 1 - jnp.abs(pixel - centre) / jnp.maximum(scale, 1))
    weight = jnp.where((pixel > start) & (pixel < start + length), weight, 0)
    return weight / weight.sum(-1, keepdims=True)


def _rounded(x: jax.Array) -> jax.Array:
    return jnp.floor(x + 0.5)
