"""The views of validation and testing: frames that cover the model's size, and where they are cut.

Everything here is the original's, bit by bit; nothing is random.
"""

from __future__ import annotations

import numpy as np

from vmae_jax.data.video.augment import covering_size, opencv_resized
from vmae_jax.errors import SettingError


def cover_short_side(frames: np.ndarray, side: int) -> np.ndarray:
    """Frames whose short side is `side`, the long one rounded down: uint8 [T, h, w, C].

    Enlarged or shrunk by OpenCV's INTER_LINEAR, which looks at four pixels however much it shrinks;
    `frames` itself if they have that size.

    Args:
      frames: uint8 [T, H, W, C].
      side: in pixels.

    Source: VideoMAE, functional.py, resize_clip of arrays.
    """
    return _covering(frames, (side, side))


def view_crops(frames: np.ndarray, image_size: tuple[int, int], num_crops: int) -> np.ndarray:
    """Crops spread evenly over the side that is left free, uint8 [num_crops, T, h, w, C].

    The frames are resized to cover `image_size` (for a square as `cover_short_side`), so one side
    fits; crops go from the first to the last pixel of the other: 0, 87 and 174 of the 398 columns
    that 224 are cut from. One crop alone is the middle, an odd rest rounded to even.

    Args:
      frames: uint8 [T, H, W, C].
      image_size: (height, width) of the result.
      num_crops: at least 1; the originals take 3.
    Raises:
      SettingError: if num_crops is below 1.

    Source: VideoMAE, kinetics.py, VideoClsDataset in test mode. One crop divides by zero there, and
    is CenterCrop of video_transforms.py here. What is cut there is the short side, in every recipe
    the model's size; here it is the model's size by definition.
    """
    if num_crops < 1:
        raise SettingError(f"num_crops={num_crops} must be at least 1 view.")
    frames = _covering(frames, image_size)
    height, width = image_size
    free = frames.shape[1] - height, frames.shape[2] - width
    places = _starts(free[0], num_crops), _starts(free[1], num_crops)
    return np.stack(
        [
            frames[:, top : top + height, left : left + width]
            for top, left in zip(*places, strict=True)
        ]
    )


def _starts(free: int, num_crops: int) -> list[int]:
    if num_crops == 1:
        return [round(free / 2)]
    step = free / (num_crops - 1)  # in floating point, as there
    return [int(k * step) for k in range(num_crops)]


def _covering(frames: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    size = covering_size(*frames.shape[1:3], image_size)
    if size == frames.shape[1:3]:
        return frames
    return opencv_resized(frames, size, "INTER_LINEAR")
