"""Checksums of arrays: no change passes, and they are the same wherever they are computed."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.checkpoints import fingerprints
from vmae_jax.checkpoints.fingerprints import fingerprint, host_fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_any_flipped_bit_changes_the_fingerprint(dtype):
    rng = np.random.default_rng(0)
    array = np.asarray(jnp.asarray(rng.integers(0, 2, (3, 5)), dtype))
    before = fingerprint({"x": jnp.asarray(array)})
    bits_per_value = 1 if dtype == "bool" else 8 * array.dtype.itemsize
    for value in range(array.size):
        for bit in range(bits_per_value):
            raw = bytearray(array.tobytes())
            raw[value * array.dtype.itemsize + bit // 8] ^= 1 << bit % 8
            changed = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
            assert fingerprint({"x": jnp.asarray(changed)}) != before, (value, bit)


def test_swapped_rows_change_the_fingerprint():
    x = jnp.arange(12.0).reshape(4, 3)
    swapped = x[jnp.array([1, 0, 2, 3])]
    assert fingerprint({"x": x}) != fingerprint({"x": swapped})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_the_host_computes_the_same(dtype, monkeypatch):
    monkeypatch.setattr(fingerprints, "_CHUNK", 7)  # many of them
    rng = np.random.default_rng(1)
    arrays = {
        str(shape): np.asarray(jnp.asarray(rng.integers(0, 2, shape), dtype))
        for shape in [(), (1,), (7,), (5, 3), (2, 7, 11), (0, 4)]
    }
    arrays["transposed"] = arrays["(5, 3)"].T
    on_devices = fingerprint({name: jnp.asarray(x) for name, x in arrays.items()})
    assert host_fingerprint(arrays) == on_devices


def test_a_tree_and_its_names_have_the_same():
    tree = {"b": {"x": jnp.arange(3.0)}, "a": (jnp.ones(2), jnp.zeros(()))}
    assert fingerprint(fingerprints.named_leaves(tree)) == fingerprint(tree)
    assert set(fingerprint(tree)) == {"a/0", "a/1", "b/x"}
