"""Data sets that `building.build` made: records from an index, videos by random access.

Which records there are comes from the split's index, so that no video is read before it is opened;
then one record is read whole, by TFDS on ArrayRecord, and its bytes go to a decoder. Needs neither
TensorFlow nor the network.
"""

from __future__ import annotations

import json
import os
import threading
from types import ModuleType

from vmae_jax.data.sources.list_files import MAX_LIST_BYTES
from vmae_jax.data.sources.splits import ALL, HELD_OUT, check_split
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.decoders import open_video
from vmae_jax.data.video.reader import VideoReader
from vmae_jax.errors import SettingError
from vmae_jax.files import storage
from vmae_jax.packages import import_package

_INFO_FILE = "dataset_info.json"
_INDEX_START, _INDEX_END = "index_", ".json"


def index_file(split: str) -> str:
    """Name of the file beside the shards that lists a split's records in stored order."""
    return f"{_INDEX_START}{split}{_INDEX_END}"


class UnknownSplit(SettingError):
    """A set does not have the split that was asked for."""


class TfdsSource(VideoSource):
    """One split of a set.

    A record's path is `FOLDER/SPLIT[i]`; i counts in stored order, which is TFDS's.

    Args:
      name_or_dir: the folder that `build` returned; a folder above it, if it holds one set alone;
        or "ucf101", "ucf101/split1" and the like below `data_dir`.
      split: as in the lists, "train", "val" or "test"; TFDS's slices ("train[:10%]") are not taken.
      backend: a key of `decoders.DECODERS`.
      data_dir: where names are looked up; None takes TFDS_DATA_DIR, or ~/tensorflow_datasets.
    Raises:
      SettingError: if there is no such set, or several, or it has no such split or index.
    """

    paths_are_videos = False

    def __init__(
        self,
        name_or_dir: str | os.PathLike,
        split: str,
        backend: str = "pyav",
        *,
        data_dir: str | os.PathLike | None = None,
    ):
        self.folder = _find_set(os.fspath(name_or_dir), data_dir)
        self.split = split
        records, class_names = _read_index(self.folder, split)
        self._number = {record.path: i for i, record in enumerate(records)}
        super().__init__(records, backend, class_names)
        self._examples = None
        self._lock = threading.Lock()

    def read_bytes(self, i: int) -> bytes:
        """The file that was stored as record i, whole; from any thread.

        Raises:
          SettingError: if the set holds another record there than its index says.
        """
        example = self._open_examples()[i]
        clip_id = self.records[i].clip_id
        if example["clip_id"].decode("utf-8", "surrogateescape") != clip_id:
            raise SettingError(
                f"record {i} of {self.folder} is clip_id={example['clip_id']!r}, but the "
                f"index says {clip_id!r}; its files are of two builds, so build it again."
            )
        return example["video"]

    def open_whole(self, record: VideoRecord) -> VideoReader:
        """A reader of all of the record's video."""
        video = self.read_bytes(self._number[record.path])
        return open_video(video, self.backend, name=record.clip_id)

    def _open_examples(self):
        with self._lock:
            if self._examples is None:
                builder = import_tfds().builder_from_directory(self.folder)
                self._examples = builder.as_data_source(self.split)
            return self._examples

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_examples": None, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def import_tfds() -> ModuleType:
    """The module tensorflow_datasets.

    Raises:
      MissingPackage: if it is not installed, or array_record, which it asks for on Linux only.
    """
    import_package("array_record", "a TFDS data set", install="vmae_jax[tfds]")
    return import_package("tensorflow_datasets", "a TFDS data set", install="vmae_jax[tfds]")


def _find_set(name_or_dir: str, data_dir: str | os.PathLike | None) -> str:
    folder = name_or_dir
    if data_dir is not None or not (storage.is_remote(folder) or os.path.isdir(folder)):
        root = os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
        folder = storage.join(os.path.expanduser(root), name_or_dir)
    if not storage.is_remote(folder):
        folder = os.path.abspath(folder)
    found = storage.list_files(folder) if storage.is_remote(folder) or os.path.isdir(folder) else []
    below = [name.rpartition("/")[0] for name in found if name.rpartition("/")[2] == _INFO_FILE]
    sets = [storage.join(folder, name) if name else folder for name in below]
    if not sets:
        raise SettingError(
            f"{name_or_dir!r} is no TFDS data set: {folder} has no {_INFO_FILE} in or below it; "
            "build it with `python -m vmae_jax build_tfds`, or give its folder."
        )
    if len(sets) > 1:
        raise SettingError(f"{name_or_dir!r} means several data sets; choose one of {sets}.")
    return sets[0]


def _splits_of(folder: str) -> list[str]:
    splits = sorted(
        name.removeprefix(_INDEX_START).removesuffix(_INDEX_END)
        for name in storage.list_folder(folder)
        if name.startswith(_INDEX_START) and name.endswith(_INDEX_END)
    )
    if not splits:
        raise SettingError(
            f"{folder} is a TFDS data set without indices; only those that `python -m vmae_jax "
            "build_tfds` made can be used."
        )
    return splits


def _read_index(folder: str, split: str) -> tuple[list[VideoRecord], list[str]]:
    """The records of a split in stored order, and the names of the classes."""
    splits = _splits_of(folder)
    if split not in splits:
        raise UnknownSplit(f"split={split!r} is not in {folder}; choose one of {splits}.")
    file = storage.join(folder, index_file(split))
    text = storage.read_text(file, MAX_LIST_BYTES)
    try:
        index = json.loads(text)
        columns, class_names = index["records"], index["class_names"]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return [VideoRecord(f"{folder}/{split}[{i}]", **x) for i, x in enumerate(rows)], class_names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SettingError(f"{file} is damaged ({error!r}); build the set again.") from error


def tfds(
    path: str | None,
    split: str,
    *,
    train_split: str = "train",
    held_out_split: str = "val",
    data_dir: str | None = None,
    backend: str = "pyav",
) -> TfdsSource:
    """A split of a set that `python -m vmae_jax build_tfds` made.

    Args:
      path: folder or name, as of TfdsSource.
      split: "train", "held_out", or "all" of a set that has one split alone.
      train_split, held_out_split: what the set calls them.
      data_dir, backend: as of TfdsSource.
    Raises:
      SettingError: as TfdsSource, for an unknown split, or "all" of several.
    """
    check_split(split)
    if split == ALL:
        folder = _find_set(path or "", data_dir)
        splits = _splits_of(folder)
        if len(splits) > 1:
            raise SettingError(
                f"split='all' of {folder} would be several, {splits}; open one of them, as 'train' "
                "with the option train_split, say."
            )
        return TfdsSource(folder, splits[0], backend)
    name = held_out_split if split == HELD_OUT else train_split
    try:
        return TfdsSource(path or "", name, backend, data_dir=data_dir)
    except UnknownSplit as error:
        raise UnknownSplit(f"{error} Set data.options.{split}_split.") from error
