"""What the values of a `VideoMAEConfig` must be: their one form, and the checks.

Every function takes the fields by name, as they were given, and raises `SettingError` for a value,
or a pair of values, that cannot work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmae_jax.activations import ACTIVATIONS
from vmae_jax.errors import SettingError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INITIALIZATIONS = ("videomae", "huggingface")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

MAX_LABELS = 10**6  # each gets a name, and a file may claim any number
MAX_POSITION_VALUES = 2**31 - 1  # of the position table: 8 GiB of fp32, and no index overflows

_POSITIVE = (
    "patch_size",
    "num_frames",
    "tubelet_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)
_RATES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "head_dropout_prob",
)
_FLAGS = (
    "qkv_bias",
    "use_mean_pooling",
    "norm_pix_loss",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
)
_POSITIVE_NUMBERS = ("layer_norm_eps", "decoder_norm_eps", "fc_norm_eps", "initializer_range")
_CHOICES = {
    "hidden_act": tuple(ACTIVATIONS),
    "initialization": INITIALIZATIONS,
    "problem_type": (None, *PROBLEM_TYPES),
}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)  # JSON, as Python reads it, has NaN


def settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in their one form, with what follows from others filled in; all checked."""
    values = dict(values)
    values |= _settled_sizes(values)
    values |= _settled_labels(values)
    values |= _settled_pixel_statistics(values)
    _check_each(values)
    _check_together(values)
    return values


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with some of them changed, and without those that the changes make meaningless.

    New labels drop the old names, unless only their number is given and is that of the names;
    another number of channels drops the statistics of the old ones.
    """
    values, changes = dict(values), dict(changes)
    if changes.get("label2id") and not changes.get("id2label"):
        changes["id2label"] = {i: name for name, i in changes["label2id"].items()}
    if {"num_labels", "id2label"} & set(changes):
        names = values.get("id2label")
        same_number = (
            _is_int(changes.get("num_labels"))
            and isinstance(names, Mapping)
            and (len(names) == changes["num_labels"])
        )
        if "id2label" in changes or not same_number:
            values |= {"num_labels": None, "id2label": None, "label2id": None}
    num_channels = values.get("num_channels", 3)
    if changes.get("num_channels", num_channels) != num_channels:
        values |= {"image_mean": None, "image_std": None}
    return {**values, **changes}


def _settled_sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where we want hashable tuples, and [n, n] where we want n."""
    size, patch = values["image_size"], values["patch_size"]
    if isinstance(size, Sequence) and not isinstance(size, str):
        if len(size) != 2:
            raise SettingError(f"image_size={size!r} must be one int or (height, width).")
        size = size[0] if size[0] == size[1] else tuple(size)
    if isinstance(patch, Sequence) and not isinstance(patch, str):
        if len(set(patch)) != 1:
            raise SettingError(f"patch_size={patch!r} must be square: give one int.")
        patch = patch[0]
    return {"image_size": size, "patch_size": patch}


def _settled_labels(values: Mapping[str, Any]) -> dict[str, Any]:
    number, names, ids = (values[name] for name in ("num_labels", "id2label", "label2id"))
    if names is None and ids:
        names = {i: name for name, i in _items("label2id", ids)}
    if names is not None:
        try:
            names = {int(i): name for i, name in _items("id2label", names)}
        except (TypeError, ValueError) as error:
            raise SettingError(f"id2label={names!r} must map class numbers to names.") from error
        if number is not None and number != len(names):
            raise SettingError(
                f"num_labels={number} contradicts id2label with {len(names)} entries; give one of "
                "them, or make them agree."
            )
        number = len(names)
    if number is None:
        number = 2
    if not _is_int(number) or not 0 <= number <= MAX_LABELS:
        raise SettingError(f"num_labels={number!r} must be an integer from 0 to {MAX_LABELS}.")
    if names is None:
        names = {i: f"LABEL_{i}" for i in range(number)}
    ids = dict(_items("label2id", ids)) if ids else {name: i for i, name in names.items()}
    return {"num_labels": number, "id2label": names, "label2id": ids}


