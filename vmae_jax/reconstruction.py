"""What a model reconstructs of hidden patches, rendered as pixels and measured.

A model with normalised targets says nothing of the mean and the contrast of a hidden patch, so a
rendering has to take them from somewhere. Taken from the truth, as is usual, they give the coarse
picture away: a model that has learnt nothing looks good. Here the other rendering, which knows the
visible patches only, stands first, and beside each stands the same rendering of a zero prediction.

What a prediction is worth is how far the leak-free rendering beats `interpolate_visible`, which
needs no model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np

from vmae_jax.config import VideoMAEConfig
from vmae_jax.errors import SettingError
from vmae_jax.interpolation import interpolate_visible, interpolation_weights
from vmae_jax.masking import Mask
from vmae_jax.patches import normalize, patch_statistics, patchify, scale_pixels, unpatchify
from vmae_jax.videomae import VideoMAE

GREY = 0.5  # of hidden patches in the masked input


class Rendering(NamedTuple):
    """One way to make pixels of a prediction, and the same way for a prediction of zeros.

    Attributes:
      name: a few words.
      statistics: where mean and contrast of the hidden patches come from, for a caption.
      leaks: whether that includes the truth.
      video, zero_video: fp32 [B, T, H, W, C] in [0, 1]; visible patches are the original's, and
        what the mask neither shows nor has predicted is grey.
      error, zero_error: fp64 [B], mean squared error of the predicted values, clipped to [0, 1].
    """

    name: str
    statistics: str
    leaks: bool
    video: np.ndarray
    zero_video: np.ndarray
    error: np.ndarray
    zero_error: np.ndarray


class Reconstruction(NamedTuple):
    """What a model made of some clips.

    Attributes:
      original: fp32 [B, T, H, W, C] in [0, 1].
      masked: the same with hidden patches in grey.
      hidden: bool [B, T, H, W], True where the model could not see.
      renderings: leak-free first. Two for normalised targets; one for pixels as targets.
      interpolated: fp32 [B, T, H, W, C], no model at all: see `interpolate_visible`.
      interpolated_error: fp64 [B], as the errors of a `Rendering`.
    """

    original: np.ndarray
    masked: np.ndarray
    hidden: np.ndarray
    renderings: tuple[Rendering, ...]
    interpolated: np.ndarray
    interpolated_error: np.ndarray


def psnr(error: np.ndarray | float) -> float:
    """Peak signal to noise ratio in dB of values in [0, 1]; infinite for no error.

    Args:
      error: mean squared error of one clip, or of several [B], which is averaged before the
        logarithm (clips of a batch have equally many hidden values, so that pools the values).
    """
    mean = float(np.mean(error))
    return -10 * math.log10(mean) if mean > 0 else math.inf


def gain(rendering: Rendering) -> float:
    """By how many dB the prediction is better than a zero prediction, pooled over the clips."""
    return difference(psnr(rendering.error), psnr(rendering.zero_error))


def gain_over_interpolation(reconstruction: Reconstruction) -> float:
    """By how many dB the leak-free rendering is better than linear interpolation of the visible
    pixels of each frame, pooled over the clips."""
    leak_free = reconstruction.renderings[0]
    return difference(psnr(leak_free.error), psnr(reconstruction.interpolated_error))


def difference(prediction: float, baseline: float) -> float:
    """Of two PSNR in dB; 0 if both are infinite."""
    return 0.0 if prediction == baseline else prediction - baseline


def reconstruct(model: VideoMAE, video: np.ndarray, mask: Mask) -> Reconstruction:
    """The model's prediction of what a mask hides, rendered and measured.

    Args:
      model: with a decoder.
      video: uint8 [B, T, H, W, C], of the model's size; any number of channels.
      mask: of the model's grid.
    Raises:
      SettingError: if the model has no decoder, the video or the mask does not fit it, or its
        predictions are not finite.
    """
    c = model.config
    if not hasattr(model, "decoder"):
        raise SettingError("the model has no decoder, so it predicts no pixels; load one that has.")
    expected = (c.num_frames, *c.frame_size, c.num_channels)
    if video.dtype != np.uint8 or video.shape[1:] != expected:
        raise SettingError(
            f"video has shape {video.shape} and dtype {video.dtype}, but this model takes "
            f"(batch, {', '.join(map(str, expected))}) of uint8."
        )
    found = (len(mask.visible), mask.num_tokens)
    if found != (len(video), c.num_tokens):
        raise SettingError(
            f"mask is for {found[0]} clips of {found[1]} tokens, but there are {len(video)} clips "
            f"of {c.num_tokens}; draw it with the model's grid={c.grid}."
        )
    predictions = np.asarray(_predict(model, video, mask), np.float32)
    if not np.isfinite(predictions).all():
        raise SettingError(
            "the predictions are not finite; the checkpoint is of a run that diverged."
        )
    return render(predictions, video, mask, c)


@jax.jit
def _predict(model: VideoMAE, video: jax.Array, mask: Mask) -> jax.Array:
    c = model.config
    pixels = scale_pixels(patchify(video, c.tubelet_size, c.patch_size))
    encoded = model.encode(normalize(pixels, c), mask.visible)
    return model.decode(encoded.tokens, mask)


def render(
    predictions: np.ndarray, video: np.ndarray, mask: Mask, config: VideoMAEConfig
) -> Reconstruction:
    """Pixels and errors of given predictions.

    With `config.norm_pix_loss` a prediction is rendered as prediction * (std + 1e-6) + mean, per
    tubelet and channel, once with mean and std interpolated from the visible tubelets (see
    `interpolation_weights`), once with the true ones. Otherwise the prediction is the pixels: that
    leaks nothing, and a prediction of zeros is black.

    Args:
      predictions: fp32 [B, N_mask, P], finite.
      video, mask: as in `reconstruct`.
      config: of the model.
    Source: run_videomae_vis.py of the official code renders with the true statistics alone, and
    clips at 0.996 instead of 1.
    """
    c = config
    pixels = patchify(video, c.tubelet_size, c.patch_size).astype(np.float32) / 255  # [B, N, P]
    masked, visible = (np.asarray(x)[..., None] for x in (mask.masked, mask.visible))
    truth = np.take_along_axis(pixels, masked, axis=1)  # [B, N_mask, P]
    seen = np.take_along_axis(pixels, visible, axis=1)
    weights = interpolation_weights(mask, c.grid)
    hidden = np.asarray(mask.to_bool())[..., None]  # [B, N, 1]
    base = np.where(hidden, np.float32(GREY), pixels)  # what is never predicted stays grey

    def interpolate(statistics):  # [B, N_vis, 1, C] -> [B, N_mask, 1, C]
        return (weights @ statistics[:, :, 0])[:, :, None]

    def per_channel(tubelets):
        return tubelets.reshape(*tubelets.shape[:-1], -1, c.num_channels)

    def fill(values):
        """The video with hidden tubelets of these values, and their mean squared error per clip."""
        values = np.broadcast_to(values, per_channel(truth).shape).reshape(truth.shape)
        values = np.clip(values, 0, 1)
        filled = base.copy()
        np.put_along_axis(filled, masked, values, axis=1)
        error = np.square(values.astype(np.float64) - truth).mean(axis=(1, 2))
        return unpatchify(filled, c.grid, c.tubelet_size, c.patch_size), error

    def rendering(name, statistics, leaks, mean, scale):
        filled, error = fill(per_channel(predictions) * scale + mean)
        zero_filled, zero_error = fill(mean)
        return Rendering(name, statistics, leaks, filled, zero_filled, error, zero_error)

    interpolated_mean = interpolate(per_channel(seen).mean(axis=-2, keepdims=True))
    if c.norm_pix_loss:
        _, seen_std = patch_statistics(seen, c.num_channels)
        mean, std = patch_statistics(truth, c.num_channels)
        renderings = (
            rendering(
                "leak-free",
                "mean and contrast of hidden patches interpolated from the visible patches",
                False,
                interpolated_mean,
                interpolate(seen_std) + 1e-6,
            ),
            rendering(
                "true patch mean and std (leaks)",
                "each hidden patch is given its true mean and contrast: not the model's doing",
                True,
                mean,
                std + 1e-6,
            ),
        )
    else:
        statistics = "the model predicts pixels, so nothing is given away"
        zero = np.float32(0)
        renderings = (rendering("pixels as predicted", statistics, False, zero, np.float32(1)),)

    hidden = np.repeat(hidden, c.tubelet_size * c.patch_size**2, axis=-1)
    original = unpatchify(pixels, c.grid, c.tubelet_size, c.patch_size)
    hidden = unpatchify(hidden, c.grid, c.tubelet_size, c.patch_size)[..., 0]
    shown = np.where(hidden[..., None], np.float32(GREY), original)
    interpolated = patchify(interpolate_visible(shown, mask, c), c.tubelet_size, c.patch_size)
    interpolated = per_channel(np.take_along_axis(interpolated, masked, axis=1))
    return Reconstruction(original, shown, hidden, renderings, *fill(interpolated))
