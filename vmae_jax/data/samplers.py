"""Samplers: which frames of a record make its samples.

A sampler is a function (reader, rng) -> frame numbers, int64 [n]. `clips` has the rules; here they
are bound to their settings, in a form that can be pickled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from vmae_jax.data.video import clips
from vmae_jax.data.video.reader import VideoReader
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
