"""One record to one or more samples: a sampler chooses frames, a transform makes arrays of them.

    make = ClipMaker(source, pretraining_frames(16, 4), random_crops((224, 224)))
    make(i, seed, d)  # {"video": uint8 [1, 16, 224, 224, 3]}

A sampler is a function (reader, rng) -> frame numbers, a transform (frames, rng) -> arrays, whose
first axis counts the samples. Decoding may take place in processes of its own, so all three can be
pickled: write samplers and transforms as `functools.partial` of functions at the top of a module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vmae_jax.data.sample_numbers import sample_rng
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.data.video.augment import (
    centre_crop,
    check_resizer,
    crop_and_resize,
    fit_into,
    sample_crop_box,
)
from vmae_jax.data.video.clips import (
    centre_indices,
    check_timed,
    pretraining_indices,
    timed_indices,
)
from vmae_jax.data.video.reader import TIME_TOLERANCE, VideoReader
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
      label: makes of a record's label the row "label" of each of its samples, called with (label,
        clip_id), see `labels.encoder`: by `samples`, as it needs no frames. None: int32, the class.
    """

    source: VideoSource
    sampler: Sampler
    transform: Transform
    label: Callable[..., np.ndarray] | None = None

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


# Of timed clips: they go by the frames' times, so also where the rate of a file varies.


def timed_frames(num_frames: int, fps: float) -> Sampler:
    """A random clip of fps frames a second, see `clips.timed_indices`.

    It starts at a frame of the record, all from which it fits being equally likely; at the first if
    the record is too short.

    Raises:
      SettingError: if num_frames is below 1, or fps out of range.
    """
    return _timed(_timed_frames, num_frames, fps)


def timed_centre_frames(num_frames: int, fps: float) -> Sampler:
    """The clip of fps frames a second in the middle of a record.

    Raises:
      SettingError: as `timed_frames`.
    """
    return _timed(_timed_view_frames, num_frames, fps, num_segments=1)


def timed_view_frames(num_frames: int, fps: float, num_segments: int) -> Sampler:
    """num_segments clips of fps frames a second, one after the other: [num_segments * num_frames].

    Their starts are spread evenly from the record's first to the last from which a clip fits; one
    alone is in the middle.

    Raises:
      SettingError: as `timed_frames`, and if num_segments is below 1.
    """
    if num_segments < 1:
        raise SettingError(f"num_segments={num_segments} must be at least 1 clip of a record.")
    return _timed(_timed_view_frames, num_frames, fps, num_segments=num_segments)


def _timed(function: Callable, num_frames: int, fps: float, **options: int) -> Sampler:
    check_timed(num_frames, fps)
    return functools.partial(function, num_frames=num_frames, fps=fps, **options)


def _free_seconds(reader: VideoReader, num_frames: int, fps: float) -> float:
    """Seconds by which a clip may be moved; negative if it is longer than the record."""
    return float(reader.times[-1]) - (num_frames - 1) / fps


def _timed_frames(
    reader: VideoReader, rng: np.random.Generator, *, num_frames: int, fps: float
) -> np.ndarray:
    last_start = _free_seconds(reader, num_frames, fps) + TIME_TOLERANCE
    num_starts = int(np.searchsorted(reader.times, last_start, side="right"))
    start = reader.times[rng.integers(num_starts)] if num_starts > 1 else 0.0
    return timed_indices(reader.times, num_frames, fps, start)


def _timed_view_frames(
    reader: VideoReader, rng: np.random.Generator, *, num_frames: int, fps: float, num_segments: int
) -> np.ndarray:
    free = max(_free_seconds(reader, num_frames, fps), 0.0)
    starts = np.linspace(0, free, num_segments) if num_segments > 1 else [free / 2]
    return np.concatenate([timed_indices(reader.times, num_frames, fps, s) for s in starts])


# Transforms.


def random_crops(
    image_size: tuple[int, int],
    repeat: int = 1,
    resize: str = "cv2",
    canvas: tuple[int, int] | None = None,
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
    Raises:
      SettingError: if a number is below 1, or `resize` is unknown.
    """
    check_resizer(resize)
    if repeat < 1:
        raise SettingError(f"repeat={repeat} must be at least 1, the crops of one clip.")
    if canvas is None:
        return functools.partial(
            _random_crops, image_size=tuple(image_size), repeat=repeat, resize=resize
        )
    if min(canvas) < 1:
        raise SettingError(
            f"canvas={tuple(canvas)} must be (height, width) in pixels, e.g. (256, 456)."
        )
    return functools.partial(
        _crops_left_to_the_device,
        image_size=tuple(image_size), repeat=repeat, resize=resize, canvas=tuple(canvas),
    )  # fmt: skip


def centre_view(image_size: tuple[int, int], resize: str = "cv2") -> Transform:
    """The middle of the frames, {"video": uint8 [1, T, *image_size, C]}; see `augment.centre_crop`.

    Raises:
      SettingError: if `resize` is unknown.
    """
    check_resizer(resize)
    return functools.partial(_centre_view, image_size=tuple(image_size), resize=resize)


def _random_crops(
    frames: np.ndarray, rng: np.random.Generator, *, image_size, repeat: int, resize: str
) -> Arrays:
    crops = np.empty((repeat, len(frames), *image_size, frames.shape[-1]), np.uint8)
    for crop, box in zip(crops, _boxes(frames, image_size, repeat, rng), strict=True):
        crop_and_resize(frames, box, image_size, resize, out=crop)
    return {"video": crops}


def _crops_left_to_the_device(
    frames: np.ndarray, rng: np.random.Generator, *, image_size, repeat: int, resize: str, canvas
) -> Arrays:
    frames = fit_into(frames, canvas, resize)
    num_frames, height, width, channels = frames.shape
    boxes = _boxes(frames, image_size, repeat, rng)
    video = np.zeros((1, num_frames, *canvas, channels), np.uint8)
    video[0, :, :height, :width] = frames
    return {"video": video, "boxes": np.array([boxes], np.int32)}


def _boxes(frames: np.ndarray, image_size, repeat: int, rng: np.random.Generator) -> list[tuple]:
    _, height, width, _ = frames.shape
    return [sample_crop_box(height, width, image_size, rng) for _ in range(repeat)]


def _centre_view(
    frames: np.ndarray, rng: np.random.Generator, *, image_size, resize: str
) -> Arrays:
    return {"video": centre_crop(frames, image_size, resize)[None]}
