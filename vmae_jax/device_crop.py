"""Crops cut and resized on the device, from frames that left the host once for several crops.

With repeated sampling the host's resizing is half of its work. Here it sends each clip's frames as
they are, in the corner of a canvas of fixed size, and R boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    crops = _cropped(canvas, boxes, image_size, _pillow_weights, _rounded)
    return crops.astype(jnp.uint8)


def bilinear_crop(canvas: jax.Array, boxes: jax.Array, image_size: tuple[int, int]) -> jax.Array:
    """Crops of clips, fp32 [B * R, T, *image_size, C] in [0, 255], as fine-tuning takes them.

    Arguments and order are those of `crop_and_resize`. Here each pixel is interpolated between four
    of the box, however much that shrinks it, and nothing is rounded: torch's `interpolate` with
    mode="bilinear" and align_corners=False, and more exact (products of integers place the pixels).
    The original normalises before, which comes to the same.

    Source: VideoMAE, video_transforms.py, random_resized_crop.
    """
    return _cropped(canvas, boxes, image_size, _torch_weights, lambda x: x)


def _cropped(
    canvas: jax.Array,
    boxes: jax.Array,
    image_size: tuple[int, int],
    weights: Callable[[jax.Array, jax.Array, int, int], jax.Array],
    finish: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """fp32 [B * R, T, *image_size, C]: two matrix products, columns first.

    Args:
      weights: (start, length, num_in, num_out) -> fp32 [B, R, num_out, num_in], what each output
        pixel takes of each input pixel of the part from start on.
      finish: is done to each product.
    """
    B, T, H, W, C = canvas.shape
    R = boxes.shape[1]
    top, left, height, width = jnp.moveaxis(boxes, -1, 0)  # each [B, R]
    rows = weights(top, height, H, image_size[0])  # [B, R, h, H]
    columns = weights(left, width, W, image_size[1])  # [B, R, w, W]
    precision = jax.lax.Precision.HIGHEST
    x = jnp.einsum("brxw,bthwc->brthxc", columns, canvas.astype(jnp.float32), precision=precision)
    x = finish(x)
    x = jnp.einsum("bryh,brthxc->brtyxc", rows, x, precision=precision)
    return finish(x).reshape(B * R, T, *image_size, C)


def _pillow_weights(start: jax.Array, length: jax.Array, num_in: int, num_out: int) -> jax.Array:
    """A triangle around each output pixel, two of the wider kind of pixels wide; rows sum to 1."""
    start, length = (x.astype(jnp.float32)[..., None, None] for x in (start, length))
    scale = length / num_out
    centre = start + (jnp.arange(num_out, dtype=jnp.float32)[:, None] + 0.5) * scale
    pixel = jnp.arange(num_in, dtype=jnp.float32) + 0.5
    weight = jnp.maximum(0, 1 - jnp.abs(pixel - centre) / jnp.maximum(scale, 1))
    weight = jnp.where((pixel > start) & (pixel < start + length), weight, 0)
    return weight / weight.sum(-1, keepdims=True)


def _torch_weights(start: jax.Array, length: jax.Array, num_in: int, num_out: int) -> jax.Array:
    """A triangle around each output pixel, two input pixels wide; rows sum to 1.

    Distances are counted in pixels / (2 * num_out), so they are integers and exact.
    """
    start, length = start[..., None, None], length[..., None, None]
    pixel = jnp.arange(num_in) - start
    centre = (2 * jnp.arange(num_out)[:, None] + 1) * length
    distance = jnp.abs((2 * pixel + 1) * num_out - centre)
    weight = jnp.maximum(0, 1 - distance.astype(jnp.float32) / (2 * num_out))
    weight = jnp.where((pixel >= 0) & (pixel < length), weight, 0)
    return weight / weight.sum(-1, keepdims=True)


def _rounded(x: jax.Array) -> jax.Array:
    return jnp.floor(x + 0.5)
