"""The rows of a manifest, read from CSV, JSON or JSON lines and checked column by column.

A manifest may come from anyone. Nothing in it is run, and a row that cannot be used is an error
that names its line and column, never a row left out.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vmae_jax.data.sources.list_files import MAX_LIST_BYTES, Problems, check_path
from vmae_jax.data.sources.record_label import checked_label
from vmae_jax.errors import SettingError
from vmae_jax.files import storage


def read_rows(
    path: str | None,
    classes: Mapping[str, int],
    ignore: Sequence[str],
    label_kind: str = "single",
) -> list[dict[str, Any]]:
    """The rows of a manifest: {column: value}, absent columns left out.

    Args:
      path: of a file that ends in one of FORMATS.
      classes: number of each class by its name; {} if labels are numbers.
      ignore: columns to pass over, beside those of COLUMNS.
      label_kind: a key of LABEL_KINDS.
    Raises:
      SettingError: for an unknown kind; if the file cannot be read or holds no row; or for rows
        that cannot be used, of which the first are named.
    """
    extension = (path or "").rpartition(".")[2].lower()
    if extension not in FORMATS:
        raise SettingError(
            f"path={path!r} is no manifest; its name must end in one of "
            f"{', '.join(f'.{known}' for known in FORMATS)}."
        )
    if label_kind not in LABEL_KINDS:
        raise SettingError(
            f"label_kind={label_kind!r} is unknown; choose one of {list(LABEL_KINDS)}."
        )
    columns = {**COLUMNS, "label": functools.partial(LABEL_KINDS[label_kind], classes=classes)}
    parse, unit = FORMATS[extension]
    rows, problems = [], Problems(path, unit)
    for number, row in parse(storage.read_text(path, MAX_LIST_BYTES), path):
        try:
            rows.append(_values(row, columns, ignore))
        except ValueError as error:
            problems.add(number, str(error))
    problems.raise_any()
    if not rows:
        raise SettingError(f"path={path!r} lists no video; give one with at least one row.")
    return rows


# From the text of a file to its rows, each with the number under which a person finds it. In place
# of a row that cannot be read stands the ValueError that says why.


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


# By extension: how the rows are read, and what their numbers count.
FORMATS = {
    "csv": (_csv_rows, "line"),
    "json": (_json_rows, "item"),
    "jsonl": (_json_line_rows, "line"),
}


# From what a field holds (text, or any JSON value) to what it means. ValueError says why not.


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not a text")
    check_path(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError("is not a number") from None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e12:
        raise ValueError("is not a number from 0 on")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,12}", value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1e12:
        raise ValueError("is not a whole number from 0 on")
    return value


def _several(value: Any) -> list[Any]:
    """The items of a JSON list, of its text, or of a text with ";" between them; or one alone."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError("is no JSON list") from None
        else:
            value = [item.strip() for item in value.split(";")]
    return value if isinstance(value, list) else [value]


def _label(value: Any, classes: Mapping[str, int]) -> int:
    if isinstance(value, str) and value in classes:
        return classes[value]
    try:
        label = _count(value)
    except ValueError:
        raise ValueError(
            f"is none of the {len(classes)} names in classes, nor a number"
            if classes
            else "is not a number; for names, give the option classes; for several, "
            "label_kind='multi'"
        ) from None
    if classes and label >= len(classes):
        raise ValueError(f"is above the last of the {len(classes)} classes")
    return label


def _labels(value: Any, classes: Mapping[str, int]) -> tuple[int, ...]:
    if isinstance(value, str) and value in classes:  # a name that holds a ";"
        return (classes[value],)
    return tuple(_label(item, classes) for item in _several(value))


def _targets(value: Any) -> float | tuple[float, ...]:
    items = _several(value)
    try:
        if not items or any(isinstance(item, bool) for item in items):
            raise ValueError
        numbers = checked_label([float(item) for item in items])
    except (TypeError, ValueError, OverflowError):
        raise ValueError("is not a finite number, nor several with ';' between them") from None
    return numbers if len(numbers) > 1 else numbers[0]


LABEL_KINDS = {"single": _label, "multi": _labels}
COLUMNS: dict[str, Callable] = {
    "path": _text,
    "label": _label,  # class number, or name; by LABEL_KINDS
    "target": _targets,  # of a regression
    "start": _number,  # seconds
    "end": _number,  # seconds, after the last frame
    "start_frame": _count,
    "stop_frame": _count,  # after the last frame
    "clip_id": _text,
    "split": _text,
}


def _values(row: Any, columns: Mapping[str, Callable], ignore: Sequence[str]) -> dict[str, Any]:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    values = {}
    for column, value in row.items():
        if column not in columns and column not in ignore:
            raise ValueError(
                f"column {column[:40]!r} is unknown; known are {list(columns)}, and the option "
                "ignore takes others"
            )
        if column in ignore or value is None or (isinstance(value, str) and not value.strip()):
            continue
        try:
            values[column] = columns[column](value)
        except ValueError as error:
            raise ValueError(f"column {column!r}: {str(value)[:80]!r} {error}") from None
    if "path" not in values:
        raise ValueError("column 'path' is empty")
    if "label" in values and "target" in values:
        raise ValueError("it has both a label and a target; choose one")
    _check_limits(values)
    return values


def _check_limits(values: Mapping[str, Any]) -> None:
    seconds, frames = ("start", "end"), ("start_frame", "stop_frame")
    if any(c in values for c in seconds) and any(c in values for c in frames):
        raise ValueError("it is limited both by seconds and by frames; choose one")
    for first, last in (seconds, frames):
        if values.get(first, 0) >= values.get(last, math.inf):
            raise ValueError(
                f"columns {first}={values.get(first, 0)} and {last}={values[last]} leave nothing"
            )
