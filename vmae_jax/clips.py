"""Which frames of a video make a clip.

Everything here is integer arithmetic on frame numbers counted from 0; nothing opens a file. Where a
video is too short, the last frame that the stride still reaches is repeated: not the last frame of
the video, because the original counts from 1 when it looks for the end.
"""

from __future__ import annotations

import numpy as np


def pretraining_indices(
    video_frames: int, num_frames: int, frame_stride: int, rng: np.random.Generator
) -> np.ndarray:
    """Frame numbers of a random clip, int64 [num_frames].

    Every start from which the clip fits is equally likely; a video too short for one starts at 0.

    Args:
      video_frames: length of the video, at least 1.
      num_frames: frames in the clip (T).
      frame_stride: distance between two of them in frames (the original's `sampling_rate`).
      rng: one integer is drawn from it, none if the video is too short.
    Returns:
      Ascending numbers in [0, video_frames).
    Raises:
      ValueError: if a count is below 1.

    Source: VideoMAE, kinetics.py, class VideoMAE, which serves all its data sets
    (Something-Something V2 with stride 2). Only the random generator differs.
    """
    _check_counts(video_frames, num_frames, frame_stride)
    num_starts = video_frames - num_frames * frame_stride + 1
    start = int(rng.integers(num_starts)) if num_starts > 0 else 0
    return _strided(start, video_frames, num_frames, frame_stride)


def centre_indices(video_frames: int, num_frames: int, frame_stride: int) -> np.ndarray:
    """Frame numbers of the clip in the middle of the video, int64 [num_frames].

    The deterministic partner of `pretraining_indices` for held-out clips: same arguments, same
    stride, same repetition in short videos.

    Raises:
      ValueError: if a count is below 1.
    """
    _check_counts(video_frames, num_frames, frame_stride)
    start = max(0, video_frames - num_frames * frame_stride) // 2
    return _strided(start, video_frames, num_frames, frame_stride)


def _check_counts(video_frames: int, num_frames: int, frame_stride: int) -> None:
    counts = {
        "video_frames": video_frames,
        "num_frames": num_frames,
        "frame_stride": frame_stride,
    }
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1; choose a positive count.")


def _strided(start: int, video_frames: int, num_frames: int, frame_stride: int) -> np.ndarray:
    # The original steps on while its 1-based position plus the stride stays below the length, so a
    # step from the 0-based frame i needs i + 1 + stride < video_frames.
    steps_that_fit = max(0, (video_frames - 2 - start) // frame_stride)
    return start + frame_stride * np.minimum(np.arange(num_frames, dtype=np.int64), steps_that_fit)
