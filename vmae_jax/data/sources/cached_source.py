"""Sources whose files are decoded once and then kept in memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.augment import centre_crop
from vmae_jax.data.video.frame_reader import FrameNames
from vmae_jax.data.video.reader import VideoReader, checked_indices
from vmae_jax.errors import SettingError

DECODE_CHUNK = 32  # frames held at full size


def cached(source: VideoSource, size: tuple[int, int]) -> VideoSource:
    """The same records, each file decoded once, made small, and then kept in memory.

    For data sets of a few short videos, which would otherwise be decoded again at every visit. A
    file is decoded whole when one of its records is first opened, by whichever thread comes first.

    Memory: frames * height * width * 3 bytes at the reduced size for every file opened (12 MB for
    10 seconds of 25 frames of 128 x 128 pixels). Twice that while a file is put together, and 32
    frames at full size while it is decoded. Nothing is ever dropped. Threads share it; it cannot be
    pickled for other processes.

    Args:
      source: whose records to serve.
      size: (height, width) in pixels; frames are resized to cover it and cut in the centre. Crops
        are then taken from these: the closer to the model's image size, the fewer different ones
        there are (which a tiny model learns sooner), and the more of them are enlarged.
    Raises:
      SettingError: if a side is below 1, or the source has no files.
    """
    if min(size) < 1:
        raise SettingError(f"size={tuple(size)} must be (height, width), each at least 1 pixel.")
    if not source.has_files:
        raise SettingError(
            f"size={tuple(size)} would keep whole files in memory, but a prepared set has none; "
            "leave data.cache_size out."
        )
    return _CachedSource(source, tuple(size))


class _CachedSource(VideoSource):
    needs_isolation = False  # each process would decode and keep all files of its own

    def __init__(self, source: VideoSource, size: tuple[int, int]):
        super().__init__(source.records, source.backend, source.class_names)
        self.paths_are_videos = source.paths_are_videos
        self._source = source
        self._size = size
        self._readers: dict[tuple[str, FrameNames | None], _MemoryReader] = {}
        # A lock per file: two files may be decoded at a time, one file never twice.
        self._locks = {_file(record): threading.Lock() for record in source.records}

    def open_whole(self, record: VideoRecord) -> VideoReader:
        file = _file(record)
        with self._locks[file]:
            if file not in self._readers:
                self._readers[file] = self._decode(record)
            return self._readers[file]

    def _decode(self, record: VideoRecord) -> _MemoryReader:
        with self._source.open_whole(record) as reader:
            chunks = [
                centre_crop(
                    reader.read(range(start, min(start + DECODE_CHUNK, reader.num_frames))),
                    self._size,
                )
                for start in range(0, reader.num_frames, DECODE_CHUNK)
            ]
            return _MemoryReader(np.concatenate(chunks), reader, record.path)


class _MemoryReader(VideoReader):
    """Closing it leaves the frames where they are, for the next one who opens the file."""

    def __init__(self, frames: np.ndarray, reader: VideoReader, path: str):
        self._frames, self._path = frames, path
        self.num_frames, self.height, self.width, _ = frames.shape
        self.fps, self.times, self.codec = reader.fps, reader.times, reader.codec

    def read(self, indices: Sequence[int]) -> np.ndarray:
        return self._frames[checked_indices(indices, self.num_frames, self._path)]


def _file(record: VideoRecord) -> tuple[str, FrameNames | None]:
    return record.path, record.frames
