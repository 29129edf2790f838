"""One checkpoint: what it lacks is made by rule, what it holds too much is named or refused."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import old_runs
import pytest
from checkpoint_states import assert_equal, make_state, save_steps, template

from vmae_jax.checkpoints import (
    finished_steps,
    loading,
    migrations,
    orbax_files,
    restoring,
    saving,
)
from vmae_jax.checkpoints.fingerprints import named_leaves
from vmae_jax.checkpoints.migrations import Origin


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Steps 20 and 30; made once, copied by those that damage them."""
    return save_steps(tmp_path_factory.mktemp("run") / "checkpoints", 20, 30)


@pytest.fixture
def copy(saved, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_names_are_plain_and_stable(saved):
    info = restoring.restore_newest(saved, template()).info
    assert set(info["fingerprint"]) == {
        "params/encoder/kernel",
        "params/encoder/bias",
        "opt_state/adam/count",
        "opt_state/adam/mu/encoder/kernel",
        "opt_state/adam/mu/encoder/bias",
    }


def test_the_fingerprint_alone_finds_a_changed_value(copy, monkeypatch):
    # Orbax's own checks switched off in effect: the loaded arrays are altered after loading.
    original = orbax_files.ocp.load_checkpointables

    def altered(*args, **kwargs):
        loaded = original(*args, **kwargs)
        kernel = loaded["state"]["params"]["encoder"]["kernel"]
        loaded["state"]["params"]["encoder"]["kernel"] = kernel.at[0, 0, 0].add(1e-6)
        return loaded

    monkeypatch.setattr(orbax_files.ocp, "load_checkpointables", altered)
    with pytest.raises(loading.CheckpointError, match="params/encoder/kernel changed"):
        loading.restore(copy / "30", template())


def test_params_alone(saved):
    values, info = loading.read_params(finished_steps.find_step(saved.parent))
    assert info["step"] == 30
    assert set(values) == {"encoder/kernel", "encoder/bias"}
    expected = make_state(30)["params"]["encoder"]["kernel"]
    np.testing.assert_array_equal(values["encoder/kernel"], expected)
    assert isinstance(values["encoder/bias"], np.ndarray)  # on the host
    assert values["encoder/bias"].dtype == jnp.bfloat16


def test_a_changed_value_is_found_on_the_host_too(copy, monkeypatch):
    original = orbax_files.ocp.load_checkpointables

    def altered(*args, **kwargs):
        loaded = original(*args, **kwargs)
        loaded["state"]["params"]["encoder"]["kernel"][0, 0, 0] += 1e-6
        return loaded

    monkeypatch.setattr(orbax_files.ocp, "load_checkpointables", altered)
    with pytest.raises(loading.CheckpointError, match="params/encoder/kernel changed"):
        loading.read_params(copy / "30")


def test_an_array_that_was_not_loaded_is_never_taken_for_one(copy, monkeypatch):
    monkeypatch.setattr(orbax_files.ocp, "load_checkpointables", lambda path, template: template)
    with pytest.raises(loading.CheckpointError, match="an array was not restored"):
        loading.read_params(copy / "30")
    with pytest.raises(loading.CheckpointError, match="an array was not restored"):
        loading.restore(copy / "30", template())


# Parts that a checkpoint lacks, or has too many.


def test_a_part_that_starts_as_a_copy_is_an_array_of_its_own(saved):
    like = {**template(), "ema": template()["params"]}
    restored = loading.restore(saved / "30", like)
    assert_equal(restored.state, {**make_state(30), "ema": make_state(30)["params"]})
    assert (restored.started, restored.left_out) == (("ema as a copy of params",), ())
    # both are donated to the train step, which an array that is in both would not survive
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = step(restored.state)
    np.testing.assert_array_equal(
        state["ema"]["encoder"]["kernel"], make_state(30)["params"]["encoder"]["kernel"] + 1
    )


def test_a_copy_may_lie_otherwise_and_be_asked_for_alone(saved):
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.asarray(devices[:1]), ("d",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    ema = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), template()["params"]
    )
    alone = loading.restore(saved / "30", {"ema": ema})
    both = loading.restore(saved / "30", {"params": template()["params"], "ema": ema})
    for restored in (alone, both):
        assert_equal(restored.state["ema"], make_state(30)["params"])
        assert restored.state["ema"]["encoder"]["kernel"].sharding == split
    assert alone.left_out == ("opt_state", "params")


