"""Transforms: what the frames of a record become.

A transform is a function (frames uint8 [T, H, W, C], rng) -> arrays, whose first axis counts the
samples (or what several of them share). `video.augment`, `video.rand_augment` and `video.views`
have the rules; here they are bound to their settings, in a form that can be pickled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from vmae_jax.data.video.augment import (
    SCALES,
    centre_crop,
    check_resizer,
    crop_and_resize,
    fit_into,
    resized_crop,
    sample_crop_box,
    sample_resized_crop_box,
)
from vmae_jax.data.video.rand_augment import RandAugment
from vmae_jax.data.video.views import view_crops
from vmae_jax.errors import SettingError

Arrays = dict[str, np.ndarray]
Transform = Callable[[np.ndarray, np.random.Generator], Arrays]


# Pre-training.


def random_crops(
    image_size: tuple[int, int],
    repeat: int = 1,
    resize: str = "cv2",
    canvas: tuple[int, int] | None = None,
    scales: Sequence[float] = SCALES,
) -> Transform:
    """R random crops of the same frames, as pre-training takes them (`augment.sample_crop_box`).

    They come as {"video": uint8 [R, T, *image_size, C]}; with a canvas, {"video": uint8
    [1, T, *canvas, C], "boxes": int32 [1, R, 4]}.

    Args:
      image_size: (height, width) in pixels.
      repeat: crops of the same frames (R).
      resize: a key of `augment.RESIZERS`.
      canvas: (height, width) to leave the crops to the device, see `device_crop`; None cuts them
        here.
      scales: of the crops, shares of the short side in (0, 1], see `augment.sample_crop_box`.
    Raises:
      SettingError: if a number is below 1, a scale cannot be cut, or `resize` is unknown.
    """
    check_resizer(resize)
    _check_repeat_and_canvas(repeat, canvas)
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise SettingError(
            f"scales={tuple(scales)} must be shares of the frame's short side in (0, 1], at least "
            "one; set data.crop_scales=(1.0,) to keep the whole of it."
        )
    boxes = functools.partial(
        _boxes, image_size=tuple(image_size), repeat=repeat, scales=tuple(scales)
    )
    if canvas is None:
        return functools.partial(
            _random_crops, image_size=tuple(image_size), boxes=boxes, resize=resize
        )
    return functools.partial(
        _crops_left_to_the_device, boxes=boxes, resize=resize, canvas=tuple(canvas)
    )


def centre_view(image_size: tuple[int, int], resize: str = "cv2") -> Transform:
    """The middle of the frames, {"video": uint8 [1, T, *image_size, C]}; see `augment.centre_crop`.

    Raises:
      SettingError: if `resize` is unknown.
    """
    check_resizer(resize)
    return functools.partial(_centre_view, image_size=tuple(image_size), resize=resize)


def _random_crops(
    frames: np.ndarray, rng: np.random.Generator, *, image_size, boxes: Callable, resize: str
) -> Arrays:
    chosen = boxes(frames, rng)
    crops = np.empty((len(chosen), len(frames), *image_size, frames.shape[-1]), np.uint8)
    for crop, box in zip(crops, chosen, strict=True):
        crop_and_resize(frames, box, image_size, resize, out=crop)
    return {"video": crops}


def _crops_left_to_the_device(
    frames: np.ndarray, rng: np.random.Generator, *, boxes: Callable, resize: str, canvas
) -> Arrays:
    frames = fit_into(frames, canvas, resize)
    chosen = boxes(frames, rng)
    return {"video": _on_canvases([frames], canvas), "boxes": np.array([chosen], np.int32)}


def _boxes(
    frames: np.ndarray, rng: np.random.Generator, *, image_size, repeat: int, scales
) -> list[tuple]:
    _, height, width, _ = frames.shape
    return [sample_crop_box(height, width, image_size, rng, scales) for _ in range(repeat)]


def _centre_view(
    frames: np.ndarray, rng: np.random.Generator, *, image_size, resize: str
) -> Arrays:
    return {"video": centre_crop(frames, image_size, resize)[None]}


# Fine-tuning and testing.


def augmented_clips(
    image_size: tuple[int, int],
    repeat: int,
    *,
    policy: RandAugment | None,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    canvas: tuple[int, int] | None = None,
) -> Transform:
    """R augmented clips of the same frames, as fine-tuning takes them.

    Each time anew the policy changes the whole frames, then a random part of them is cut
    (`augment.sample_resized_crop_box`) and resized (`augment.resized_crop`). What is left to do
    (flips, erasing) is for the device, see `device_augment`. They come as {"video": uint8
    [R, T, *image_size, C]}.

    With a canvas the parts are left to the device, too (`device_crop.bilinear_crop`). The policy
    makes other frames each time, so each clip has a canvas of its own: {"video": uint8
    [R, T, *canvas, C], "boxes": int32 [R, 1, 4]}. Without a policy all share one: {"video": uint8
    [1, T, *canvas, C], "boxes": int32 [1, R, 4]}. Frames larger than the canvas are first shrunk to
    fit in (`augment.fit_into`, as in pre-training), where the original works at full resolution.

    Args:
      image_size: (height, width) in pixels.
      repeat: clips of the same frames (R).
      policy: of `rand_augment.parse_policy`; None leaves the frames as they are.
      scale, ratio: the ranges of `augment.sample_resized_crop_box`.
      canvas: (height, width) in pixels, or None.
    Raises:
      SettingError: if a number is below 1, or a range is none.

    Source: VideoMAE, kinetics.py, VideoClsDataset._aug_frame.
    """
    _check_repeat_and_canvas(repeat, canvas)
    _check_range("scale", scale, highest=1)
    _check_range("ratio", ratio)
    options = {"policy": policy, "scale": tuple(scale), "ratio": tuple(ratio), "repeat": repeat}
    if canvas is None:
        return functools.partial(_augmented_clips, **options, image_size=tuple(image_size))
    return functools.partial(_augmented_canvases, **options, canvas=tuple(canvas))


def view_clips(image_size: tuple[int, int], num_segments: int, num_crops: int) -> Transform:
    """The views of a test, {"video": uint8 [S * K, T, *image_size, C]}; view s * K + k is crop k of
    clip s, see `views.view_crops`. One clip and one crop are the view of validation.

    Args:
      image_size: (height, width) in pixels.
      num_segments: clips that the frames hold one after another (S), see `samplers.view_frames`.
      num_crops: of each clip (K).
    Raises:
      SettingError: if a number is below 1.
    """
    for name, value in (("num_segments", num_segments), ("num_crops", num_crops)):
        if value < 1:
            raise SettingError(f"{name}={value} must be at least 1 view.")
    return functools.partial(
        _test_views, image_size=tuple(image_size), num_segments=num_segments, num_crops=num_crops
    )


def _augmented_clips(
    frames: np.ndarray, rng: np.random.Generator, *, image_size, repeat: int, **augmentation
) -> Arrays:
    clips = np.empty((repeat, len(frames), *image_size, frames.shape[-1]), np.uint8)
    for clip in clips:
        augmented, box = _augmented(frames, rng, **augmentation)
        resized_crop(augmented, box, image_size, out=clip)
    return {"video": clips}


def _augmented_canvases(
    frames: np.ndarray, rng: np.random.Generator, *, canvas, repeat: int, **augmentation
) -> Arrays:
    frames = fit_into(frames, canvas)
    made = [_augmented(frames, rng, **augmentation) for _ in range(repeat)]
    clips, boxes = zip(*made, strict=True)
    if augmentation["policy"] is None:
        clips = clips[:1]
    boxes = np.array(boxes, np.int32).reshape(len(clips), -1, 4)
    return {"video": _on_canvases(clips, canvas), "boxes": boxes}


def _augmented(
    frames: np.ndarray, rng: np.random.Generator, *, policy: RandAugment | None, scale, ratio
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Whole frames after the policy, and the box to cut of them."""
    _, height, width, _ = frames.shape
    frames = frames if policy is None else policy(frames, rng)
    return frames, sample_resized_crop_box(height, width, rng, scale, ratio)


