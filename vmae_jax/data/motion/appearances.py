"""What can move over a clip, by name: patches of pixels with an opacity, drawn for each scene."""

from __future__ import annotations

import numpy as np

PATCH_SIDES = (20, 28)  # pixels, the least and the most
EDGE = 3  # pixels over which a disc fades out


def square(footage: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square cut out of one frame of the footage, with hard edges; see APPEARANCES."""
    pixels = _vivid_crop(footage, rng)
    return np.dstack([pixels, np.ones(pixels.shape[:2], np.float32)])


def disc(footage: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A disc cut out of one frame of the footage, which fades out at its edge; see APPEARANCES."""
    pixels = _vivid_crop(footage, rng)
    side = len(pixels)
    offsets = np.arange(side) - (side - 1) / 2
    inside = side / 2 - np.hypot(offsets[:, None], offsets)  # pixels from the edge
    return np.dstack([pixels, np.clip(inside / EDGE, 0, 1).astype(np.float32)])


def _vivid_crop(footage: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [S, S, 3] of a random frame, place and size; stretched to [0, 255], and half of the
    time the negative of that: a small model could hardly tell it from what is behind it else."""
    num_frames, height, width, _ = footage.shape
    side = int(rng.integers(PATCH_SIDES[0], PATCH_SIDES[1] + 1))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = footage[rng.integers(num_frames), top : top + side, left : left + side]
    crop = crop.astype(np.float32) - crop.min()
    stretched = crop * (255 / max(crop.max(), 1))
    return 255 - stretched if rng.random() < 0.5 else stretched


# name -> (footage uint8 [N, H, W, 3], rng) -> float32 [S, S, 4]: RGB in [0, 255], opacity in [0, 1]
APPEARANCES = {"square": square, "disc": disc}