def test_a_part_that_was_saved_is_loaded_and_not_made(tmp_path):
    state = {**make_state(1), "ema": make_state(2)["params"]}
    checkpoints = saving.Checkpoints(tmp_path, keep=1)
    checkpoints.save(state, 1, {})
    checkpoints.wait()
    restored = loading.restore(tmp_path / "1", {**template(), "ema": template()["params"]})
    assert_equal(restored.state, state)
    assert (restored.started, restored.left_out) == ((), ())
    assert loading.restore(tmp_path / "1", template()).left_out == ("ema",)


def test_a_part_may_start_as_a_number_by_a_rule_of_the_callers(saved):
    queue = jax.ShapeDtypeStruct((3,), jnp.float32, sharding=template_sharding())
    restored = loading.restore(
        saved / "30", {**template(), "queue": queue}, optional={"queue": 0.5}
    )
    np.testing.assert_array_equal(restored.state["queue"], np.full(3, 0.5, np.float32))
    assert restored.state["queue"].sharding == template_sharding()
    assert restored.started == ("queue as 0.5",)
    with pytest.raises(loading.CheckpointMismatch, match="queue is missing"):
        loading.restore(saved / "30", {**template(), "queue": queue})


def test_a_copy_of_another_shape_or_of_nothing_is_refused(saved):
    ema = template()["params"]
    ema["encoder"]["kernel"] = jax.ShapeDtypeStruct((3, 40, 51), jnp.float32)
    ema["head"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    with pytest.raises(loading.CheckpointMismatch) as error:
        loading.restore(saved / "30", {**template(), "ema": ema})
    assert "ema/encoder/kernel is (3, 40, 50) float32 instead of (3, 40, 51)" in str(error.value)
    assert "ema/head is missing" in str(error.value)


def test_only_whole_parts_are_optional(saved):
    like = template()
    like["params"]["decoder"] = like["params"]["encoder"]
    with pytest.raises(loading.CheckpointMismatch, match="params/decoder/bias is missing"):
        loading.restore(saved / "30", like)
    del like["params"]["decoder"], like["params"]["encoder"]["bias"]
    with pytest.raises(loading.CheckpointMismatch, match="params/encoder/bias has no place"):
        loading.restore(saved / "30", like)


def test_a_copy_of_what_is_damaged_is_not_made(copy, monkeypatch):
    original = orbax_files.ocp.load_checkpointables

    def altered(*args, **kwargs):
        loaded = original(*args, **kwargs)
        kernel = loaded["state"]["params"]["encoder"]["kernel"]
        loaded["state"]["params"]["encoder"]["kernel"] = kernel.at[0, 0, 0].add(1e-6)
        return loaded

    monkeypatch.setattr(orbax_files.ocp, "load_checkpointables", altered)
    with pytest.raises(loading.CheckpointError, match="params/encoder/kernel changed"):
        loading.restore(copy / "30", {"ema": template()["params"]})


def test_a_migration_may_move_copy_and_make_parameters(saved, monkeypatch):
    def next_format(tree):
        moved = {name.replace("encoder/kernel", "encoder/w"): x for name, x in tree.items()}
        made = Origin((2,), np.dtype("float32"), None, 0.25)
        return moved | {"params/scale": made, "params/twin": tree["params/encoder/bias"]}

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, next_format))
    encoder = make_state(30)["params"]["encoder"]
    expected = {
        "encoder": {"w": encoder["kernel"], "bias": encoder["bias"]},
        "scale": jnp.full(2, 0.25),
        "twin": encoder["bias"],
    }
    here = template_sharding()
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), expected)
    assert_equal(loading.restore(saved / "30", {"params": like}).state["params"], expected)
    params, _ = loading.read_params(saved / "30")
    assert_equal(params, named_leaves(expected))


