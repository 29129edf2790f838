"""Reads the records of a prepared set, by shard and number."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from vmae_jax.data.prepared.record import StoredVideo
from vmae_jax.data.video.reader import VideoError, first_line
from vmae_jax.packages import import_package

# One record at a time: reading ahead would fetch megabytes that nobody asked for.
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


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

    def _reader(self, shard: int) -> Any:
        path = self._paths[shard]
        with self._lock:
            if shard in self._readers:
                return self._readers[shard]
            import_package("array_record", "a prepared data set", install="vmae_jax[data]")
            from array_record.python.array_record_module import ArrayRecordReader

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
