"""One checkpoint of ours, read and checked; `restoring` chooses which.

It is a folder `<workdir>/checkpoints/<step>` that appears whole or not at all. It holds the state
as plain dicts under stable names, and in its metadata the run's configuration, its lineage and a
fingerprint of every array: Orbax itself loads a flipped bit without a word. One of an older format,
or of a run with fewer parts, is completed by the rules of `migrations`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vmae_jax.checkpoints import orbax_files
from vmae_jax.checkpoints.checkpoint_info import (
    CheckpointError,
    CheckpointMismatch,
    damage_named,
    read_header,
    some,
)
from vmae_jax.checkpoints.fingerprints import fingerprint, host_fingerprint, named_leaves, to_plain
from vmae_jax.checkpoints.finished_steps import absolute
from vmae_jax.checkpoints.migrations import OPTIONAL, Origin, Tree, migrated, with_optional
from vmae_jax.processes.distributed import all_gather_text
from vmae_jax.sharding import path_name

_T = TypeVar("_T")


class Restored(NamedTuple):
    """A state and where it came from.

    Attributes:
      state: as the template given, on its shardings.
      step: int.
      info: what was saved with it: "config", "lineage", "metrics", ...
      path: of the checkpoint.
      started: parts that the checkpoint lacks: "ema as a copy of params".
      left_out: parts of the checkpoint that the template has no place for.
    """

    state: Any
    step: int
    info: dict[str, Any]
    path: str
    started: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def restore(
    path: str | os.PathLike,
    template: Any,
    *,
    optional: Mapping[str, str | float] = OPTIONAL,
) -> Restored:
    """One checkpoint, checked against its fingerprints.

    Args:
      path: of the step's folder.
      template: a tree of `jax.ShapeDtypeStruct` with shardings, as the state should come out; may
        be a part of it, e.g. `{"params": ...}`. In a run of several processes all have to call
        this, with the same.
      optional: parts of the template (its first level) that a checkpoint may lack: the part that
        each then starts as a copy of, or the number that fills it.
    Raises:
      CheckpointMismatch: if names or shapes differ from the template, all of them named; if it was
        written by a newer version.
      CheckpointError: if it is damaged.
      OSError, MemoryError: if a process may not read, or has no room; that is no damage.
    """
    path = absolute(path)
    wanted = named_leaves(template)

    def load() -> tuple[dict[str, Any], Tree, Tree, dict[str, jax.Array]]:
        info, tree = _read_tree(path)
        complete = with_optional(tree, wanted, optional)
        _check_fits(path, complete, wanted)
        likes: dict[str, jax.ShapeDtypeStruct] = {}
        for name, leaf in wanted.items():
            if (stored := complete[name].stored) is not None:
                likes.setdefault(stored, leaf)
        with damage_named(path):
            loaded = named_leaves(orbax_files.read_tree(path, to_plain(likes)))
        return info, tree, complete, loaded

    info, tree, complete, loaded = _together(load)
    prints = fingerprint(loaded)  # by all processes or by none: their devices take part
    _together(lambda: _compare(path, info["fingerprint"], prints))
    return Restored(
        state=_assemble(template, complete, loaded),
        step=int(info["step"]),
        info=info,
        path=str(path),
        started=tuple(
            f"{part} as a copy of {start}" if isinstance(start, str) else f"{part} as {start}"
            for part, start in optional.items()
            if part in _parts(wanted) - _parts(tree)
        ),
        left_out=tuple(sorted(_parts(info["fingerprint"]) - _parts(wanted))),
    )


def read_params(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The parameters of one checkpoint by path name ("encoder/output/kernel"), and its info.

    They lie on the host. In a run of several processes all call it.

    Raises:
      CheckpointError: if it is damaged.
      OSError, MemoryError: as `restore`.
    """
    path = absolute(path)

    def load() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        info, tree = _read_tree(path)
        origins = {name: x for name, x in tree.items() if _part(name) == "params"}
        made = {n: np.full(x.shape, x.fill, x.dtype) for n, x in origins.items() if not x.stored}
        likes = {x.stored: np.empty(x.shape, x.dtype) for x in origins.values() if x.stored}
        with damage_named(path):
            loaded = named_leaves(orbax_files.read_tree(path, to_plain(likes)))
        _compare(path, info["fingerprint"], host_fingerprint(loaded))
        params = made | {n: loaded[x.stored] for n, x in origins.items() if x.stored}
        return info, {n.removeprefix("params/"): x for n, x in params.items()}

    info, params = _together(load)
    return params, info