def template_sharding() -> jax.sharding.Sharding:
    return template()["params"]["encoder"]["kernel"].sharding


# Formats.


@pytest.mark.parametrize("number", old_runs.FORMATS)
def test_what_older_code_saved_is_restored_bit_for_bit(number, tmp_path):
    directory = old_runs.unpack(number, tmp_path) / "checkpoints"
    names, expected = old_runs.state()
    restored = restoring.restore_newest(directory, old_template(tmp_path))
    assert (restored.step, restored.started, restored.left_out) == (old_runs.STEP, (), ())
    found = named_leaves(restored.state)
    assert sorted(found) == names
    assert b"".join(np.asarray(found[name]).tobytes() for name in names) == expected
    assert found["skipped"].dtype == found["streak"].dtype == jnp.int32
    params, info = loading.read_params(directory / str(old_runs.STEP))
    assert info["format"] == number
    assert {f"params/{name}" for name in params} == {n for n in names if n.startswith("params/")}
    for name, value in params.items():
        assert value.tobytes() == np.asarray(found[f"params/{name}"]).tobytes()


def old_template(tmp_path) -> dict:
    """The whole state of format 2, as its own metadata has it."""
    step = old_runs.unpack(2, tmp_path / "template") / "checkpoints" / str(old_runs.STEP)
    metadata = json.loads((step / "_CHECKPOINT_METADATA").read_text())
    like: dict = {}
    for name, text in metadata["custom_metadata"]["arrays"].items():
        dtype, _, shape = text.rstrip("]").partition("[")
        *parents, last = name.split("/")
        node = like
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(
            tuple(map(int, filter(None, shape.split(",")))), dtype, sharding=template_sharding()
        )
    return like


def test_the_fingerprints_of_an_older_format_still_guard_it(tmp_path):
    directory = old_runs.unpack(1, tmp_path) / "checkpoints"
    path = directory / str(old_runs.STEP) / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"]["fingerprint"]["opt_state/adam/count"] += 1
    path.write_text(json.dumps(metadata))
    with pytest.raises(loading.CheckpointError, match="opt_state/adam/count changed since"):
        restoring.restore_newest(directory, old_template(tmp_path))


def test_an_older_format_gets_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "FORMAT", 1)
    save_steps(tmp_path, 3)
    monkeypatch.undo()
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=template_sharding())
    new = {**template(), "skipped": count, "streak": count}
    restored = restoring.restore_newest(tmp_path, new)
    assert restored.step == 3
    for name in ("skipped", "streak"):
        assert restored.state[name].dtype == jnp.int32
        assert int(restored.state[name]) == 0
        assert restored.state[name].sharding == count.sharding
    assert_equal(restored.state["params"], make_state(3)["params"])


def test_a_format_of_today_lacks_nothing(tmp_path):
    save_steps(tmp_path, 3)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=template_sharding())
    with pytest.raises(loading.CheckpointMismatch, match="skipped is missing"):
        restoring.restore_newest(tmp_path, {**template(), "skipped": count})


def test_another_step_than_its_name_says_is_damage(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2").rename(tmp_path / "3")
    with pytest.raises(loading.CheckpointError, match=r"3 is damaged: .*holds step 2"):
        loading.restore(tmp_path / "3", template())


def test_a_format_that_is_none_is_damage(tmp_path):
    save_steps(tmp_path, 1, 2)
    path = tmp_path / "2" / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"]["format"] = "two"
    path.write_text(json.dumps(metadata))
    assert restoring.restore_newest(tmp_path, template()).step == 1
    assert sorted(os.listdir(tmp_path)) == ["1", "2.corrupt-0"]
