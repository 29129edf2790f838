"""How checkpoints are laid out elsewhere: each layout is one table of rows.

A row names the foreign tensors, our parameter, and the transform between them; reading, writing and
messages follow from it. `{i}` in a foreign name counts layers, which are stacked along the first
axis of our parameter. Only safetensors are read here: such a file cannot run code.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vmae_jax.config import VideoMAEConfig
from vmae_jax.videomae import VideoMAE

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


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


# Both transformers 4 and 5 read these names; some releases of 5 wrote the aliases below.
HUGGING_FACE = [
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
]
# Our own runs, whose layers are stacked already.
OURS = [Row((row.path,), row.path, IDENTITY) for row in HUGGING_FACE]
HUGGING_FACE_ALIASES = {
    ".attention.attention.query.bias": ".attention.attention.q_bias",
    ".attention.attention.value.bias": ".attention.attention.v_bias",
}
_ENCODER_PARTS = ("embeddings.", "encoder.", "layernorm.")  # bare in a saved VideoMAEModel

# A class may lack these of a file: they belong to another class, or to the other kind of pooling.
_MAY_BE_DROPPED = {
    "encoder_to_decoder",
    "mask_token",
    "decoder",
    "decoder_norm",
    "decoder_head",
    "fc_norm",
    "classifier",
    "layernorm",
}
# A file may lack these of a classifier, which then has to be trained.
_MAY_BE_FRESH = {"fc_norm", "classifier"}


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


def _existing(directory: str | os.PathLike, name: str) -> str:
    path = os.path.join(directory, name)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{path} does not exist; a Hugging Face directory holds {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}."
        )
    return path


def _canonical_name(name: str) -> str:
    """The name in `HUGGING_FACE` of a tensor, whichever class and version saved it."""
    if name.startswith(_ENCODER_PARTS):
        name = f"videomae.{name}"
    for alias, canonical in HUGGING_FACE_ALIASES.items():
        name = name.replace(alias, canonical)
    return name


def _is_stacked(row: Row) -> bool:
    return "{i}" in row.foreign[0]


def _layer_names(row: Row, depth: int | None) -> list[tuple[str, ...]]:
    """The row's foreign names: once, or for each layer."""
    if depth is None:
        return [row.foreign]
    return [tuple(name.format(i=i) for name in row.foreign) for i in range(depth)]


class Stored(NamedTuple):
    """A checkpoint that has been opened, but not read.

    Attributes:
      path: for messages.
      config: the model that it describes.
      rows: its layout.
      shapes: of its tensors, under the names of `rows`.
      read: name -> array.
    """

    path: str
    config: VideoMAEConfig
    rows: Sequence[Row]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


def open_checkpoint(path: str | os.PathLike) -> Stored:
    """A Hugging Face directory, or a run of ours (its workdir, or the folder of one step).

    Raises:
      FileNotFoundError: if it is neither.
      ValueError: if a file in it is damaged; CheckpointError likewise for a run of ours.
    """
    from vmae_jax import checkpoint

    path = os.fspath(path)
    if (step := checkpoint.find_step(path)) is not None:
        tree, info = checkpoint.read_params(step)
        config = VideoMAEConfig.from_dict(info["model"])
        shapes = {name: value.shape for name, value in tree.items()}
        return Stored(str(step), config, OURS, shapes, tree.__getitem__)
    return _open_hugging_face(path)


