"""What visible pixels suggest of hidden ones, without a model: the bar that a prediction must pass.

Two ways. Pixels are interpolated linearly within their frame, which is the baseline that
reconstructions are measured against. Statistics of patches (mean, contrast) are averaged over
neighbours in space and time, for renderings that need them.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import QhullError

from vmae_jax.config import VideoMAEConfig
from vmae_jax.masking import Mask

# Of the weights, chosen for a small error of interpolated means over tube, random and frame masks
# of real clips; the choice is worth some tenths of a dB.
TIME_STEP = 0.7  # how far one time step is, in patches
REACH = 0.6  # width, as a share of the distance to the nearest visible tubelet


def interpolate_visible(video: np.ndarray, mask: Mask, config: VideoMAEConfig) -> np.ndarray:
    """Clips whose hidden pixels are interpolated from the visible ones of the same frame.

    Linearly over the triangles of a Delaunay triangulation, and by the nearest visible pixel
    outside their hull. A frame that shows nothing takes those of the time step nearest to it that
    shows something, the earlier of two. Hidden pixels have no influence.

    Args:
      video: [B, T, H, W, C], real numbers, of the model's size.
      mask: of the model's grid; shows at least one token of each clip.
      config: of the model.
    Returns:
      fp32 [B, T, H, W, C] on the scale of `video`; visible pixels are as given.
    """
    c = config
    result = np.array(video, np.float32)
    hidden = np.asarray(mask.to_bool()).reshape(len(video), *c.grid)  # [B, t, h, w]
    hidden = hidden.repeat(c.patch_size, axis=2).repeat(c.patch_size, axis=3)  # [B, t, H, W]
    for clip, hidden_of_clip in zip(result, hidden, strict=True):
        steps = clip.reshape(c.grid[0], c.tubelet_size, *clip.shape[1:])  # a view
        shows = ~hidden_of_clip.all(axis=(1, 2))
        # a tube mask hides the same everywhere, and is triangulated once
        patterns, pattern_of_step = np.unique(hidden_of_clip, axis=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            if not pattern.all():
                of_pattern = pattern_of_step.ravel() == i
                steps[of_pattern] = _fill(steps[of_pattern], pattern)
        shown = np.flatnonzero(shows)
        for step in np.flatnonzero(~shows):
            steps[step] = steps[shown[np.abs(shown - step).argmin()]]
    return result


def _fill(frames: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Frames fp32 [..., H, W, C] with pixels interpolated, in place, where hidden [H, W] says."""
    points, places = np.argwhere(~hidden), np.argwhere(hidden)
    values = np.moveaxis(frames[..., ~hidden, :], -2, 0)  # [points, ..., C]
    found = NearestNDInterpolator(points, values)(places)
    try:
        linear = LinearNDInterpolator(points, values.reshape(len(points), -1))(places)
    except QhullError:  # the points lie on a line: no triangles
        linear = np.full((len(places), 1), np.nan)
    inside = ~np.isnan(linear[:, 0])
    found[inside] = linear[inside].reshape(-1, *found.shape[1:])
    frames[..., hidden, :] = np.moveaxis(found, 0, -2)
    return frames


def interpolation_weights(mask: Mask, grid: tuple[int, int, int]) -> np.ndarray:
    """What visible tubelets say of hidden ones: fp32 [B, N_mask, N_vis], the rows sum to 1.

    A Gaussian of the distance on the (t, h, w) grid, where a time step counts as `TIME_STEP`. Its
    width is `REACH` of the distance to the nearest visible tubelet, so it adapts to any mask: where
    little is visible it averages over more. Weights are positive, so an interpolated mean stays in
    [0, 1] and an interpolated standard deviation is never negative.
    """
    places = np.stack(np.unravel_index(np.arange(math.prod(grid)), grid), axis=-1)
    places = places * np.array([TIME_STEP, 1, 1])
    masked, visible = places[np.asarray(mask.masked)], places[np.asarray(mask.visible)]
    squared = np.square(masked[:, :, None] - visible[:, None]).sum(axis=-1)
    nearest = squared.min(axis=-1, keepdims=True)
    weights = np.exp(-(squared - nearest) / (2 * REACH**2 * nearest))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
