"""A set of prepared videos, opened as a data set.

The index lists every record, so making a PreparedSource opens no shard. A damaged shard costs the
records that the damage touches: each of them is a VideoError when it is opened.
"""

from __future__ import annotations

import math
import os
from typing import Any

from vmae_jax.data.prepared.index import (
    STORED_AS,
    damaged_index,
    index_file,
    read_index,
    shard_files,
)
from vmae_jax.data.prepared.record import VIDEO
from vmae_jax.data.prepared.shard_reader import Shards
from vmae_jax.data.sources.record_label import single_class
from vmae_jax.data.sources.splits import ALL, check_split
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.reader import VideoError, VideoReader
from vmae_jax.errors import SettingError


class PreparedSource(VideoSource):
    """The records of a prepared set, in the order of the set they were prepared from.

    A record's path is that of its shard. It is opened by its number alone.

    Args:
      path: folder that `python -m vmae_jax prepare` wrote.
      backend: a key of `decoders.DECODERS`, for sets that keep video files.
    Attributes:
      frame_step: readers give every frame_step-th frame only.
      needs_isolation: whether opening a record runs a video decoder, which may crash or hang.
    Raises:
      SettingError: if the folder holds no finished set, or a shard is missing or truncated.
    """

    has_files = False
    paths_are_videos = False

    def __init__(self, path: str | os.PathLike, backend: str = "pyav"):
        index = read_index(path)
        shards, files = index["shards"], shard_files(path, index)
        try:
            for shard, file in zip(shards, files, strict=True):
                _check_size(file, shard["bytes"])
            self._places = [(s, row) for s, x in enumerate(shards) for row in range(_count(x))]
            self._num_frames = [entry["num_frames"] for x in shards for entry in x["records"]]
            records = [
                VideoRecord(file, entry["clip_id"], label=entry["label"])
                for shard, file in zip(shards, files, strict=True)
                for entry in shard["records"]
            ]
            self.frame_step = int(index["settings"]["frame_step"])
            self._shards = Shards(files, [_count(shard) for shard in shards])
            class_names = tuple(index["settings"]["class_names"])
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged_index(index_file(path), repr(error)) from error
        super().__init__(records, backend, class_names)
        self.path = os.fspath(path)
        self.needs_isolation = STORED_AS[index["settings"]["encoding"]] == VIDEO

    def open(self, i: int) -> VideoReader:
        """A reader of record i.

        Raises:
          VideoError: if the record is damaged, or is not the one that the index lists.
        """
        record = self.records[i]
        video = self._shards.read(*self._places[i])
        label = single_class(record.label)
        listed = (record.clip_id, label, self._num_frames[i], self.frame_step)
        facts = video.facts
        found = (facts.clip_id, facts.label, facts.num_frames, facts.frame_step)
        if found != listed:
            raise VideoError(
                f"{record.path}, record {self._places[i][1]}",
                f"it holds {found} where the index lists {listed}; prepare its shard again.",
            )
        return video.open(self.backend)

    def open_whole(self, record: VideoRecord) -> VideoReader:
        """Not possible: a shard is not a video.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            f"{record.path!r} holds many videos; open the records of a prepared set by number."
        )

    def check_serves(self, frame_stride: int, uneven: bool = False) -> None:
        """Compares the stride with the distance of the frames that are kept.

        Args:
          frame_stride, uneven: as in `VideoSource.check_serves`.
        Raises:
          SettingError: if this set cannot serve the stride; it names the set that could.
        """
        needed = 1 if uneven else math.gcd(frame_stride, self.frame_step)
        if needed == self.frame_step:
            return
        what = "unevenly spaced frames" if uneven else f"frame_stride={frame_stride}"
        raise SettingError(
            f"{what} cannot be read from {self.path!r}, which keeps every "
            f"frame_step={self.frame_step}th frame; prepare with --frame-step {needed}."
        )


def prepared(path: str | None, split: str, *, backend: str = "pyav") -> PreparedSource:
    """A split of a prepared data set.

    Args:
      path: the folder with the sets, `<path>/train`, `<path>/held_out` and `<path>/all`.
      split: "train", "held_out", or "all", which also takes a path that is a set itself.
      backend: as of PreparedSource.
    Raises:
      SettingError: for an unknown split, or as PreparedSource.
    """
    check_split(split)
    path = path or ""
    is_set = split == ALL and index_file(path) is not None
    return PreparedSource(path if is_set else os.path.join(path, split), backend)


def _count(shard: dict[str, Any]) -> int:
    return len(shard["records"])


def _check_size(file: str, size: int) -> None:
    found = os.path.getsize(file) if os.path.isfile(file) else None
    if found != size:
        what = "is missing" if found is None else f"has {found} bytes instead of {size}"
        raise SettingError(
            f"shard {file!r} {what}; delete what is left of it and run the same `prepare` again, "
            "or restore it."
        )
