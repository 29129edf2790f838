"""How checkpoints are laid out elsewhere: each layout is one table of rows.

A row names the foreign tensors, our parameter, and the transform between them; reading, writing and
messages follow from it. `{i}` in a foreign name counts layers, which are stacked along the first
axis of our parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vmae_jax.videomae import VideoMAE


class Transform(NamedTuple):
    """Between foreign tensors of one layer and our parameter.

    Attributes:
      read: (tensors, shape of our parameter) -> our parameter.
      write: (our parameter, config) -> tensors.
      foreign_shapes: (shape of our parameter, config) -> shapes of the tensors.
    """

    read: Callable
    write: Callable
    foreign_shapes: Callable


class Row(NamedTuple):
    """One parameter of ours.

    Attributes:
      foreign: names of the tensors it is made of; `{i}` stands for the layer.
      path: of our parameter, e.g. "encoder/attention/qkv/kernel".
      transform: between the two.
    """

    foreign: tuple[str, ...]
    path: str
    transform: Transform


def _flat_shape(shape, config):
    return [(int(np.prod(shape)),)]


def _linear_shapes(shape, config):
    return [(shape[1], shape[0])]


def _query_key_value_shapes(shape, config):
    return [(shape[0], shape[0])] * 3


def _fused_shape(shape, config):
    return [(3 * shape[0], shape[0])]


def _projection_shape(shape, config):
    c = config
    return [(shape[1], c.num_channels, c.tubelet_size, c.patch_size, c.patch_size)]


def _write_projection(kernel, config):
    c = config
    x = kernel.reshape(c.tubelet_size, c.patch_size, c.patch_size, c.num_channels, -1)
    return [x.transpose(4, 3, 0, 1, 2)]


IDENTITY = Transform(lambda t, s: t[0], lambda x, c: [x], lambda s, c: [s])
# (D,) <-> (D,) or (heads, head_dim)
VECTOR = Transform(lambda t, s: t[0].reshape(s), lambda x, c: [x.reshape(-1)], _flat_shape)
# (out, in) <-> (in, out)
LINEAR = Transform(lambda t, s: t[0].T, lambda x, c: [x.T], _linear_shapes)
# (D, D) <-> (heads, head_dim, D)
ATTENTION_OUTPUT = Transform(
    lambda t, s: t[0].T.reshape(s),
    lambda x, c: [x.reshape(-1, x.shape[-1]).T],
    lambda s, c: [(s[-1], s[0] * s[1])],
)
# three (D, D) <-> (D, 3, heads, head_dim)
QUERY_KEY_VALUE = Transform(
    lambda t, s: np.stack([x.T for x in t], axis=1).reshape(s),
    lambda x, c: [x[:, n].reshape(len(x), -1).T for n in range(3)],
    _query_key_value_shapes,
)
# one (3 D, D), queries first <-> (D, 3, heads, head_dim)
FUSED_QUERY_KEY_VALUE = Transform(
    lambda t, s: t[0].T.reshape(s), lambda x, c: [x.reshape(len(x), -1).T], _fused_shape
)
# Conv3d (D, channel, time, row, column) <-> (time row column channel, D)
PROJECTION = Transform(
    lambda t, s: t[0].transpose(2, 3, 4, 1, 0).reshape(s), _write_projection, _projection_shape
)
# (1, 1, D) <-> (D,)
MASK_TOKEN = Transform(
    lambda t, s: t[0].reshape(s), lambda x, c: [x.reshape(1, 1, -1)], lambda s, c: [(1, 1, *s)]
)


def _layer_norm(foreign: str, path: str) -> list[Row]:
    return [
        Row((f"{foreign}.weight",), f"{path}/scale", VECTOR),
        Row((f"{foreign}.bias",), f"{path}/bias", VECTOR),
    ]


def _linear(foreign: str, path: str, transform: Transform = LINEAR) -> list[Row]:
    return [
        Row((f"{foreign}.weight",), f"{path}/kernel", transform),
        Row((f"{foreign}.bias",), f"{path}/bias", VECTOR),
    ]


def _hf_block(foreign: str, path: str) -> list[Row]:
    attention = f"{foreign}.attention.attention"
    return [
        *_layer_norm(f"{foreign}.layernorm_before", f"{path}/layernorm_before"),
        Row(
            tuple(f"{attention}.{name}.weight" for name in ("query", "key", "value")),
            f"{path}/attention/qkv/kernel",
            QUERY_KEY_VALUE,
        ),
        Row((f"{attention}.q_bias",), f"{path}/attention/q_bias", VECTOR),
        Row((f"{attention}.v_bias",), f"{path}/attention/v_bias", VECTOR),
        *_linear(f"{foreign}.attention.output.dense", f"{path}/attention/output", ATTENTION_OUTPUT),
        *_layer_norm(f"{foreign}.layernorm_after", f"{path}/layernorm_after"),
        *_linear(f"{foreign}.intermediate.dense", f"{path}/intermediate"),
        *_linear(f"{foreign}.output.dense", f"{path}/output"),
    ]


def _official_block(
    foreign: str, path: str, mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2")
) -> list[Row]:
    attention = f"{foreign}.attn"
    return [
        *_layer_norm(f"{foreign}.norm1", f"{path}/layernorm_before"),
        Row((f"{attention}.qkv.weight",), f"{path}/attention/qkv/kernel", FUSED_QUERY_KEY_VALUE),
        Row((f"{attention}.q_bias",), f"{path}/attention/q_bias", VECTOR),
        Row((f"{attention}.v_bias",), f"{path}/attention/v_bias", VECTOR),
        *_linear(f"{attention}.proj", f"{path}/attention/output", ATTENTION_OUTPUT),
        *_layer_norm(f"{foreign}.norm2", f"{path}/layernorm_after"),
        *_linear(f"{foreign}.{mlp[0]}", f"{path}/intermediate"),
        *_linear(f"{foreign}.{mlp[1]}", f"{path}/output"),
    ]


class Layout(NamedTuple):
    """A way to name and store the tensors of a model.

    Attributes:
      name: for people, and `inspect --json`.
      rows: the table.
      signature: a tensor that every file of this layout has, and no file of another.
      canonical: maps a file's tensor name to the name in `rows`.
    """

    name: str
    rows: Sequence[Row]
    signature: str
    canonical: Callable[[str], str]

    def row(self, path: str) -> Row:
        """The row of one of our parameters."""
        return next(row for row in self.rows if row.path == path)


# What DistributedDataParallel, torch.compile, MMAction2 and V2's repositories on the hub put before
# a name. `encoder.` is no such prefix: it tells the two official layouts apart.
_WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|backbone|model)\.)+")


def _unwrapped(name: str) -> str:
    return _WRAPPERS.sub("", name) if _WRAPPERS.match(name) else name


_ENCODER_PARTS = ("embeddings.", "encoder.layer.", "layernorm.")  # bare in a saved VideoMAEModel
# Transformers 4 and 5.23 write `q_bias`, releases of 5 between them wrote these.
_HUGGING_FACE_ALIASES = {
    ".attention.attention.query.bias": ".attention.attention.q_bias",
    ".attention.attention.value.bias": ".attention.attention.v_bias",
}


def _hugging_face_name(name: str) -> str:
    name = _unwrapped(name)
    if name.startswith(_ENCODER_PARTS):
        name = f"videomae.{name}"
    for alias, canonical in _HUGGING_FACE_ALIASES.items():
        name = name.replace(alias, canonical)
    return name


HUGGING_FACE = Layout(
    "Hugging Face",
    [
        *_linear("videomae.embeddings.patch_embeddings.projection", "embeddings", PROJECTION),
        *_hf_block("videomae.encoder.layer.{i}", "encoder"),
        *_layer_norm("videomae.layernorm", "layernorm"),
        Row(("encoder_to_decoder.weight",), "encoder_to_decoder/kernel", LINEAR),
        Row(("mask_token",), "mask_token", MASK_TOKEN),
        *_hf_block("decoder.decoder_layers.{i}", "decoder"),
        *_layer_norm("decoder.norm", "decoder_norm"),
        *_linear("decoder.head", "decoder_head"),
        *_layer_norm("fc_norm", "fc_norm"),
        *_linear("classifier", "classifier"),
    ],
    "videomae.embeddings.patch_embeddings.projection.weight",
    _hugging_face_name,
)
# The official code, V1 and V2 alike: one layout while pre-training,
OFFICIAL_PRETRAINING = Layout(
    "official pre-training",
    [
        *_linear("encoder.patch_embed.proj", "embeddings", PROJECTION),
        *_official_block("encoder.blocks.{i}", "encoder"),
        *_layer_norm("encoder.norm", "layernorm"),
        Row(("encoder_to_decoder.weight",), "encoder_to_decoder/kernel", LINEAR),
        Row(("mask_token",), "mask_token", MASK_TOKEN),
        *_official_block("decoder.blocks.{i}", "decoder"),
        *_layer_norm("decoder.norm", "decoder_norm"),
        *_linear("decoder.head", "decoder_head"),
    ],
    "encoder.patch_embed.proj.weight",
    _unwrapped,
)
# and another with a classifier: with `norm` if it pools the first token, `fc_norm` if it averages.
OFFICIAL_CLASSIFIER = Layout(
    "official fine-tuned",
    [
        *_linear("patch_embed.proj", "embeddings", PROJECTION),
        *_official_block("blocks.{i}", "encoder"),
        *_layer_norm("norm", "layernorm"),
        *_layer_norm("fc_norm", "fc_norm"),
        *_linear("head", "classifier"),
    ],
    "patch_embed.proj.weight",
    _unwrapped,
)
MMACTION2 = Layout(
    "MMAction2",
    [
        *_linear("patch_embed.projection", "embeddings", PROJECTION),
        *_official_block("blocks.{i}", "encoder", ("mlp.layers.0.0", "mlp.layers.1")),
        *_layer_norm("norm", "layernorm"),
        *_layer_norm("fc_norm", "fc_norm"),
        *_linear("cls_head.fc_cls", "classifier"),
    ],
    "patch_embed.projection.weight",
    _unwrapped,
)
# Our own runs, whose layers are stacked already.
OURS = Layout(
    "vmae_jax",
    [Row((row.path,), row.path, IDENTITY) for row in HUGGING_FACE.rows],
    "embeddings/kernel",
    lambda name: name,
)
LAYOUTS = (HUGGING_FACE, OFFICIAL_PRETRAINING, OFFICIAL_CLASSIFIER, MMACTION2, OURS)


def identify(names: Iterable[str]) -> Layout | None:
    """The layout of a file with tensors of these names; None if it is none of `LAYOUTS`."""
    names = list(names)
    for layout in LAYOUTS:
        if any(layout.canonical(name) == layout.signature for name in names):
            return layout
    return None


def is_stacked(row: Row) -> bool:
    """Whether the row stands for all layers of a stack."""
    return "{i}" in row.foreign[0]


def layer_names(row: Row, depth: int | None) -> list[tuple[str, ...]]:
    """The row's foreign names: once (depth=None), or for each layer."""
    if depth is None:
        return [row.foreign]
    return [tuple(name.replace("{i}", str(i)) for name in row.foreign) for i in range(depth)]


