"""The operations of RandAugment on clips: what Pillow makes of each frame, bit by bit.

All take and give uint8 [T, H, W, 3]. They write to no frame they are given, and leave it to Pillow
where another way is no faster. The faster ones, on 16 frames of 256 x 340: single values by a table
that Pillow made (3 times), sliding by one line of all frames at a time, smoothing by OpenCV (both 2
to 3 times).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Operation = Callable[[Image.Image], Image.Image]

GREY = 128  # in all channels, where a moved frame has nothing to show
# cv2.filter2D with it and Pillow's SMOOTH round alike: thirteenths are never near a half.
SMOOTH = np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
RAMP = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))


# Single values.


def invert(frames: np.ndarray) -> np.ndarray:
    """Negatives."""
    return _by_value(frames, ImageOps.invert)


def posterize(frames: np.ndarray, bits: int) -> np.ndarray:
    """The `bits` most significant bits, in [0, 8]."""
    return _by_value(frames, lambda image: ImageOps.posterize(image, bits))


def solarize(frames: np.ndarray, threshold: int) -> np.ndarray:
    """Negatives of the values from `threshold` up."""
    return _by_value(frames, lambda image: ImageOps.solarize(image, threshold))


def solarize_add(frames: np.ndarray, added: int) -> np.ndarray:
    """Values below 128 raised by `added`, to 255 at most."""
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return _by_value(frames, lambda image: image.point(table * 3))


def brightness(frames: np.ndarray, factor: float) -> np.ndarray:
    """Values times `factor`."""
    return _by_value(frames, lambda image: ImageEnhance.Brightness(image).enhance(factor))


def _by_value(frames: np.ndarray, operation: Operation) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)  # the clips of a batch are made side by side already
    table = np.asarray(operation(RAMP))[0, :, 0]
    num_frames, height, *_ = frames.shape
    return cv2.LUT(frames.reshape(num_frames * height, -1), table).reshape(frames.shape)


# What depends on the whole frame, or on the neighbours of a pixel.


def auto_contrast(frames: np.ndarray) -> np.ndarray:
    """Each channel stretched to [0, 255]."""
    return _by_frame(frames, ImageOps.autocontrast)


def equalize(frames: np.ndarray) -> np.ndarray:
    """Each channel with a flat histogram, as far as a table of values can make it so."""
    return _by_frame(frames, ImageOps.equalize)


def color(frames: np.ndarray, factor: float) -> np.ndarray:
    """Distances from each pixel's own grey times `factor`."""
    return _by_frame(frames, lambda image: ImageEnhance.Color(image).enhance(factor))


def contrast(frames: np.ndarray, factor: float) -> np.ndarray:
    """Distances from the mean grey of the frame times `factor`."""
    return _by_frame(frames, lambda image: ImageEnhance.Contrast(image).enhance(factor))


def sharpness(frames: np.ndarray, factor: float) -> np.ndarray:
    """Distances from the smoothed frame times `factor`; the border stays."""
    import cv2

    cv2.setNumThreads(1)
    out = np.empty_like(frames)
    for frame, target in zip(frames, out, strict=True):
        smooth = frame.copy()
        smooth[1:-1, 1:-1] = cv2.filter2D(frame, -1, SMOOTH)[1:-1, 1:-1]
        target[:] = Image.blend(Image.fromarray(smooth), Image.fromarray(frame), factor)
    return out


def rotate(frames: np.ndarray, degrees: float) -> np.ndarray:
    """Turned counterclockwise about the middle, bicubic."""
    options = {"resample": Image.Resampling.BICUBIC, "fillcolor": (GREY,) * 3}
    return _by_frame(frames, lambda image: image.rotate(degrees, **options))


def _by_frame(frames: np.ndarray, operation: Operation) -> np.ndarray:
    out = np.empty_like(frames)
    for frame, target in zip(frames, out, strict=True):
        target[:] = operation(Image.fromarray(frame))
    return out


# Sliding along one axis, bicubic.


