"""Prepares a data set: every video becomes a record, records become shards, an index lists them.

A run may be killed anywhere and started again: finished shards are kept, and an unfinished one is
made again to the same bytes. Which video comes into which shard depends on its number alone, not
on how fast others were or how many processes there are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vmae_jax.data.prepared.progress import readable_bytes, reported
from vmae_jax.data.prepared.shard_folder import ShardFolder
from vmae_jax.data.prepared.video_encoding import Settings, encoded_video
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.errors import SettingError
from vmae_jax.packages import import_package
from vmae_jax.processes.isolation import ChildDied, Isolated

SAMPLE = 8  # videos that the size is estimated from
VIDEO_TIMEOUT = 300.0  # seconds


def prepare(
    source: VideoSource,
    dest: str | os.PathLike,
    settings: Settings,
    *,
    workers: int,
    timeout: float = VIDEO_TIMEOUT,
    host: tuple[int, int] = (0, 1),
    force: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Makes the prepared set of a source, or what is missing of it.

    Args:
      source: the videos; must be the same when work is continued.
      dest: folder; made if needed.
      settings: must be the same when work is continued.
      workers: processes that decode.
      timeout: seconds for one video; one that takes longer twice is listed as bad.
      host: (i, n) makes every n-th shard only, beginning with i; n machines that share `dest` make
        all. Whichever finishes last writes the index.
      force: go on even if the disk seems to be too small.
      say: is given lines of text about the progress.
    Returns:
      The index, or None if other hosts have yet to finish their shards.
    Raises:
      SettingError: if `dest` is remote, too small, or was begun with other settings or videos; if
        another process makes the same shards; or if no video could be used.
      MissingPackage: if a package is missing.
      OSError: if the disk is full.
      RuntimeError: if decoding processes cannot start.
    """
    if not 0 <= host[0] < host[1]:
        raise SettingError(f"host={host} must be (i, n) with 0 <= i < n; choose e.g. (0, 1).")
    if workers < 1:
        raise SettingError(f"workers={workers} must be at least 1.")
    folder = ShardFolder(dest, host)
    description = _description(source, settings)
    size = settings.shard_size
    shards = {
        shard: range(start, min(start + size, len(source)))
        for shard, start in enumerate(range(0, len(source), size))
    }
    with folder.lock():
        folder.begin(description)
        missing = {
            shard: videos
            for shard, videos in shards.items()
            if shard % host[1] == host[0] and folder.part(shard) is None
        }
        if missing:
            isolated = Isolated(functools.partial(encoded_video, source, settings), timeout=timeout)
            # The threads only wait for the processes.
            threads = ThreadPoolExecutor(workers)
            try:
                encode = functools.partial(_encode, isolated, source)
                _make_shards(folder, missing, encode, threads, workers, force, say)
            finally:  # also when interrupted: what is under way is given up
                threads.shutdown(wait=False, cancel_futures=True)
                isolated.close()
        return folder.finish(len(shards), description)


def _description(source: VideoSource, settings: Settings) -> dict[str, Any]:
    """The settings, and what tells this source from another."""
    rows = [[x.clip_id, x.label, x.start, x.stop, x.start_time, x.stop_time] for x in source]
    return {
        **dataclasses.asdict(settings),
        "num_videos": len(rows),
        "videos_sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "class_names": list(source.class_names),
    }


def _encode(isolated: Isolated, source: VideoSource, i: int) -> dict[str, Any]:
    try:
        return isolated(i)
    except ChildDied as error:
        return {"bad": {"clip_id": source[i].clip_id, "reason": f"decoding {error}"}}


def _make_shards(
    folder: ShardFolder,
    missing: dict[int, range],
    encode: Callable[[int], dict[str, Any]],
    threads: ThreadPoolExecutor,
    workers: int,
    force: bool,
    say: Callable[[str], None],
) -> None:
    versions = _versions()  # first, as it finds out whether all packages are there
    wanted = list(itertools.chain(*missing.values()))
    sample = wanted[:: -(-len(wanted) // SAMPLE)]
    sampled = dict(zip(sample, threads.map(encode, sample), strict=True))
    sizes = [len(result["record"]) for result in sampled.values() if "record" in result]
    _check_disk(folder, sizes, len(wanted), force, say)

    def encode_once(i: int) -> dict[str, Any]:
        return sampled.pop(i, None) or encode(i)

    results = _in_order(threads, encode_once, wanted, 4 * workers)
    results = reported(results, len(wanted), say)
    for shard, videos in missing.items():
        folder.write_shard(shard, itertools.islice(results, len(videos)), versions)


def _in_order(
    threads: ThreadPoolExecutor,
    encode: Callable[[int], dict[str, Any]],
    wanted: Iterable[int],
    ahead: int,
) -> Iterator[dict[str, Any]]:
    """The results of all; at most `ahead` of them wait in memory for one that takes long."""
    waiting = deque()
    for i in wanted:
        waiting.append(threads.submit(encode, i))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _check_disk(
    folder: ShardFolder,
    sizes: list[int],
    num_videos: int,
    force: bool,
    say: Callable[[str], None],
) -> None:
    if not sizes:
        say("the size cannot be estimated: no video of the sample could be used")
        return
    needed = sum(sizes) * num_videos // len(sizes)
    free = shutil.disk_usage(folder.path).free
    text = (
        f"{num_videos} videos will take about {readable_bytes(needed)}, "
        f"{readable_bytes(sum(sizes) / len(sizes))} each; {readable_bytes(free)} are free"
    )
    say(text)
    if needed > free and not force:
        raise SettingError(
            f"{text} in {folder.path!r}; choose another disk, a larger --frame-step, a smaller "
            "--short-side, or --force if you know better."
        )


def _versions() -> dict[str, str]:
    names = ("av", "cv2", "simplejpeg", "array_record")
    modules = {
        name: import_package(name, "preparing a data set", install="vmae_jax[data]")
        for name in names
    }
    # array_record does not say its version
    return {"array_record": importlib.metadata.version("array_record")} | {
        name: module.__version__ for name, module in modules.items() if name != "array_record"
    }
