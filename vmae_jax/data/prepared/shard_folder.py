"""The folder of a set that is being prepared: what is finished of it, and how more gets there.

    settings.json             what the set is made with, from the beginning
    shard-00003.array_record  records; appears under this name only when whole
    shard-00003.json          its part of the index; with it, the shard counts as finished
    bad_files.jsonl           videos that could not be used, and why; at the end
    index.json                all parts in one; at the end

Every file is the same, byte for byte, however often the work was interrupted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from vmae_jax.data.prepared.index import FORMAT, FORMAT_VERSION, INDEX, check_local, index_file
from vmae_jax.errors import SettingError
from vmae_jax.packages import import_package

SETTINGS, BAD_FILES = "settings.json", "bad_files.jsonl"
SHARD_OPTIONS = "group_size:1,uncompressed"  # JPEG and video do not get smaller


class ShardFolder:
    """The folder `path`, made if needed, as it is used by host i of n = `host`.

    Raises:
      SettingError: if the path is remote.
    """

    def __init__(self, path: str | os.PathLike, host: tuple[int, int]):
        check_local(path)
        self.path, self._host = os.fspath(path), host
        os.makedirs(self.path, exist_ok=True)

    def file(self, name: str) -> str:
        """The path of the file called `name`."""
        return os.path.join(self.path, name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from making the same shards.

        Raises:
          SettingError: if one does so already.
        """
        with open(self.file(".lock-{}-of-{}".format(*self._host)), "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SettingError(
                    f"another process prepares host={self._host} of {self.path!r}; wait for it, or "
                    "end it first."
                ) from error
            yield

    def begin(self, settings: dict[str, Any]) -> None:
        """Writes down the settings, or compares them with those that stand there.

        Raises:
          SettingError: if they differ, or are missing where there are shards.
        """
        if os.path.exists(self.file(SETTINGS)):
            with open(self.file(SETTINGS), encoding="utf-8") as file:
                before = json.load(file)
            differences = [
                f"{key}={before.get(key)!r} then, {value!r} now"
                for key, value in settings.items()
                if before.get(key) != value
            ]
            if differences:
                raise SettingError(
                    f"{self.path!r} was begun with other settings ({'; '.join(differences)}); "
                    "choose those, or another folder."
                )
            return
        if index_file(self.path) or any(x.startswith("shard-") for x in os.listdir(self.path)):
            raise SettingError(
                f"{self.path!r} holds shards, but no {SETTINGS} that tells how they were made; "
                "choose another folder."
            )
        self._write_text(SETTINGS, json.dumps(settings, indent=1) + "\n")

    def part(self, shard: int) -> dict[str, Any] | None:
        """A shard's part of the index, or None if the shard is yet to be made."""
        name = _name(shard)
        try:
            with open(self.file(f"{name}.json"), encoding="utf-8") as file:
                part = json.load(file)
            size = os.path.getsize(self.file(f"{name}.array_record"))
            return part if size == part["bytes"] else None
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write_shard(
        self, shard: int, results: Iterable[dict[str, Any]], versions: dict[str, str]
    ) -> None:
        """Makes a shard.

        Args:
          shard: its number.
          results: of `video_encoding.encoded_video`, in order.
          versions: of the packages that made them.
        Raises:
          OSError: if the disk is full; nothing is left of the shard then.
        """
        name = f"{_name(shard)}.array_record"
        entries, bad = [], []
        with self._whole(name) as partial:
            with _shard_writer(partial) as writer:
                for result in results:
                    if "bad" in result:
                        bad.append(result["bad"])
                    else:
                        writer.write(result["record"].tobytes())
                        entries.append(result["entry"])
            with open(partial, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        part = {
            "file": name,
            "bytes": size,
            "sha256": digest,
            "records": entries,
            "bad": bad,
            "versions": versions,
        }
        self._write_text(f"{_name(shard)}.json", json.dumps(part) + "\n")

    def finish(self, num_shards: int, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The index of the set, once written; None if shards are yet to be made.

        Raises:
          SettingError: if there is not a single record.
        """
        parts = [self.part(shard) for shard in range(num_shards)]
        if None in parts:
            return None
        bad = [entry for part in parts for entry in part["bad"]]
        num_videos = sum(len(part["records"]) for part in parts)
        self._write_text(BAD_FILES, "".join(json.dumps(entry) + "\n" for entry in bad))
        if num_videos == 0:
            raise SettingError(
                f"none of {len(bad)} videos could be used; {self.file(BAD_FILES)} says why."
            )
        used = {item for part in parts for item in part["versions"].items()}
        shards = [{k: part[k] for k in ("file", "bytes", "sha256", "records")} for part in parts]
        index = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "settings": settings,
            "counts": {"videos": num_videos, "bad": len(bad)},
            "bytes": sum(part["bytes"] for part in parts),
            "packages": [f"{package} {version}" for package, version in sorted(used)],
            "shards": shards,
        }
        self._write_text(INDEX, json.dumps(index) + "\n")
        return index

    @contextlib.contextmanager
    def _whole(self, name: str) -> Iterator[str]:
        """Gives a path to write to; what is written appears as `name` when it is complete."""
        # No random name: what a killed run leaves is written over by the next.
        partial = self.file(f".partial-{self._host[0]}-{name}")
        try:
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self.file(name))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)

    def _write_text(self, name: str, text: str) -> None:
        """Writes a file, unless it holds that text already."""
        data = text.encode()
        with contextlib.suppress(FileNotFoundError), open(self.file(name), "rb") as file:
            if file.read() == data:
                return
        with self._whole(name) as partial, open(partial, "wb") as file:
            file.write(data)


def _name(shard: int) -> str:
    return f"shard-{shard:05d}"


@contextlib.contextmanager
def _shard_writer(path: str) -> Iterator[Any]:
    import_package("array_record", "a prepared data set", install="vmae_jax[data]")
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(path, SHARD_OPTIONS)
    try:
        yield writer
    finally:
        try:
            writer.close()  # writing goes on behind the calls: a full disk is only told here
        except RuntimeError as error:
            raise OSError(
                f"{path!r} could not be written ({error}); make room and start again: finished "
                "shards are kept."
            ) from error
