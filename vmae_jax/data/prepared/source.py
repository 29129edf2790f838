"""A set of prepared videos: a folder of shards and its manifest, opened as a data set.

The manifest lists every record, so making a PreparedSource opens no shard. A damaged shard costs
the records that the damage touches: each of them is a VideoError when it is opened.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Sequence
from typing import Any

from vmae_jax.data.prepared.record import JPEG, VIDEO, StoredVideo
from vmae_jax.data.sources.source import VideoRecord, VideoSource
from vmae_jax.data.sources.splits import check_split
from vmae_jax.data.video.decoders import VideoError, VideoReader, first_line
from vmae_jax.errors import SettingError
from vmae_jax.files import storage

MANIFEST = "manifest.json"
FORMAT = "vmae_jax prepared videos"
FORMAT_VERSION = 1
# One record at a time: reading ahead would fetch megabytes that nobody asked for.
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
STORED_AS = {"jpeg": JPEG, "original": VIDEO, "h264": VIDEO}  # by what `prepare --encoding` says


class Shards:
    """Random access to the records of some shards; may be shared by threads, and pickled.

    The files are opened when first needed, once for all threads: reading by number is thread-safe
    in array_record, and a reader for each thread would exhaust the file descriptors.

    Args:
      paths: of the shards.
      counts: how many records each must hold.
    """

    def __init__(self, paths: Sequence[str], counts: Sequence[int]):
        self._paths, self._counts = tuple(paths), tuple(counts)
        self.__setstate__({})

    def read(self, shard: int, row: int) -> StoredVideo:
        """Record number `row` of a shard.

        Raises:
          VideoError: if it cannot be read, or is damaged.
        """
        name = f"{self._paths[shard]}, record {row}"
        reader = self._reader(shard)
        try:
            (record,) = reader.read([row])
        except RuntimeError as error:
            raise VideoError(name, f"{first_line(error)}; prepare its shard again.") from error
        return StoredVideo(record, name)

    def _reader(self, shard: int):
        from array_record.python.array_record_module import ArrayRecordReader

        path = self._paths[shard]
        with self._lock:
            if shard in self._readers:
                return self._readers[shard]
            if not os.path.isfile(path):
                raise VideoError(path, "there is no such shard; restore or prepare it again.")
            try:
                reader = ArrayRecordReader(path, RANDOM_ACCESS)
                found = reader.num_records() if reader.ok() else None
            except RuntimeError as error:
                raise VideoError(path, f"{first_line(error)}; prepare it again.") from error
            if found != self._counts[shard]:
                what = "is no whole shard" if found is None else f"has {found} records"
                raise VideoError(
                    path, f"it {what}, not {self._counts[shard]} records; prepare it again."
                )
            self._readers[shard] = reader
            return reader

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_counts": self._counts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._readers, self._lock = {}, threading.Lock()


def check_local(path: str | os.PathLike) -> None:
    """Nothing, if a prepared set can be in this folder.

    Raises:
      ValueError: for an address, whose shards could not be opened.
    """
    if storage.is_remote(os.fspath(path)):
        raise SettingError(
            f"path={os.fspath(path)!r} is remote, but prepared sets are written and read on disks; "
            "give a folder, and copy or mount the set there."
        )


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """The manifest of the prepared set in a folder.

    Raises:
      ValueError: if there is none (yet), or it cannot be used.
    """
    check_local(path)
    file = os.path.join(path, MANIFEST)
    if not os.path.isfile(file):
        raise SettingError(
            f"path={os.fspath(path)!r} holds no {MANIFEST}: it is no prepared set, or one that is "
            "not finished; run `python -m vmae_jax prepare` with the same settings to finish it."
        )
    try:
        with open(file, encoding="utf-8") as opened:
            manifest = json.load(opened)
        known = (manifest["format"], manifest["version"])
        names = [shard["file"] for shard in manifest["shards"]]
        whole = len(set(names)) == len(names) and all(os.path.basename(n) == n for n in names)
        whole = whole and manifest["settings"]["encoding"] in STORED_AS
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(file, repr(error)) from error
    if known != (FORMAT, FORMAT_VERSION):
        raise SettingError(
            f"{file} is of format {known}, not {(FORMAT, FORMAT_VERSION)}; prepare the set again "
            "with this program."
        )
    if not whole:
        raise _damaged(file, "its shards or settings cannot be right")
    return manifest


def _damaged(file: str, reason: str) -> ValueError:
    return ValueError(
        f"{file} is damaged ({reason}); delete it and run the same `prepare` again, which keeps "
        "the finished shards."
    )


def shard_files(path: str | os.PathLike, manifest: dict[str, Any]) -> list[str]:
    """The paths of the set's shards in the order of the manifest."""
    return [os.path.join(path, shard["file"]) for shard in manifest["shards"]]


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
      ValueError: if the folder holds no finished set, or a shard is missing or truncated.
    """

    has_files = False

    def __init__(self, path: str | os.PathLike, backend: str = "pyav"):
        manifest = read_manifest(path)
        shards, files = manifest["shards"], shard_files(path, manifest)
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
            self.frame_step = int(manifest["settings"]["frame_step"])
            self._shards = Shards(files, [_count(shard) for shard in shards])
            class_names = tuple(manifest["settings"]["class_names"])
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(os.path.join(path, MANIFEST), repr(error)) from error
        super().__init__(records, backend, class_names)
        self.path = os.fspath(path)
        self.needs_isolation = STORED_AS[manifest["settings"]["encoding"]] == VIDEO

    def open(self, i: int) -> VideoReader:
        """A reader of record i.

        Raises:
          VideoError: if the record is damaged, or is not the one that the manifest lists.
        """
        record = self.records[i]
        video = self._shards.read(*self._places[i])
        listed = (record.clip_id, record.label, self._num_frames[i], self.frame_step)
        facts = video.facts
        found = (facts.clip_id, facts.label, facts.num_frames, facts.frame_step)
        if found != listed:
            raise VideoError(
                f"{record.path}, record {self._places[i][1]}",
                f"it holds {found} where {MANIFEST} lists {listed}; prepare its shard again.",
            )
        return video.open(self.backend)

    def open_whole(self, record: VideoRecord) -> VideoReader:
        """Not possible: a shard is not a video.

        Raises:
          ValueError: always.
        """
        raise SettingError(
            f"{record.path!r} holds many videos; open the records of a prepared set by number."
        )

    def check_serves(self, frame_stride: int, uneven: bool = False) -> None:
        """As `VideoSource.check_serves`; the error names the set that could."""
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
      path: the folder with both sets, `<path>/train` and `<path>/held_out`.
      split: "train" or "held_out".
      backend: as of PreparedSource.
    Raises:
      ValueError: for an unknown split, or as PreparedSource.
    """
    check_split(split)
    return PreparedSource(os.path.join(path or "", split), backend)


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
