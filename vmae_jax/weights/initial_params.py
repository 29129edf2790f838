"""A run that starts from an encoder that was trained before: its own run's, or a published one.

Only the encoder is taken; a decoder or a head starts fresh, as the original fine-tuning has it.
What the file holds of others is dropped, and all of that is said.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from typing import Any

import jax
import numpy as np

from vmae_jax.checkpoints.fingerprints import named_leaves
from vmae_jax.config import VideoMAEConfig
from vmae_jax.errors import SettingError
from vmae_jax.processes.distributed import check_same
from vmae_jax.sharding import path_name
from vmae_jax.vit import Compute
from vmae_jax.weights import layouts
from vmae_jax.weights.pretrained import Stored, load, open_checkpoint

logger = logging.getLogger(__name__)

ENCODER = ("embeddings", "encoder", "layernorm")  # parts of a model
# Fields that shapes do not show, but with which the weights were trained.
_TRAINED_WITH = ("num_attention_heads", "hidden_act")
_ENCODER_FIELDS = (
    *("image_size", "num_frames", "patch_size", "tubelet_size", "num_channels"),
    *("hidden_size", "num_hidden_layers", "intermediate_size", "qkv_bias", "use_mean_pooling"),
    *("layer_norm_eps", *_TRAINED_WITH),
)


def initial_params(
    path: str | os.PathLike, params: dict[str, Any], config: VideoMAEConfig
) -> tuple[dict[str, Any], list[str]]:
    """Fresh parameters, those of the encoder replaced by a checkpoint's.

    In a run of several processes all of them call it, and each reads the whole file.

    Args:
      path: whatever `pretrained.open_checkpoint` opens: a workdir, one of its steps, a folder of
        Hugging Face's, a `.pth`, a hub id, ...
      params: of the run's model, fresh: nested dicts of arrays.
      config: of the run's model.
    Returns:
      The parameters, in the dtypes and on the devices of the fresh ones; and what became of the
      checkpoint, in lines that are logged as well.
    Raises:
      FileNotFoundError: if there is nothing of that name.
      ValueError: if the encoder in it is another one; every tensor that is missing, unexpected or
        of another shape is named. Nothing else may differ without a word either.
      CheckpointError: if it is a damaged run of ours.
      OSError: if it cannot be read.
    """
    fresh = {n: x for n, x in named_leaves(params).items() if n.split("/")[0] in ENCODER}
    compute = Compute(param_dtype=next(iter(fresh.values())).dtype)
    with open_checkpoint(path) as stored:
        _check_trained_alike(stored, config)
        changes = {field: getattr(config, field) for field in _ENCODER_FIELDS}
        core, report = load(stored, compute=compute, **changes)
    values = {name: np.asarray(value) for name, value in layouts.parameters(core).items()}
    _check_complete(path, values, fresh)
    sums = {name: zlib.crc32(np.ascontiguousarray(value)) for name, value in values.items()}
    check_same(f"the encoder in {os.fspath(path)}", json.dumps(sums, indent=0))

    def leaf(tree_path: tuple, x: jax.Array) -> jax.Array:
        value = values.get(path_name(tree_path))
        if value is None:
            return x
        return jax.make_array_from_callback(x.shape, x.sharding, lambda index: value[index])

    params = jax.tree_util.tree_map_with_path(leaf, params)
    others = sorted({name.split("/")[0] for name in named_leaves(params)} - set(ENCODER))
    lines = [f"the encoder is that of {stored.path} ({stored.layout.name} layout)", *report]
    if stored.config.layer_norm_eps != config.layer_norm_eps:
        lines.append(
            f"layer_norm_eps is {config.layer_norm_eps}, and was {stored.config.layer_norm_eps}"
        )
    if others:
        lines.append(f"started {', '.join(others)} fresh, to be trained")
    for line in lines:
        logger.info("initial parameters: %s", line)
    return params, lines


def _check_trained_alike(stored: Stored, config: VideoMAEConfig) -> None:
    for field in _TRAINED_WITH:
        theirs, ours = getattr(stored.config, field), getattr(config, field)
        if field not in stored.unknown and theirs != ours:
            raise SettingError(
                f"{stored.path} was trained with {field}={theirs}, and the run has {ours}; set "
                f"model.{field}={theirs}, or start from another checkpoint."
            )


def _check_complete(
    path: str | os.PathLike, values: dict[str, np.ndarray], fresh: dict[str, jax.Array]
) -> None:
    """That each parameter of the encoder has its value, and each value its parameter."""
    problems = [f"{name} is missing" for name in sorted(fresh.keys() - values.keys())]
    problems += [f"{name} has no place" for name in sorted(values.keys() - fresh.keys())]
    problems += [
        f"{name} is {values[name].dtype} {values[name].shape} instead of {x.dtype} {x.shape}"
        for name, x in sorted(fresh.items())
        if name in values and (values[name].shape, values[name].dtype) != (x.shape, x.dtype)
    ]
    problems += [
        f"{name} is a placeholder, {type(x).__name__}"
        for name, x in sorted(fresh.items())
        if not isinstance(x, jax.Array)
    ]
    if problems:
        raise SettingError(
            f"{os.fspath(path)} does not fit the run's encoder: {'; '.join(problems)}"
        )
