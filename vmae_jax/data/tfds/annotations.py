"""The splits of each data set by its official list files.

A list decides alone what a split holds: a video that is listed and does not exist is still a record
of the source, so that whoever stores the records can count it as missing.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
from collections.abc import Callable, Iterator

from vmae_jax.data.sources.folders import VIDEO_EXTENSIONS, video_folder
from vmae_jax.data.sources.list_files import MAX_LIST_BYTES
from vmae_jax.data.sources.listings import video_list
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.errors import SettingError
from vmae_jax.files import storage

Splits = dict[str, VideoSource]

# Names, without extension, under which lists and tables of a split are published.
_SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "validate"), "test": ("test",)}
_LIST_EXTENSIONS = (".csv", ".txt", ".list")
_TABLE_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def read_video_folder(videos: str, lists: str, *, list_format: str = "path_label") -> Splits:
    """By the lists train, val and test (.csv, .txt or .list); without any, all videos as "train".

    Args:
      videos: folder with the videos, to which the lists' paths are relative.
      lists: folder with the lists.
      list_format: one of `listings.LIST_FORMATS`.
    Raises:
      SettingError: for a line that is not of the format, or neither lists nor videos.
    """
    found = _split_files(lists)
    if not found:
        return {"train": video_folder(videos, "train", held_out_ratio=0)}
    return {
        split: video_list(file, "train", format=list_format, root=videos, held_out_ratio=0)
        for split, file in found.items()
    }


def read_kinetics400(videos: str, lists: str, *, list_format: str = "path_label") -> Splits:
    """By the published tables, or by lists as `read_video_folder` where those are given.

    A table has a header with label, youtube_id, time_start, time_end and mostly split. Its
    video is the file `ID_START_END`, six digits each, with any extension and anywhere below
    `videos`, as downloaders name the part between the two times. Classes are numbered in the order
    of their names.

    Args:
      videos, lists, list_format: as in `read_video_folder`.
    Raises:
      SettingError: as `read_video_folder`; for tables beside lists, or a damaged table.
    """
    tables = {split: _table(file) for split, file in _split_files(lists).items()}
    if not any(tables.values()):
        return read_video_folder(videos, lists, list_format=list_format)
    if not all(tables.values()):
        raise SettingError(
            f"annotations={lists!r} mixes tables with a header and lists of paths, whose class "
            "numbers need not agree; keep one kind in the folder."
        )
    class_names = sorted({row["label"] for rows in tables.values() for row in rows} - {""})
    numbers = {name: label for label, name in enumerate(class_names)}
    find = _finder(videos)
    splits: dict[str, list[VideoRecord]] = {}
    for file_split, rows in tables.items():
        for row in rows:
            clip_id = f"{row['youtube_id']}_{row['time_start']:06d}_{row['time_end']:06d}"
            record = VideoRecord(find(clip_id), clip_id, label=numbers.get(row["label"], -1))
            splits.setdefault(row.get("split") or file_split, []).append(record)
    return _sources(splits, class_names)


def read_ssv2(videos: str, lists: str) -> Splits:
    """By the published JSON files: labels, train, validation and, as far as they are there, test.

    A video is `ID`, of any extension and anywhere below `videos`. Its class is its template without
    the brackets. Test videos have no label.

    Args:
      videos: folder with the videos.
      lists: folder with `something-something-v2-train.json` and so on, or `train.json`.
    Raises:
      SettingError: without labels or any list, for a template that is no class, or damaged JSON.
    """
    numbers = {name: int(label) for name, label in _ssv2_json(lists, "labels").items()}
    find = _finder(videos)
    splits = {}
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        if split == "train" or _ssv2_file(lists, name):
            splits[split] = [
                VideoRecord(find(entry["id"]), entry["id"], label=_ssv2_label(entry, numbers))
                for entry in _ssv2_json(lists, name)
            ]
    return _sources(splits, sorted(numbers, key=numbers.get))


def read_ucf101(videos: str, lists: str, *, split_number: int = 1) -> Splits:
    """By `classInd.txt`, `trainlist0N.txt` and `testlist0N.txt`; labels are numbered from 0.

    Args:
      videos: folder with the videos, in folders by class or in one.
      lists: folder with the official lists.
      split_number: N.
    Raises:
      SettingError: if a list is missing, for an unknown class, or a number that is not its class's.
    """
    numbers = {}
    for where, line in _lines(storage.join(lists, "classInd.txt")):
        number, name = _two_fields(line, where, "number class")
        numbers[name] = int(number) - 1
    find = _finder(videos)
    splits = {}
    for split in ("train", "test"):
        records = splits[split] = []
        for where, line in _lines(storage.join(lists, f"{split}list0{split_number}.txt")):
            path, *number = line.split()
            label = numbers.get(path.split("/")[0])
            if label is None or (number and number[0] != str(label + 1)):
                raise SettingError(
                    f"{where}: {line!r} does not agree with classInd.txt; take both from one copy "
                    "of the official lists."
                )
            records.append(VideoRecord(find(path), path, label=label))
    return _sources(splits, sorted(numbers, key=numbers.get))


def read_hmdb51(videos: str, lists: str, *, split_number: int = 1) -> Splits:
    """By `CLASS_test_splitN.txt`, one for each class; classes are numbered in order of names.

    Args:
      videos: folder with the videos, in folders by class or in one.
      lists: folder with the official lists.
      split_number: N.
    Raises:
      SettingError: if there are no such lists, or a line is not `name use`, with use 0 (in neither
        split), 1 (train) or 2 (test).
    """
    ending = f"_test_split{split_number}.txt"
    class_names = sorted(
        name.removesuffix(ending) for name in storage.list_folder(lists) if name.endswith(ending)
    )
    if not class_names:
        raise SettingError(
            f"annotations={lists!r} holds no file CLASS{ending}; give the folder with the official "
            "lists of HMDB51."
        )
    find = _finder(videos)
    splits: dict[str, list[VideoRecord]] = {"train": [], "test": []}
    for label, class_name in enumerate(class_names):
        for where, line in _lines(storage.join(lists, class_name + ending)):
            name, use = _two_fields(line, where, "name use")
            if use not in ("0", "1", "2"):
                raise SettingError(
                    f"{where}: use={use!r} must be 0 (neither), 1 (train), 2 (test)."
                )
            if use != "0":
                clip_id = f"{class_name}/{name}"
                record = VideoRecord(find(clip_id), clip_id, label=label)
                splits["train" if use == "1" else "test"].append(record)
    return _sources(splits, class_names)


READERS: dict[str, Callable[..., Splits]] = {
    "kinetics400": read_kinetics400,
    "ssv2": read_ssv2,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
    "video_folder": read_video_folder,
}


def read_annotations(name: str, videos: str, lists: str, **options) -> Splits:
    """Split -> source of the data set `name`.

    Args:
      name: a key of READERS.
      videos, lists, options: as that function takes them; options that are None are not given.
    Raises:
      SettingError: for an unknown name or option, and as the function says.
    """
    if name not in READERS:
        raise SettingError(f"name={name!r} is no TFDS builder; choose one of {sorted(READERS)}.")
    options = {option: value for option, value in options.items() if value is not None}
    known = list(inspect.signature(READERS[name]).parameters)[2:]
    for option in options:
        if option not in known:
            raise SettingError(
                f"{option} is no option of {name!r}, which has {known}; leave it out."
            )
    if not storage.is_remote(lists) and not os.path.isdir(lists):
        raise SettingError(f"annotations={lists!r} is not a folder; give the one with the lists.")
    return READERS[name](videos, lists, **options)


def _sources(splits: dict[str, list[VideoRecord]], class_names: list[str]) -> Splits:
    return {
        split: VideoSource(records, class_names=class_names)
        for split, records in splits.items()
        if records
    }


def _split_files(folder: str) -> dict[str, str]:
    """Split -> its list, the first if there are several."""
    present = set(storage.list_folder(folder))
    found = {}
    for split, names in _SPLIT_NAMES.items():
        files = [name + extension for extension in _LIST_EXTENSIONS for name in names]
        existing = [file for file in files if file in present]
        if existing:
            found[split] = storage.join(folder, existing[0])
    return found


def _lines(file: str) -> Iterator[tuple[str, str]]:
    """("file:number", line) of each line that is not blank."""
    for number, line in enumerate(storage.read_text(file, MAX_LIST_BYTES).split("\n"), 1):
        if line.strip():
            yield f"{file}:{number}", line.strip()


def _two_fields(line: str, where: str, form: str) -> list[str]:
    fields = line.rsplit(maxsplit=1)
    if len(fields) != 2:
        raise SettingError(
            f"{where}: {line!r} is not of the form `{form}`; take the official list."
        )
    return fields


def _table(file: str) -> list[dict] | None:
    """The rows of a Kinetics table, its times as numbers; None for a file without its header."""
    reader = csv.DictReader(io.StringIO(storage.read_text(file, MAX_LIST_BYTES), newline=""))
    if "youtube_id" not in (reader.fieldnames or []):
        return None
    known_splits = {name: split for split, names in _SPLIT_NAMES.items() for name in names}
    rows = []
    for row in reader:
        try:
            rows.append({column: row[column] for column in _TABLE_COLUMNS})
            rows[-1] |= {name: int(float(row[name])) for name in ("time_start", "time_end")}
            rows[-1]["split"] = known_splits[row["split"]] if row.get("split") else None
        except (KeyError, TypeError, ValueError) as error:
            raise SettingError(
                f"{file}:{reader.line_num}: {row} lacks one of {_TABLE_COLUMNS} or has an unknown "
                f"split ({error!r}); take the official table."
            ) from error
    return rows


def _ssv2_file(folder: str, name: str) -> str | None:
    present = storage.list_folder(folder)
    files = [f"{prefix}{name}.json" for prefix in ("something-something-v2-", "")]
    return next((storage.join(folder, file) for file in files if file in present), None)


def _ssv2_json(folder: str, name: str):
    file = _ssv2_file(folder, name)
    if file is None:
        raise SettingError(
            f"annotations={folder!r} holds neither something-something-v2-{name}.json nor "
            f"{name}.json; give the folder with the official files."
        )
    try:
        return json.loads(storage.read_text(file, MAX_LIST_BYTES))
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{file} is no JSON ({error}); copy the official file again.") from error


def _ssv2_label(entry: dict, numbers: dict[str, int]) -> int:
    if "template" not in entry:
        return -1
    name = entry["template"].replace("[", "").replace("]", "")
    if name not in numbers:
        raise SettingError(
            f"video id={entry['id']}: template {entry['template']!r} is no class of the labels "
            "file; take all files from one release."
        )
    return numbers[name]


def _finder(folder: str) -> Callable[[str], str]:
    """From a name in a list to a file: as named, or else the only one of that name anywhere.

    Extensions may differ (webm to mp4). Only for data sets whose file names are unique.
    """
    files = storage.list_files(folder)
    by_stem: dict[str, list[str]] = {}
    for file in files:
        if file.lower().endswith(VIDEO_EXTENSIONS):
            by_stem.setdefault(_stem(file), []).append(file)
    present = set(files)

    def find(name: str) -> str:
        same = by_stem.get(_stem(name), [])
        return storage.join(folder, same[0] if name not in present and len(same) == 1 else name)

    return find


def _stem(name: str) -> str:
    base = name.rpartition("/")[2]
    stem, extension = os.path.splitext(base)
    return stem if extension.lower() in VIDEO_EXTENSIONS else base
