"""Samplers: which frames of a record make its samples.

A sampler is a function (reader, rng) -> frame numbers, int64 [n]. `clips` has the rules; here they
are bound to their settings, in a form that can be pickled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from vmae_jax.data.video import clips
from vmae_jax.data.video.reader import TIME_TOLERANCE, VideoReader
from vmae_jax.errors import SettingError

Sampler = Callable[[VideoReader, np.random.Generator], np.ndarray]
SAMPLINGS = ("dense", "tsn")  # the families of `clips` that fine-tuning and testing choose from


# Pre-training, which also serves sets that keep only every frame_step-th frame.


def pretraining_frames(num_frames: int, frame_stride: int) -> Sampler:
    """A random clip of frames that stand frame_stride apart, see `clips.pretraining_indices`.

    Raises:
      SettingError: if a number is below 1.
    """
    return _counted(_pretraining_frames, num_frames=num_frames, frame_stride=frame_stride)


def centre_frames(num_frames: int, frame_stride: int) -> Sampler:
    """The clip in the middle of a record, see `clips.centre_indices`.

    Raises:
      SettingError: if a number is below 1.
    """
    return _counted(_centre_frames, num_frames=num_frames, frame_stride=frame_stride)


def _pretraining_frames(
    reader: VideoReader, rng: np.random.Generator, *, num_frames: int, frame_stride: int
) -> np.ndarray:
    kept = {"frame_step": reader.frame_step, "frame_phase": reader.frame_phase}
    return clips.pretraining_indices(reader.num_frames, num_frames, frame_stride, rng, **kept)


def _centre_frames(
    reader: VideoReader, rng: np.random.Generator, *, num_frames: int, frame_stride: int
) -> np.ndarray:
    kept = {"frame_step": reader.frame_step, "frame_phase": reader.frame_phase}
    return clips.centre_indices(reader.num_frames, num_frames, frame_stride, **kept)


# Fine-tuning and testing. Their frames stand unevenly, so they need sets that keep every frame:
# `VideoSource.check_serves(frame_stride, uneven=True)` asks for that before anything is read.


def fine_tuning_frames(num_frames: int, frame_stride: int, sampling: str) -> Sampler:
    """A random clip for fine-tuning, int64 [num_frames].

    Args:
      num_frames: frames in the clip (T).
      frame_stride: of "dense": the clip spans num_frames * frame_stride frames.
      sampling: "dense" (`clips.dense_indices`) or "tsn" (`clips.tsn_indices`).
    Raises:
      SettingError: if a number is below 1, or for an unknown sampling.
    """
    check_sampling(sampling)
    return _counted(_fine_tuning_frames, sampling, num_frames=num_frames, frame_stride=frame_stride)


def validation_frames(num_frames: int, frame_stride: int, sampling: str) -> Sampler:
    """The one clip that `fine_tuning_frames` is validated on, always the same: int64 [num_frames].

    As VideoMAE V2 chooses it (`clips.dense_centre_indices`, `clips.tsn_centre_indices`); V1
    validates on random clips.

    Args, Raises:
      As `fine_tuning_frames`.
    """
    check_sampling(sampling)
    return _counted(_validation_frames, sampling, num_frames=num_frames, frame_stride=frame_stride)


def view_frames(num_frames: int, frame_stride: int, sampling: str, num_segments: int) -> Sampler:
    """The clips of a test, one after another: int64 [num_segments * num_frames].

    Views overlap in short videos; a reader decodes a frame once however often it is asked for.

    Args:
      num_frames, frame_stride, sampling: as in `fine_tuning_frames`; the rules are
        `clips.dense_view_indices` and `clips.tsn_view_indices`.
      num_segments: temporal views; the originals take 5 for Kinetics and UCF101, 2 for
        Something-Something V2.
    Raises:
      SettingError: if a number is below 1, or for an unknown sampling.
    """
    check_sampling(sampling)
    counts = {"num_frames": num_frames, "frame_stride": frame_stride, "num_segments": num_segments}
    return _counted(_view_frames, sampling, **counts)


def check_sampling(sampling: str) -> None:
    """Compares the name of a family of rules with those there are.

    Raises:
      SettingError: if `sampling` is not in SAMPLINGS.
    """
    if sampling not in SAMPLINGS:
        raise SettingError(f"sampling={sampling!r} is unknown; choose from {', '.join(SAMPLINGS)}.")


def _fine_tuning_frames(
    reader: VideoReader,
    rng: np.random.Generator,
    *,
    num_frames: int,
    frame_stride: int,
    sampling: str,
) -> np.ndarray:
    if sampling == "tsn":
        return clips.tsn_indices(reader.num_frames, num_frames, rng)
    return clips.dense_indices(reader.num_frames, num_frames, frame_stride, rng)


def _validation_frames(
    reader: VideoReader,
    rng: np.random.Generator,
    *,
    num_frames: int,
    frame_stride: int,
    sampling: str,
) -> np.ndarray:
    if sampling == "tsn":
        return clips.tsn_centre_indices(reader.num_frames, num_frames)
    return clips.dense_centre_indices(reader.num_frames, num_frames, frame_stride)


def _view_frames(
    reader: VideoReader,
    rng: np.random.Generator,
    *,
    num_frames: int,
    frame_stride: int,
    sampling: str,
    num_segments: int,
) -> np.ndarray:
    length = reader.num_frames
    if sampling == "tsn":
        views = [
            clips.tsn_view_indices(length, num_frames, view, num_segments)
            for view in range(num_segments)
        ]
    else:
        views = [
            clips.dense_view_indices(length, num_frames, frame_stride, view, num_segments)
            for view in range(num_segments)
        ]
    return np.concatenate(views)


def _counted(function: Callable, sampling: str | None = None, **counts: int) -> Sampler:
    for name, value in counts.items():
        if value < 1:
            unit = "view" if name == "num_segments" else "frame"
            raise SettingError(f"{name}={value} must be at least 1 {unit}.")
    rest = {} if sampling is None else {"sampling": sampling}
    return functools.partial(function, **counts, **rest)


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
    clips.check_timed(num_frames, fps)
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
    return clips.timed_indices(reader.times, num_frames, fps, start)


def _timed_view_frames(
    reader: VideoReader, rng: np.random.Generator, *, num_frames: int, fps: float, num_segments: int
) -> np.ndarray:
    free = max(_free_seconds(reader, num_frames, fps), 0.0)
    starts = np.linspace(0, free, num_segments) if num_segments > 1 else [free / 2]
    return np.concatenate([clips.timed_indices(reader.times, num_frames, fps, s) for s in starts])