def _open_hugging_face(directory: str) -> Stored:
    from safetensors import SafetensorError, safe_open

    config = VideoMAEConfig.from_json_file(_existing(directory, CONFIG_FILE))
    path = _existing(directory, WEIGHTS_FILE)
    try:
        file = safe_open(path, framework="numpy")
        names = {_canonical_name(name): name for name in file.keys()}  # noqa: SIM118 (no mapping)
        shapes = {ours: tuple(file.get_slice(name).get_shape()) for ours, name in names.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    return Stored(path, config, HUGGING_FACE, shapes, lambda name: file.get_tensor(names[name]))


def load_into(core: VideoMAE, stored: Stored) -> str:
    """Replaces the parameters of `core` by those of a checkpoint; all of them, or none.

    Returns:
      What was dropped and what keeps its fresh values, in one sentence; "" if neither.
    Raises:
      ValueError: naming every missing, unexpected and mis-shaped tensor.
    """
    ours = parameters(core)
    our_parts = {path.split("/")[0] for path in ours}
    unused = set(stored.shapes)
    missing, misshaped, dropped, fresh = [], [], set(), set()
    plan = []
    for row in stored.rows:
        part = row.path.split("/")[0]
        if row.path not in ours:
            if part in _MAY_BE_DROPPED - our_parts:
                prefixes = tuple(name.split("{i}")[0] for name in row.foreign)
                gone = {name for name in unused if name.startswith(prefixes)}
                dropped |= {part} if gone else set()
                unused -= gone
            continue
        shape = ours[row.path].shape
        depth, shape = (shape[0], shape[1:]) if _is_stacked(row) else (None, shape)
        layers = _layer_names(row, depth)
        names = {name for layer in layers for name in layer}
        unused -= names
        if part in _MAY_BE_FRESH and not names & set(stored.shapes):
            fresh.add(part)
            continue
        missing += names - set(stored.shapes)
        shapes = row.transform.foreign_shapes(shape, core.config)
        misshaped += [
            f"{name} {stored.shapes[name]} instead of {tuple(expected)}"
            for layer in layers
            for name, expected in zip(layer, shapes, strict=True)
            if stored.shapes.get(name, tuple(expected)) != tuple(expected)
        ]
        plan.append((row, layers, shape))
    problems = [
        f"{kind}: {', '.join(sorted(names))}"
        for kind, names in (
            ("missing", missing), ("unexpected", unused), ("of another shape", misshaped)
        )
        if names
    ]  # fmt: skip
    if problems:
        raise ValueError(
            f"{stored.path} does not fit the model that its configuration (or the given options) "
            f"describes; nothing was loaded. {'; '.join(problems)}."
        )
    values = {}
    for row, layers, shape in plan:
        per_layer = [
            row.transform.read([stored.read(name) for name in names], shape) for names in layers
        ]
        values[row.path] = np.stack(per_layer) if _is_stacked(row) else per_layer[0]
    set_parameters(core, values)
    notes = []
    if dropped:
        notes.append(f"dropped {', '.join(sorted(dropped))}, which this class does not have")
    if fresh:
        notes.append(f"started {', '.join(sorted(fresh))} fresh, to be trained")
    return "; ".join(notes)


def to_hugging_face(core: VideoMAE, class_name: str) -> dict[str, np.ndarray]:
    """The tensors of a `model.safetensors`, fp32, under the names that transformers 4 and 5
    read."""
    ours = parameters(core)
    tensors = {}
    for row in HUGGING_FACE:
        if row.path not in ours:
            continue
        value = np.asarray(ours[row.path], np.float32)
        depth = len(value) if _is_stacked(row) else None
        for names, layer in zip(
            _layer_names(row, depth), [value] if depth is None else value, strict=True
        ):
            for name, tensor in zip(names, row.transform.write(layer, core.config), strict=True):
                if class_name == "VideoMAEModel":
                    name = name.removeprefix("videomae.")
                tensors[name] = np.ascontiguousarray(tensor)
    return tensors


def save(core: VideoMAE, directory: str | os.PathLike, class_name: str) -> None:
    """Writes a Hugging Face directory; each file appears whole, under its final name, or not at
    all.

    Args:
      core: the model.
      directory: made if needed.
      class_name: "VideoMAEModel", "VideoMAEForPreTraining" or "VideoMAEForVideoClassification".
    """
    from safetensors.numpy import save as serialize

    config = core.config
    for attribute, epsilon in (("decoder_norm", "decoder_norm_eps"), ("fc_norm", "fc_norm_eps")):
        if hasattr(core, attribute) and getattr(config, epsilon) != 1e-5:
            warnings.warn(
                f"{epsilon}={getattr(config, epsilon)}, but transformers computes this LayerNorm "
                "with 1e-5 always: its outputs will differ slightly.",
                stacklevel=3,
            )
    os.makedirs(directory, exist_ok=True)
    described = {**config.to_dict(), "architectures": [class_name], "dtype": "float32"}
    weights = serialize(to_hugging_face(core, class_name), metadata={"format": "pt"})
    _write_whole(os.path.join(directory, WEIGHTS_FILE), weights)
    text = json.dumps(described, indent=2, sort_keys=True) + "\n"
    _write_whole(os.path.join(directory, CONFIG_FILE), text.encode())


def _write_whole(path: str, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
