"""Sources from folders: every video below one, or every folder of pictures.

Labels come from the folders too if asked for. Beware that classes are then counted among the
folders that exist: with one missing, all later ones have other numbers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from vmae_jax.data.sources.splits import check_split, in_split
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.frame_reader import FrameNames, is_picture
from vmae_jax.errors import SettingError
from vmae_jax.files import storage

VIDEO_EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def video_folder(
    path: str | None,
    split: str,
    *,
    held_out_ratio: float = 0.05,
    labels: str | None = None,
    backend: str = "pyav",
) -> VideoSource:
    """All video files below a folder, one record each.

    Files are not opened here; links to files and folders are followed. A file is held out if the
    hash of its path relative to the folder says so; other files, coming or going, never move it to
    the other split.

    Args:
      path: the folder, which may be remote; files are found by VIDEO_EXTENSIONS, hidden ones are
        left out.
      split: "train", "held_out", or "all" for both.
      held_out_ratio: share of the files that is held out, on average, in [0, 1); 0 trains on all.
      labels: None, or "folders": a video's class is the first folder on its way, classes counted
        in the order of their sorted names, those of both splits.
      backend: a key of `decoders.DECODERS`.
    Raises:
      SettingError: for an unknown split, a ratio out of range, a missing folder, one without
        videos, an empty split, or, with labels="folders", a video outside of any or a broken link.
    """
    check_split(split)
    names = [
        name
        for name in storage.list_files(path)
        if name.lower().endswith(VIDEO_EXTENSIONS) and not _file_name(name).startswith(".")
    ]
    if not names:
        raise SettingError(
            f"path={path!r} holds no video files; expected names ending in "
            f"{', '.join(VIDEO_EXTENSIONS)}."
        )
    return _source(path, split, names, labels, held_out_ratio, backend=backend)


def frame_folders(
    path: str | None,
    split: str,
    *,
    fps: float,
    template: str | None = None,
    first_number: int = 1,
    held_out_ratio: float = 0.05,
    labels: str | None = None,
) -> VideoSource:
    """All folders with pictures below a folder, each a video, one record each.

    Every file is listed once to find the folders, and a video's again when it is opened. Sets of
    millions of pictures are better named in a list, format "path_total_label".

    Args:
      path: the folder, which may be remote.
      split: "train", "held_out", or "all" for both.
      fps: frames per second at which the pictures were extracted.
      template: names of the pictures, such as "img_{:05}.jpg", from first_number on without a
        gap; None takes all JPEG and PNG files, sorted by the numbers in their names.
      first_number: of frame 0 in the template.
      held_out_ratio, labels: as in `video_folder`; the hash is of the folder's path.
    Raises:
      SettingError: as `video_folder`, and for a bad rate or template.
    """
    check_split(split)
    frames = FrameNames(fps, template, first_number)
    folders = {
        name.rpartition("/")[0] for name in storage.list_files(path) if is_picture(_file_name(name))
    }
    names = sorted(folders - {""})
    if not names:
        raise SettingError(
            f"path={path!r} holds no folders with pictures; give the folder that holds a folder of "
            "JPEG or PNG files for each video."
        )
    return _source(path, split, names, labels, held_out_ratio, frames=frames)


def _file_name(name: str) -> str:
    return name.rpartition("/")[2]


def _source(
    path: str,
    split: str,
    names: Sequence[str],
    labels: str | None,
    held_out_ratio: float,
    *,
    backend: str = "pyav",
    frames: FrameNames | None = None,
) -> VideoSource:
    classes = _classes(path, names, labels)
    records = [
        VideoRecord(
            storage.join(path, name),
            name,
            label=classes.get(_first_folder(name), -1),
            frames=frames,
        )
        for name in names
    ]
    chosen = in_split(zip(names, records, strict=True), split, held_out_ratio, path)
    return VideoSource(chosen, backend, class_names=tuple(classes))


def _classes(path: str, names: Sequence[str], labels: str | None) -> dict[str, int]:
    """Class numbers by the sorted names of the first folders; none if they are not asked for."""
    if labels is None:
        return {}
    if labels != "folders":
        raise SettingError(f"labels={labels!r} is unknown; choose None or 'folders'.")
    for name in names:
        if "/" not in name:
            raise SettingError(
                f"labels='folders', but {name!r} lies in none; move it into its class's folder."
            )
    if not storage.is_remote(path):
        for name in storage.list_folder(path):
            link = os.path.join(path, name)
            if os.path.islink(link) and not os.path.exists(link) and not name.startswith("."):
                raise SettingError(
                    f"labels='folders', but {link!r} is a link that leads nowhere: without this "
                    "class all later ones would have other numbers; mend the link or remove it."
                )
    return {name: i for i, name in enumerate(sorted({_first_folder(name) for name in names}))}


def _first_folder(name: str) -> str:
    return name.partition("/")[0]
