"""The documented image processor: frames of any kind to `pixel_values`, on the host, without jax.

    processor = VideoMAEImageProcessor.from_pretrained("MCG-NJU/videomae-base")
    inputs = processor(frames, return_tensors="np")     # 16 frames: PIL images or arrays
    model(**inputs, bool_masked_pos=mask)               # pixel_values (1, 16, 3, 224, 224)

Every frame is resized, cropped, rescaled and normalised, in this order. Resizing goes through 8
bits, whatever the dtype of the frame, and the defaults normalise with 0.5, not with ImageNet's
statistics, which the published checkpoints want: take those from their `preprocessor_config.json`.

Names and defaults are those of transformers 4.27, arithmetic and inputs those of the PIL processor
of transformers 5.23, bit for bit.
"""

from __future__ import annotations

import copy
import difflib
import enum
import functools
import json
import math
import operator
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vmae_jax.files.atomic import write_files
from vmae_jax.huggingface.image_transforms import (
    as_videos,
    channels_first,
    process_frame,
    stack_videos,
)

PROCESSOR_FILE = "preprocessor_config.json"
_NEEDS = {
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}


class ChannelDimension(enum.StrEnum):
    """Where the channels of `pixel_values` stand: (C, H, W) or (H, W, C)."""

    FIRST = "channels_first"
    LAST = "channels_last"


