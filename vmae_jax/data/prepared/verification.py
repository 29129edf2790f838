"""Looks for damage in a prepared set, and compares it with the videos that it was made from."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vmae_jax.data.prepared.index import INDEX, read_index, shard_files
from vmae_jax.data.prepared.prepared_source import PreparedSource
from vmae_jax.data.prepared.shard_reader import Shards
from vmae_jax.data.prepared.video_encoding import file_bytes, resized, source_digest
from vmae_jax.data.sources.record_label import single_class
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.data.video.reader import VideoError
from vmae_jax.errors import SettingError

FRAMES_COMPARED = 8  # of a video


def damage(path: str | os.PathLike, workers: int) -> list[str]:
    """What is wrong with the shards of a set, a line each; empty if nothing is.

    Every byte is read: shards are compared with their sums in the index, records taken apart.

    Args:
      path: folder of the set.
      workers: shards that are read at a time.
    Raises:
      SettingError: if the index cannot be used.
    """
    index = read_index(path)
    files, listed = shard_files(path, index), index["shards"]
    shards = Shards(files, [len(shard["records"]) for shard in listed])
    with ThreadPoolExecutor(workers) as threads:
        found = threads.map(
            lambda s: list(_shard_damage(files[s], listed[s], shards, s)), range(len(files))
        )
        lines = [line for lines in found for line in lines]
    records = sum(len(shard["records"]) for shard in listed)
    if records != index["counts"]["videos"]:
        lines.append(f"{INDEX}: lists {records} records, counts={index['counts']}")
    return lines


def _shard_damage(file: str, listed: dict[str, Any], shards: Shards, shard: int) -> Iterator[str]:
    try:
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        yield f"{file}: {error}"
        return
    if digest != listed["sha256"]:
        yield f"{file}: sha256={digest}, but {INDEX} says {listed['sha256']}"
    for row, entry in enumerate(listed["records"]):
        try:
            video = shards.read(shard, row)
            for k in range(len(video)):
                video.part(k)
        except VideoError as error:
            yield f"{error.path} (clip_id={entry['clip_id']!r}): {error.reason}"
            continue
        facts = video.facts
        found = (facts.clip_id, facts.label, facts.num_frames, facts.frame_phase)
        label = single_class(entry["label"])
        expected = (entry["clip_id"], label, entry["num_frames"], entry["phase"])
        if found != expected:
            yield f"{file}, record {row}: holds {found}, but {INDEX} says {expected}"


def psnr_to_source(
    path: str | os.PathLike, source: VideoSource, num_videos: int
) -> tuple[float, list[str]]:
    """How near prepared frames are to those of the source, reduced to the same size.

    Args:
      path: folder of the set.
      source: the videos that it was made from; records are found by their clip ids.
      num_videos: how many are compared, spread evenly, FRAMES_COMPARED frames of each.
    Returns:
      (PSNR in dB of all compared frames together, lines about videos that could not be compared).
    Raises:
      SettingError: if the set cannot be used, or has no video in common with the source.
    """
    prepared = PreparedSource(path)
    entries = [entry for shard in read_index(path)["shards"] for entry in shard["records"]]
    numbers = {record.clip_id: i for i, record in enumerate(source)}
    common = [k for k, record in enumerate(prepared) if record.clip_id in numbers]
    if not common:
        raise SettingError(
            f"the source has none of the videos of {os.fspath(path)!r}; its first is "
            f"{source[0].clip_id!r}, the set's {prepared[0].clip_id!r}; give the data set, split "
            "and options that it was prepared with."
        )
    squares, lines = [], []
    for k in common[:: -(-len(common) // num_videos)]:
        i = numbers[prepared[k].clip_id]
        try:
            if source_digest(file_bytes(source[i])) != entries[k]["source_sha256"]:
                lines.append(f"{source[i].path}: the file is not the one that was prepared")
                continue
            squares.append(_mean_square(prepared, k, source, i))
        except (VideoError, OSError) as error:
            lines.append(f"{source[i].path}: cannot be compared: {error}")
    mean = np.mean(squares) if squares else math.inf
    return (10 * math.log10(255**2 / mean) if mean else math.inf), lines


def _mean_square(prepared: PreparedSource, k: int, source: VideoSource, i: int) -> float:
    with prepared.open(k) as reader, source.open(i) as original:
        stored = np.arange(reader.frame_phase, reader.num_frames, prepared.frame_step)
        compared = stored[
            np.unique(np.linspace(0, len(stored) - 1, FRAMES_COMPARED).round()).astype(int)
        ]
        frames = reader.read(compared)
        expected = [resized(frame, frames.shape[1:3]) for frame in original.read(compared)]
    return float(np.mean((frames - np.stack(expected).astype(np.float32)) ** 2))