def shear_x(frames: np.ndarray, factor: float) -> np.ndarray:
    """Row y moved left by factor * (y + 0.5) pixels."""
    return _slid(frames, factor, 0.0)


def shear_y(frames: np.ndarray, factor: float) -> np.ndarray:
    """Column x moved up by factor * (x + 0.5) pixels."""
    return _transposed(_slid(_transposed(frames), factor, 0.0))


def translate_x(frames: np.ndarray, share: float) -> np.ndarray:
    """All moved left by a share of the width."""
    return _slid(frames, 0.0, share * frames.shape[2])


def translate_y(frames: np.ndarray, share: float) -> np.ndarray:
    """All moved up by a share of the height."""
    return _transposed(_slid(_transposed(frames), 0.0, share * frames.shape[1]))


def _transposed(frames: np.ndarray) -> np.ndarray:
    import cv2

    num_frames, height, width, channels = frames.shape
    out = np.empty((num_frames, width, height, channels), np.uint8)
    for frame, target in zip(frames, out, strict=True):
        cv2.transpose(frame, dst=target)
    return out


def _slid(frames: np.ndarray, slope: float, shift: float) -> np.ndarray:
    """Row y moved left by slope * (y + 0.5) + shift pixels.

    The arithmetic of Pillow's `transform`, in its order and in double precision: it does not round
    but truncates, so the last bit counts. It interpolates across rows, too, which changes nothing
    here. (Where a processor fuses products and sums, Pillow's own last bit may differ.)
    """
    num_frames, height, width, channels = frames.shape
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    at = (columns + slope * rows[:, None]) + shift  # [H, W], what is shown at each pixel
    inside = (at >= 0) & (at < width)
    at -= 0.5
    left = np.floor(at)
    fraction = np.repeat(at - left, channels, axis=1)  # pixels are flattened: loops are long then
    # row y of all frames together; int16 for differences; two pixels more at either end
    lines = np.empty((height, num_frames, width + 4, channels), np.int16)
    lines[:, :, 2:-2] = frames.swapaxes(0, 1)
    lines[:, :, :2], lines[:, :, -2:] = lines[:, :, 2:3], lines[:, :, -3:-2]
    lines = lines.reshape(height, num_frames, -1)
    out = np.full_like(frames, GREY)
    flat = out.reshape(num_frames, height, -1)
    for y, start, stop in _runs(left - np.arange(width), inside):
        first = int(left[y, start]) + 1  # of four pixels, the second of which is the left one
        shown = slice(channels * start, channels * stop)
        pixels = lines[y, :, channels * first : channels * (first + stop - start + 3)]
        flat[:, y, shown] = _cubic(pixels, fraction[y, shown], channels)
    return out


def _runs(offset: np.ndarray, inside: np.ndarray) -> Iterable[tuple[int, int, int]]:
    """(row, start, stop) of neighbours with one offset that are inside; both arrays are [H, W].

    One in a row; rounding breaks it only where things move by a whole number of pixels.
    """
    change = np.ones((len(inside), inside.shape[1] + 1), bool)
    change[:, 1:-1] = (offset[:, 1:] != offset[:, :-1]) | (inside[:, 1:] != inside[:, :-1])
    rows, starts = np.nonzero(inside & change[:, :-1])
    stops = np.nonzero(inside & change[:, 1:])[1] + 1
    return zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)


def _cubic(pixels: np.ndarray, d: np.ndarray, channels: int) -> np.ndarray:
    """Between the second and third of each four pixels of a line, uint8 [T, n * channels].

    Args:
      pixels: int16 [T, (n + 3) * channels].
      d: float64 [n * channels], in [0, 1): the way from the second to the third.
    """
    step = pixels[:, channels:] - pixels[:, :-channels]
    before, between = step[:, : -2 * channels], step[:, channels:-channels]
    after = step[:, 2 * channels :]
    x = d * (before + after)
    x += -2 * before - after
    x *= d
    x += before + between
    x *= d
    x += pixels[:, channels : -2 * channels]
    return np.clip(x, 0, 255, out=x).astype(np.uint8)
