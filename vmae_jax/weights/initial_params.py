"""A run that starts from parameters that were trained before: its own run's, or published ones.

As it is, the encoder is taken, and the decoder where both have one: pre-training goes on, and
fine-tuning has a fresh head, as in the original. Other parts are taken by name. What the file holds
of others is dropped, and all of that is said.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import zlib
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from vmae_jax.checkpoints.fingerprints import named_leaves
from vmae_jax.config import VideoMAEConfig
from vmae_jax.errors import SettingError
from vmae_jax.processes.distributed import check_same
from vmae_jax.sharding import path_name
from vmae_jax.vit import Compute
from vmae_jax.weights.class_order import check_class_order
from vmae_jax.weights.pretrained import compare, outline, read_values
from vmae_jax.weights.stored import Stored, open_checkpoint

logger = logging.getLogger(__name__)

# Parts of a model: the first names of its parameters.
ENCODER = ("embeddings", "encoder", "layernorm")
DECODER = ("encoder_to_decoder", "mask_token", "decoder", "decoder_norm", "decoder_head")
CLASSIFIER = ("fc_norm", "classifier")
GROUPS = {"encoder": ENCODER, "decoder": DECODER, "classifier": CLASSIFIER}
_ADAPTERS = ("lora_a", "lora_b")  # a run's own, in no checkpoint that is merged
# Fields that shapes do not show, but with which the weights of a part were trained: they must be
# the same,
_TRAINED_WITH = {
    "num_attention_heads": "encoder",
    "hidden_act": "encoder",
    "decoder_num_attention_heads": "decoder",
}
# or may differ, and that is said.
_EPSILONS = {
    "layer_norm_eps": "encoder",
    "decoder_norm_eps": "decoder_norm",
    "fc_norm_eps": "fc_norm",
}


def initial_params(
    path: str | os.PathLike,
    params: dict[str, Any],
    config: VideoMAEConfig,
    parts: Sequence[str] | None = ENCODER,
) -> tuple[dict[str, Any], list[str]]:
    """Fresh parameters, those of some parts replaced by a checkpoint's.

    In a run of several processes all of them call it, and each reads the whole file.

    Args:
      path: whatever `stored.open_checkpoint` opens: a workdir, one of its steps, a folder of
        Hugging Face's, a `.pth`, a hub id, ...
      params: of the run's model, fresh: nested dicts of arrays.
      config: of the run's model.
      parts: first names of the parameters to take, e.g. `(*ENCODER, *DECODER)`. A model that pools
        the mean has no "layernorm"; all others that are named must be in the model. None: those of
        the encoder, and of the decoder where both have one.
    Returns:
      The parameters, in the dtypes and on the devices of the fresh ones; and what became of the
      checkpoint, in lines that are logged as well.
    Raises:
      SettingError: if there is nothing of that name (`WeightFileNotFound`), if a part is not in it
        or is another one; every tensor that is missing, unexpected or of another shape is named.
      CheckpointError: if it is a damaged run of ours.
      OSError: if it cannot be read.
    """
    held = {name.split("/")[0] for name in named_leaves(params)}
    if parts is not None:  # before the file is opened
        _check_names(parts, held)
    with open_checkpoint(path) as stored:
        if parts is None:
            goes_on = "decoder" in held and stored.has("decoder")
            parts = (*ENCODER, *DECODER) if goes_on else ENCODER
        fresh = {
            name: x
            for name, x in named_leaves(params).items()
            if name.split("/")[0] in parts and not name.endswith(_ADAPTERS)
        }
        taken = [part for part in parts if part in held]
        what = "the encoder" if set(parts) == set(ENCODER) else ", ".join(taken)
        dtype = next(iter(fresh.values())).dtype
        _check_parts_are_there(stored, taken)
        _check_trained_alike(stored, config, taken)
        if "classifier" in taken:
            names = [config.id2label[i] for i in range(config.num_labels)]
            nameless = names == [f"LABEL_{i}" for i in range(len(names))]
            check_class_order(stored.path, stored.config.id2label, () if nameless else names)
        classes = {
            "decoder": bool({*DECODER} & {*taken}),
            "classifier": bool({*CLASSIFIER} & {*taken}),
        }
        changes = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        core = outline(stored, compute=Compute(param_dtype=dtype), **classes, **changes)
        fit = compare(stored, core, parts=taken)
        values, report = read_values(stored, core, fit, **classes)
    values = {name: value.astype(dtype) for name, value in values.items()}
    _check_complete(path, what, values, fresh)
    sums = {name: zlib.crc32(np.ascontiguousarray(value)) for name, value in values.items()}
    check_same(f"{what} in {os.fspath(path)}", json.dumps(sums, indent=0))

    def leaf(tree_path: tuple, x: jax.Array) -> jax.Array:
        value = values.get(path_name(tree_path))
        if value is None:
            return x
        return jax.make_array_from_callback(x.shape, x.sharding, lambda index: value[index])

    params = jax.tree_util.tree_map_with_path(leaf, params)
    others = sorted(held - set(parts))
    verb = "is that" if what == "the encoder" else "are those"
    lines = [f"{what} {verb} of {stored.path} ({stored.layout.name} layout)", *report]
    for field, part in _EPSILONS.items():
        now, then = getattr(config, field), getattr(stored.config, field)
        if part in taken and now != then:
            lines.append(f"{field} is {now}, and was {then}")
    if others:
        lines.append(f"started {', '.join(others)} fresh, to be trained")
    for line in lines:
        logger.info("initial parameters: %s", line)
    return params, lines


def parts_of(groups: Sequence[str] | None) -> tuple[str, ...] | None:
    """First names of the parameters of "encoder", "decoder", "classifier"; None stays None.

    Raises:
      SettingError: for another word.
    """
    if groups is None:
        return None
    groups = (groups,) if isinstance(groups, str) else tuple(groups)
    for group in groups:
        if group not in GROUPS:
            raise SettingError(
                f"init.parts={groups}: {group!r} is no part; choose from {tuple(GROUPS)}."
            )
    return tuple(name for group in groups for name in GROUPS[group])


def _check_names(parts: Sequence[str], held: Collection[str]) -> None:
    lacking = [part for part in parts if part not in held and part != "layernorm"]
    if lacking or not parts:
        raise SettingError(
            f"parts={tuple(parts)} are to be taken from a checkpoint, and the run's model has "
            f"{'no ' + ', '.join(lacking) if lacking else 'to get at least one'}; choose from "
            f"{', '.join(sorted(held))}."
        )


def _check_parts_are_there(stored: Stored, parts: Collection[str]) -> None:
    absent = [part for part in parts if not stored.has(part)]
    if absent:
        names = sorted(
            name
            for row in stored.layout.rows
            if row.path.split("/")[0] in absent
            for name in row.foreign
        )
        missing = f" (missing: {', '.join(names)})" if names else ""
        raise SettingError(
            f"{stored.path} ({stored.layout.name} layout) has no {', '.join(absent)}, which the "
            f"run is to take from it{missing}; leave that out, or start from another checkpoint."
        )


def _check_trained_alike(stored: Stored, config: VideoMAEConfig, parts: Collection[str]) -> None:
    for field, part in _TRAINED_WITH.items():
        theirs, ours = getattr(stored.config, field), getattr(config, field)
        if part in parts and field not in stored.unknown and theirs != ours:
            raise SettingError(
                f"{stored.path} was trained with {field}={theirs}, and the run has {ours}; set "
                f"model.{field}={theirs}, or start from another checkpoint."
            )


def _check_complete(
    path: str | os.PathLike,
    what: str,
    values: dict[str, np.ndarray],
    fresh: dict[str, jax.Array],
) -> None:
    """That each parameter to be replaced has its value, and each value its parameter."""
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
            f"{os.fspath(path)} does not fit the run: of {what}, {'; '.join(problems)}"
        )