def _items(name: str, value: Any) -> Iterable[tuple[Any, Any]]:
    if not isinstance(value, Mapping):
        kinds = {"id2label": "class numbers to names", "label2id": "names to class numbers"}
        raise SettingError(f"{name}={value!r} must map {kinds[name]}.")
    return value.items()


def _settled_pixel_statistics(values: Mapping[str, Any]) -> dict[str, Any]:
    num_channels = values["num_channels"]
    if not _is_int(num_channels) or num_channels < 1:
        raise SettingError(f"num_channels={num_channels!r} must be a positive integer.")
    rgb = num_channels == 3
    defaults = {
        "image_mean": IMAGENET_MEAN if rgb else (0.0,) * num_channels,
        "image_std": IMAGENET_STD if rgb else (1.0,) * num_channels,
    }
    found = {}
    for name, default in defaults.items():
        numbers = default if values[name] is None else values[name]
        per_channel = isinstance(numbers, Sequence) and len(numbers) == num_channels
        if not per_channel or not all(map(_is_number, numbers)):
            raise SettingError(f"{name}={numbers} must be {num_channels} numbers, one per channel.")
        found[name] = tuple(numbers)
    if min(found["image_std"]) <= 0:
        raise SettingError(f"image_std={found['image_std']} must be positive.")
    return found


def _check_each(values: Mapping[str, Any]) -> None:
    for name in _POSITIVE:
        if not _is_int(values[name]) or values[name] < 1:
            raise SettingError(f"{name}={values[name]!r} must be a positive integer.")
    for name in _FLAGS:
        if not isinstance(values[name], bool):
            raise SettingError(f"{name}={values[name]!r} must be True or False.")
    for name in _RATES:
        if not _is_number(values[name]) or not 0 <= values[name] < 1:
            raise SettingError(f"{name}={values[name]!r} must be in [0, 1).")
    for name in _POSITIVE_NUMBERS:
        if not _is_number(values[name]) or values[name] <= 0:
            raise SettingError(f"{name}={values[name]!r} must be a positive number.")
    for name, known in _CHOICES.items():
        if values[name] not in known:
            raise SettingError(f"{name}={values[name]!r} is unknown; choose from {known}.")


def _check_together(values: Mapping[str, Any]) -> None:
    size, patch = values["image_size"], values["patch_size"]
    sides = size if isinstance(size, tuple) else (size, size)
    for side, pixels in zip(("height", "width"), sides, strict=True):
        if not _is_number(pixels):
            raise SettingError(f"image_size={size!r} must be one int or (height, width).")
        if not _is_int(pixels) or pixels < 1 or pixels % patch:
            raise SettingError(
                f"image_size={size!r} has a {side} that is not a positive multiple of "
                f"patch_size={patch}; choose e.g. {max(1, round(pixels / patch)) * patch}."
            )
    frames, tubelet = values["num_frames"], values["tubelet_size"]
    if frames % tubelet:
        raise SettingError(
            f"num_frames={frames} is not a multiple of tubelet_size={tubelet}; change one of them."
        )
    for prefix in ("", "decoder_"):
        width, heads = f"{prefix}hidden_size", f"{prefix}num_attention_heads"
        if values[width] % values[heads]:
            raise SettingError(
                f"{width}={values[width]} is not a multiple of {heads}={values[heads]}; change one "
                "of them."
            )
    num_tokens = frames // tubelet * (sides[0] // patch) * (sides[1] // patch)
    for width in ("hidden_size", "decoder_hidden_size"):
        if num_tokens * values[width] > MAX_POSITION_VALUES:
            raise SettingError(
                f"image_size={size}, num_frames={frames}, patch_size={patch} and "
                f"tubelet_size={tubelet} make {num_tokens} tokens; with {width}={values[width]} "
                f"their position table has more than {MAX_POSITION_VALUES} values, as no model "
                "has. Correct what is too large."
            )
    if values["norm_pix_loss"] and tubelet * patch**2 < 2:
        raise SettingError(
            "norm_pix_loss=True needs at least 2 pixels in a tubelet (the variance of one is "
            "undefined); set it to False."
        )