def _together(attempt: Callable[[], _T]) -> _T:
    """What `attempt` returns, if it succeeds in all processes; else they all raise alike."""
    result, error = None, None
    try:
        result = attempt()
    except Exception as caught:
        error = caught
    severity = _severity(error)
    outcomes = map(json.loads, all_gather_text("restore", json.dumps([severity, str(error)])))
    worst, message = max(outcomes, key=lambda outcome: outcome[0])
    if worst == 0:
        return result
    if severity == worst:
        raise error
    kind = {1: CheckpointError, 2: CheckpointMismatch, 3: RuntimeError}[worst]
    raise kind(f"In another process: {message}")


def _severity(error: Exception | None) -> int:
    """0: none; 1: an older step may do; 2 and 3 end the run."""
    if error is None:
        return 0
    if isinstance(error, CheckpointError):
        return 1 + isinstance(error, CheckpointMismatch)
    return 3


def _read_tree(path: epath.Path) -> tuple[dict[str, Any], Tree]:
    """The info of a checkpoint, and where each array of today's format is in it."""
    info, stored = read_header(path)
    tree = {
        name: Origin(tuple(leaf.shape), np.dtype(leaf.dtype), name)
        for name, leaf in named_leaves(stored).items()
    }
    return info, migrated(tree, info["format"])


def _part(name: str) -> str:
    return name.partition("/")[0]


def _parts(names: Iterable[str]) -> set[str]:
    return set(map(_part, names))


def _check_fits(path: epath.Path, tree: Tree, wanted: Mapping[str, Any]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in tree]
    problems += [
        f"{name} is {tree[name].shape} {tree[name].dtype} instead of "
        f"{tuple(leaf.shape)} {leaf.dtype}"
        for name, leaf in wanted.items()
        if name in tree and tree[name][:2] != (tuple(leaf.shape), leaf.dtype)
    ]
    parts = _parts(wanted)
    problems += [
        f"{name} has no place" for name in tree if name not in wanted and _part(name) in parts
    ]
    if problems:
        raise CheckpointMismatch(
            f"{path} holds another model or optimizer: {'; '.join(sorted(problems))}."
        )


def _compare(path: epath.Path, saved: Mapping[str, int], found: Mapping[str, int]) -> None:
    wrong = [name for name, value in found.items() if saved.get(name) != value]
    if wrong:
        raise CheckpointError(f"{path} is damaged: {some(wrong)} changed since it was saved.")


def _assemble(template: Any, tree: Tree, loaded: Mapping[str, jax.Array]) -> Any:
    """The template with its arrays: loaded, filled, or copied from one that was loaded."""
    arrays: dict[str, jax.Array] = {}
    copies: dict[str, jax.ShapeDtypeStruct] = {}
    taken: set[str] = set()
    for name, like in named_leaves(template).items():
        stored = tree[name].stored
        if stored is None:
            value = np.full(like.shape, tree[name].fill, like.dtype)
            arrays[name] = jax.make_array_from_callback(
                like.shape, like.sharding, lambda index, value=value: value[index]
            )
        elif stored in taken:
            copies[name] = like
        else:
            taken.add(stored)
            arrays[name] = loaded[stored]
    if copies:  # which have to be arrays of their own: the train step donates each once
        values = [loaded[tree[name].stored] for name in copies]
        shardings = [like.sharding for like in copies.values()]
        copy = jax.jit(lambda xs: [jnp.copy(x) for x in xs], out_shardings=shardings)
        arrays |= zip(copies, copy(values), strict=True)
    return jax.tree_util.tree_map_with_path(lambda p, _: arrays[path_name(p)], template)
