"""The image processor's work: what counts as a video, and the four steps, on numpy frames.

Frames are [C, H, W] in all steps, in whatever dtype they came; the arithmetic is, bit for bit, that
of the PIL processor of transformers 5.23.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from vmae_jax.huggingface.arrays import to_numpy

_CHANNELS = (1, 3, 4)  # how an axis of channels is told from one of pixels, if nothing else tells
# Channels of PIL's modes. In the others the numbers are no intensities of red, green and blue.
_MODES = {"1": 1, "L": 1, "I": 1, "F": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_OTHER_MODES = {"P": "a palette", "PA": "a palette", "RGBa": "premultiplied alpha"}


def _num_axes(picture: Any) -> int | None:
    """Axes of an array of numpy, jax, torch or TensorFlow; 3 for any PIL image; None otherwise."""
    if isinstance(picture, Image.Image):
        return 3
    is_array = hasattr(picture, "__array__") and not isinstance(picture, np.generic)
    return getattr(picture, "ndim", None) if is_array else None


def as_videos(videos: Any) -> list[list[Any]]:
    """Lists of frames, a frame being a PIL image or an array of 2 or 3 axes.

    Raises:
      ValueError: for anything else.
    """
    found = []
    num_axes = _num_axes(videos)
    if num_axes in (2, 3):
        found = [[videos]]
    elif num_axes in (4, 5):
        array = to_numpy(videos)
        found = [list(video) for video in (array[None] if num_axes == 4 else array)]
    elif isinstance(videos, (list, tuple)):
        if all(isinstance(video, (list, tuple)) for video in videos):
            if all(_num_axes(frame) in (2, 3) for video in videos for frame in video):
                found = [list(video) for video in videos]
        elif all(_num_axes(frame) in (2, 3) for frame in videos):
            found = [list(videos)]
        elif all(_num_axes(video) == 4 for video in videos):
            found = [list(to_numpy(video)) for video in videos]
    if found and all(found):
        return found
    shape = getattr(videos, "shape", None)
    given = f"a {type(videos).__name__}" + (f" of shape {tuple(shape)}" if shape else "")
    raise ValueError(
        f"videos, {given}, must be a frame, a list of frames (or a 4-D array: one video), or a "
        "list of such videos (or a 5-D array), none of them empty; a frame is a PIL image or an "
        "array of numpy, jax or torch with 3 axes, or with 2 if it is grey."
    )


def channels_first(
    frame: Any, num_channels: int | None = None, input_data_format: str | None = None
) -> np.ndarray:
    """The frame as [C, H, W], dtype kept; a grey one as three equal channels if 3 are expected.

    Args:
      frame: a PIL image, or an array [H, W], [C, H, W] or [H, W, C].
      num_channels: C; None for whatever the frame has.
      input_data_format: "channels_first" or "channels_last", where the channels of arrays of 3 axes
        stand; None to find out.
    Raises:
      ValueError: if the channels are not found, are not as many, or are no colours (a palette).
    """
    if isinstance(frame, Image.Image):
        found, name = _pil_channels(frame), f"a PIL image of mode {frame.mode!r}"
    else:
        array = to_numpy(frame)
        found, name = _array_channels(array, num_channels, input_data_format), "a frame"
    if num_channels is None or len(found) == num_channels:
        return found
    if len(found) == 1 and num_channels == 3:
        return np.repeat(found, 3, axis=0)
    # of the alpha that screenshots and PNG files have
    with_alpha = len(found) - num_channels == 1 and len(found) in (2, 4)
    remedy = "if the last is alpha, leave it out (image.convert('RGB'), frame[..., :3]); "
    raise ValueError(
        f"{name} has {len(found)} channels, but image_mean and image_std have {num_channels} "
        f"numbers; {remedy * with_alpha}if these are several grey frames, give them in a list; "
        "otherwise give one number for each channel."
    )


def _pil_channels(image: Image.Image) -> np.ndarray:
    mode = image.mode
    if mode not in _MODES and not mode.startswith("I;16"):
        what = _OTHER_MODES.get(mode, "not grey, RGB or RGBA")
        raise ValueError(
            f"a PIL image has mode {mode!r} ({what}), whose numbers are no colours that a model "
            "knows; give image.convert('RGB')."
        )
    array = np.array(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _array_channels(
    array: np.ndarray, num_channels: int | None, input_data_format: str | None
) -> np.ndarray:
    if array.ndim == 2:
        return array[None]
    if input_data_format is not None:
        return array if input_data_format == "channels_first" else np.moveaxis(array, -1, 0)
    counts = _CHANNELS if num_channels is None else (num_channels,)
    if num_channels == 3 and 3 not in (array.shape[0], array.shape[-1]):
        counts = (1, 4)  # grey; or with alpha, to be refused as such
    first, last = array.shape[0] in counts, array.shape[-1] in counts
    if not first and not last:
        expected = f"one of {_CHANNELS}" if num_channels is None else f"{num_channels}"
        raise ValueError(
            f"a frame has shape {array.shape}, but its channels must be the first or the last axis "
            f"and their number {expected}, as image_mean and image_std have it. (Frames without an "
            "axis of channels are given in a list; other channels with input_data_format.)"
        )
    if first and last:
        warnings.warn(
            f"a frame has shape {array.shape}, where the first or the last axis could be the "
            "channels: the first was taken. input_data_format tells.",
            stacklevel=5,
        )
    return array if first else np.moveaxis(array, -1, 0)


def are_fractions(videos: list[list[np.ndarray]]) -> bool:
    """Whether all frames are shares of 1: floats (or booleans) in [0, 1], and not all black."""
    frames = [frame for video in videos for frame in video if frame.size]
    if any(frame.dtype.kind not in "fb" for frame in frames):
        return False
    least, most = (np.min, np.max)
    return 0 < max((most(f) for f in frames), default=0) <= 1 and all(least(f) >= 0 for f in frames)


def _is_in_unit_range(frame: np.ndarray) -> bool:
    """Whether the values are shares of 255: fractions, all of them in [0, 1].

    Raises:
      ValueError: for what is neither that nor whole numbers in [0, 255], so cannot be resized.
    """
    if frame.dtype == np.uint8:
        return False
    with np.errstate(invalid="ignore"):  # NaN is refused below
        whole = np.allclose(frame, frame.astype(int))
    limit = 255 if whole else 1
    if not np.all((frame >= 0) & (frame <= limit)):
        raise ValueError(
            f"a frame to resize has {'whole' if whole else 'fractional'} values in "
            f"[{frame.min()}, {frame.max()}], outside the range [0, {limit}], so it cannot be "
            "converted to uint8; scale it to [0, 255] or [0, 1], or pass do_resize=False."
        )
    return not whole


def _rescale(frame: np.ndarray, factor: float) -> np.ndarray:
    return (frame.astype(np.float64) * factor).astype(np.float32)


def _resize(frame: np.ndarray, size: Mapping[str, int], resample: int) -> np.ndarray:
    H, W = frame.shape[1:]
    if "shortest_edge" in size:
        short = size["shortest_edge"]
        # the long edge is cut, not rounded
        height, width = (short, int(short * W / H)) if H < W else (int(short * H / W), short)
    else:
        height, width = size["height"], size["width"]
    in_unit_range = _is_in_unit_range(frame)
    pixels = (_rescale(frame, 255) if in_unit_range else frame).astype(np.uint8)
    if len(pixels) in (3, 4):  # four are RGBA to PIL, which weighs the colours with the last
        image = Image.fromarray(np.moveaxis(pixels, 0, -1)).resize((width, height), resample)
        resized = np.moveaxis(np.array(image), -1, 0)
    else:
        images = [Image.fromarray(band).resize((width, height), resample) for band in pixels]
        resized = np.stack([np.array(image) for image in images])
    return _rescale(resized, 1 / 255) if in_unit_range else resized


def _overlap(size: int, target: int) -> tuple[slice, slice]:
    """Which pixels of an axis stay, and where they lie in an axis of `target` pixels."""
    start = (size - target) // 2
    if start >= 0:
        return slice(start, start + target), slice(None)
    return slice(None), slice(-start, size - start)


def _center_crop(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Zeros surround what is smaller."""
    rows, target_rows = _overlap(frame.shape[1], height)
    columns, target_columns = _overlap(frame.shape[2], width)
    cropped = np.zeros((len(frame), height, width), frame.dtype)
    cropped[:, target_rows, target_columns] = frame[:, rows, columns]
    return cropped


