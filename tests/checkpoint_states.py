"""A small state of nested parts, and what it takes to save and restore it."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax.checkpoints import saving


class Moments(NamedTuple):
    count: jax.Array
    mu: dict


def make_state(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    weights = {
        "kernel": jnp.asarray(rng.standard_normal((3, 40, 50)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal(7), jnp.bfloat16),
    }
    return {
        "params": {"encoder": weights},
        "opt_state": {"adam": Moments(jnp.asarray(seed, jnp.int32), {"encoder": weights})},
    }


def template() -> dict:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), make_state(0)
    )


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def save_steps(directory: pathlib.Path, *steps: int) -> pathlib.Path:
    """A folder with the states of these seeds, as steps of a run."""
    checkpoints = saving.Checkpoints(directory, keep=len(steps))
    for step in steps:
        checkpoints.save(make_state(step), step, {"config": {"seed": step}})
    checkpoints.wait()
    return directory
