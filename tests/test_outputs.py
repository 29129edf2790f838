from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from three_classes import (
    CLASSES,
    CLASSIFIER,
    LABELS,
    MODEL,
    PIXELS,
    PRETRAINING,
    TINY,
    assert_equal_trees,
    inputs_of,
)

import vmae_jax

pytestmark = pytest.mark.usefixtures("hasty_compiler")


@CLASSES
def test_outputs_have_the_documented_fields_shapes_and_dtypes(model_class, random_model):
    output = random_model(model_class, TINY)(
        PIXELS, **inputs_of(model_class), output_hidden_states=True, output_attentions=True
    )
    tokens = 8 if model_class is CLASSIFIER else 3
    expected = {
        MODEL: {"last_hidden_state": (2, 3, 32)},
        PRETRAINING: {"loss": (), "logits": (2, 5, 2 * 8 * 8 * 3)},
        CLASSIFIER: {"loss": (), "logits": (2, 3)},
    }[model_class]
    expected |= {"hidden_states": [(2, tokens, 32)] * 3, "attentions": [(2, 4, tokens, tokens)] * 2}
    assert [field.name for field in dataclasses.fields(output)] == list(expected)
    for name, shapes in expected.items():
        value = output[name]
        assert value is getattr(output, name)
        if isinstance(shapes, list):
            assert isinstance(value, tuple)
            assert [x.shape for x in value] == shapes
        else:
            assert value.shape == shapes
        assert {x.dtype for x in jax.tree.leaves(value)} == {jnp.dtype("float32")}
    for position, name in enumerate(expected):
        assert output[position] is output.to_tuple()[position] is output[name]
    assert len(output.to_tuple()) == len(expected)


@CLASSES
def test_tuples_leave_out_what_was_not_asked_for(model_class, random_model):
    model = random_model(model_class, TINY)
    inputs = inputs_of(model_class)
    named = model(PIXELS, **inputs)
    assert named.hidden_states is None
    assert named.attentions is None
    count = 1 if model_class is MODEL else 2
    values = model(PIXELS, **inputs, return_dict=False)
    assert type(values) is tuple
    assert len(values) == len(named.to_tuple()) == count
    assert_equal_trees(values, named.to_tuple(), rtol=0)
    with_states = model(PIXELS, **inputs, return_dict=False, output_hidden_states=True)
    assert len(with_states) == count + 1
    assert isinstance(with_states[-1], tuple)


@CLASSES
def test_outputs_are_pytrees(model_class, random_model):
    output = random_model(model_class, TINY)(
        PIXELS, **inputs_of(model_class), output_hidden_states=True
    )
    leaves, structure = jax.tree.flatten(output)
    assert len(leaves) == len(output.to_tuple()) - 1 + 3  # the hidden states are three
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is type(output)
    assert again.hidden_states[2] is output.hidden_states[2]


@CLASSES
def test_outputs_are_mappings_of_what_was_asked_for(model_class, random_model):
    """As transformers' ModelOutput; asked of both in test_documented_surface.py."""
    output = random_model(model_class, TINY)(PIXELS, **inputs_of(model_class))
    names = ["last_hidden_state"] if model_class is MODEL else ["loss", "logits"]
    assert list(output) == list(output.keys()) == names
    assert len(output) == len(names)
    assert [name for name, _ in output.items()] == [*dict(**output)] == names
    assert "attentions" not in output
    assert all(name in output for name in names)
    assert output[:2] == output.to_tuple()
    with pytest.raises(KeyError, match="'attentions' is none of what was asked for"):
        output["attentions"]
    with pytest.raises(IndexError):
        output[len(names)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        output.attentions = 3
    changed = output.replace(attentions=(3,))
    assert list(changed) == [*names, "attentions"]


def test_outputs_pass_through_transformations(random_model):
    model = random_model(CLASSIFIER, TINY)

    @jax.jit
    def doubled(pixels):
        output = model(pixels, labels=LABELS)
        assert "loss" in output
        return output.replace(loss=2 * output["loss"])

    output = doubled(PIXELS)
    assert type(output) is vmae_jax.ImageClassifierOutput
    np.testing.assert_allclose(output.loss, 2 * model(PIXELS, labels=LABELS).loss, rtol=1e-4)
    per_clip = jax.vmap(lambda pixels: model(pixels[None]))(PIXELS)
    assert per_clip.logits.shape == (2, 1, 3)
    assert list(per_clip) == ["logits"]
