"""One record to one or more samples: a sampler chooses frames, a transform makes arrays of them.

    make = ClipMaker(source, pretraining_frames(16, 4), random_crops((224, 224)))
    make(i, seed, d)  # {"video": uint8 [1, 16, 224, 224, 3]}

A sampler is a function (reader, rng) -> frame numbers, a transform (frames, rng) -> arrays, whose
first axis counts the samples. Decoding may take place in processes of its own, so all three can be
pickled: write samplers and transforms as `functools.partial` of functions at the top of a module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vmae_jax.data.sample_numbers import sample_rng
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.data.video.augment import (
    SCALES,
    centre_crop,
    check_resizer,
    crop_and_resize,
    fit_into,
    sample_crop_box,
)
from vmae_jax.data.video.clips import centre_indices, pretraining_indices
from vmae_jax.data.video.reader import VideoReader
from vmae_jax.errors import SettingError

Arrays = dict[str, np.ndarray]
Sampler = Callable[[VideoReader, np.random.Generator], np.ndarray]
Transform = Callable[[np.ndarray, np.random.Generator], Arrays]


@dataclass(frozen=True)
class ClipMaker:
    """Makes the samples of a group; can be pickled, and called anywhere.

    Attributes:
      source: the records.
      sampler: (reader, rng) -> int64 [T], which frames of a record.
      transform: (frames uint8 [T, H, W, C], rng) -> arrays, their first axis the samples that are
        made of these frames (or what several of them share).
    """

    source: VideoSource
    sampler: Sampler
    transform: Transform

    def __call__(self, i: int, seed: int, d: int) -> Arrays:
        """The samples of record i that the random numbers of group d choose.

        Raises:
          VideoError: if the record cannot be read.
        """
        rng = sample_rng(seed, d)
        with self.source.open(i) as reader:
            frames = reader.read(self.sampler(reader, rng))
        return self.transform(frames, rng)


# Samplers.


def pretraining_frames(num_frames: int, frame_stride: int) -> Sampler:
    """A random clip of frames that stand frame_stride apart, see `clips.pretraining_indices`.

    Raises:
      SettingError: if a number is below 1.
    """
    return _strided(_pretraining_frames, num_frames, frame_stride)


def centre_frames(num_frames: int, frame_stride: int) -> Sampler:
    """The clip in the middle of a record, see `clips.centre_indices`.

    Raises:
      SettingError: if a number is below 1.
    """
    return _strided(_centre_frames, num_frames, frame_stride)


def _strided(function: Callable, num_frames: int, frame_stride: int) -> Sampler:
    for name, value in (("num_frames", num_frames), ("frame_stride", frame_stride)):
        if value < 1:
            raise SettingError(f"{name}={value} must be at least 1 frame.")
    return functools.partial(function, num_frames=num_frames, frame_stride=frame_stride)


def _pretraining_frames(
    reader: VideoReader, rng: np.random.Generator, *, num_frames: int, frame_stride: int
) -> np.ndarray:
    kept = {"frame_step": reader.frame_step, "frame_phase": reader.frame_phase}
    return pretraining_indices(reader.num_frames, num_frames, frame_stride, rng, **kept)


def _centre_frames(
    reader: VideoReader, rng: np.random.Generator, *, num_frames: int, frame_stride: int
) -> np.ndarray:
    kept = {"frame_step": reader.frame_step, "frame_phase": reader.frame_phase}
    return centre_indices(reader.num_frames, num_frames, frame_stride, **kept)


# Transforms.


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
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise SettingError(
            f"scales={tuple(scales)} must be shares of the frame's short side in (0, 1], at least "
            "one; set data.crop_scales=(1.0,) to keep the whole of it."
        )
    if repeat < 1:
        raise SettingError(f"repeat={repeat} must be at least 1, the crops of one clip.")
    boxes = functools.partial(
        _boxes, image_size=tuple(image_size), repeat=repeat, scales=tuple(scales)
    )
    if canvas is None:
        return functools.partial(
            _random_crops, image_size=tuple(image_size), boxes=boxes, resize=resize
        )
    if min(canvas) < 1:
        raise SettingError(
            f"canvas={tuple(canvas)} must be (height, width) in pixels, e.g. (256, 456)."
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
    num_frames, height, width, channels = frames.shape
    chosen = boxes(frames, rng)
    video = np.zeros((1, num_frames, *canvas, channels), np.uint8)
    video[0, :, :height, :width] = frames
    return {"video": video, "boxes": np.array([chosen], np.int32)}


def _boxes(
    frames: np.ndarray, rng: np.random.Generator, *, image_size, repeat: int, scales
) -> list[tuple]:
    _, height, width, _ = frames.shape
    return [sample_crop_box(height, width, image_size, rng, scales) for _ in range(repeat)]


def _centre_view(
    frames: np.ndarray, rng: np.random.Generator, *, image_size, resize: str
) -> Arrays:
    return {"video": centre_crop(frames, image_size, resize)[None]}
