"""Builds a TFDS data set from a folder of videos and the official lists.

    build("ucf101", "/videos/UCF-101", "/data/tfds", annotations="/videos/ucfTrainTestlist")

makes /data/tfds/ucf101/split1/1.0.0: ArrayRecord shards, TFDS's own description, the index that
`tfds_source` reads, and a report of what the lists name and the folder lacks.
"""

from __future__ import annotations

import json
import os
import tempfile

from vmae_jax.data.tfds.annotations import read_annotations
from vmae_jax.data.tfds.tfds_source import import_tfds
from vmae_jax.errors import SettingError
from vmae_jax.files import storage


def build(
    name: str,
    source: str | os.PathLike,
    dest: str | os.PathLike,
    *,
    annotations: str | os.PathLike | None = None,
    split_number: int | None = None,
    list_format: str | None = None,
    num_shards: int | None = None,
    num_threads: int = 8,
    beam_options: str | None = None,
) -> tuple[str, dict]:
    """The folder of a new set, and its report.

    Args:
      name: a key of `annotations.READERS`.
      source: folder with the videos; nothing is downloaded.
      dest: folder for sets; the new one goes to `dest/name/1.0.0`, or `dest/name/splitN/1.0.0`.
        With Beam, all workers must see both folders under these names.
      annotations: folder with the official lists; None if they are in `source`.
      split_number: which official split of ucf101 and hmdb51, 1 to 3; None for 1.
      list_format: of kinetics400's and video_folder's lists, one of `listings.LIST_FORMATS`; None
        for "path_label".
      num_shards: files per split; None lets TFDS's rule choose (64 MB to 1 GB each).
      num_threads: files written at a time, without Beam.
      beam_options: runs Apache Beam with these options of its pipelines, commas between them:
        "runner=FlinkRunner,flink_master=host:8081". "" or "runner=DirectRunner" runs it here. None
        writes in threads of this process. The files are the same.
    Returns:
      (folder, {split: {"listed": int, "written": int, "skipped": [{"clip_id", "path", "reason"}]}})
      The same is in `report.json` of the folder.
    Raises:
      MissingPackage: without TFDS, or without Beam if it is asked for.
      SettingError: for arguments out of range; for folders or lists that are missing or damaged; if
        the set is there already, or no listed video is there.
      OSError: if a file cannot be read or written.
    """
    if split_number not in (None, 1, 2, 3):
        raise SettingError(f"split_number={split_number} must be 1, 2 or 3.")
    for option, number in (("num_shards", num_shards), ("num_threads", num_threads)):
        if number is not None and number < 1:
            raise SettingError(f"{option}={number} must be at least 1.")
    tfds = import_tfds()
    from vmae_jax.data.tfds import builders, shard_writing

    source = _absolute(source)
    lists = source if annotations is None else _absolute(annotations)
    sources = read_annotations(
        name, source, lists, split_number=split_number, list_format=list_format
    )
    builder_class = builders.BUILDERS[name]
    builder = builder_class(
        sources=sources,
        num_threads=num_threads,
        config=f"split{split_number or 1}" if builder_class.BUILDER_CONFIGS else None,
        data_dir=_absolute(dest),
    )
    if builder.data_path.exists():
        raise SettingError(
            f"{builder.data_dir} holds this set already; delete it, or choose another dest."
        )
    options = None if beam_options is None else shard_writing.pipeline_options(beam_options)
    with tempfile.TemporaryDirectory() as nothing_is_downloaded:
        builder.download_and_prepare(
            download_dir=nothing_is_downloaded,
            download_config=tfds.download.DownloadConfig(
                beam_options=options, num_shards=num_shards, try_download_gcs=False
            ),
        )
    report = json.loads((builder.data_path / builders.REPORT_FILE).read_text())
    return os.fspath(builder.data_path), report


def _absolute(path: str | os.PathLike) -> str:
    """The same place for a worker that runs in another folder."""
    path = os.fspath(path)
    return path if storage.is_remote(path) else os.path.abspath(path)
