"""From decoded frames to frames of the size the model takes.

Frames stay uint8 [T, H, W, C] with C = 3: scaling and normalising happen on the device. Sizes are
(height, width) here, as in the model; Pillow's own are (width, height).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SCALES = (1.0, 0.875, 0.75, 0.66)
SNAP = 2  # pixels: a crop this close to the target is taken at the target's size, without resizing

# The places of a crop, (down, right) in quarters of the free space: the nine of a 3 x 3 grid, and
# the four between its middle and its corners.
OFFSETS = tuple((down, right) for down in range(5) for right in range(5) if down % 2 == right % 2)


def sample_crop_box(
    height: int, width: int, image_size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random crop (top, left, height, width) inside a frame, in pixels.

    Each side is the frame's short side times one of SCALES; the two are at most one step of SCALES
    apart (ten pairs, so the aspect ratio changes a little). The place is one of OFFSETS. Pair and
    place are drawn uniformly.

    Args:
      height, width: of the frame.
      image_size: (height, width) the crop will be resized to.
      rng: two integers are drawn from it.

    Source: VideoMAE, transforms.py, GroupMultiScaleCrop. Different on purpose: a side that snaps to
    the target never grows beyond the frame (the original then fills with black), and is at least 1.
    """
    sides = [int(min(height, width) * scale) for scale in SCALES]
    heights = [_snapped(side, image_size[0], height) for side in sides]
    widths = [_snapped(side, image_size[1], width) for side in sides]
    pairs = [(h, w) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= 1]
    crop_height, crop_width = pairs[rng.integers(len(pairs))]
    down, right = OFFSETS[rng.integers(len(OFFSETS))]
    top = down * ((height - crop_height) // 4)
    left = right * ((width - crop_width) // 4)
    return top, left, crop_height, crop_width


def _snapped(side: int, target: int, frame_side: int) -> int:
    return min(target, frame_side) if abs(side - target) <= SNAP else max(side, 1)


def crop_and_resize(
    frames: np.ndarray, box: tuple[int, int, int, int], image_size: tuple[int, int]
) -> np.ndarray:
    """The same part of every frame, resized: uint8 [T, *image_size, C].

    Args:
      frames: uint8 [T, H, W, C].
      box: (top, left, height, width) in pixels, inside the frame.
      image_size: (height, width) of the result.

    Resizes with Pillow's bilinear filter, which widens when it shrinks an image (antialiasing). The
    crop comes first: the filter must not see pixels outside the box.
    """
    top, left, height, width = box
    return _resize(frames[:, top : top + height, left : left + width], image_size)


def multi_scale_corner_crop(
    frames: np.ndarray, image_size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Frames cropped at random for pre-training, uint8 [T, *image_size, C].

    One crop for all frames: a tube mask hides nothing if the picture jumps. There is no flip.

    Args:
      frames: uint8 [T, H, W, C].
      image_size: (height, width) of the result.
      rng: as in `sample_crop_box`, which see for the source.
    """
    _, height, width, _ = frames.shape
    return crop_and_resize(frames, sample_crop_box(height, width, image_size, rng), image_size)


def centre_crop(frames: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """The middle of the frames at the smallest size that covers `image_size`, uint8 [T, h, w, C].

    Deterministic, for held-out clips and for looking at. The aspect ratio is kept, the long side
    rounded down; frames that are too small are enlarged.

    Args:
      frames: uint8 [T, H, W, C].
      image_size: (height, width) of the result.

    Source: VideoMAE's validation resize and crop. Different on purpose: antialiased as in training
    (the original's cv2 resize is not), and an odd rest is rounded down.
    """
    _, height, width, _ = frames.shape
    target_height, target_width = image_size
    # Integers only, so that the covered side comes out exactly.
    if target_height * width >= target_width * height:
        size = (target_height, width * target_height // height)
    else:
        size = (height * target_width // width, target_width)
    top, left = (size[0] - target_height) // 2, (size[1] - target_width) // 2
    resized = _resize(frames, size)
    return resized[:, top : top + target_height, left : left + target_width]


def _resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    resized = np.empty((len(frames), height, width, frames.shape[-1]), np.uint8)
    for i, frame in enumerate(frames):
        image = Image.fromarray(np.ascontiguousarray(frame))
        resized[i] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return resized
