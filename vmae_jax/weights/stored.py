"""A checkpoint of any layout, opened: the names, shapes and dtypes of its tensors, and its model.

    with open_checkpoint("MCG-NJU/videomae-base") as stored:
        print(stored.layout.name, stored.config.hidden_size)

No value is read (but a run of ours whole, to compare its fingerprints). `pretrained` makes a model
of it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vmae_jax.config import VideoMAEConfig
from vmae_jax.errors import SettingError
from vmae_jax.files.storage import is_remote
from vmae_jax.sizes import ORIGINAL_EPSILONS, SIZES
from vmae_jax.vit import LoRA, sincos_table
from vmae_jax.weights import hub, layouts
from vmae_jax.weights.layouts import Layout
from vmae_jax.weights.tensors import Tensor, WeightFileError, WeightFileNotFound, some
from vmae_jax.weights.torch_file import open_state_dict
from vmae_jax.weights.weight_files import open_directory, open_safetensors

logger = logging.getLogger(__name__)

# DeepSpeed writes a folder per checkpoint; the weights of a run without model parallelism are here.
DEEPSPEED_FILE = "mp_rank_00_model_states.pt"
_STATE_KEYS = ("model", "module", "state_dict")
# A missing file of such a name is not looked for on the hub.
_FILE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_NAMED = 12  # tensors in a message
_HEADS = {size["hidden_size"]: size["num_attention_heads"] for size in SIZES.values()}
_DECODER_HEADS = {
    size["decoder_hidden_size"]: size["decoder_num_attention_heads"] for size in SIZES.values()
}


class Stored(NamedTuple):
    """A checkpoint that is open, but not read.

    Attributes:
      path: for messages.
      layout: how its tensors are named.
      config: the model that it describes.
      unknown: fields of `config` that neither the file nor the published sizes tell; they must be
        given to `pretrained.load`.
      tensors: by the names of `layout`.
    """

    path: str
    layout: Layout
    config: VideoMAEConfig
    unknown: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    def has(self, part: str) -> bool:
        """Whether it holds a part of a model: "decoder", "classifier", ..."""
        names = {
            name.split("{i}")[0]
            for row in self.layout.rows
            if row.path.split("/")[0] == part
            for name in row.foreign
        }
        return any(tensor.startswith(tuple(names)) for tensor in self.tensors) if names else False


@contextlib.contextmanager
def open_checkpoint(
    path: str | os.PathLike,
    revision: str | None = None,
    *,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Stored]:
    """A checkpoint of any layout in `layouts.LAYOUTS`.

    Args:
      path: a file (`.pth`, `.pt`, `.bin`, `.ckpt`, or `.safetensors`); a folder in Hugging Face's
        form, or DeepSpeed's; the workdir of a run of ours, or one of its steps; or a hub id.
      revision: branch, tag or commit of a hub id.
      overrides: fields of the configuration, for a `config.json` that cannot be read without them.
    Raises:
      WeightFileError: if a file is damaged, or of no layout that is known; `WeightFileNotFound` if
        there is nothing of that name. CheckpointError: likewise for a run of ours.
      OSError: if the hub cannot be reached, or a file not be read.
    """
    path = os.fspath(path)
    if not path.endswith(_FILE_ENDINGS) and hub.is_hub_id(path):
        path = hub.download_checkpoint(path, revision=revision)
    elif revision is not None:
        raise SettingError(
            f"revision={revision!r} is for hub ids, and {path!r} is a path; leave it out."
        )
    config_file = os.path.join(path, hub.CONFIG_FILE)
    if is_remote(path) or os.path.isdir(path):
        # a folder of weights need not be searched for a run's steps, which loads Orbax
        is_weights = os.path.isfile(config_file) and not os.path.isdir(f"{path}/checkpoints")
        if not is_weights and (run := _open_run(path)) is not None:
            yield run
            return
        if os.path.isfile(os.path.join(path, DEEPSPEED_FILE)):
            opened = open_state_dict(os.path.join(path, DEEPSPEED_FILE), _STATE_KEYS)
        else:
            opened = open_directory(path)
    elif os.path.lexists(path):
        config_file = os.path.join(os.path.dirname(path), hub.CONFIG_FILE)
        is_torch = not path.endswith(".safetensors")
        opened = open_state_dict(path, _STATE_KEYS) if is_torch else open_safetensors(path)
    else:
        raise WeightFileNotFound(
            path,
            None,
            "does not exist here, and an id on the hub looks like 'organisation/name'",
        )
    with opened as tensors:
        yield recognise(path, tensors, config_file, overrides)


def _open_run(path: str) -> Stored | None:
    """A run of ours, or one of its steps; None if the folder is neither."""
    from vmae_jax.checkpoints import finished_steps, loading  # loads Orbax and TensorStore

    if (step := finished_steps.find_step(path)) is None:
        return None
    values, info = loading.read_params(step)
    if "lora" in info:
        values = merge_lora(values, LoRA(**info["lora"]).scale)
    tensors = {
        name: Tensor(value.shape, str(value.dtype), functools.partial(np.asarray, value))
        for name, value in values.items()
    }
    config = VideoMAEConfig.from_dict(info["model"])
    return Stored(os.fspath(step), layouts.OURS, config, (), tensors)


def merge_lora(values: Mapping[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """Parameters by path name with low-rank updates added to their matrices, and gone themselves.

    Args:
      values: "encoder/attention/qkv_lora/lora_a" [L, in, rank] belongs to
        "encoder/attention/qkv/kernel" [L, in, ...], and so on.
      scale: of the updates.
    """
    merged = {name: x for name, x in values.items() if "_lora/" not in name}
    for name, first in values.items():
        if name.endswith("_lora/lora_a"):
            update = first @ values[name.removesuffix("a") + "b"]
            kernel = name.replace("_lora/lora_a", "/kernel")
            merged[kernel] = merged[kernel] + scale * update.reshape(merged[kernel].shape)
    return merged


def recognise(
    path: str,
    tensors: Mapping[str, Tensor],
    config_file: str = "",
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Stored:
    """The layout and configuration of a file's tensors.

    Args:
      path: for messages.
      tensors: by the file's names.
      config_file: a `config.json`, for Hugging Face's layout.
      overrides: as of `open_checkpoint`.
    Raises:
      WeightFileError: if they are of no layout that is known, or of no model.
    """
    layout = layouts.identify(tensors)
    if layout is None:
        known = ", ".join(layout.name for layout in layouts.LAYOUTS)
        raise WeightFileError(
            path,
            None,
            f"is of no layout that is known, for it has {some(tensors, _NAMED)}; known are: "
            f"{known}",
        )
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        canonical = layout.canonical(name)
        if canonical in renamed:
            raise WeightFileError(
                path, name, f"is another name of {canonical}, which is there as well; remove one"
            )
        renamed[canonical] = tensor
    if layout is layouts.HUGGING_FACE:
        if not os.path.isfile(config_file):
            raise WeightFileNotFound(
                config_file,
                None,
                "does not exist; weights in Hugging Face's layout need it, for they do not tell "
                "the number of heads nor the epsilons",
            )
        return Stored(path, layout, _published(config_file, overrides), (), renamed)
    if layout is layouts.MMACTION2:
        _check_position_buffer(path, renamed)
        renamed = {n: t for n, t in renamed.items() if not n.startswith("data_preprocessor.")}
    config, unknown = _inferred(path, layout, renamed)
    return Stored(path, layout, config, unknown, renamed)


def _published(config_file: str | os.PathLike, overrides: Mapping[str, Any]) -> VideoMAEConfig:
    """A `config.json`, obeyed; with a warning if its heads are not those of its size.

    One that contradicts itself is read with the overrides, which may be what it needs.
    """
    try:
        config = VideoMAEConfig.from_json_file(config_file)
    except SettingError:
        config = VideoMAEConfig.from_json_file(config_file, **overrides)
    for name, size in SIZES.items():
        same = all(
            getattr(config, field) == size[field] for field in ("hidden_size", "num_hidden_layers")
        )
        if same and config.num_attention_heads != size["num_attention_heads"]:
            logger.warning(
                "%s says num_attention_heads=%d, but size %s was trained with %d; the file is "
                "obeyed unless num_attention_heads=%d is given, which is the trained model.",
                config_file,
                config.num_attention_heads,
                name,
                size["num_attention_heads"],
                size["num_attention_heads"],
            )
            break
    return config


def _check_position_buffer(path: str, tensors: dict[str, Tensor]) -> None:
    """Takes MMAction2's position table out, after making sure that it is the fixed one.

    Its formula differs from the official one's in the last place of a few elements.
    """
    stored = tensors.pop("pos_embed", None)
    if stored is None:
        return
    is_fixed = len(stored.shape) == 3 and stored.shape[0] == 1
    if is_fixed:
        expected = np.asarray(sincos_table(*stored.shape[1:]))
        found = np.asarray(stored.read(), np.float32)
        is_fixed = bool(np.abs(found - expected).max(initial=0) <= 1e-6)
    if not is_fixed:
        raise WeightFileError(
            path,
            "pos_embed",
            f"{stored.shape} is not the sin-cos table within 1e-6, and no published model has a "
            "learned one; the file is of another model",
        )


def _inferred(
    path: str, layout: Layout, tensors: Mapping[str, Tensor]
) -> tuple[VideoMAEConfig, tuple[str, ...]]:
    """The configuration that the shapes tell, and the fields that they do not.

    Frames and resolution are the published 16 and 224 x 224, for no tensor depends on them; heads
    are those of the published size of that width. Every LayerNorm has epsilon 1e-6, in V1, V2 and
    MMAction2.
    """

    def shape(our_path: str, ndim: int) -> tuple[int, ...]:
        name = layout.row(our_path).foreign[0].replace("{i}", "0")
        if name not in tensors or len(tensors[name].shape) != ndim:
            found = f"has shape {tensors[name].shape}" if name in tensors else "is missing"
            raise WeightFileError(
                path, name, f"{found}, but must have {ndim} axes in the {layout.name} layout"
            )
        return tensors[name].shape

    def depth(our_path: str) -> int:
        before, after = layout.row(our_path).foreign[0].split("{i}")
        return sum(name.startswith(before) and name.endswith(after) for name in tensors)

    def has(our_path: str) -> bool:
        paths = {row.path: row for row in layout.rows}
        return our_path in paths and paths[our_path].foreign[0].replace("{i}", "0") in tensors

    width, channels, tubelet, patch, patch_width = shape("embeddings/kernel", 5)
    if patch != patch_width:
        raise WeightFileError(path, None, f"has patches of {patch} x {patch_width}, not square")
    layers = depth("encoder/intermediate/kernel")
    known: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_channels": channels,
        "tubelet_size": tubelet,
        "patch_size": patch,
        "intermediate_size": shape("encoder/intermediate/kernel", 2)[0],
        "qkv_bias": has("encoder/attention/q_bias"),
        "use_mean_pooling": not has("layernorm/scale"),
        "num_attention_heads": _HEADS.get(width),
    }
    if has("decoder/intermediate/kernel"):
        decoder_width = shape("encoder_to_decoder/kernel", 2)[0]
        known |= {
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": depth("decoder/intermediate/kernel"),
            "decoder_intermediate_size": shape("decoder/intermediate/kernel", 2)[0],
            "decoder_num_attention_heads": _DECODER_HEADS.get(decoder_width),
        }
    if has("classifier/kernel"):
        known["num_labels"] = shape("classifier/kernel", 2)[0]
    unknown = tuple(name for name, value in known.items() if value is None)
    published = next(
        (
            size
            for size in SIZES.values()
            if (size["hidden_size"], size["num_hidden_layers"]) == (width, layers)
        ),
        {},
    )
    # one head fits any width; the caller is asked for the true number
    known |= dict.fromkeys(unknown, 1)
    try:
        config = VideoMAEConfig(**{**ORIGINAL_EPSILONS, **published, **known})
    except SettingError as error:
        raise WeightFileError(path, None, f"has the shapes of no model ({error})") from error
    return config, unknown
