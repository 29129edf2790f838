"""From decoded frames to frames of the size the model takes.

Two ways to resize: "cv2" (7 times faster, 44 to 62 dB PSNR from Pillow's at the usual sizes) and
"pil", which is the original's bit by bit.

Frames stay uint8 [T, H, W, C] with C = 3: scaling and normalising happen on the device. Sizes are
(height, width) here, as in the model; Pillow's own are (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vmae_jax.errors import SettingError

SCALES = (1.0, 0.875, 0.75, 0.66)
SNAP = 2  # pixels: a crop this close to the target is taken at the target's size, without resizing

# The places of a crop, (down, right) in quarters of the free space: the nine of a 3 x 3 grid, and
# the four between its middle and its corners.
OFFSETS = tuple((down, right) for down in range(5) for right in range(5) if down % 2 == right % 2)


def sample_crop_box(
    height: int,
    width: int,
    image_size: tuple[int, int],
    rng: np.random.Generator,
    scales: Sequence[float] = SCALES,
) -> tuple[int, int, int, int]:
    """A random crop (top, left, height, width) inside a frame, in pixels.

    Each side is the frame's short side times one of the scales; the two are at most one step of
    these apart (ten pairs of the four in SCALES, so the aspect ratio changes a little). The place
    is one of OFFSETS. Pair and place are drawn uniformly.

    Args:
      height, width: of the frame.
      image_size: (height, width) the crop will be resized to.
      rng: two integers are drawn from it.
      scales: in (0, 1], at least one, from the largest to the smallest.
    Returns:
      (top, left, height, width).

    Source: VideoMAE, transforms.py, GroupMultiScaleCrop. Different on purpose: a side that snaps to
    the target never grows beyond the frame (the original then fills with black), and is at least 1.
    """
    sides = [int(min(height, width) * scale) for scale in scales]
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
    frames: np.ndarray,
    box: tuple[int, int, int, int],
    image_size: tuple[int, int],
    resize: str = "cv2",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The same part of every frame, resized: uint8 [T, *image_size, C].

    One crop for all frames: a tube mask hides nothing if the picture jumps. The crop comes first:
    the filter must not see pixels outside the box.

    Args:
      frames: uint8 [T, H, W, C].
      box: (top, left, height, width) in pixels, inside the frame.
      image_size: (height, width) of the result.
      resize: a key of RESIZERS.
      out: uint8 [T, *image_size, C] to write to.
    """
    top, left, height, width = box
    return _resized(frames[:, top : top + height, left : left + width], image_size, resize, out)


