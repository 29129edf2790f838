"""From a batch of pixels to a loss: one function per objective."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from vmae_jax import device_crop, randomness, sharding
from vmae_jax.errors import SettingError
from vmae_jax.losses import LOSSES, mean_loss
from vmae_jax.masking import MASKS
from vmae_jax.patches import normalize, patchify, pixel_targets, scale_pixels
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import take_tokens


def num_clips(batch: Mapping[str, jax.Array]) -> int:
    """Clips in a batch: B * R where the crops are left to the device."""
    return len(batch["video"]) * (batch["boxes"].shape[1] if "boxes" in batch else 1)


def pretraining_objective(
    model: VideoMAE,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    mask: str = "tube",
    mask_ratio: float = 0.9,
    loss: str = "mse",
    evaluation: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Masked video autoencoding: predict the pixels of the hidden tubelets (VideoMAE, section 3).

    Args:
      model: with a decoder.
      batch: `video` uint8 [B, T, H, W, C]; optionally `weight` fp32 [B], 0 for clips that only fill
        the batch up. Or `video` on canvases and `boxes`, see `device_crop`.
      key: one PRNG key for the global batch, or one per clip [B]: for masks, dropout and drop path.
      mask: a name in `MASKS`.
      mask_ratio: share of hidden tokens, as the mask defines it.
      loss: a name in `LOSSES`.
      evaluation: no dropout and no drop path; masks are drawn all the same.
    Returns:
      The mean loss over the hidden tubelets of the clips that count, and metrics: `loss`.
    """
    config = model.config
    video = batch["video"]
    if "boxes" in batch:
        video = device_crop.crop_and_resize(video, batch["boxes"], config.frame_size)
    video = sharding.split_clips(video)
    keys = sharding.split_clips(randomness.clip_keys(key, len(video)))
    weight = batch.get("weight")
    hidden = MASKS[mask](randomness.fold_in(keys, 0), len(keys), config.grid, mask_ratio)
    pixels = scale_pixels(patchify(video, config.tubelet_size, config.patch_size))

    model_keys = None if evaluation else randomness.fold_in(keys, 1)
    encoded = model.encode(normalize(pixels, config), hidden.visible, key=model_keys)
    predictions = model.decode(encoded.tokens, hidden, key=model_keys)
    targets = pixel_targets(take_tokens(pixels, hidden.masked), config)
    per_clip = mean_loss(predictions, targets, LOSSES[loss], axis=(1, 2))  # [B]
    value = per_clip.mean() if weight is None else jnp.sum(per_clip * weight) / jnp.sum(weight)
    return value, {"loss": value}


def make_objective(name: str, **options) -> Callable:
    """(model, batch, key, *, evaluation=False) -> (loss, metrics), with the options bound.

    Raises: ValueError for a name that is not in `OBJECTIVES`, `MASKS` or `LOSSES`.
    """
    for option, value, table in (
        ("name", name, OBJECTIVES),
        ("mask", options.get("mask"), MASKS),
        ("loss", options.get("loss"), LOSSES),
    ):
        if value is not None and value not in table:
            near = difflib.get_close_matches(value, table, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SettingError(
                f"objective.{option}={value!r} is unknown; {hint}choose from {tuple(table)}."
            )
    return functools.partial(OBJECTIVES[name], **options)


OBJECTIVES = {"pretraining": pretraining_objective}
