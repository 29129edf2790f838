"""Partial training: which parameters are trained, and which stay as they are.

What is not trained has neither gradients nor optimizer state. It stays a part of the train state
and of its checkpoints, so that these are whole models.

A selection is a dict: path name of a parameter -> the first layer that is trained. Parameters
outside of the encoder count as one layer: 0. What is not in it stays.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vmae_jax.errors import SettingError
from vmae_jax.sharding import path_name

Selection = dict[str, int]
# Names for sets of patterns.
GROUPS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "head": ("fc_norm/*", "classifier/*"),
    "norms": ("*norm*/scale", "*norm*/bias"),
    "lora": ("*/lora_a", "*/lora_b"),
}
_LAST_BLOCKS = re.compile(r"last_(\d+)_blocks")
_STACK = "encoder/"


def select(params: Mapping[str, Any], patterns: Sequence[str]) -> Selection:
    """The parameters that some patterns name.

    Args:
      params: nested dicts of arrays, those of "encoder" with a leading layer axis.
      patterns: keys of GROUPS; "last_n_blocks" of the encoder; or shell patterns over path names,
        such as "encoder/attention/*".
    Raises:
      SettingError: if a pattern names nothing, or the encoder does not have so many blocks.
    """
    shapes = {
        path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(dict(params))
    }
    selection: Selection = {}
    for pattern in patterns:
        found = _matches(pattern, shapes)
        if not found:
            raise SettingError(
                f"optimizer.train={tuple(patterns)}: {pattern!r} names no parameter of this model; "
                f"give {', '.join(map(repr, GROUPS))}, 'last_n_blocks', or a pattern for names "
                f"such as {next(iter(shapes))!r}."
            )
        for name, first in found.items():
            selection[name] = min(first, selection.get(name, first))
    return {name: selection[name] for name in shapes if name in selection}


def _matches(pattern: str, shapes: Mapping[str, Sequence[int]]) -> Selection:
    if last := _LAST_BLOCKS.fullmatch(pattern):
        count = int(last[1])
        stack = {name: shape[0] for name, shape in shapes.items() if name.startswith(_STACK)}
        depth = next(iter(stack.values()), 0)
        if not 1 <= count <= depth:
            raise SettingError(
                f"optimizer.train: {pattern!r} asks for {count} of the encoder's {depth} blocks; "
                f"give 1 to {depth}."
            )
        return dict.fromkeys(stack, depth - count)
    globs = GROUPS.get(pattern, (pattern,))
    return {name: 0 for name in shapes if any(fnmatch.fnmatchcase(name, glob) for glob in globs)}


def trained_part(params: Mapping[str, Any], selection: Selection | None) -> dict[str, Any]:
    """Those that are trained, of a stack their last layers; None trains all."""
    if selection is None:
        return dict(params)
    tree: dict[str, Any] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(dict(params)):
        if (first := selection.get(path_name(path))) is None:
            continue
        *sections, last = (key.key for key in path)
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = x[first:] if first else x
    return tree


def with_trained(
    params: Mapping[str, Any], trained: Mapping[str, Any], selection: Selection | None
) -> dict[str, Any]:
    """All parameters, with the values of those that are trained from elsewhere.

    Args:
      params: all; their values count where nothing is trained.
      trained: as `trained_part` gives them.
      selection: as there.
    """
    if selection is None:
        return dict(trained)
    new = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(dict(trained))}

    def value(path: tuple, x: jax.Array) -> jax.Array:
        name = path_name(path)
        if name not in new:
            return x
        first = selection[name]
        return jnp.concatenate([x[:first], new[name]]) if first else new[name]

    return jax.tree_util.tree_map_with_path(value, dict(params))


def trained_layers(selection: Selection | None) -> tuple[tuple[str, int], ...] | None:
    """Of the encoder's blocks: (name inside a block, first trained layer); None for all."""
    if selection is None:
        return None
    return tuple(
        (name.removeprefix(_STACK), first)
        for name, first in selection.items()
        if name.startswith(_STACK)
    )
