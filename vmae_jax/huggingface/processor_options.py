"""The options of the image processor: what they may be, and their one form."""

from __future__ import annotations

import difflib
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vmae_jax.errors import SettingError

NEEDS = {
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise SettingError(f"{name}={value!r} must be True or False.")
    return bool(value)


def _pixels(name: str, value: Any) -> int:
    try:
        pixels = operator.index(value)
    except TypeError:
        pixels = 0
    if pixels < 1 or isinstance(value, bool):
        raise SettingError(f"{name}={value!r} must be a positive whole number of pixels.")
    return pixels


def _size(name: str, value: Any, *, int_means: tuple[str, ...]) -> dict[str, int]:
    if isinstance(value, (int, np.integer)):
        value = dict.fromkeys(int_means, value)
    elif isinstance(value, Sequence) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    if not isinstance(value, Mapping) or set(value) not in ({"height", "width"}, set(int_means)):
        keys = " or ".join(dict.fromkeys([str(list(int_means)), "['height', 'width']"]))
        raise SettingError(
            f"{name}={value!r} must be a dict with the keys {keys}, (height, width), or an int."
        )
    return {key: _pixels(f"{name}[{key!r}]", pixels) for key, pixels in value.items()}


def _filter(name: str, value: Any) -> Image.Resampling:
    try:
        return Image.Resampling(value)
    except ValueError as error:
        known = ", ".join(f"{member.value} ({member.name})" for member in Image.Resampling)
        raise SettingError(f"{name}={value!r} is no filter of PIL; choose from {known}.") from error


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
        raise SettingError(f"{name}={value!r} must be a finite number.")
    return float(value)


def _mean(name: str, value: Any) -> float | list[float]:
    if np.ndim(value) and len(value):
        return [_number(f"{name}[{i}]", number) for i, number in enumerate(value)]
    return _number(name, value)


def _deviation(name: str, value: Any) -> float | list[float]:
    value = _mean(name, value)
    if np.min(value) <= 0:
        raise SettingError(f"{name}={value} must be positive.")
    return value


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in their one form; None stays.

    Raises:
      SettingError: for a value that cannot work.
    """
    return {
        name: None if value is None else OPTIONS[name](name, value)
        for name, value in options.items()
    }


def refuse_unknown(unknown: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuses options that are unknown.

    Raises:
      SettingError: for the first of them; names the nearest known one.
    """
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SettingError(f"{name!r} is no option here; {hint}choose from {tuple(known)}.")


OPTIONS: dict[str, Callable[[str, Any], Any]] = {
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
