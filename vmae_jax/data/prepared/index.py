"""The index of a prepared set: the file that lists its shards and the records in them.

It is written when the last shard is finished, so a folder without one is no set yet.
"""

from __future__ import annotations

import json
import os
from typing import Any

from vmae_jax.data.prepared.record import JPEG, VIDEO
from vmae_jax.errors import SettingError
from vmae_jax.files import storage

INDEX = "index.json"
FORMER_INDEX = "manifest.json"  # as older versions of `prepare` call it
FORMAT = "vmae_jax prepared videos"
FORMAT_VERSION = 1
STORED_AS = {"jpeg": JPEG, "original": VIDEO, "h264": VIDEO}  # by what `prepare --encoding` says


def check_local(path: str | os.PathLike) -> None:
    """Asks whether a prepared set can be in this folder.

    Raises:
      SettingError: for an address, whose shards could not be opened.
    """
    if storage.is_remote(os.fspath(path)):
        raise SettingError(
            f"path={os.fspath(path)!r} is remote, but prepared sets are written and read on disks; "
            "give a folder, and copy or mount the set there."
        )


def index_file(path: str | os.PathLike) -> str | None:
    """The index in the folder of a prepared set, or None if there is none."""
    files = (os.path.join(path, name) for name in (INDEX, FORMER_INDEX))
    return next(filter(os.path.isfile, files), None)


def read_index(path: str | os.PathLike) -> dict[str, Any]:
    """The index of the prepared set in a folder.

    Returns:
      {"format", "version", "settings", "counts", "bytes", "packages", "shards": [{"file", "bytes",
      "sha256", "records": [{"clip_id", "label", "num_frames", "phase", ...}]}]}. A label is as
      `record_label` has it, a list where that has a tuple. Only "format", "version", the names of
      the shards and the encoding in "settings" are checked here.
    Raises:
      SettingError: if there is none (yet), or it cannot be used.
    """
    check_local(path)
    file = index_file(path)
    if file is None:
        raise SettingError(
            f"path={os.fspath(path)!r} holds no {INDEX}: it is no prepared set, or one that is "
            "not finished; run `python -m vmae_jax prepare` with the same settings to finish it."
        )
    try:
        with open(file, encoding="utf-8") as opened:
            index = json.load(opened)
        known = (index["format"], index["version"])
        names = [shard["file"] for shard in index["shards"]]
        whole = len(set(names)) == len(names) and all(os.path.basename(n) == n for n in names)
        whole = whole and index["settings"]["encoding"] in STORED_AS
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged_index(file, repr(error)) from error
    if known != (FORMAT, FORMAT_VERSION):
        raise SettingError(
            f"{file} is of format {known}, not {(FORMAT, FORMAT_VERSION)}; prepare the set again "
            "with this program."
        )
    if not whole:
        raise damaged_index(file, "its shards or settings cannot be right")
    return index


def damaged_index(file: str, reason: str) -> SettingError:
    """The error to raise about an index that cannot be used."""
    return SettingError(
        f"{file} is damaged ({reason}); delete it and run the same `prepare` again, which keeps "
        "the finished shards."
    )


def shard_files(path: str | os.PathLike, index: dict[str, Any]) -> list[str]:
    """The paths of the set's shards in the order of the index."""
    return [os.path.join(path, shard["file"]) for shard in index["shards"]]
