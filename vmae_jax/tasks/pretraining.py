"""Masked video autoencoding: predict the pixels of the hidden tubelets (VideoMAE, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vmae_jax import device_crop, randomness, sharding
from vmae_jax.choices import choose, name_of
from vmae_jax.config import VideoMAEConfig
from vmae_jax.flops import Work, pretraining_work
from vmae_jax.losses import LOSSES, mean_loss, squared_error
from vmae_jax.masking import MASKS, Mask
from vmae_jax.patches import normalize, patchify, pixel_targets, scale_pixels
from vmae_jax.tasks.task import Baseline, Metrics, Task
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import take_tokens


class Pretraining(Task):
    """The model has a decoder; the batch is pixels alone.

    Args:
      mask: a name in `MASKS`, or a function like those.
      mask_ratio: share of hidden tokens, as the mask defines it.
      loss: a name in `LOSSES`, or an elementwise function (predictions, targets) -> losses.
    Raises:
      SettingError: for unknown names.
    """

    parts = ("decoder",)

    def __init__(
        self,
        *,
        mask: str | Callable[..., Mask] = "tube",
        mask_ratio: float = 0.9,
        loss: str | Callable[[jax.Array, jax.Array], jax.Array] = "mse",
    ):
        self.mask_name = name_of(mask)
        self._mask = choose("pretraining.mask", mask, MASKS)
        self._mask_ratio = mask_ratio
        self._loss = choose("pretraining.loss", loss, LOSSES)

    def draw_mask(self, keys: jax.Array, config: VideoMAEConfig) -> Mask:
        """What the clips with these keys [B] hide."""
        return self._mask(keys, len(keys), config.grid, self._mask_ratio)

    def objective(
        self,
        model: VideoMAE,
        batch: dict[str, jax.Array],
        keys: jax.Array,
        frozen: dict[str, Any],
        *,
        evaluation: bool = False,
    ) -> tuple[jax.Array, Metrics]:
        """The mean loss over the hidden tubelets of the clips that count, and metrics: `loss`.

        Args:
          model: with a decoder.
          batch: `video` uint8 [B, T, H, W, C]; optionally `weight` fp32 [B]. Or `video` on canvases
            and `boxes`, see `device_crop`.
          keys: [B], for masks, dropout and drop path.
          evaluation: masks are drawn all the same.
        """
        config = model.config
        video = batch["video"]
        if "boxes" in batch:
            video = device_crop.crop_and_resize(video, batch["boxes"], config.frame_size)
        video = sharding.split_clips(video)  # [B, T, H, W, C]
        mask = self.draw_mask(randomness.fold_in(keys, 0), config)
        pixels = scale_pixels(patchify(video, config.tubelet_size, config.patch_size))  # [B, N, P]

        drop_keys = None if evaluation else randomness.fold_in(keys, 1)
        encoded = model.encode(normalize(pixels, config), mask.visible, keys=drop_keys)
        predictions = model.decode(encoded.tokens, mask, keys=drop_keys)  # [B, N_mask, P]
        targets = pixel_targets(take_tokens(pixels, mask.masked), config)
        per_clip = mean_loss(predictions, targets, self._loss, axis=(1, 2))  # [B]
        weight = batch.get("weight")
        loss = per_clip.mean() if weight is None else jnp.sum(per_clip * weight) / jnp.sum(weight)
        return loss, {"loss": loss}

    def baseline(self, model: VideoMAEConfig) -> Baseline | None:
        """The squares of n pixels that are divided by their unbiased deviation have the mean
        (n - 1) / n: the loss of a prediction of zeros."""
        if not model.norm_pix_loss or self._loss is not squared_error:
            return None
        pixels = model.tubelet_size * model.patch_size**2
        return Baseline("predicting zero", (pixels - 1) / pixels)

    def work(self, model: VideoMAEConfig) -> Work:
        """Of encoder, decoder and their projections."""
        mask = jax.eval_shape(lambda keys: self.draw_mask(keys, model), _one_key())
        return pretraining_work(model, mask.masked.shape[1])


def _one_key() -> jax.Array:
    return randomness.clip_keys(jax.random.key(0), 1)