def parameters(core: VideoMAE) -> dict[str, jax.Array]:
    """All parameters of a model by path, e.g. {"encoder/output/kernel": [L, F, D], ...}."""
    return {
        "/".join(map(str, path)): leaf.get_value()
        for path, leaf in nnx.to_flat_state(nnx.state(core, nnx.Param))
    }


def set_parameters(core: VideoMAE, values: Mapping[str, jax.Array]) -> None:
    """Overwrites parameters, by path, in their own dtype."""
    state = nnx.state(core, nnx.Param)
    for path, leaf in nnx.to_flat_state(state):
        name = "/".join(map(str, path))
        if name in values:
            leaf.set_value(jnp.asarray(values[name], leaf.get_value().dtype))
    nnx.update(core, state)


def foreign_tensors(core: VideoMAE, layout: Layout) -> Iterator[tuple[str, np.ndarray]]:
    """Names and fp32 values of a model's parameters as a layout has them."""
    ours = parameters(core)
    for row in layout.rows:
        if row.path not in ours:
            continue
        value = np.asarray(ours[row.path], np.float32)
        depth = len(value) if is_stacked(row) else None
        for names, layer in zip(
            layer_names(row, depth), [value] if depth is None else value, strict=True
        ):
            for name, tensor in zip(names, row.transform.write(layer, core.config), strict=True):
                yield name, np.ascontiguousarray(tensor)
