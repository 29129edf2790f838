"""Sources from the list files of the official code.

The official list formats look alike (`path 300 5` may be a range or a length and a class), so a
list's format is always named, never guessed. Paths may hold blanks: fields are counted from the
right. Nothing is opened but the lists.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vmae_jax.data.sources.list_files import (
    MAX_LIST_BYTES,
    Problems,
    check_path,
    class_names_of,
    distinct,
)
from vmae_jax.data.sources.splits import HELD_OUT, check_split, in_split
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.frame_reader import FrameNames, check_template
from vmae_jax.errors import SettingError
from vmae_jax.files import storage

LIST_FORMATS = (
    "path",  # a video; the whole line
    "path_label",  # a video; fine-tuning in V1 and V2, pre-training in V1
    "path_total_label",  # a folder of so many frames; fine-tuning in V2
    "path_start_total",  # the same, its first file's number first; or a video: `path 0 -1`; V2
)


def video_list(
    path: str | None,
    split: str,
    *,
    format: str,
    root: str = "",
    separator: str = " ",
    held_out_path: str | None = None,
    held_out_ratio: float = 0.05,
    template: str = "img_{:05}.jpg",
    first_number: int = 1,
    fps: float | None = None,
    classes: str | Sequence[str] | None = None,
    backend: str = "pyav",
) -> VideoSource:
    """The videos of a list file in one of the formats of the official code.

    A path in double quotes is taken without them. Paths that occur again get clip ids that end in
    #2, #3, ... Empty lines are passed over.

    Args:
      path: the list, which may be remote.
      split: "train", "held_out", or "all", every line of `path`.
      format: one of LIST_FORMATS.
      root: folder or address to which relative paths belong; "" takes them as they stand.
      separator: between the fields; " " stands for any run of blanks and tabs.
      held_out_path: list of the held-out videos; None holds out a share of `path`'s.
      held_out_ratio: that share, as in `video_folder`, by the hash of the path in the list.
      template: names of the pictures in folders of frames.
      first_number: the number of their first frame, where the format does not tell.
      fps: frames per second at which they were extracted; needed for them only.
      classes: class names in the order of their numbers, or a file with one in each line.
      backend: a key of `decoders.DECODERS`.
    Raises:
      SettingError: for an unknown split or format, a list that cannot be read, lines that are not
        in the format (the first of them are named), or an empty split.
    """
    check_split(split)
    if format not in LIST_FORMATS:
        raise SettingError(
            f"format={format!r} is unknown; name the list's own, one of {list(LIST_FORMATS)}."
        )
    if not separator:
        raise SettingError("separator='' separates nothing; give ' ', ',' or another character.")
    check_template(template)
    class_names = class_names_of(classes)
    fields = format.split("_")[1:]
    list_path = held_out_path if held_out_path and split == HELD_OUT else path
    names, places, labels, frames = [], [], [], []
    problems = Problems(list_path, "line")
    for number, line in enumerate(storage.read_text(list_path, MAX_LIST_BYTES).split("\n"), 1):
        if not line.strip():
            continue
        try:
            name, values = _parse_line(line, fields, separator)
            if class_names and values.get("label", -1) >= len(class_names):
                raise ValueError(
                    f"label={values['label']} is above the last of the {len(class_names)} classes"
                )
            start, total = values.get("start", first_number), values.get("total")
            of_frames = total is not None and not (total < 0 and "start" in values)
            frames.append(_frames(fps, template, start, total) if of_frames else None)
        except ValueError as error:
            problems.add(number, str(error))
            continue
        names.append(name)
        places.append(f"{name}[{start}:{start + total}]" if of_frames else name)
        labels.append(values.get("label", -1))
    problems.raise_any()
    if not names:
        raise SettingError(
            f"path={list_path!r} lists no video; give one with a video in each line."
        )
    records = [
        VideoRecord(storage.join(root, name), clip_id, label=label, frames=frame_names)
        for name, clip_id, label, frame_names in zip(
            names, distinct(places), labels, frames, strict=True
        )
    ]
    if not held_out_path:
        records = in_split(zip(names, records, strict=True), split, held_out_ratio, path)
    return VideoSource(records, backend, class_names)


def _parse_line(line: str, fields: Sequence[str], separator: str) -> tuple[str, dict[str, int]]:
    """The path of a line, and its numbers by name.

    Raises:
      ValueError: if the line is not in the format; its text is to follow the line's number.
    """
    by_blanks = None if separator == " " else separator
    path, *numbers = line.strip().rsplit(by_blanks, len(fields)) if fields else [line.strip()]
    if len(numbers) < len(fields):
        raise ValueError(f"it has fewer fields than {' '.join(['path', *fields])}")
    path = path.strip()
    if len(path) > 2 and path[0] == path[-1] == '"':
        path = path[1:-1]
    check_path(path)
    values = {}
    for name, text in zip(fields, numbers, strict=True):
        if not re.fullmatch("-1|[0-9]{1,9}", text.strip()):
            raise ValueError(f"{name}={text.strip()!r} is not a number from -1 on")
        values[name] = int(text)
    return path, values


def _frames(fps: float | None, template: str, first_number: int, total: int) -> FrameNames:
    if total < 1 or first_number < 0:
        raise ValueError(f"start={first_number} and total={total} are no frames of a folder")
    if fps is None:
        raise ValueError("it names a folder of frames, for which the option fps is needed")
    return FrameNames(fps, template, first_number, total)
