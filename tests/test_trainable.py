"""Partial training: what is named is trained, the rest keeps its bits and costs nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vmae_jax import assembly, sharding
from vmae_jax.checkpoints.fingerprints import named_leaves
from vmae_jax.configs import finetune_default
from vmae_jax.errors import SettingError
from vmae_jax.tasks import make_task
from vmae_jax.trainable import select, trained_layers, trained_part, with_trained

pytestmark = pytest.mark.usefixtures("hasty_compiler")
DEPTH = 3


def make_steps(**changes):
    config = finetune_default.get_config()
    config.update_from_flattened_dict(
        {
            **tiny.MODEL,
            "model.num_hidden_layers": DEPTH,
            "model.num_labels": 3,
            "compute.dtype": "float32",
            "data.batch_size": 4,
            "data.repeat": 1,
            "schedule.base_lr": 0.1 * 64,
            "schedule.num_steps": 10,
            "schedule.warmup_epochs": None,
            "schedule.warmup_steps": 0,
            **changes,
        }
    )
    task = make_task(config)
    return assembly.make_steps(config, task, num_records=None, devices=jax.devices()[:1])


def batch_for(steps):
    rng = np.random.default_rng(0)
    shape = steps.batch["video"].shape
    batch = {"video": rng.integers(0, 256, shape, np.uint8), "label": np.int32([0, 1, 2, 0])}
    return sharding.to_devices(batch, steps.batch, steps.mesh)


def changed(steps):
    """name -> for each layer (or for all of it) whether a step changes the parameter."""
    with jax.set_mesh(steps.mesh):
        state, frozen = steps.init()
        before = jax.tree.map(np.asarray, named_leaves(state.params))
        state, _ = steps.train(state, batch_for(steps), frozen)
        after = named_leaves(state.params)
    found = {}
    for name, old in before.items():
        differs = np.asarray(after[name]) != old
        stacked = name.startswith("encoder/")
        found[name] = [bool(x.any()) for x in differs] if stacked else bool(differs.any())
    return found, state


def expected_of(patterns):
    """What each of the patterns trains, spelled out by name."""

    def wanted(name):
        layers = [False] * DEPTH
        for pattern in patterns:
            if pattern == "last_2_blocks" and name.startswith("encoder/"):
                layers = [layers[0], True, True]
            hit = {
                "head": name.startswith(("classifier/", "fc_norm/")),
                "norms": "norm" in name,
                "lora": "lora" in name,
                "encoder/*bias": name.startswith("encoder/") and name.endswith("bias"),
            }.get(pattern, False)
            if hit:
                layers = [True] * DEPTH
        return layers if name.startswith("encoder/") else layers[0]

    return wanted


@pytest.mark.parametrize(
    "patterns",
    [("head",), ("last_2_blocks", "head"), ("norms",), ("norms", "last_2_blocks", "head"),
     ("encoder/*bias",)],
    ids=str,
)  # fmt: skip
def test_only_what_is_named_changes(patterns):
    steps = make_steps(**{"optimizer.train": patterns})
    found, state = changed(steps)
    wanted = expected_of(patterns)
    for name, changes in found.items():
        # a bias or scale of a fresh block may have a gradient that is 0 to rounding, but not all
        assert changes == wanted(name), name
    moments = named_leaves(state.opt_state["adam"].mu)
    for name, x in moments.items():
        whole = named_leaves(state.params)[name].shape
        layers = wanted(name) if name.startswith("encoder/") else [wanted(name)]
        assert x.shape == ((sum(layers), *whole[1:]) if name.startswith("encoder/") else whole)
    trained = {name for name, layers in found.items() if np.any(layers)}
    assert moments.keys() == trained


def gradient_sizes(steps):
    """Bytes of the temporaries of the compiled step."""
    with jax.set_mesh(steps.mesh):
        compiled = steps.train.lower(*steps.arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes, compiled.cost_analysis()["flops"]


def test_frozen_blocks_cost_neither_memory_nor_a_backward_pass():
    whole, whole_flops = gradient_sizes(make_steps())
    last, last_flops = gradient_sizes(make_steps(**{"optimizer.train": ("last_1_blocks", "head")}))
    head, head_flops = gradient_sizes(make_steps(**{"optimizer.train": ("head",)}))
    assert head < last < whole
    assert head_flops < last_flops < whole_flops


def test_a_part_of_the_model_computes_the_same():
    """The first step of the last blocks is that of the whole, where these are concerned."""
    whole, part = make_steps(), make_steps(**{"optimizer.train": ("last_1_blocks", "head")})
    states = []
    for steps in (whole, part):
        with jax.set_mesh(steps.mesh):
            state, frozen = steps.init()
            state, metrics = steps.train(state, batch_for(steps), frozen)
            states.append((named_leaves(state.params), float(metrics["loss"])))
    assert states[0][1] == pytest.approx(states[1][1], rel=1e-6)
    for name, x in states[1][0].items():
        last = (lambda y: np.asarray(y)[-1:]) if name.startswith("encoder/") else np.asarray
        if name.startswith(("encoder/", "classifier/", "fc_norm/")):
            np.testing.assert_allclose(last(x), last(states[0][0][name]), atol=2e-6, err_msg=name)


PARAMS = {
    "embeddings": {"kernel": np.arange(4.0)},
    "encoder": {"a": {"kernel": np.arange(12.0).reshape(4, 3)}, "b": {"bias": np.arange(4.0)}},
    "classifier": {"kernel": np.arange(2.0)},
}


def test_parts_are_taken_out_and_put_back():
    selection = select(PARAMS, ("last_1_blocks", "head", "encoder/b/*"))
    assert selection == {"encoder/a/kernel": 3, "encoder/b/bias": 0, "classifier/kernel": 0}
    part = trained_part(PARAMS, selection)
    assert jax.tree.map(np.shape, part) == {
        "encoder": {"a": {"kernel": (1, 3)}, "b": {"bias": (4,)}}, "classifier": {"kernel": (2,)},
    }  # fmt: skip
    put_back = with_trained(PARAMS, jax.tree.map(lambda x: jnp.asarray(x) + 100, part), selection)
    np.testing.assert_array_equal(
        put_back["encoder"]["a"]["kernel"][:3], np.arange(9.0).reshape(3, 3)
    )
    np.testing.assert_array_equal(put_back["encoder"]["a"]["kernel"][3], [109, 110, 111])
    np.testing.assert_array_equal(put_back["embeddings"]["kernel"], PARAMS["embeddings"]["kernel"])
    assert trained_layers(selection) == (("a/kernel", 3), ("b/bias", 0))


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("heads",), "'heads' names no parameter"), (("last_5_blocks",), "5 of the encoder's 4"),
        (("last_0_blocks",), "give 1 to 4"), (("lora",), "'lora' names no"),
    ],
)  # fmt: skip
def test_patterns_that_name_nothing(patterns, words):
    with pytest.raises(SettingError, match=words):
        select(PARAMS, patterns)


def test_lora_starts_as_the_model_itself_and_trains_its_matrices_alone():
    plain = make_steps(**{"finetuning.head_init_scale": 1.0})
    lora = make_steps(**{"finetuning.lora_rank": 2, "finetuning.head_init_scale": 1.0})
    found, _ = changed(lora)
    trained = {name for name, layers in found.items() if np.any(layers)}
    assert all("_lora/" in name or name.startswith(("fc_norm", "classifier")) for name in trained)
    # B is zero at first, so that only it has a gradient in the first step
    assert sum(name.endswith("lora_b") for name in trained) == 4
    outputs = []
    with jax.set_mesh(plain.mesh):
        params = plain.init()[0].params
        for steps in (plain, lora):
            state, frozen = steps.init()
            flat = named_leaves(params)
            tree = jax.tree_util.tree_map_with_path(
                lambda path, x, flat=flat: flat.get(sharding.path_name(path), x), state.params
            )
            batch = {**batch_for(steps), "index": jnp.arange(4), "weight": jnp.ones(4)}
            outputs.append(np.asarray(steps.predict(tree, batch, frozen)["logits"]))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
