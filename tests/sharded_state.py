"""A state that is the same everywhere, and may be split over the devices of a mesh."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def make_state(seed: int) -> dict[str, np.ndarray]:
    """On the host; the first axis of "kernel" is to be split over the devices."""
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.standard_normal((8, 300, 41)).astype(np.float32),
        "bias": rng.standard_normal(41).astype(np.float32),
        "step": np.asarray(seed, np.int32),
    }


def shardings(mesh: jax.sharding.Mesh) -> dict[str, NamedSharding]:
    whole = NamedSharding(mesh, PartitionSpec())
    return {"kernel": NamedSharding(mesh, PartitionSpec("data")), "bias": whole, "step": whole}


def on_mesh(state: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    return {
        name: jax.make_array_from_callback(
            state[name].shape, sharding, lambda index, name=name: state[name][index]
        )
        for name, sharding in shardings(mesh).items()
    }


def template(mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    state = make_state(0)
    return {
        name: jax.ShapeDtypeStruct(state[name].shape, state[name].dtype, sharding=sharding)
        for name, sharding in shardings(mesh).items()
    }


def same(state: dict[str, jax.Array], expected: dict[str, np.ndarray]) -> bool:
    """Whether each process holds, bit for bit, its parts of what was made on the host."""
    return all(
        np.array_equal(np.asarray(shard.data), expected[name][shard.index])
        for name, array in state.items()
        for shard in array.addressable_shards
    )