def sample_resized_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (0.75, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random crop (top, left, height, width) of random area and aspect, in pixels.

    Its share of the frame's area is uniform in `scale`, the logarithm of its width over its height
    in `ratio`, and its place among all that fit. A draw too wide or too high is repeated; after ten
    of them it is the middle of the frame, cut no more than `ratio` asks for.

    Args:
      height, width: of the frame.
      rng: two numbers are drawn from it for each try, and two integers for the place.
      scale: (lowest, highest) share, in (0, 1].
      ratio: (lowest, highest) width over height.
    Returns:
      (top, left, height, width), inside the frame, at least one pixel.

    Source: VideoMAE, video_transforms.py, random_resized_crop (of torchvision).
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*np.log(ratio)))
        crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = rng.integers(height - crop_height, endpoint=True)
            left = rng.integers(width - crop_width, endpoint=True)
            return int(top), int(left), crop_height, crop_width
    crop_height = height if width >= ratio[0] * height else max(1, round(width / ratio[0]))
    crop_width = width if width <= ratio[1] * height else max(1, round(height * ratio[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resized_crop(
    frames: np.ndarray,
    box: tuple[int, int, int, int],
    image_size: tuple[int, int],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The same part of every frame, resized: uint8 [T, *image_size, C].

    Each pixel is interpolated between four, however much that shrinks the part: it is torch's
    `interpolate` with mode="bilinear" and align_corners=False, rounded. OpenCV does it with weights
    in steps of 1/256: beside the half level of rounding up to 0.2 levels (of 255) in real frames,
    where one value in 600 comes out a level off, and up to 0.8 in noise.

    Args:
      frames: uint8 [T, H, W, C].
      box: (top, left, height, width) in pixels, inside the frame; nothing outside is looked at.
      image_size: (height, width) of the result.
      out: uint8 [T, *image_size, C] to write to.

    Source: VideoMAE, video_transforms.py, random_resized_crop, which resizes normalised floats and
    does not round.
    """
    top, left, height, width = box
    part = frames[:, top : top + height, left : left + width]
    return opencv_resized(part, image_size, "INTER_LINEAR_EXACT", out)


def fit_into(frames: np.ndarray, canvas: tuple[int, int], resize: str = "cv2") -> np.ndarray:
    """Frames no larger than a canvas (height, width): shrunk if need be, never enlarged."""
    _, height, width, _ = frames.shape
    if height <= canvas[0] and width <= canvas[1]:
        return frames
    if canvas[0] * width <= canvas[1] * height:  # integers only, as in centre_crop
        size = (canvas[0], max(1, width * canvas[0] // height))
    else:
        size = (max(1, height * canvas[1] // width), canvas[1])
    return _resized(frames, size, resize)


def centre_crop(frames: np.ndarray, image_size: tuple[int, int], resize: str = "cv2") -> np.ndarray:
    """The middle of the frames at the smallest size that covers `image_size`, uint8 [T, h, w, C].

    Deterministic, for held-out clips and for looking at. The aspect ratio is kept, the long side
    rounded down; frames that are too small are enlarged.

    Args:
      frames: uint8 [T, H, W, C].
      image_size: (height, width) of the result.
      resize: a key of RESIZERS; the original's is "cv2" here.

    Source: VideoMAE's validation resize and crop. Different on purpose: an odd rest is rounded
    down.
    """
    height, width = image_size
    size = covering_size(*frames.shape[1:3], image_size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return _resized(frames, size, resize)[:, top : top + height, left : left + width]


def covering_size(height: int, width: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) of that aspect ratio that covers `image_size`: one side is
    equal, the other rounded down."""
    # Integers only, so that the covered side comes out exactly.
    if image_size[0] * width >= image_size[1] * height:
        return image_size[0], width * image_size[0] // height
    return height * image_size[1] // width, image_size[1]


def _resized(
    frames: np.ndarray, size: tuple[int, int], resize: str, out: np.ndarray | None = None
) -> np.ndarray:
    check_resizer(resize)
    if out is None:
        out = np.empty((len(frames), *size, frames.shape[-1]), np.uint8)
    RESIZERS[resize](frames, out)
    return out


def check_resizer(resize: str) -> None:
    """Compares the name of a resizer with those there are.

    Raises:
      SettingError: if `resize` is no key of RESIZERS.
    """
    if resize not in RESIZERS:
        raise SettingError(f"resize={resize!r} is unknown; choose from {', '.join(RESIZERS)}.")


def _resize_cv2(frames: np.ndarray, out: np.ndarray) -> None:
    shrinks = max(frames.shape[1] / out.shape[1], frames.shape[2] / out.shape[2])
    # bilinear looks at four pixels only; beyond half the size it would pass others over
    filter = "INTER_AREA" if shrinks > 2 else "INTER_LINEAR"
    opencv_resized(frames, out.shape[1:3], filter, out)


def opencv_resized(
    frames: np.ndarray, size: tuple[int, int], filter: str, out: np.ndarray | None = None
) -> np.ndarray:
    """Frames resized by OpenCV, uint8 [T, *size, C].

    Args:
      frames: uint8 [T, H, W, C].
      size: (height, width) in pixels.
      filter: OpenCV's name of it.
      out: uint8 [T, *size, C] to write to.
    """
    import cv2

    cv2.setNumThreads(1)  # the clips of a batch are made side by side already
    if out is None:
        out = np.empty((len(frames), *size, frames.shape[-1]), np.uint8)
    for frame, target in zip(frames, out, strict=True):
        cv2.resize(frame, size[::-1], dst=target, interpolation=getattr(cv2, filter))
    return out


def _resize_pil(frames: np.ndarray, out: np.ndarray) -> None:
    from PIL import Image

    height, width = out.shape[1:3]
    for frame, target in zip(frames, out, strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame))
        target[:] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


# (frames [T, H, W, C], out [T, h, w, C], which is filled)
RESIZERS: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "cv2": _resize_cv2,
    "pil": _resize_pil,
}