def _test_views(
    frames: np.ndarray,
    rng: np.random.Generator,
    *,
    image_size,
    num_segments: int,
    num_crops: int,
) -> Arrays:
    clips = frames.reshape(num_segments, -1, *frames.shape[1:])
    return {"video": np.concatenate([view_crops(clip, image_size, num_crops) for clip in clips])}


def _on_canvases(videos: Sequence[np.ndarray], canvas: tuple[int, int]) -> np.ndarray:
    """Videos [T, H, W, C] of one size, each in the top left corner of a black canvas."""
    num_frames, height, width, channels = videos[0].shape
    canvases = np.zeros((len(videos), num_frames, *canvas, channels), np.uint8)
    for target, video in zip(canvases, videos, strict=True):
        target[:, :height, :width] = video
    return canvases


def _check_repeat_and_canvas(repeat: int, canvas: tuple[int, int] | None) -> None:
    if repeat < 1:
        raise SettingError(f"repeat={repeat} must be at least 1, the crops of one clip.")
    if canvas is not None and min(canvas) < 1:
        raise SettingError(
            f"canvas={tuple(canvas)} must be (height, width) in pixels, e.g. (256, 456)."
        )


def _check_range(name: str, values: tuple[float, float], highest: float = np.inf) -> None:
    low, high = values
    if not 0 < low <= high <= highest:
        most = "" if highest == np.inf else f" <= {highest}"
        raise SettingError(
            f"{name}={tuple(values)} must be (low, high) with 0 < low <= high{most}."
        )
