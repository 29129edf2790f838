"""Checkpoints: what is saved comes back bit for bit, and damage is never loaded."""

from __future__ import annotations

import errno
import pathlib
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.checkpoints import checkpoint, orbax_files, saving
from vmae_jax.checkpoints.fingerprints import fingerprint


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


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Steps 10, 20, 30; made once, copied by those that damage them."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = saving.Checkpoints(directory, keep=3)
    for step in (10, 20, 30):
        checkpoints.save(make_state(step), step, {"config": {"seed": step}})
    checkpoints.wait()
    return directory


@pytest.fixture
def copy(saved, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def largest_file(directory: pathlib.Path) -> pathlib.Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(path: pathlib.Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)


def test_the_newest_comes_back_bit_for_bit(saved):
    restored = checkpoint.restore_newest(saved, template())
    assert restored.step == 30
    assert restored.info["config"] == {"seed": 30}
    assert isinstance(restored.state["opt_state"]["adam"], Moments)
    assert_equal(restored.state, make_state(30))


def test_names_are_plain_and_stable(saved):
    info = checkpoint.restore_newest(saved, template()).info
    assert set(info["fingerprint"]) == {
        "params/encoder/kernel",
        "params/encoder/bias",
        "opt_state/adam/count",
        "opt_state/adam/mu/encoder/kernel",
        "opt_state/adam/mu/encoder/bias",
    }


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.restore_newest(tmp_path / "absent", template()) is None
    assert checkpoint.find_step(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = saving.Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(make_state(step), step, {})
    checkpoints.wait()
    assert checkpoint.saved_steps(tmp_path) == [2, 3]


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7])
def test_a_flipped_bit_costs_one_checkpoint_and_is_named(copy, position, caplog):
    flip_bit(largest_file(copy / "30"), position)
    restored = checkpoint.restore_newest(copy, template())
    if restored.step == 30:  # the bit was in padding: then the state must be exact
        assert_equal(restored.state, make_state(30))
        return
    assert restored.step == 20
    assert_equal(restored.state, make_state(20))
    assert "30 is damaged" in caplog.text
    assert (copy / "30.corrupt-0").exists()
    assert not (copy / "30").exists()


def test_the_fingerprint_alone_finds_a_changed_value(copy, monkeypatch):
    # Orbax's own checks switched off in effect: the loaded arrays are altered after loading.
    original = orbax_files.ocp.load_checkpointables

    def altered(*args, **kwargs):
        loaded = original(*args, **kwargs)
        kernel = loaded["state"]["params"]["encoder"]["kernel"]
        loaded["state"]["params"]["encoder"]["kernel"] = kernel.at[0, 0, 0].add(1e-6)
        return loaded

    monkeypatch.setattr(orbax_files.ocp, "load_checkpointables", altered)
    with pytest.raises(checkpoint.CheckpointError, match="params/encoder/kernel changed"):
        checkpoint.restore(copy / "30", template())


def test_a_truncated_file_falls_back(copy):
    path = largest_file(copy / "30")
    path.write_bytes(path.read_bytes()[:100])
    assert checkpoint.restore_newest(copy, template()).step == 20


def test_damaged_metadata_falls_back(copy):
    (copy / "30" / "_CHECKPOINT_METADATA").write_text("{")
    assert checkpoint.restore_newest(copy, template()).step == 20


def test_nothing_usable_names_every_step(copy):
    for step in (10, 20, 30):
        (copy / str(step) / "_CHECKPOINT_METADATA").write_text("{")
    for _ in range(2):  # a second start must not take the folder for a new one
        with pytest.raises(checkpoint.CheckpointError, match=r"no usable checkpoint.*30.*20.*10"):
            checkpoint.restore_newest(copy, template())
    assert checkpoint.saved_steps(copy) == [10, 20, 30]


class HttpError(Exception):
    """As gcsfs has one for a store that is down."""

    __module__ = "gcsfs.retry"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        PermissionError("closed"),
        OSError(errno.ESTALE, "stale"),
        ConnectionResetError("by the other side"),
        ValueError("UNAVAILABLE: try again"),
        ValueError("UNKNOWN: reading [os_error_code='24']"),
        HttpError("503"),
    ],
    ids=repr,
)
def test_what_is_no_damage_is_not_taken_for_it(copy, error, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("wrapped") from error

    monkeypatch.setattr(orbax_files.ocp, "load_checkpointables", fail)
    with pytest.raises(RuntimeError, match="wrapped"):
        checkpoint.restore_newest(copy, template())
    assert checkpoint.saved_steps(copy) == [10, 20, 30]


def test_a_step_that_its_trainer_deletes_for_a_newer_one_is_no_end(copy, monkeypatch):
    listings = iter([[15], [30]])
    monkeypatch.setattr(checkpoint, "saved_steps", lambda _: next(listings))
    assert checkpoint.read_newest(copy, template()).step == 30
    monkeypatch.setattr(checkpoint, "saved_steps", lambda _: [15])
    with pytest.raises(checkpoint.CheckpointError, match="no usable checkpoint"):
        checkpoint.read_newest(copy, template())


def test_another_model_is_refused_and_left_alone(copy):
    other = template()
    other["params"]["encoder"]["kernel"] = jax.ShapeDtypeStruct((3, 40, 51), jnp.float32)
    other["params"]["decoder"] = {"bias": jax.ShapeDtypeStruct((2,), jnp.float32)}
    del other["params"]["encoder"]["bias"]
    with pytest.raises(checkpoint.CheckpointMismatch) as error:
        checkpoint.restore_newest(copy, other)
    for part in (
        "params/encoder/kernel is (3, 40, 50) float32 instead of (3, 40, 51)",
        "params/decoder/bias is missing",
        "params/encoder/bias has no place",
    ):
        assert part in str(error.value)
    assert checkpoint.saved_steps(copy) == [10, 20, 30]


def test_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "FORMAT", 3)
    checkpoints = saving.Checkpoints(tmp_path, keep=1)
    checkpoints.save(make_state(1), 1, {})
    checkpoints.wait()
    monkeypatch.undo()
    with pytest.raises(
        checkpoint.CheckpointMismatch, match=r"newer version \(format 3; this one reads up to 2\)"
    ):
        checkpoint.restore_newest(tmp_path, template())


def test_a_relative_path_will_do(saved, monkeypatch):
    monkeypatch.chdir(saved.parent.parent)
    step = checkpoint.find_step(saved.parent.name)
    assert checkpoint.read_params(step)[1]["step"] == 30
    relative = f"{saved.parent.name}/checkpoints"
    assert checkpoint.restore_newest(relative, template()).step == 30
    assert checkpoint.restore(f"{relative}/20", template()).step == 20


def test_params_alone(saved):
    values, info = checkpoint.read_params(checkpoint.find_step(saved.parent))
    assert info["step"] == 30
    assert set(values) == {"encoder/kernel", "encoder/bias"}
    expected = make_state(30)["params"]["encoder"]["kernel"]
    np.testing.assert_array_equal(values["encoder/kernel"], expected)


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
