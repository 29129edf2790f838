"""`VideoMAEConfig`: everything that decides what a model computes, and the published sizes.

Field names and defaults are those of the Hugging Face class, whose JSON this one reads and writes.
Beware of two of those defaults: `layer_norm_eps=1e-12`, where the original code has 1e-6 (use
`VideoMAEConfig.from_size`), and `use_mean_pooling=True`, which also takes away the encoder's final
LayerNorm: every published pre-training checkpoint says False.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from vmae_jax.config_checks import changed, settled
from vmae_jax.errors import SettingError
from vmae_jax.files.atomic import write_file
from vmae_jax.files.published import JsonFile
from vmae_jax.sizes import ORIGINAL_EPSILONS, SIZES

_NEAR = 0.75  # of difflib; below it stand the nearest two names that both mean something
# Fields that every configuration of transformers has, left out of a file where they are these.
_COMMON_DEFAULTS = {
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "problem_type": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}
_NOT_OFFERED = {
    "update": "a configuration does not change; make another with config.replace(**values)",
    "update_from_string": "a configuration does not change; make another with config.replace",
    "get_config_dict": "use VideoMAEConfig.from_pretrained(path).to_dict()",
    "register_for_auto_class": "there are no Auto classes; name the class",
}


def _one_spelling(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under our names: transformers 5 spells one otherwise, and files say their type."""
    values = dict(values)
    if values.pop("model_type", "videomae") != "videomae":
        raise SettingError("its model_type is not 'videomae'.")
    if "qv_bias" in values:
        bias = values.pop("qv_bias")
        if values.setdefault("qkv_bias", bias) != bias:
            raise SettingError(
                f"qkv_bias={values['qkv_bias']} contradicts qv_bias={bias}; remove one of them."
            )
    return values


def _keeps_unknown_keywords(cls):
    """The class, with unknown keywords put into `extra`; one that is nearly a field is refused."""
    init = cls.__init__
    parameters = inspect.signature(init).parameters
    everything = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)

    @functools.wraps(init)
    def __init__(self, *args, **values):
        values = _one_spelling(values)
        unknown = {name: values.pop(name) for name in list(values) if name not in parameters}
        for name in unknown:
            if near := difflib.get_close_matches(name, parameters, n=1, cutoff=_NEAR):
                raise SettingError(
                    f"{name} is no field of VideoMAEConfig; did you mean {near[0]}? (What should "
                    "only be kept goes into extra={...}.)"
                )
        if unknown:
            values["extra"] = {**values.get("extra", {}), **unknown}
        init(self, *args, **values)

    __init__.__signature__ = inspect.Signature([*parameters.values(), everything])
    cls.__init__ = __init__
    return cls


@_keeps_unknown_keywords
@dataclasses.dataclass(frozen=True, repr=False)
class VideoMAEConfig(JsonFile):
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
      extra: JSON keys and keywords that mean nothing here; kept, readable as attributes, and
        written back by `to_dict`.

    Raises:
      ValueError: for any value, or pair of values, that cannot work.
    """

    FILE: ClassVar[str] = "config.json"
    KIND: ClassVar[str] = "VideoMAE configuration"
    model_type: ClassVar[str] = "videomae"

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
        for name, value in settled(self._fields()).items():
            object.__setattr__(self, name, value)

    def _fields(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __getattr__(self, name: str) -> Any:
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        hint = f": {_NOT_OFFERED[name]}" if name in _NOT_OFFERED else ""
        raise AttributeError(f"a VideoMAEConfig has no {name!r}{hint}.")

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

    @property
    def name_or_path(self) -> str:
        """What a file of transformers says of where its model came from; "" if it does not."""
        return str(self.extra.get("_name_or_path", ""))

    def replace(self, **changes: Any) -> VideoMAEConfig:
        """A copy with other values, checked again.

        New labels make the old names meaningless, so a change of one label field drops the others
        (but a number of labels that is that of the names); a change of `num_channels` drops the
        statistics of the old channels.
        """
        refuse_unknown(changes)
        return type(self)(**changed(self._fields(), changes))

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
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> VideoMAEConfig:
        """A configuration from the contents of a `config.json`; unknown keys go to `extra`.

        Args:
          config_dict: what `to_dict` gave, or transformers wrote.
          **overrides: fields that replace those of the file before anything is checked, as
            `replace` does.
        """
        overrides = _one_spelling(overrides)
        refuse_unknown(overrides)
        values = _one_spelling(config_dict)
        fields = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        extra = {name: value for name, value in values.items() if name not in fields}
        known = {name: value for name, value in values.items() if name in fields}
        return cls(**{"extra": extra, **changed(known, overrides)})

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds; transformers 4 and 5 both read it."""
        values = self._fields()
        extra = values.pop("extra")
        # it follows from id2label, and transformers drops the names where the two disagree
        del values["num_labels"]
        values["id2label"] = {str(i): name for i, name in self.id2label.items()}
        values["label2id"] = dict(self.label2id)
        for name in ("image_size", "image_mean", "image_std"):
            if isinstance(values[name], tuple):
                values[name] = list(values[name])
        return {**extra, "model_type": self.model_type, **values}

    def to_diff_dict(self) -> dict[str, Any]:
        """`to_dict` without the fields of all models of transformers that have their defaults."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in _COMMON_DEFAULTS or value != _COMMON_DEFAULTS[name]
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """Indented JSON of `to_diff_dict`, or of `to_dict`."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """Writes `to_json_string` to a file, whole or not at all."""
        write_file(json_file_path, lambda file: file.write(self.to_json_string(use_diff).encode()))


def _refuse_assignment(self, name: str, value: Any = None) -> None:
    raise dataclasses.FrozenInstanceError(
        f"a configuration does not change; make another with config.replace({name}={value!r}), or "
        "give the value to from_pretrained or to the model's call."
    )


VideoMAEConfig.__setattr__ = _refuse_assignment  # dataclasses writes its own into the class


def refuse_unknown(names: Iterable[str], also: Sequence[str] = ()) -> None:
    """Checks that names are fields of the configuration, or among `also`.

    Raises:
      SettingError: for the first that is not; names the nearest one.
    """
    known = [*(f.name for f in dataclasses.fields(VideoMAEConfig)), *also]
    for name in names:
        if name not in known:
            others = f", nor one of {', '.join(also)}" if also else ""
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise SettingError(f"{name} is no field of VideoMAEConfig{others}{hint}")
