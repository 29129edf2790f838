"""Checksums of arrays, computed where they lie: a checkpoint is compared with them when loaded.

They depend on the values alone, not on the mesh: a state that is saved on eight devices and loaded
on one, or on the host, has the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vmae_jax.sharding import path_name

_FACTOR = 2654435761  # of Knuth's multiplicative hash: odd, near 2^32 over the golden ratio
_CHUNK = 1 << 14  # values that the host looks at in one go: they stay in its cache


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def to_plain(tree: Any) -> dict[str, Any]:
    """The same leaves in nested dicts, whatever classes the tree is made of."""
    plain: dict[str, Any] = {}
    for name, leaf in named_leaves(tree).items():
        *parents, last = name.split("/")
        node = plain
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return plain


def start_fingerprint(tree: Any) -> Callable[[], dict[str, int]]:
    """Starts what `fingerprint` computes, and returns at once.

    The tree may be donated or deleted afterwards.

    Returns:
      A function that waits for the result; it may be called in another thread.
    """
    # in an order that depends on the names alone: what is loaded by name runs the same program
    named = dict(sorted(named_leaves(tree).items()))
    if not named:
        return dict
    leaves = list(named.values())
    values = _compiled(_everywhere(leaves))(leaves)
    return lambda: dict(zip(named, map(int, np.asarray(values)), strict=True))


def fingerprint(tree: Any) -> dict[str, int]:
    """A checksum for each array of a tree, by path, in [0, 2^32).

    Args:
      tree: of arrays of up to 32 bits a value. If they are spread over several processes, all of
        these have to call it.
    """
    return start_fingerprint(tree)()


def host_fingerprint(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """As `fingerprint`, of arrays on the host; there is nothing to compile, which takes seconds.

    Args:
      arrays: by name, of up to 32 bits a value.
    """
    return {name: _host_leaf_fingerprint(x) for name, x in arrays.items()}


def _host_leaf_fingerprint(x: np.ndarray) -> int:
    values = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")
    weights, total = np.arange(_CHUNK, dtype=np.uint32) * np.uint32(_FACTOR), 0
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK].astype(np.uint32)
        offset = np.uint32(start * _FACTOR % 2**32)
        total += int(np.sum(part * ((weights[: len(part)] + offset) | 1), dtype=np.uint32))
    return total % 2**32


def _everywhere(leaves: list) -> NamedSharding | None:
    """A sharding that gives every process the whole result; None leaves it to the compiler."""
    for leaf in leaves:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding):
            return NamedSharding(sharding.mesh, PartitionSpec())
    return None


@functools.cache
def _compiled(out_sharding: NamedSharding | None) -> Callable:
    return jax.jit(
        lambda leaves: jnp.stack([_leaf_fingerprint(x) for x in leaves]),
        out_shardings=out_sharding,
    )


@jax.jit  # traced once for all leaves of one shape: parameters, and the moments of each
def _leaf_fingerprint(x: jax.Array) -> jax.Array:
    """A uint32 that any single flipped bit changes; the same on every mesh (sums commute)."""
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    values = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    # odd weights are invertible modulo 2^32, so no change of a single value can vanish
    return jnp.sum(values * ((place * jnp.uint32(_FACTOR)) | 1), dtype=jnp.uint32)
