"""Sources from manifests: CSV, JSON or JSON lines, one row for each part of a video.

A manifest may come from anyone. It is parsed and checked, nothing in it is run, and a row that
cannot be used is an error that names its line and column, never a row left out. Seconds (start,
end) and frames (start_frame, stop_frame) are two ways to say the same: a row has one of them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vmae_jax.data.sources.listings import MAX_LIST_BYTES, Problems, check_path, distinct
from vmae_jax.data.sources.source import VideoRecord, VideoSource
from vmae_jax.data.sources.splits import check_split, in_split
from vmae_jax.errors import SettingError
from vmae_jax.files import storage


def manifest(
    path: str | None,
    split: str,
    *,
    root: str = "",
    classes: str | Sequence[str] | None = None,
    train_split: str = "train",
    held_out_split: str = "val",
    held_out_path: str | None = None,
    held_out_ratio: float = 0.05,
    ignore: Sequence[str] = (),
    backend: str = "pyav",
) -> VideoSource:
    """The rows of a manifest: a .csv file with a header, .json (a list of objects) or .jsonl.

    The columns are those of COLUMNS, of which only `path` is needed. Empty fields and JSON's null
    count as absent. Ids that are made here, of path and limits, end in #2, #3, ... where they
    occur again; ids in the column clip_id have to be unique.

    Args:
      path: the manifest, which may be remote.
      split: "train" or "held_out".
      root: folder or address to which relative paths belong; "" takes them as they stand.
      classes: class names in the order of their numbers, or a file with one in each line. With
        them a label may be a name; without, only a number.
      train_split, held_out_split: what the column `split` says of the rows of either split; other
        rows are left out.
      held_out_path: manifest of the held-out videos, where there is no column `split`.
      held_out_ratio: share of the videos that is held out if there is neither, as in
        `video_folder`, by the hash of the path in the manifest.
      ignore: further columns, which mean nothing here.
      backend: a key of `decoders.DECODERS`.
    Raises:
      ValueError: for an unknown split, a manifest that cannot be read, columns that are not known,
        rows that cannot be used (the first of them are named), or an empty split.
    """
    check_split(split)
    list_path = held_out_path if held_out_path and split == "held_out" else path
    if isinstance(ignore, str):
        raise SettingError(f"ignore={ignore!r} is one name; give a list of column names.")
    class_names = _class_names(classes)
    by_name = {name: i for i, name in enumerate(class_names)}
    read_rows, unit = _reader(list_path)
    rows, problems = [], Problems(list_path, unit)
    for number, row in read_rows(storage.read_text(list_path, MAX_LIST_BYTES), list_path):
        try:
            rows.append(_parse_row(row, by_name, ignore))
        except ValueError as error:
            problems.add(number, str(error))
    problems.raise_any()
    if not rows:
        raise SettingError(f"path={list_path!r} lists no video; give one with at least one row.")
    records = _records(rows, root, list_path)
    if any("split" in row for row in rows):
        if held_out_path:
            raise SettingError(
                f"held_out_path={held_out_path!r}, but {list_path!r} has a column 'split'; remove "
                "one of them."
            )
        records = _rows_of(train_split if split == "train" else held_out_split, rows, records, path)
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
            label=row.get("label", -1),
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


def _class_names(classes: str | Sequence[str] | None) -> list[str]:
    if isinstance(classes, str):
        text = storage.read_text(classes, MAX_LIST_BYTES)
        classes = [line.strip() for line in text.split("\n") if line.strip()]
    names = list(classes or ())
    if len(set(names)) < len(names):
        raise SettingError("classes names a class twice; give each name once, by class number.")
    return names


# Rows of the three kinds of file, each with the number under which a person finds it; a row that
# cannot be read is the ValueError that says why


def _reader(path: str | None) -> tuple[Callable, str]:
    extension = (path or "").rpartition(".")[2].lower()
    if extension not in READERS:
        raise SettingError(
            f"path={path!r} is no manifest; its name must end in one of "
            f"{', '.join(f'.{known}' for known in READERS)}."
        )
    return READERS[extension]


def _csv_rows(text: str, path: str) -> Iterator[tuple[int, Any]]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        if "path" not in header or len(set(header)) < len(header):
            raise SettingError(
                f"path={path!r} must begin with a line of different column names, one of them "
                f"'path'; it has {header[:20]}."
            )
        for fields in lines:
            if len(fields) == len(header):
                yield lines.line_num, dict(zip(header, fields, strict=True))
            elif fields:
                yield lines.line_num, ValueError(f"it has {len(fields)} fields, not {len(header)}")
    except csv.Error as error:
        raise SettingError(
            f"path={path!r} is no CSV file at line {lines.line_num} ({error}); correct the line."
        ) from error


def _json_rows(text: str, path: str) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"path={path!r} is no JSON ({error}); correct the file.") from error
    if not isinstance(rows, list):
        raise SettingError(f"path={path!r} must hold a JSON list of objects, one for each video.")
    yield from enumerate(rows, 1)


def _json_line_rows(text: str, path: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"it is no JSON ({error})")


READERS = {
    "csv": (_csv_rows, "line"),
    "json": (_json_rows, "item"),
    "jsonl": (_json_line_rows, "line"),
}


# From what a field holds (text, or any JSON value) to what it means; ValueError says why not


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise SettingError("is not a text")
    check_path(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise SettingError("is not a number") from None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e12:
        raise SettingError("is not a number from 0 on")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,12}", value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1e12:
        raise SettingError("is not a whole number from 0 on")
    return value


def _label(value: Any, classes: Mapping[str, int]) -> int:
    if isinstance(value, str) and value in classes:
        return classes[value]
    try:
        label = _count(value)
    except ValueError:
        raise SettingError(
            f"is none of the {len(classes)} names in classes, nor a number"
            if classes
            else "is not a number; for names, give the option classes"
        ) from None
    if classes and label >= len(classes):
        raise SettingError(f"is above the last of the {len(classes)} classes")
    return label


COLUMNS: dict[str, Callable] = {
    "path": _text,
    "label": _label,  # class number, or name
    "start": _number,  # seconds
    "end": _number,  # seconds, after the last frame
    "start_frame": _count,
    "stop_frame": _count,  # after the last frame
    "clip_id": _text,
    "split": _text,
}


def _parse_row(row: Any, classes: Mapping[str, int], ignore: Sequence[str]) -> dict[str, Any]:
    """The values of a row by column, absent ones left out. Raises ValueError."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise SettingError("it is no JSON object")
    values = {}
    for column, value in row.items():
        if column not in COLUMNS and column not in ignore:
            raise SettingError(
                f"column {column[:40]!r} is unknown; known are {list(COLUMNS)}, and the option "
                "ignore takes others"
            )
        if column in ignore or value is None or (isinstance(value, str) and not value.strip()):
            continue
        try:
            arguments = (value, classes) if column == "label" else (value,)
            values[column] = COLUMNS[column](*arguments)
        except ValueError as error:
            raise SettingError(f"column {column!r}: {str(value)[:80]!r} {error}") from None
    if "path" not in values:
        raise SettingError("column 'path' is empty")
    _check_limits(values)
    return values


def _check_limits(values: Mapping[str, Any]) -> None:
    seconds, frames = ("start", "end"), ("start_frame", "stop_frame")
    if any(c in values for c in seconds) and any(c in values for c in frames):
        raise SettingError("it is limited both by seconds and by frames; choose one")
    for first, last in (seconds, frames):
        if values.get(first, 0) >= values.get(last, math.inf):
            raise SettingError(
                f"columns {first}={values.get(first, 0)} and {last}={values[last]} leave nothing"
            )
