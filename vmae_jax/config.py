"""`VideoMAEConfig`: everything that decides what a model computes, and the published sizes.

Field names and defaults are those of the Hugging Face class, whose JSON this one reads and writes.
Beware of two of those defaults: `layer_norm_eps=1e-12`, where the original code has 1e-6 (use
`VideoMAEConfig.from_size`), and `use_mean_pooling=True`, which also takes away the encoder's final
LayerNorm: every published pre-training checkpoint says False.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmae_jax.activations import ACTIVATIONS
from vmae_jax.errors import SettingError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INITIALIZATIONS = ("videomae", "huggingface")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

MAX_LABELS = 10**6  # each gets a name, and a file may claim any number

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
_EPSILONS = ("layer_norm_eps", "decoder_norm_eps", "fc_norm_eps")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)  # JSON, as Python reads it, has NaN


@dataclasses.dataclass(frozen=True)
class VideoMAEConfig:
    """A checked, immutable, hashable description of a model.

    Beyond the fields of the Hugging Face class (its documentation describes them):

    Attributes:
      image_size: height and width of a frame in pixels, one int or (height, width).
      num_labels: classes of the classifier; None takes it from `id2label`, else 2. 0: no
        classifier, the pooled features are returned.
      id2label, label2id: class names; filled with LABEL_0, ... when absent.
      return_dict: whether calls return a named output (True) or a tuple.
      decoder_norm_eps, fc_norm_eps: epsilons of the decoder's last LayerNorm and of the
        classifier's. The Hugging Face code has 1e-5 for both whatever `layer_norm_eps` says, the
        original 1e-6.
      drop_path_rate: stochastic depth of the last block, in [0, 1); rises linearly from 0.
      head_dropout_prob: dropout before the classifier, in [0, 1).
      image_mean, image_std: per channel, on the scale of [0, 1]. None: ImageNet's for 3 channels;
        0 and 1 otherwise, which is what the Hugging Face code does with other channel counts.
      initialization: "videomae" (the official code) or "huggingface".
      extra: JSON keys that mean nothing here; kept, and written back by `to_dict`.

    Raises:
      ValueError: for any value, or pair of values, that cannot work.
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    use_mean_pooling: bool = True
    decoder_num_attention_heads: int = 6
    decoder_hidden_size: int = 384
    decoder_num_hidden_layers: int = 4
    decoder_intermediate_size: int = 1536
    norm_pix_loss: bool = True

    num_labels: int | None = None
    id2label: Mapping[int, str] | None = dataclasses.field(default=None, hash=False)
    label2id: Mapping[str, int] | None = dataclasses.field(default=None, hash=False)
    problem_type: str | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True

    decoder_norm_eps: float = 1e-5
    fc_norm_eps: float = 1e-5
    drop_path_rate: float = 0.0
    head_dropout_prob: float = 0.0
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    initialization: str = "videomae"
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        self._settle_shapes()
        self._settle_labels()
        self._settle_pixel_statistics()
        self._check()

    def _set(self, **values):
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _settle_shapes(self):
        """JSON has lists where we want hashable tuples, and [n, n] where we want n."""
        size = self.image_size
        if isinstance(size, Sequence) and not isinstance(size, str):
            if len(size) != 2:
                raise SettingError(f"image_size={size!r} must be one int or (height, width).")
            self._set(image_size=size[0] if size[0] == size[1] else tuple(size))
        patch = self.patch_size
        if isinstance(patch, Sequence) and not isinstance(patch, str):
            if len(set(patch)) != 1:
                raise SettingError(f"patch_size={patch!r} must be square: give one int.")
            self._set(patch_size=patch[0])

    def _settle_labels(self):
        names = self.id2label
        if names is not None:
            try:
                names = {int(k): v for k, v in names.items()}
            except (AttributeError, TypeError, ValueError) as error:
                raise SettingError(
                    f"id2label={names!r} must map class numbers to names."
                ) from error
            if self.num_labels is not None and self.num_labels != len(names):
                raise SettingError(
                    f"num_labels={self.num_labels} contradicts id2label with {len(names)} entries; "
                    "give one of them, or make them agree."
                )
            self._set(num_labels=len(names))
        if self.num_labels is None:
            self._set(num_labels=2)
        if not _is_int(self.num_labels) or not 0 <= self.num_labels <= MAX_LABELS:
            raise SettingError(
                f"num_labels={self.num_labels!r} must be an integer from 0 to {MAX_LABELS}."
            )
        if names is None:
            names = {i: f"LABEL_{i}" for i in range(self.num_labels)}
        ids = self.label2id or {name: i for i, name in names.items()}
        self._set(id2label=names, label2id=dict(ids))

    def _settle_pixel_statistics(self):
        if not _is_int(self.num_channels) or self.num_channels < 1:
            raise SettingError(f"num_channels={self.num_channels!r} must be a positive integer.")
        rgb = self.num_channels == 3
        if self.image_mean is None:
            self._set(image_mean=IMAGENET_MEAN if rgb else (0.0,) * self.num_channels)
        if self.image_std is None:
            self._set(image_std=IMAGENET_STD if rgb else (1.0,) * self.num_channels)
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            per_channel = isinstance(values, Sequence) and len(values) == self.num_channels
            if not per_channel or not all(map(_is_number, values)):
                raise SettingError(
                    f"{name}={values} must be {self.num_channels} numbers, one per channel."
                )
            self._set(**{name: tuple(values)})
        if min(self.image_std) <= 0:
            raise SettingError(f"image_std={self.image_std} must be positive.")

    def _check(self):
        for name in _POSITIVE:
            value = getattr(self, name)
            if not _is_int(value) or value < 1:
                raise SettingError(f"{name}={value!r} must be a positive integer.")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise SettingError(f"{name}={getattr(self, name)!r} must be True or False.")
        for name in _RATES:
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < 1:
                raise SettingError(f"{name}={value!r} must be in [0, 1).")
        for name in (*_EPSILONS, "initializer_range"):
            value = getattr(self, name)
            if not _is_number(value) or value <= 0:
                raise SettingError(f"{name}={value!r} must be a positive number.")
        for side, pixels in zip(("height", "width"), self.frame_size, strict=True):
            if not _is_int(pixels) or pixels < 1 or pixels % self.patch_size:
                raise SettingError(
                    f"image_size={self.image_size!r} has a {side} that is not a positive multiple "
                    f"of patch_size={self.patch_size}; choose e.g. "
                    f"{max(1, round(pixels / self.patch_size)) * self.patch_size}."
                    if _is_number(pixels)
                    else f"image_size={self.image_size!r} must be one int or (height, width)."
                )
        if self.num_frames % self.tubelet_size:
            raise SettingError(
                f"num_frames={self.num_frames} is not a multiple of "
                f"tubelet_size={self.tubelet_size}; change one of them."
            )
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                raise SettingError(
                    f"{width}={getattr(self, width)} is not a multiple of "
                    f"{heads}={getattr(self, heads)}; change one of them."
                )
        if self.norm_pix_loss and self.tubelet_size * self.patch_size**2 < 2:
            raise SettingError(
                "norm_pix_loss=True needs at least 2 pixels in a tubelet "
                "(the variance of one is undefined); set it to False."
            )
        for name, known in (
            ("hidden_act", tuple(ACTIVATIONS)),
            ("initialization", INITIALIZATIONS),
            ("problem_type", (None, *PROBLEM_TYPES)),
        ):
            if getattr(self, name) not in known:
                raise SettingError(
                    f"{name}={getattr(self, name)!r} is unknown; choose from {known}."
                )

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of a frame in pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(t, h, w): tokens along time, height and width."""
        height, width = self.frame_size
        return (
            self.num_frames // self.tubelet_size,
            height // self.patch_size,
            width // self.patch_size,
        )

    @property
    def num_tokens(self) -> int:
        """N = t * h * w."""
        t, h, w = self.grid
        return t * h * w

    @property
    def tubelet_values(self) -> int:
        """P: numbers in one tubelet, all channels counted."""
        return self.tubelet_size * self.patch_size**2 * self.num_channels

    @property
    def use_return_dict(self) -> bool:
        """The Hugging Face name of `return_dict`."""
        return self.return_dict

    def replace(self, **changes: Any) -> VideoMAEConfig:
        """A copy with other values, checked again.

        New labels make the old names meaningless, so a change of one label field drops the others;
        a change of `num_channels` drops the statistics of the old channels.
        """
        if changes.get("label2id") and not changes.get("id2label"):
            changes = {**changes, "id2label": {i: name for name, i in changes["label2id"].items()}}
        if {"num_labels", "id2label"} & set(changes):
            changes = {"num_labels": None, "id2label": None, "label2id": None, **changes}
        if changes.get("num_channels", self.num_channels) != self.num_channels:
            changes = {"image_mean": None, "image_std": None, **changes}
        refuse_unknown(changes)
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_size(cls, size: str, **changes: Any) -> VideoMAEConfig:
        """The published model of that size, with the original's epsilons (1e-6 in every LayerNorm).

        Args:
          size: a row of `SIZES`: "S", "B", "L", "H" as VideoMAE published them, "L-v2", "H-v2",
            "g-v2" as VideoMAE V2 did (its S and B are V1's).
          **changes: fields to set otherwise, e.g. `num_frames=32`, `use_mean_pooling=False`.
        Raises:
          ValueError: for an unknown size or a value that cannot work.
        """
        if size not in SIZES:
            raise SettingError(f"size={size!r} is unknown; choose from {', '.join(SIZES)}.")
        refuse_unknown(changes)
        return cls(**{**ORIGINAL_EPSILONS, **SIZES[size], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VideoMAEConfig:
        """A configuration from the contents of a `config.json`; unknown keys go to `extra`."""
        values = dict(values)
        if values.pop("model_type", "videomae") != "videomae":
            raise SettingError("its model_type is not 'videomae'.")
        if "qv_bias" in values:  # the spelling of transformers 5
            bias = values.pop("qv_bias")
            if values.setdefault("qkv_bias", bias) != bias:
                raise SettingError(
                    f"qkv_bias={values['qkv_bias']} contradicts qv_bias={bias}; remove one of them."
                )
        known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        extra = {k: v for k, v in values.items() if k not in known}
        return cls(**{k: v for k, v in values.items() if k in known}, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds; transformers 4 and 5 both read it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        extra = values.pop("extra")
        # it follows from id2label, and transformers drops the names where the two disagree
        del values["num_labels"]
        values["id2label"] = {str(k): v for k, v in self.id2label.items()}
        values["label2id"] = dict(self.label2id)
        for name in ("image_size", "image_mean", "image_std"):
            if isinstance(values[name], tuple):
                values[name] = list(values[name])
        return {**extra, "model_type": "videomae", **values}

    @classmethod
    def from_json_file(cls, path: str | os.PathLike) -> VideoMAEConfig:
        """Reads a `config.json`. Raises ValueError, naming the file, if it is not one."""
        try:
            with open(path, encoding="utf-8") as file:
                values = json.load(file)
            if not isinstance(values, dict):
                raise SettingError(f"holds a JSON {type(values).__name__}, not an object")
            return cls.from_dict(values)
        except (ValueError, TypeError, RecursionError) as error:
            raise SettingError(f"{path} is no VideoMAE configuration: {error}") from error

    def to_json_string(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


def refuse_unknown(names: Iterable[str], also: Sequence[str] = ()) -> None:
    """Raises ValueError for a name that is no field of the configuration, nor one of `also`."""
    known = [*(f.name for f in dataclasses.fields(VideoMAEConfig)), *also]
    for name in names:
        if name not in known:
            others = f", nor one of {', '.join(also)}" if also else ""
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise SettingError(f"{name} is no field of VideoMAEConfig{others}{hint}")


ORIGINAL_EPSILONS = {"layer_norm_eps": 1e-6, "decoder_norm_eps": 1e-6, "fc_norm_eps": 1e-6}


def _size(
    width, depth, heads, mlp, decoder_width, decoder_depth, decoder_heads, decoder_mlp, **also
):
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "decoder_hidden_size": decoder_width,
        "decoder_num_hidden_layers": decoder_depth,
        "decoder_num_attention_heads": decoder_heads,
        "decoder_intermediate_size": decoder_mlp,
        **also,
    }


# VideoMAE, table 7 and its pre-training scripts; VideoMAE V2's modeling_pretrain.py. The decoder of
# V1's L and H is 12 deep in its scripts, V2's is 4 deep throughout.
SIZES = {
    #             encoder                 decoder
    #             width depth heads mlp   width depth heads mlp
    "S": _size(384, 12, 6, 1536, 192, 4, 3, 768),
    "B": _size(768, 12, 12, 3072, 384, 4, 6, 1536),
    "L": _size(1024, 24, 16, 4096, 512, 12, 8, 2048),
    "H": _size(1280, 32, 16, 5120, 640, 12, 8, 2560),
    "L-v2": _size(1024, 24, 16, 4096, 512, 4, 8, 2048),
    "H-v2": _size(1280, 32, 16, 5120, 512, 4, 8, 2048),
    "g-v2": _size(1408, 40, 16, 6144, 512, 4, 8, 2234, patch_size=14),
}
