"""Which frames of a video make a clip: every rule of the official code, as a pure function.

Everything here is arithmetic on frame numbers counted from 0; nothing opens a file. There are two
families. Dense clips span num_frames * frame_stride frames in a row; TSN clips spread num_frames
frames over the whole video. Beware that "dense" means two things: pre-training steps by exactly
frame_stride, fine-tuning divides the span evenly from end to end (0 4 8 12 17 21 ... for a stride
of 4), and each treats short videos in its own way.

Distributions and formulas are those of the original; its stream of random numbers is not. Timed
clips, which go by seconds, are ours.
"""

from __future__ import annotations

import numpy as np

from vmae_jax.data.video.reader import TIME_TOLERANCE
from vmae_jax.errors import SettingError

MAX_FPS = 1000  # of a timed clip
SHORT_RULES = ("v1", "v2")  # what TSN sampling does where the video has fewer frames than the clip


def pretraining_indices(
    video_frames: int,
    num_frames: int,
    frame_stride: int,
    rng: np.random.Generator,
    *,
    frame_step: int = 1,
    frame_phase: int = 0,
) -> np.ndarray:
    """Frame numbers of a random clip for pre-training, int64 [num_frames].

    Every start from which the clip fits is equally likely; a video too short for one starts at 0.
    Where the video is too short, the last frame that the stride still reaches is repeated: not the
    last frame of the video, because the original counts from 1 when it looks for the end.

    Args:
      video_frames: length of the video, at least 1.
      num_frames: frames in the clip (T).
      frame_stride: distance between two of them in frames (the original's `sampling_rate`).
      rng: one integer is drawn from it, none if the video is too short.
      frame_step, frame_phase: for sets that keep only every frame_step-th frame, from frame_phase
        on: the start drawn is moved down to a frame that is kept, or up if there is none below.
    Returns:
      Ascending numbers in [0, video_frames), all of them of frames that are kept.
    Raises:
      SettingError: if a count is below 1, frame_stride is not a multiple of frame_step, or no frame
        of the video is kept.

    Source: VideoMAE, kinetics.py, class VideoMAE, which serves all its data sets
    (Something-Something V2 with stride 2). Only frame_step and frame_phase are ours.
    """
    _check_counts(video_frames=video_frames, num_frames=num_frames, frame_stride=frame_stride)
    num_starts = video_frames - num_frames * frame_stride + 1
    start = int(rng.integers(num_starts)) if num_starts > 0 else 0
    start = _kept_start(start, video_frames, frame_stride, frame_step, frame_phase)
    return _strided(start, video_frames, num_frames, frame_stride)


def centre_indices(
    video_frames: int,
    num_frames: int,
    frame_stride: int,
    *,
    frame_step: int = 1,
    frame_phase: int = 0,
) -> np.ndarray:
    """Frame numbers of the clip in the middle of the video, int64 [num_frames].

    The deterministic partner of `pretraining_indices` for held-out clips: same arguments, same
    stride, same repetition in short videos.

    Raises:
      SettingError: as `pretraining_indices`.
    """
    _check_counts(video_frames=video_frames, num_frames=num_frames, frame_stride=frame_stride)
    start = max(0, video_frames - num_frames * frame_stride) // 2
    start = _kept_start(start, video_frames, frame_stride, frame_step, frame_phase)
    return _strided(start, video_frames, num_frames, frame_stride)


def dense_indices(
    video_frames: int, num_frames: int, frame_stride: int, rng: np.random.Generator
) -> np.ndarray:
    """Frame numbers of a random dense clip for fine-tuning, int64 [num_frames].

    A span of num_frames * frame_stride frames is drawn, its last frame never being the video's, and
    divided evenly. A video no longer than the span gives a frame in every frame_stride or so, then
    its last frame again and again.

    Args:
      video_frames, num_frames, frame_stride: as in `pretraining_indices`.
      rng: one integer is drawn from it, none if the video is too short.
    Returns:
      Ascending numbers in [0, video_frames).
    Raises:
      SettingError: if a count is below 1.

    Source: VideoMAE, kinetics.py, VideoClsDataset.loadvideo_decord (training, and validation in
    V1); the same in V2, dataset/datasets.py.
    """
    _check_counts(video_frames=video_frames, num_frames=num_frames, frame_stride=frame_stride)
    span = num_frames * frame_stride
    if video_frames <= span:
        return _short_dense(video_frames, num_frames, frame_stride)
    return _spread(int(rng.integers(span, video_frames)), span, num_frames)


