"""Whether clips that are tested on were trained on."""

from __future__ import annotations

import bisect
import functools
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator

from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.errors import SettingError
from vmae_jax.files.storage import is_remote

logger = logging.getLogger(__name__)

_NAMED = 5  # clips in a message


def check_disjoint(train: VideoSource, test: VideoSource, allow: bool = False) -> None:
    """Asks whether no frame of a test clip is in a training clip.

    Videos are told by their real paths (links are followed), or by their addresses, and parts of
    one video may be on either side if their ranges do not overlap; where one is limited by frames
    and the other by seconds, they are taken to. If one source's paths are not those of videos
    (prepared sets, TFDS), records with the same clip id are the same. No file is opened.

    Args:
      train, test: the records of either side.
      allow: only logs what is on both sides.
    Raises:
      SettingError: names the first few test clips that are trained on.
    """
    if train.paths_are_videos and test.paths_are_videos:
        shared = list(_overlapping(train, test))
    else:
        ids = {record.clip_id for record in train}
        shared = [record.clip_id for record in test if record.clip_id in ids]
    if not shared:
        return
    some = ", ".join(map(repr, shared[:_NAMED])) + (", ..." if len(shared) > _NAMED else "")
    text = f"{len(shared)} of {len(test)} test clips are among the training clips: {some}"
    if not allow:
        raise SettingError(
            f"{text}; what is measured on them says nothing. Take them out of one list, or allow "
            "it on purpose."
        )
    logger.warning("%s.", text)


def _overlapping(train: VideoSource, test: VideoSource) -> Iterator[str]:
    """Clip ids of the test records that overlap with a training record."""
    real_path = _real_path()
    tested = [_video(record, real_path) for record in test]
    trained: dict[tuple, dict[str, list[tuple[float, float]]]] = {video: {} for video in tested}
    for record in train:
        if (units := trained.get(_video(record, real_path))) is not None:
            unit, *limits = _limits(record)
            units.setdefault(unit, []).append(tuple(limits))
    tables = {video: {u: _table(x) for u, x in units.items()} for video, units in trained.items()}
    for record, video in zip(test, tested, strict=True):
        unit, start, stop = _limits(record)
        if any(u != unit or _overlaps(table, start, stop) for u, table in tables[video].items()):
            yield record.clip_id


def _real_path() -> Callable[[str], str]:
    """`os.path.realpath`, which asks the disk for each folder instead of each file."""
    real_folder = functools.cache(os.path.realpath)

    @functools.cache
    def links_in(folder: str) -> set[str]:
        try:
            with os.scandir(folder or ".") as entries:
                return {entry.name for entry in entries if entry.is_symlink()}
        except OSError:  # what is missing is told when it is opened
            return set()

    @functools.cache
    def real_path(path: str) -> str:
        if is_remote(path):
            return path
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or name in links_in(folder):
            return os.path.realpath(path)
        return os.path.join(real_folder(folder), name)

    return real_path


def _video(record: VideoRecord, real_path: Callable[[str], str]) -> tuple[str, str | None]:
    return real_path(record.path), record.frames and record.frames.template


def _limits(record: VideoRecord) -> tuple[str, float, float]:
    """What counts a record's part of its video, and its [start, stop) in that unit."""
    if record.is_timed and not record.frames:
        stop_time = math.inf if record.stop_time is None else record.stop_time
        return "seconds", record.start_time or 0.0, stop_time
    first, stop = 0, record.stop
    if record.frames:  # counted as its pictures are
        first = record.frames.first_number if record.frames.template else 0
        stop = record.frames.num_frames if stop is None else stop
    return "frames", first + record.start, math.inf if stop is None else first + stop


def _table(ranges: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Starts in ascending order, and the last stop of those up to each."""
    starts, stops = zip(*sorted(ranges), strict=True)
    return list(starts), list(itertools.accumulate(stops, max))


def _overlaps(table: tuple[list[float], list[float]], start: float, stop: float) -> bool:
    starts, last_stops = table
    before = bisect.bisect_left(starts, stop)  # of the ranges that begin before `stop`
    return before > 0 and last_stops[before - 1] > start