class BatchFeature(dict):
    """A dict whose entries are attributes too: `inputs["pixel_values"]`, `inputs.pixel_values`."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"there is no {name!r} here, only {list(self)}")
        return self[name]


# Options: (name, value) -> the value in its one form


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}={value!r} must be True or False.")
    return bool(value)


def _pixels(name: str, value: Any) -> int:
    try:
        pixels = operator.index(value)
    except TypeError:
        pixels = 0
    if pixels < 1 or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be a positive whole number of pixels.")
    return pixels


def _size(name: str, value: Any, *, int_means: tuple[str, ...]) -> dict[str, int]:
    if isinstance(value, (int, np.integer)):
        value = dict.fromkeys(int_means, value)
    elif isinstance(value, Sequence) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    if not isinstance(value, Mapping) or set(value) not in ({"height", "width"}, set(int_means)):
        keys = " or ".join(dict.fromkeys([str(list(int_means)), "['height', 'width']"]))
        raise ValueError(
            f"{name}={value!r} must be a dict with the keys {keys}, (height, width), or an int."
        )
    return {key: _pixels(f"{name}[{key!r}]", pixels) for key, pixels in value.items()}


def _filter(name: str, value: Any) -> Image.Resampling:
    try:
        return Image.Resampling(value)
    except ValueError as error:
        known = ", ".join(f"{member.value} ({member.name})" for member in Image.Resampling)
        raise ValueError(f"{name}={value!r} is no filter of PIL; choose from {known}.") from error


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be a finite number.")
    return float(value)


def _mean(name: str, value: Any) -> float | list[float]:
    if np.ndim(value) and len(value):
        return [_number(f"{name}[{i}]", number) for i, number in enumerate(value)]
    return _number(name, value)


def _deviation(name: str, value: Any) -> float | list[float]:
    value = _mean(name, value)
    if np.min(value) <= 0:
        raise ValueError(f"{name}={value} must be positive.")
    return value


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if value is None else _OPTIONS[name](name, value)
        for name, value in options.items()
    }


def _refuse(unknown: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{name!r} is no option here; {hint}choose from {tuple(known)}.")


class VideoMAEImageProcessor:
    """Turns videos into what the models take; see `preprocess`.

    Args, and attributes of the same names:
      do_resize: whether to resize.
      size: {"shortest_edge": n}, which keeps the proportions, or n; or {"height": h, "width": w},
        or (h, w). None: {"shortest_edge": 224}.
      resample: a filter of PIL, as `PIL.Image.Resampling` or its number.
      do_center_crop: whether to crop; a frame that is smaller gets a frame of zeros.
      crop_size: {"height": h, "width": w}, or (h, w), or n for a square. None: 224 x 224.
      do_rescale: whether to multiply by `rescale_factor`.
      rescale_factor: what takes [0, 255] to [0, 1].
      do_normalize: whether to subtract the mean and divide by the standard deviation.
      image_mean, image_std: one number, or one per channel, after rescaling. None: 0.5 each.

    `extra` holds the entries of a JSON file that mean nothing here; they are written back.

    Raises:
      ValueError: for any value that cannot work, and for unknown options, which transformers keeps.
    """

    def __init__(
        self,
        do_resize: bool = True,
        size: Mapping[str, int] | Sequence[int] | int | None = None,
        resample: Image.Resampling | int = Image.Resampling.BILINEAR,
        do_center_crop: bool = True,
        crop_size: Mapping[str, int] | Sequence[int] | int | None = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        **unknown: Any,
    ):
        _refuse(unknown, list(_OPTIONS))
        options = {
            "do_resize": do_resize,
            "size": {"shortest_edge": 224} if size is None else size,
            "resample": resample,
            "do_center_crop": do_center_crop,
            "crop_size": 224 if crop_size is None else crop_size,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": [0.5] * 3 if image_mean is None else image_mean,
            "image_std": [0.5] * 3 if image_std is None else image_std,
        }
        for name, value in _checked(options).items():
            setattr(self, name, value)
        self.extra = {}

    def __call__(self, images: Any, **options: Any) -> BatchFeature:
        """The same as `preprocess`."""
        return self.preprocess(images, **options)

    def preprocess(
        self,
        videos: Any,
        do_resize: bool | None = None,
        size: Mapping[str, int] | Sequence[int] | int | None = None,
        resample: Image.Resampling | int | None = None,
        do_center_crop: bool | None = None,
        crop_size: Mapping[str, int] | Sequence[int] | int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        return_tensors: str | None = None,
        data_format: ChannelDimension | str = ChannelDimension.FIRST,
        **unknown: Any,
    ) -> BatchFeature:
        """`pixel_values` of one video or a batch, with the processor's options unless given here.

        Args:
          videos: a frame, a list of frames or a list of lists of frames, where a frame is a PIL
            image or an array of numpy, jax or torch, [H, W, C] or [C, H, W] with 1, 3 or 4 channels
            (as the last axis only if the first cannot be it); also arrays of 4 axes (a video), a
            list of these, or one of 5 axes (a batch). Values in [0, 255], of any dtype; fractions
            in [0, 1] want do_rescale=False, and lose all but 8 bits where they are resized.
          return_tensors: "np" or "jax" for one array; None for lists of lists of numpy arrays.
          data_format: "channels_first" or "channels_last", of the result.
        Returns:
          A dict with "pixel_values", [B, T, C, H, W] or [B, T, H, W, C]; fp32, unless the frames
          are of another floating type and neither resized nor rescaled.
        Raises:
          ValueError: for inputs and options that cannot work.
        Source: transformers 5.23, VideoMAEImageProcessorPil. Deliberately different: `data_format`
        is obeyed and None means the processor's own option (both as in 4.27); arrays of jax and of
        5 axes are accepted, and torch tensors that require gradients; videos of different lengths
        are an error unless lists are returned.
        """
        given = {
            "do_resize": do_resize,
            "size": size,
            "resample": resample,
            "do_center_crop": do_center_crop,
            "crop_size": crop_size,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
        }
        _refuse(unknown, [*given, "return_tensors", "data_format"])
        options = _checked(
            {name: getattr(self, name) if value is None else value for name, value in given.items()}
        )
        for step, needed in _NEEDS.items():
            for name in needed:
                if options[step] and options[name] is None:
                    raise ValueError(
                        f"{name}=None, but {step}=True needs it; give it, or pass {step}=False."
                    )
        if return_tensors not in (None, "np", "jax"):
            raise ValueError(
                f"return_tensors={return_tensors!r} is not supported; choose 'np' or 'jax', or "
                "None for lists of numpy arrays."
            )
        if data_format not in tuple(ChannelDimension):
            raise ValueError(
                f"data_format={data_format!r} is unknown; choose 'channels_first' or "
                "'channels_last'."
            )
        channels_last = data_format == ChannelDimension.LAST
        pixel_values = []
        for video in as_videos(videos):
            frames = [process_frame(channels_first(frame), options) for frame in video]
            pixel_values.append([np.moveaxis(f, 0, -1) if channels_last else f for f in frames])
        if return_tensors is not None:
            pixel_values = stack_videos(pixel_values)
        if return_tensors == "jax":
            import jax.numpy as jnp

            pixel_values = jnp.asarray(pixel_values)
        return BatchFeature(pixel_values=pixel_values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> VideoMAEImageProcessor:
        """From what `to_dict` returned; unknown entries are kept in `extra`.

        Raises: ValueError for bad values, and for unknown overrides.
        """
        known = {name: value for name, value in values.items() if name in _OPTIONS}
        processor = cls(**{**known, **overrides})
        ours = {*_OPTIONS, "image_processor_type"}
        extra = {name: value for name, value in values.items() if name not in ours}
        processor.extra = copy.deepcopy(extra)
        return processor

    def to_dict(self) -> dict[str, Any]:
        """The options and `extra`, as JSON has them."""
        options = _checked({name: getattr(self, name) for name in _OPTIONS})
        if options["resample"] is not None:
            options["resample"] = int(options["resample"])
        described = {**copy.deepcopy(self.extra), **options}
        return {**described, "image_processor_type": "VideoMAEImageProcessor"}

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike, *, revision: str | None = None, **overrides: Any
    ) -> VideoMAEImageProcessor:
        """From `preprocessor_config.json` of a directory or of the hub, or from such a file.

        Args:
          path: a directory as transformers 4 or 5 or `save_pretrained` wrote it, the file itself,
            or a hub id ("MCG-NJU/videomae-base").
          revision: branch, tag or commit of a hub id.
          **overrides: options that replace those of the file.
        Raises:
          FileNotFoundError: if there is no such file or repository.
          ValueError: if it is not a JSON object, or an option in it is bad.
          OSError: if the hub cannot be reached and the file is not in its cache.
        """
        from vmae_jax.weights import hub

        path = os.fspath(path)
        if hub.is_hub_id(path):
            path = hub.download_file(path, PROCESSOR_FILE, revision)
        elif revision is not None:
            raise ValueError(f"revision={revision!r} is for hub ids, and {path} is none.")
        if not os.path.isfile(path):
            path = os.path.join(path, PROCESSOR_FILE)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{path} does not exist; give a directory that holds {PROCESSOR_FILE}, or a hub id."
            )
        with open(path, "rb") as file:
            content = file.read()
        try:
            values = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a JSON object, not {type(values).__name__}.")
        try:
            return cls.from_dict(values, **overrides)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes `preprocessor_config.json`, whole or not at all; the directory is made if needed.

        transformers 4 and 5 read it, and so does `from_pretrained`.
        """
        write_files(directory, {PROCESSOR_FILE: lambda file: file.write(self.to_json().encode())})

    def to_json(self) -> str:
        """What `preprocessor_config.json` holds."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, sort_keys=True)}"


class VideoMAEFeatureExtractor(VideoMAEImageProcessor):
    """The former name of `VideoMAEImageProcessor`, and the same otherwise."""

    def __init__(self, *args: Any, **options: Any):
        warnings.warn(
            "VideoMAEFeatureExtractor is deprecated; use VideoMAEImageProcessor.",
            FutureWarning,
            stacklevel=2,
        )
        super().__init__(*args, **options)


_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "do_resize": _flag,
    "size": functools.partial(_size, int_means=("shortest_edge",)),
    "resample": _filter,
    "do_center_crop": _flag,
    "crop_size": functools.partial(_size, int_means=("height", "width")),
    "do_rescale": _flag,
    "rescale_factor": _number,
    "do_normalize": _flag,
    "image_mean": _mean,
    "image_std": _deviation,
}
