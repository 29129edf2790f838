"""TFDS builders that put encoded videos, as their files are, into ArrayRecord.

They take any VideoSource and download nothing. They are not in TFDS's registry, which has a ucf101
of its own (frames, not files): `building.build` makes them of official lists. Built
sets are read by `tfds.builder_from_directory` and by `tfds_source.TfdsSource`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from vmae_jax.data.sources.record_label import classes_of
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.data.tfds import shard_writing
from vmae_jax.data.tfds.tfds_source import index_file
from vmae_jax.errors import SettingError

REPORT_FILE = "report.json"
JOBS_FOLDER = "jobs"


class _VideoBuilder(FileReaderBuilder, skip_registration=True):
    """What the builders share.

    Args:
      sources: split -> the videos to store. Each record gets a file's bytes of its own, so that a
        video in ten records is stored ten times.
      num_threads: shards written at a time; not used by Beam.
      config, data_dir: of every builder of TFDS; data_dir is the folder that holds all sets.
    """

    # Next to the code TFDS would look for checksums of downloads, of which there are none; its way
    # of finding the code needs importlib_resources, which 4.9.10 does not ask for.
    code_path = None
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Encoded videos and their labels."}

    def __init__(self, *, sources: Mapping[str, VideoSource], num_threads: int = 8, **options):
        self._sources = dict(sources)
        self._num_threads = num_threads
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Encoded video files with class numbers, -1 where there is not just one.",
            features=shard_writing.features(self._label_feature()),
        )

    def _label_feature(self) -> tfds.features.FeatureConnector | type:
        class_names = next(iter(self._sources.values())).class_names
        if class_names:
            return tfds.features.ClassLabel(names=class_names)
        records = itertools.chain(*(source.records for source in self._sources.values()))
        classes = set().union(*(classes_of(record.label) for record in records))
        return tfds.features.ClassLabel(num_classes=1 + max(classes)) if classes else np.int64

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        jobs, skipped = {}, {}
        for split, source in self._sources.items():
            records, size, skipped[split] = shard_writing.readable(source.records)
            if records:
                jobs[split] = self._plan(split, records, size, download_config)
        every_job = [job for split_jobs in jobs.values() for job in split_jobs]
        if download_config.beam_runner or download_config.beam_options:
            shard_writing.run_with_beam(
                every_job, download_config.beam_runner, download_config.beam_options
            )
        else:
            shard_writing.run_in_threads(every_job, self._num_threads)

        infos, report = [], {}
        for split, source in self._sources.items():
            results = shard_writing.results(jobs.get(split, []))
            rows = [row for result in results for row in result["written"]]
            lost = skipped[split] + [row for result in results for row in result["skipped"]]
            report[split] = {"listed": len(source), "written": len(rows), "skipped": lost}
            if rows:
                content = {
                    "class_names": source.class_names,
                    "records": shard_writing.index_of(rows),
                }
                self._write_json(index_file(split), content)
                infos.append(self._split_info(split, results))
        if not infos:
            raise SettingError(
                f"none of {sum(map(len, self._sources.values()))} videos can be stored (e.g. "
                f"{_example(skipped)}); check the folders of the videos and of the lists."
            )
        self._write_json(REPORT_FILE, report)
        (self.data_path / JOBS_FOLDER).rmtree()
        self.info.set_splits(tfds.core.SplitDict(infos))

    def _plan(self, split: str, records, size: int, download_config) -> list[str]:
        count = download_config.get_shard_config().get_number_shards(size, len(records))
        template = self._get_filename_template(split)
        return shard_writing.write_jobs(
            self.data_path / JOBS_FOLDER,
            shard_writing.in_stored_order(records, split),
            template.sharded_filepaths(min(count, len(records))),
        )

    def _split_info(self, split: str, results: Sequence[dict]) -> tfds.core.SplitInfo:
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(result["written"]) for result in results],
            num_bytes=sum(result["bytes"] for result in results),
            filename_template=self._get_filename_template(split),
        )

    def _write_json(self, name: str, content) -> None:
        (self.data_path / name).write_text(json.dumps(content))


def _example(skipped: dict[str, list[dict]]) -> str:
    return next((f"{x['path']}: {x['reason']}" for rows in skipped.values() for x in rows), "none")


class Kinetics400(_VideoBuilder, skip_registration=True):
    """Kinetics-400."""


class Ssv2(_VideoBuilder, skip_registration=True):
    """Something-Something V2."""


class VideoFolder(_VideoBuilder, skip_registration=True):
    """Any other videos."""


class _ThreeSplits(_VideoBuilder, skip_registration=True):
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=f"split{number}", description=f"Official split {number}.")
        for number in (1, 2, 3)
    ]


class Ucf101(_ThreeSplits, skip_registration=True):
    """UCF101; its configurations are its official splits: split1, split2, split3."""


class Hmdb51(_ThreeSplits, skip_registration=True):
    """HMDB51; its configurations are its official splits: split1, split2, split3."""


BUILDERS = {cls.name: cls for cls in (Kinetics400, Ssv2, Ucf101, Hmdb51, VideoFolder)}
