"""From a batch of pixels to a loss: one function per objective.

Pixels arrive as uint8 and are scaled and normalised here, on the device, and nowhere else. Targets
and losses are fp32 whatever the model computes in.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from vmae_jax import device_crop, randomness, sharding
from vmae_jax.config import PROBLEM_TYPES, VideoMAEConfig
from vmae_jax.masking import MASKS
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import take_tokens


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


def _same_shape(predictions: jax.Array, targets: jax.Array) -> None:
    if predictions.shape != targets.shape:  # broadcasting would hide it
        raise ValueError(
            f"predictions {predictions.shape} and targets {targets.shape} differ in shape."
        )


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """(p - t)², without a factor 1/2."""
    return jnp.square(predictions - targets)


def absolute_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """|p - t|."""
    return jnp.abs(predictions - targets)


def smooth_absolute_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """(p - t)² / 2 below a difference of 1, |p - t| - 1/2 above."""
    return optax.huber_loss(predictions, targets, delta=1.0)


def mean_loss(
    predictions: jax.Array, targets: jax.Array, loss: Callable = squared_error, axis=None
) -> jax.Array:
    """The mean of an elementwise loss, in fp32; a scalar, or over `axis` only.

    Raises: ValueError if the shapes differ.
    """
    _same_shape(predictions, targets)
    return loss(predictions.astype(jnp.float32), targets.astype(jnp.float32)).mean(axis=axis)


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


def classification_loss(logits: jax.Array, labels: jax.Array, problem_type: str) -> jax.Array:
    """The mean loss of a classifier, fp32 scalar.

    Args:
      logits: [B, K].
      labels: int [B] for "single_label_classification" (-100: not counted); [B, K] in [0, 1] for
        "multi_label_classification"; numbers of as many entries as the logits for "regression".
    Raises:
      ValueError: if shapes or dtypes don't fit the problem type, or that is unknown.
    Source: the loss functions of transformers, which are those of torch.
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type={problem_type!r} is unknown; choose from {PROBLEM_TYPES}.")
    logits = logits.astype(jnp.float32)
    if problem_type == "regression":
        if labels.size != logits.size:
            raise ValueError(
                f"labels {labels.shape} must have as many entries as the logits {logits.shape}."
            )
        return mean_loss(logits.reshape(-1), labels.reshape(-1))
    if problem_type == "multi_label_classification":
        _same_shape(logits, labels)
        return optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32)).mean()
    labels = labels.reshape(-1)
    if len(labels) != len(logits) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}, but must be one integer "
            f"class for each of the {len(logits)} clips."
        )
    counted = labels != -100
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels, 0))
    return jnp.sum(losses * counted) / jnp.sum(counted)


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
            raise ValueError(
                f"objective.{option}={value!r} is unknown; {hint}choose from {tuple(table)}."
            )
    return functools.partial(OBJECTIVES[name], **options)


LOSSES = {"mse": squared_error, "l1": absolute_error, "smooth_l1": smooth_absolute_error}
OBJECTIVES = {"pretraining": pretraining_objective}