def _normalize(frame: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    if not np.issubdtype(frame.dtype, np.floating):
        frame = frame.astype(np.float32)
    for name, values in (("image_mean", mean), ("image_std", std)):
        if np.ndim(values) and len(values) != len(frame):
            raise ValueError(
                f"{name}={values} has {len(values)} numbers, but must have {len(frame)}, one for "
                f"each channel of a frame of {len(frame)} x {frame.shape[1]} x {frame.shape[2]}."
            )
    mean, std = (np.reshape(values, (-1, 1, 1)).astype(frame.dtype) for values in (mean, std))
    return (frame - mean) / std


def process_frame(frame: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """The frame [C, H, W] after the steps that the options of `VideoMAEImageProcessor` turn on.

    Raises:
      ValueError: for a frame without pixels or with values that a step cannot take.
    """
    if 0 in frame.shape:
        raise ValueError(f"a frame of shape {frame.shape} (C, H, W) has no pixels.")
    if options["do_resize"]:
        frame = _resize(frame, options["size"], options["resample"])
    if options["do_center_crop"]:
        frame = _center_crop(frame, **options["crop_size"])
    if options["do_rescale"]:
        frame = _rescale(frame, options["rescale_factor"])
    if options["do_normalize"]:
        frame = _normalize(frame, options["image_mean"], options["image_std"])
    return frame


def stack_videos(videos: list[list[np.ndarray]]) -> np.ndarray:
    """[B, T, ...] from lists of frames.

    Raises:
      ValueError: if lengths or shapes differ.
    """
    lengths = sorted({len(video) for video in videos})
    shapes = sorted({frame.shape for video in videos for frame in video})
    if len(lengths) > 1 or len(shapes) > 1:
        raise ValueError(
            f"videos of {lengths} frames, each of shapes {shapes}, do not fit into one array; give "
            "all the same number, turn do_center_crop on, or pass return_tensors=None for lists."
        )
    return np.stack([np.stack(video) for video in videos])