def dense_centre_indices(video_frames: int, num_frames: int, frame_stride: int) -> np.ndarray:
    """Frame numbers of the dense clip in the middle, for validation, int64 [num_frames].

    As `dense_indices`, with the span in the middle of the video.

    Source: VideoMAE V2, dataset/datasets.py, VideoClsDataset.load_video. V1 validates on random
    clips: that is `dense_indices`.
    """
    _check_counts(video_frames=video_frames, num_frames=num_frames, frame_stride=frame_stride)
    span = num_frames * frame_stride
    if video_frames <= span:
        return _short_dense(video_frames, num_frames, frame_stride)
    return _spread((span + video_frames) // 2, span, num_frames)


def dense_view_indices(
    video_frames: int, num_frames: int, frame_stride: int, view: int, num_views: int
) -> np.ndarray:
    """Frame numbers of test clip `view` of num_views dense ones, int64 [num_frames].

    The clips' starts are spread evenly from the first frame to the last possible; here frames do
    stand frame_stride apart. A video too short repeats the last frame that the stride reaches.

    Args:
      video_frames, num_frames, frame_stride: as in `pretraining_indices`.
      view: in [0, num_views).
      num_views: temporal views, 5 for Kinetics.
    Raises:
      SettingError: if a count is below 1, or there is no such view.

    Source: VideoMAE, kinetics.py, VideoClsDataset in test mode. One view alone divides by zero
    there; here it is the middle one.
    """
    _check_counts(video_frames=video_frames, num_frames=num_frames, frame_stride=frame_stride)
    _check_view(view, num_views)
    strided = np.arange(0, video_frames, frame_stride)
    free = max(len(strided) - num_frames, 0)
    # In floating point, as there: the last start may come out one lower for some numbers of views.
    start = int(view * (free / (num_views - 1))) if num_views > 1 else free // 2
    return strided[np.minimum(start + np.arange(num_frames), len(strided) - 1)]


def tsn_indices(
    video_frames: int, num_frames: int, rng: np.random.Generator, *, short: str = "v1"
) -> np.ndarray:
    """Frame numbers of a random clip over the whole video, int64 [num_frames].

    The video is cut into num_frames equal parts (what remains at its end is left out), and a frame
    is drawn from each.

    Args:
      video_frames: length of the video, at least 1.
      num_frames: frames in the clip (T).
      rng: num_frames integers are drawn from it, none if the video is too short.
      short: what a video of fewer than num_frames frames gives: "v1" its first frame throughout,
        "v2" its first frame until the rest fits, then every frame.
    Returns:
      Ascending numbers in [0, video_frames).
    Raises:
      SettingError: if a count is below 1, or for an unknown rule.

    Source: VideoMAE, ssv2.py, SSVideoClsDataset (training, and validation in V1); VideoMAE V2,
    dataset/datasets.py, RawFrameClsDataset.load_frame.
    """
    _check_counts(video_frames=video_frames, num_frames=num_frames)
    _check_short(short)
    part = video_frames // num_frames
    if part == 0:
        return _short_tsn(video_frames, num_frames, short)
    return np.arange(num_frames) * part + rng.integers(part, size=num_frames)


def tsn_centre_indices(video_frames: int, num_frames: int, *, short: str = "v2") -> np.ndarray:
    """Frame numbers of the middles of num_frames equal parts, for validation, int64 [num_frames].

    Args:
      video_frames, num_frames, short: as in `tsn_indices`.
    Raises:
      SettingError: as `tsn_indices`.

    Source: VideoMAE V2, dataset/datasets.py, RawFrameClsDataset.load_frame. V1 validates on random
    clips: that is `tsn_indices`.
    """
    _check_counts(video_frames=video_frames, num_frames=num_frames)
    _check_short(short)
    part = video_frames // num_frames
    if part == 0:
        return _short_tsn(video_frames, num_frames, short)
    return np.arange(num_frames) * part + part // 2


def tsn_view_indices(video_frames: int, num_frames: int, view: int, num_views: int) -> np.ndarray:
    """Frame numbers of test clip `view` of num_views interleaved ones, int64 [num_frames].

    The video is cut into num_frames equal parts, of fractional length; view k takes the frame at
    k / num_views of each. Short videos repeat frames.

    Args:
      video_frames, num_frames: as in `tsn_indices`.
      view: in [0, num_views).
      num_views: temporal views, 2 for Something-Something V2.
    Raises:
      SettingError: if a count is below 1, or there is no such view.

    Source: VideoMAE, ssv2.py (two views) and VideoMAE V2, dataset/datasets.py (any number), in test
    mode. They sort the frames of all views and deal them out in turns, which comes to the same.
    """
    _check_counts(video_frames=video_frames, num_frames=num_frames)
    _check_view(view, num_views)
    part = video_frames / num_frames
    return (view * part / num_views + part * np.arange(num_frames)).astype(np.int64)


def timed_indices(times: np.ndarray, num_frames: int, fps: float, start: float) -> np.ndarray:
    """Frame numbers of a clip at a rate of its own, whatever the video's, int64 [num_frames].

    Frame k is the one nearest in time to start + k / fps, the earlier where two are as near. Behind
    the end of the video its last frame is repeated; where the video has fewer frames a second than
    are asked for, frames are repeated as well.

    Args:
      times: float64 [n], seconds of the video's frames, ascending from 0.
      num_frames: frames in the clip (T).
      fps: frames of the clip in a second.
      start: seconds, at least 0.
    Returns:
      Ascending numbers in [0, n).
    Raises:
      SettingError: if num_frames is below 1, or fps not in (0, MAX_FPS].
    """
    check_timed(num_frames, fps)
    wanted = start + np.arange(num_frames) / fps
    later = np.minimum(np.searchsorted(times, wanted), len(times) - 1)
    earlier = np.maximum(later - 1, 0)
    is_earlier = wanted - times[earlier] <= times[later] - wanted + TIME_TOLERANCE
    return np.where(is_earlier, earlier, later).astype(np.int64)


def check_timed(num_frames: int, fps: float) -> None:
    """Compares what a timed clip is to be with what is possible.

    Raises:
      SettingError: if num_frames is below 1, or fps not in (0, MAX_FPS].
    """
    _check_counts(num_frames=num_frames)
    if not 0 < fps <= MAX_FPS:
        raise SettingError(
            f"fps={fps} must be in (0, {MAX_FPS}], the frames of a clip in a second; choose e.g. 8."
        )


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise SettingError(f"{name}={value} must be at least 1; choose a positive count.")


def _check_view(view: int, num_views: int) -> None:
    if not 0 <= view < num_views:
        raise SettingError(
            f"view={view} must be in [0, num_views={num_views}); views are counted from 0."
        )


def _check_short(short: str) -> None:
    if short not in SHORT_RULES:
        raise SettingError(f"short={short!r} is unknown; choose one of {list(SHORT_RULES)}.")


def _kept_start(start: int, video_frames: int, stride: int, step: int, phase: int) -> int:
    if step < 1 or not 0 <= phase < step:
        raise SettingError(
            f"frame_step={step} and frame_phase={phase} must fulfil 0 <= frame_phase < frame_step."
        )
    if stride % step:
        raise SettingError(
            f"frame_stride={stride} is not a multiple of frame_step={step}, the distance of the "
            "frames that are kept; choose another stride, or prepare the data with another step."
        )
    if phase >= video_frames:
        raise SettingError(
            f"video_frames={video_frames} is too short to keep a frame at frame_phase={phase}."
        )
    return max(start - (start - phase) % step, phase)


def _strided(start: int, video_frames: int, num_frames: int, frame_stride: int) -> np.ndarray:
    # The original steps on while its 1-based position plus the stride stays below the length, so a
    # step from the 0-based frame i needs i + 1 + stride < video_frames.
    steps_that_fit = max(0, (video_frames - 2 - start) // frame_stride)
    return start + frame_stride * np.minimum(np.arange(num_frames, dtype=np.int64), steps_that_fit)


def _spread(end: int, span: int, num_frames: int) -> np.ndarray:
    start = end - span
    return np.clip(np.linspace(start, end, num_frames), start, end - 1).astype(np.int64)


def _short_dense(video_frames: int, num_frames: int, frame_stride: int) -> np.ndarray:
    indices = np.full(num_frames, video_frames, np.float64)
    shown = video_frames // frame_stride
    indices[:shown] = np.linspace(0, video_frames, shown)
    return np.clip(indices, 0, video_frames - 1).astype(np.int64)


def _short_tsn(video_frames: int, num_frames: int, short: str) -> np.ndarray:
    if short == "v1":
        return np.zeros(num_frames, np.int64)
    return np.maximum(np.arange(num_frames) - (num_frames - video_frames), 0)
