"""From planned shards to ArrayRecord files, in threads of this machine or by Apache Beam.

The order of the records and the borders of the shards are fixed by the lists and the sizes of the
files before a video is read. So shards are independent jobs, however they are run the files are the
same, and memory holds a few videos per thread. (TFDS's own writers gather a split first: in
memory up to 1 GB, then, without Beam, in files that need TensorFlow.) Jobs and what became of them
travel as JSON files beside the shards, as large lists would not fit into a Beam pipeline.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import hashing
from tensorflow_datasets.core.utils import py_utils, shard_utils

from vmae_jax.data.sources.record_label import single_class
from vmae_jax.data.sources.video_source import VideoRecord
from vmae_jax.data.video.reader import first_line
from vmae_jax.files import storage
from vmae_jax.packages import import_package

LARGEST_VIDEO = 2**31 - 2**20  # bytes; a serialized example, which holds more, stays below 2 GiB
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_COLUMNS = ("path", "clip_id", "start", "stop", "label", "start_time", "stop_time")


def features(label: tfds.features.FeatureConnector | type = np.int64) -> tfds.features.FeaturesDict:
    """What a record of a set holds."""
    return tfds.features.FeaturesDict(
        {
            "video": tfds.features.Tensor(
                shape=(), dtype=np.object_, doc="The bytes of the video file, as they were."
            ),
            "label": label,
            "clip_id": tfds.features.Text(doc="Unique in its split."),
            "start": tfds.features.Scalar(np.int64, doc="The first frame to use."),
            "stop": tfds.features.Scalar(np.int64, doc="The frame after the last; -1: the end."),
            "start_time": tfds.features.Scalar(np.float64, doc="In seconds; -1: not limited so."),
            "stop_time": tfds.features.Scalar(np.float64, doc="In seconds; -1: not limited so."),
        }
    )


def in_stored_order(records: Sequence[VideoRecord], split: str) -> list[VideoRecord]:
    """The order that TFDS gives to examples whose keys are the clip ids: by a hash of each."""
    hasher = hashing.Hasher(split)
    return sorted(records, key=lambda record: hasher.hash_key(_encoded(record.clip_id)))


def readable(records: Sequence[VideoRecord]) -> tuple[list[VideoRecord], int, list[dict]]:
    """The records whose file can be stored, the sum of its bytes, and the others with reasons.

    Returns:
      (records, bytes, [{"clip_id", "path", "reason"}]).
    """
    with ThreadPoolExecutor(32) as threads:  # a network disk answers slowly, but to many
        sizes = list(threads.map(_size_or_reason, records))
    kept = [r for r, size in zip(records, sizes, strict=True) if isinstance(size, int)]
    skipped = [
        _skipped(r, size) for r, size in zip(records, sizes, strict=True) if isinstance(size, str)
    ]
    return kept, sum(size for size in sizes if isinstance(size, int)), skipped


def _size_or_reason(record: VideoRecord) -> int | str:
    if record.frames:
        return "a folder of pictures is no video file"
    try:
        found = epath.Path(record.path).stat()
    except OSError as error:
        return first_line(error)
    if found.is_directory:
        return "a folder is no video file"
    if not found.length:
        return "the file is empty"
    too_large = found.length > LARGEST_VIDEO
    return f"{found.length} bytes do not fit into a record" if too_large else found.length


def _skipped(record: VideoRecord, reason: str) -> dict:
    return {"clip_id": record.clip_id, "path": record.path, "reason": reason}


def write_jobs(
    folder: epath.Path,
    records: Sequence[VideoRecord],
    shard_paths: Sequence[epath.Path],
) -> list[str]:
    """Files in `folder`, each of which tells `write_shard` what goes into one shard, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    start = 0
    borders = shard_utils.get_shard_boundaries(len(records), len(shard_paths))
    for shard, stop in zip(shard_paths, borders, strict=True):
        rows = [[getattr(record, name) for name in _COLUMNS] for record in records[start:stop]]
        job = folder / f"{shard.name}.json"
        job.write_text(json.dumps({"shard": os.fspath(shard), "records": rows}))
        jobs.append(os.fspath(job))
        start = stop
    return jobs


def write_shard(job: str) -> None:
    """Writes the shard of a job, and beside the job what became of it; may be repeated.

    A video that cannot be read any more is left out.
    """
    task = json.loads(epath.Path(job).read_text())
    encode = _wire_features().serialize_example
    result = {"written": [], "bytes": 0, "skipped": []}
    with py_utils.incomplete_file(epath.Path(task["shard"])) as partial:
        writer = ArrayRecordWriter(os.fspath(partial), "group_size:1")
        for row in task["records"]:
            record = VideoRecord(**dict(zip(_COLUMNS, row, strict=True)))
            try:
                video = storage.read_bytes(record.path, LARGEST_VIDEO)
            except (OSError, ValueError) as error:
                result["skipped"].append(_skipped(record, first_line(error)))
                continue
            example = {name: getattr(record, name) for name in _COLUMNS[2:]}
            example = {name: -1 if value is None else value for name, value in example.items()}
            example |= {"video": video, "clip_id": _encoded(record.clip_id)}
            example["label"] = single_class(record.label)  # the index has others
            writer.write(encode(example))
            result["written"].append(row[1:])
            result["bytes"] += len(video)
        writer.close()
    epath.Path(f"{job}.result").write_text(json.dumps(result))


@functools.cache
def _wire_features() -> tfds.features.FeaturesDict:
    return features()  # class names change nothing in the record


def _encoded(clip_id: str) -> bytes:
    return clip_id.encode("utf-8", "surrogateescape")


def results(jobs: Sequence[str]) -> list[dict]:
    """What `write_shard` left for each: {"written": index rows, "bytes", "skipped"}."""
    return [json.loads(epath.Path(f"{job}.result").read_text()) for job in jobs]


def index_of(rows: Sequence[Sequence]) -> Mapping[str, list]:
    """Columns of the rows of results: all that a VideoRecord needs but its path."""
    columns = zip(*rows, strict=True)
    return dict(zip(_COLUMNS[1:], map(list, columns), strict=True))


def run_in_threads(jobs: Sequence[str], num_threads: int) -> None:
    """Every job, up to num_threads at a time."""
    with ThreadPoolExecutor(num_threads) as threads:
        for _ in threads.map(write_shard, jobs):
            pass


def run_with_beam(jobs: Sequence[str], runner, options) -> None:
    """Every job, as elements of one pipeline; returns when it has finished.

    Args:
      runner: of Beam, or None for what the options name.
      options: a PipelineOptions, or None.
    Raises:
      MissingPackage: without Beam.
    """
    beam = _import_beam()
    with beam.Pipeline(runner=runner, options=options) as pipeline:
        _ = (
            pipeline
            | "Jobs" >> beam.Create(jobs)
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(write_shard)
        )


def pipeline_options(text: str):
    """Beam's PipelineOptions of "runner=FlinkRunner,flink_master=host:8081" and the like.

    Without a runner, or with "DirectRunner", the pipeline runs in this process: under the latter
    name Beam 2.77 first fetches a server from GitHub.

    Raises:
      MissingPackage: without Beam.
    """
    options_module = _import_beam().options.pipeline_options
    options = options_module.PipelineOptions([f"--{x}" for x in text.split(",") if x])
    standard = options.view_as(options_module.StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        standard.runner = LOCAL_RUNNER
    return options


def _import_beam() -> ModuleType:
    return import_package("apache_beam", "building with Apache Beam", install="vmae_jax[beam]")
