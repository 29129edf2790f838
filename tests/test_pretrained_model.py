from __future__ import annotations

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from three_classes import CLASSES, CLASSIFIER, MODEL, PIXELS, PRETRAINING, TINY, assert_equal_trees

from vmae_jax.videomae import VideoMAE
from vmae_jax.weights import layouts

pytestmark = pytest.mark.usefixtures("hasty_compiler")


@CLASSES
def test_a_model_prints_in_one_line(model_class, random_model):
    model = random_model(model_class, TINY)
    printed = repr(model)
    assert printed.startswith(f"<{model_class.__name__}: {model.num_parameters():,} parameters, 2 ")
    assert "4 x 3 x 16 x 16" in printed
    assert "\n" not in printed
    assert len(printed) < 150


@CLASSES
def test_parameters_are_counted_one_by_one(model_class, random_model):
    model = random_model(model_class, TINY)
    parameters = layouts.parameters(model.core)
    assert model.num_parameters() == sum(np.size(value) for value in parameters.values())
    assert model.get_memory_footprint() == 4 * model.num_parameters()
    assert model.dtype == jnp.float32


def test_a_head_has_its_encoder(random_model):
    classifier = random_model(CLASSIFIER, TINY)
    encoder = classifier.base_model
    assert type(encoder) is type(classifier.videomae) is MODEL
    assert encoder.core is classifier.core
    assert encoder.base_model is encoder


@pytest.mark.parametrize(
    ("habit", "remedy"),
    [
        (lambda model: model.train(), r"no training mode; .*key=jax\.random\.key\(0\)"),
        (lambda model: model.to("cuda"), "has no 'to': JAX places arrays"),
        (lambda model: model.half(), "has no 'half': give dtype="),
        (lambda model: model.parameters(), r"has no 'parameters': .*nnx\.state\(model\)"),
        (lambda model: model.prune_heads({}), "has no 'prune_heads': head_mask="),
        (lambda model: model.no_such_thing, "a VideoMAEModel has no 'no_such_thing'.$"),
    ],
)
def test_habits_of_torch_are_told_what_to_do_here(habit, remedy, random_model):
    with pytest.raises((ValueError, AttributeError), match=remedy):
        habit(random_model(MODEL, TINY))


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("torch_dtype", "give dtype="),
        ("device_map", "JAX_PLATFORMS"),
        ("cache_dir", "set HF_HUB_CACHE"),
        ("token", "HF_TOKEN"),
        ("output_loading_info", "the log says"),
    ],
)
def test_options_of_other_libraries_are_told_what_to_do_here(option, remedy, tmp_path):
    with pytest.raises(ValueError, match=f"{option} is no option here; .*{remedy}"):
        MODEL.from_pretrained(tmp_path, **{option: "auto"})


def test_overrides_count_before_a_stored_configuration_is_checked(random_model, tmp_path):
    """Two labels beside five names, as one finds them on the hub."""
    names = dict(enumerate(["run", "sit", "stand", "jump", "eat"]))
    random_model(CLASSIFIER, TINY.replace(id2label=names)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_labels": 2}))
    with pytest.raises(ValueError, match="num_labels=2 contradicts id2label with 5 entries"):
        CLASSIFIER.from_pretrained(tmp_path)
    model = CLASSIFIER.from_pretrained(tmp_path, num_labels=5)
    assert model.config.id2label == names
    assert model(PIXELS).logits.shape == (2, 5)
    few = CLASSIFIER.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert few(PIXELS).logits.shape == (2, 3)
    assert MODEL.from_pretrained(tmp_path, config=TINY).config.num_labels == 3
    TINY.save_pretrained(tmp_path / "other")
    assert MODEL.from_pretrained(tmp_path, config=tmp_path / "other").config.num_labels == 3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("attention", "flash"),
        ("remat", "all"),
        ("precision", "fp32"),
        ("dtype", "int32"),
        ("param_dtype", "bool"),
    ],
)
def test_compute_options_are_checked(option, value):
    with pytest.raises(ValueError, match=f"{option}=.*{re.escape(value)}"):
        MODEL(TINY, **{option: value})


def test_from_core_shares_parameters(random_model):
    pretraining = random_model(PRETRAINING, TINY)
    encoder = MODEL.from_core(pretraining.core)
    assert type(encoder) is MODEL
    assert encoder.config is pretraining.config
    before = encoder(PIXELS).last_hidden_state
    pretraining.core.embeddings.bias[...] += 1.0
    after = encoder(PIXELS).last_hidden_state
    assert np.abs(after - before).max() > 1e-3
    assert encoder.core is pretraining.core


def test_fresh_models_have_the_parts_of_their_class_and_depend_on_rngs():
    config = TINY.replace(initialization="huggingface", use_mean_pooling=False)
    parts = {
        c: set(vars(nnx.eval_shape(lambda c=c: c(config)).core))
        & {"layernorm", "decoder", "classifier"}
        for c in (MODEL, PRETRAINING, CLASSIFIER)
    }
    assert parts[MODEL] == {"layernorm"}
    assert parts[PRETRAINING] == {"layernorm", "decoder"}
    assert parts[CLASSIFIER] == {"layernorm", "classifier"}
    one, same, other = (MODEL(config, rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
    assert isinstance(one.core, VideoMAE)
    assert_equal_trees(layouts.parameters(one.core), layouts.parameters(same.core), rtol=0)
    name = "encoder/intermediate/kernel"
    kernel, changed = (layouts.parameters(m.core)[name] for m in (one, other))
    assert not np.array_equal(kernel, changed)
    assert not np.array_equal(kernel[0], kernel[1])  # each layer draws its own
