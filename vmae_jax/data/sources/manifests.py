"""Sources from manifests: CSV, JSON or JSON lines, one row for each part of a video.

Seconds (start, end) and frames (start_frame, stop_frame) are two ways to say the same: a row has
one of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from vmae_jax.data.sources.list_files import class_names_of, distinct
from vmae_jax.data.sources.manifest_rows import read_rows
from vmae_jax.data.sources.record_label import NO_LABEL
from vmae_jax.data.sources.splits import ALL, HELD_OUT, TRAIN, check_split, in_split
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.errors import SettingError
from vmae_jax.files import storage


def manifest(
    path: str | None,
    split: str,
    *,
    root: str = "",
    classes: str | Sequence[str] | None = None,
    label_kind: str = "single",
    train_split: str = "train",
    held_out_split: str = "val",
    held_out_path: str | None = None,
    held_out_ratio: float = 0.05,
    ignore: Sequence[str] = (),
    backend: str = "pyav",
) -> VideoSource:
    """The rows of a manifest: a .csv file with a header, .json (a list of objects) or .jsonl.

    The columns are those of `manifest_rows.COLUMNS`, of which only `path` is needed. Empty fields
    and JSON's null count as absent. Ids that are made here, of path and limits, end in #2, #3, ...
    where they occur again; ids in the column clip_id have to be unique.

    Args:
      path: the manifest, which may be remote.
      split: "train", "held_out", or "all", every row of `path`.
      root: folder or address to which relative paths belong; "" takes them as they stand.
      classes: class names in the order of their numbers, or a file with one in each line. With
        them a label may be a name; without, only a number.
      label_kind: "single": the column `label` holds one class. "multi": any number of them, with
        ";" between them or as a JSON list, "[]" for none.
      train_split, held_out_split: what the column `split` says of the rows of either split; other
        rows are left out.
      held_out_path: manifest of the held-out videos, where there is no column `split`.
      held_out_ratio: share of the videos that is held out if there is neither, as in
        `video_folder`, by the hash of the path in the manifest.
      ignore: further columns, which mean nothing here.
      backend: a key of `decoders.DECODERS`.
    Raises:
      SettingError: for an unknown split, a manifest that cannot be read, columns that are not
        known, rows that cannot be used (the first of them are named), or an empty split.
    """
    check_split(split)
    list_path = held_out_path if held_out_path and split == HELD_OUT else path
    if isinstance(ignore, str):
        raise SettingError(f"ignore={ignore!r} is one name; give a list of column names.")
    class_names = class_names_of(classes)
    numbers = {name: i for i, name in enumerate(class_names)}
    rows = read_rows(list_path, numbers, ignore, label_kind)
    records = _records(rows, root, list_path)
    if any("split" in row for row in rows):
        if held_out_path:
            raise SettingError(
                f"held_out_path={held_out_path!r}, but {list_path!r} has a column 'split'; remove "
                "one of them."
            )
        if split != ALL:
            wanted = train_split if split == TRAIN else held_out_split
            records = _rows_of(wanted, rows, records, path)
    elif not held_out_path:
        names = [row["path"] for row in rows]
        records = in_split(zip(names, records, strict=True), split, held_out_ratio, path)
    return VideoSource(records, backend, class_names)


def _rows_of(
    wanted: str, rows: Sequence[Mapping], records: Sequence[VideoRecord], path: str
) -> list[VideoRecord]:
    found = Counter(row.get("split", "") for row in rows)
    if found[""]:
        raise SettingError(
            f"path={path!r} has a column 'split' that is empty in {found['']} rows; fill it in."
        )
    if not found[wanted]:
        raise SettingError(
            f"path={path!r} has no row whose column 'split' says {wanted!r}, they say "
            f"{sorted(found)[:10]}; set train_split and held_out_split."
        )
    return [record for row, record in zip(rows, records, strict=True) if row["split"] == wanted]


def _records(rows: Sequence[Mapping], root: str, path: str) -> list[VideoRecord]:
    given = [row["clip_id"] for row in rows if "clip_id" in row]
    if len(set(given)) < len(given):
        twice = Counter(given).most_common(1)[0][0]
        raise SettingError(
            f"path={path!r} has clip_id={twice!r} more than once; make the ids unique, or leave "
            "the column out."
        )
    made = distinct([*given, *(_readable_id(row) for row in rows if "clip_id" not in row)])
    made = iter(made[len(given) :])
    return [
        VideoRecord(
            path=storage.join(root, row["path"]),
            clip_id=row["clip_id"] if "clip_id" in row else next(made),
            start=row.get("start_frame", 0),
            stop=row.get("stop_frame"),
            label=row.get("label", row.get("target", NO_LABEL)),
            start_time=row.get("start"),
            stop_time=row.get("end"),
        )
        for row in rows
    ]


def _readable_id(row: Mapping) -> str:
    if "start" in row or "end" in row:
        return f"{row['path']}[{row.get('start', 0):g}s:{row.get('end', math.inf):g}s]"
    if "start_frame" in row or "stop_frame" in row:
        return f"{row['path']}[{row.get('start_frame', 0)}:{row.get('stop_frame', '')}]"
    return row["path"]
