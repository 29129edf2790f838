"""Data sets: which videos there are, and which frames of each may be used for what.

A source is a fixed sequence of records, known without opening a file. A record is a range of frames
of one video, not a clip: which frames make a clip is chosen later. Records of one split may overlap
(a long range is cut into many, so that an epoch visits all of it). Records are made in
`folders`, `listings`, `manifests` and `demo_clips`; `data.datasets` has the data sets by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmae_jax.data.sources.record_label import Label, checked_label
from vmae_jax.data.video.decoders import open_video
from vmae_jax.data.video.frame_reader import FrameFolderReader, FrameNames
from vmae_jax.data.video.reader import TIME_TOLERANCE, VideoError, VideoReader, checked_indices
from vmae_jax.errors import SettingError


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """A part of a video: frames [start, stop), or those whose times are in [start_time, stop_time).

    Attributes:
      path: of the file; with `frames`, of the folder.
      clip_id: unique in its source, and readable: "bikes.mp4[64:128]".
      start, stop: frame numbers; stop=None means the end, found out when the video is opened.
      label: a class number, -1 if there is none; several as a tuple, which may be empty; or floats
        to predict (`record_label`).
      start_time, stop_time: seconds after the first frame; None: no limit. Only without start and
        stop. They may lie beyond the end, as long as there are frames between them.
      frames: for a folder of pictures, which of its files are the video's frames.
    Raises:
      SettingError: if nothing can be between the limits, they are given both ways, or the label
        is none.
    """

    path: str
    clip_id: str
    start: int = 0
    stop: int | None = None
    label: Label = -1
    start_time: float | None = None
    stop_time: float | None = None
    frames: FrameNames | None = None

    def __post_init__(self):
        try:
            object.__setattr__(self, "label", checked_label(self.label))
        except ValueError as error:
            raise SettingError(
                f"clip_id={self.clip_id!r} has label={self.label!r}, {error}; correct it."
            ) from error
        if self.is_timed and (self.start, self.stop) != (0, None):
            raise SettingError(
                f"clip_id={self.clip_id!r} is limited both by frames and by seconds; choose one."
            )
        end = float("inf") if self.stop_time is None else self.stop_time
        if self.is_timed and not 0 <= (self.start_time or 0) < end:
            raise SettingError(
                f"clip_id={self.clip_id!r} is to last from start_time={self.start_time} to "
                f"stop_time={self.stop_time}; give seconds with 0 <= start_time < stop_time."
            )

    @property
    def is_timed(self) -> bool:
        """Whether it is limited by seconds."""
        return self.start_time is not None or self.stop_time is not None

    def frame_range(self, reader: VideoReader) -> tuple[int, int]:
        """[start, stop) in frames of its video, whose reader is given.

        Raises:
          VideoError: if the video is shorter than the record says, or has no frame between its
            times.
        """
        start, stop = self.start, reader.num_frames if self.stop is None else self.stop
        wanted = f"[{start}, {stop})"
        if self.is_timed:
            times = reader.times + TIME_TOLERANCE
            start = int(np.searchsorted(times, self.start_time or 0))
            if self.stop_time is not None:
                stop = int(np.searchsorted(times, self.stop_time))
            wanted = f"seconds [{self.start_time or 0}, {self.stop_time})"
        if not 0 <= start < stop <= reader.num_frames:
            raise VideoError(
                self.path,
                f"it has num_frames={reader.num_frames}, the last at {reader.times[-1]:.3f} s, but "
                f"clip_id={self.clip_id!r} wants {wanted}; correct the record or restore the file.",
            )
        return start, stop


class VideoSource(Sequence):
    """A sequence of records that can be opened. It can be pickled.

    Args:
      records: at least one, their clip ids unique.
      backend: a key of `decoders.DECODERS`.
      class_names: by label, where the source knows them.
    Attributes:
      has_files: whether each record is a video that `open_whole` opens.
      paths_are_videos: whether a record's path is that of its video, and of no other video.
      needs_isolation: whether opening a record reads foreign files with a decoder that may hang or
        crash, so that it is better done in processes of its own.
    Raises:
      SettingError: if there is no record, or two share a clip id.
    """

    has_files = True
    paths_are_videos = True
    needs_isolation = True

    def __init__(
        self,
        records: Sequence[VideoRecord],
        backend: str = "pyav",
        class_names: Sequence[str] = (),
    ):
        self.records = tuple(records)
        self.backend = backend
        self.class_names = tuple(class_names)
        if not self.records:
            raise SettingError("a source without records cannot be sampled; give at least one.")
        if len({record.clip_id for record in self.records}) < len(self.records):
            raise SettingError("two records share a clip_id; ids must be unique in a source.")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> VideoRecord:
        return self.records[i]

    def open_file(self, path: str) -> VideoReader:
        """A reader of the whole file."""
        return open_video(path, self.backend)

    def check_serves(self, frame_stride: int, uneven: bool = False) -> None:
        """Asks whether the frames of a clip can be read; here all can.

        Args:
          frame_stride: distance between the frames of a clip.
          uneven: whether frames are also chosen at other distances (fine-tuning's).
        Raises:
          SettingError: if this source cannot serve the stride.
        """

    def open_whole(self, record: VideoRecord) -> VideoReader:
        """A reader of all of the record's video, file or folder."""
        if record.frames:
            return FrameFolderReader(record.path, record.frames)
        return self.open_file(record.path)

    def open(self, i: int) -> VideoReader:
        """A reader of record i alone: its frame 0 is the record's first.

        Raises:
          VideoError: if the video cannot be opened, or does not have the record's frames.
        """
        record = self.records[i]
        reader = self.open_whole(record)
        try:
            return _RangeReader(reader, record)
        except VideoError:
            reader.close()
            raise


class _RangeReader(VideoReader):
    """The record's part of its video's reader, which it closes."""

    def __init__(self, reader: VideoReader, record: VideoRecord):
        self._start, stop = record.frame_range(reader)
        self._reader = reader
        self._clip_id = record.clip_id
        self.num_frames = stop - self._start
        self.fps, self.codec = reader.fps, reader.codec
        self.times = reader.times[self._start : stop] - reader.times[self._start]

    @property
    def height(self) -> int:
        return self._reader.height

    @property
    def width(self) -> int:
        return self._reader.width

    def read(self, indices: Sequence[int]) -> np.ndarray:
        indices = checked_indices(indices, self.num_frames, self._clip_id)
        return self._reader.read(indices + self._start)

    def close(self) -> None:
        self._reader.close()
