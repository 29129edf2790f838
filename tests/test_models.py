"""The face of the Hugging Face classes: inputs, outputs, errors, randomness.

Their numbers are compared with the original's in test_parity.py.
"""

from __future__ import annotations

import dataclasses
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from three_classes import (
    CLASSES,
    CLASSIFIER,
    LABELS,
    MASK,
    MODEL,
    PIXELS,
    PRETRAINING,
    TINY,
    assert_equal_trees,
    inputs_of,
)

import vmae_jax
from vmae_jax.huggingface.models import _warn_of_first_token_pooling
from vmae_jax.videomae import VideoMAE
from vmae_jax.weights import layouts

pytestmark = pytest.mark.usefixtures("hasty_compiler")


def main_output(output):
    """The features or logits."""
    return output[0] if "last_hidden_state" in vars(output) else output.logits


def test_loss_is_left_out_without_labels(random_model):
    output = random_model(CLASSIFIER, TINY)(PIXELS)
    assert output.loss is None
    assert len(output.to_tuple()) == 1
    assert output[0] is output.logits


@CLASSES
def test_tensors_of_torch_are_taken_for_every_input(model_class, random_model):
    torch = pytest.importorskip("torch")
    model = random_model(model_class, TINY)
    inputs = {"head_mask": np.linspace(0, 1, 4, dtype=np.float32), **inputs_of(model_class)}
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
    pixels = torch.from_numpy(PIXELS).requires_grad_()
    assert_equal_trees(model(pixels, **tensors), model(PIXELS, **inputs), rtol=0)


@CLASSES
def test_the_core_gets_a_key_for_each_clip(model_class, random_model, monkeypatch):
    model = random_model(model_class, TINY.replace(hidden_dropout_prob=0.5))
    inputs, key = inputs_of(model_class), jax.random.key(3)
    seen = []
    for name in ("encode", "decode", "classify"):

        def spy(self, *args, keys, _call=getattr(VideoMAE, name), **kwargs):
            seen.append(keys.shape)
            return _call(self, *args, keys=keys, **kwargs)

        monkeypatch.setattr(VideoMAE, name, spy)
    drawn = model(PIXELS + 0, **inputs, key=key)
    assert set(seen) == {(2,)}
    assert_equal_trees(model(PIXELS, **inputs, key=jax.random.split(key, 2)), drawn, rtol=0)


def test_a_mask_may_leave_tokens_out_that_are_not_predicted(random_model):
    whole = vmae_jax.Mask.from_bool(MASK)
    part = vmae_jax.Mask(whole.visible, whole.masked[:, :2], 8)
    model = random_model(PRETRAINING, TINY)
    output = model(PIXELS, part)
    assert output.logits.shape == (2, 2, 384)
    features = random_model(MODEL, TINY)
    assert_equal_trees(features(PIXELS, part), features(PIXELS, whole), rtol=0)
    with pytest.raises(ValueError, match=r"\(2, 7\), but must be for \(2, 8\)"):
        model(PIXELS, vmae_jax.Mask(np.array([[0], [1]]), np.array([[2], [3]]), 7))


@CLASSES
def test_config_decides_what_is_returned_unless_the_call_does(model_class, random_model):
    config = TINY.replace(output_attentions=True, output_hidden_states=True, return_dict=False)
    model = random_model(model_class, config)
    inputs = inputs_of(model_class)
    values = model(PIXELS, **inputs)
    assert type(values) is tuple
    assert [type(v) for v in values[-2:]] == [tuple, tuple]
    output = model(
        PIXELS, **inputs, output_attentions=False, output_hidden_states=False, return_dict=True
    )
    assert output.hidden_states is None
    assert output.attentions is None


def test_model_sees_all_tokens_without_a_mask_and_the_visible_ones_with_it(random_model):
    model = random_model(MODEL, TINY)
    every = model(PIXELS, output_hidden_states=True)
    some = model(PIXELS, MASK, output_hidden_states=True)
    assert every.last_hidden_state.shape == (2, 8, 32)
    assert some.last_hidden_state.shape == (2, 3, 32)
    # before attention a token knows nothing of the others
    expected = np.asarray(every.hidden_states[0])[~MASK].reshape(2, 3, 32)
    np.testing.assert_allclose(some.hidden_states[0], expected, atol=1e-5)


@pytest.mark.parametrize("model_class", [MODEL, PRETRAINING])
def test_a_mask_of_indices_is_as_good_as_a_boolean_one(model_class, random_model):
    model = random_model(model_class, TINY)
    indices = vmae_jax.Mask.from_bool(MASK)
    assert_equal_trees(model(PIXELS, indices), model(PIXELS, MASK), rtol=0)
    assert_equal_trees(model(PIXELS, MASK.tolist()), model(PIXELS, MASK), rtol=0)


@CLASSES
def test_models_work_under_jit(model_class, random_model):
    model = random_model(model_class, TINY)
    inputs = inputs_of(model_class)
    static = {} if model_class is CLASSIFIER else {"num_masked": 5}
    compiled = jax.jit(lambda model, pixels, inputs: model(pixels, **inputs, **static))
    output = compiled(model, PIXELS, inputs)
    assert_equal_trees(output, model(PIXELS, **inputs), rtol=1e-4, atol=1e-5)
    closed_over = jax.jit(lambda model, pixels: model(pixels, **inputs))  # values can be seen
    assert_equal_trees(closed_over(model, PIXELS), output, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_finite_differences(random_model):
    """Along one random direction, in steps that suit fp32, outside jit."""
    model = random_model(MODEL, TINY)

    def loss(model):
        return jnp.square(model(PIXELS, MASK).last_hidden_state).mean()

    gradient = layouts.parameters(jax.grad(loss)(model).core)
    rng = np.random.default_rng(1)
    parameters = layouts.parameters(model.core)
    direction = {k: rng.standard_normal(p.shape) * 1e-3 for k, p in sorted(parameters.items())}
    along = sum(float(np.sum(gradient[k] * direction[k])) for k in direction)

    def moved(sign):
        copy = random_model(MODEL, TINY)
        moved = {k: p + sign * direction[k] for k, p in parameters.items()}
        layouts.set_parameters(copy.core, moved)
        return float(loss(copy))

    np.testing.assert_allclose((moved(1) - moved(-1)) / 2, along, rtol=2e-2, atol=1e-5)


@pytest.fixture
def compilations():
    """Names of the programs compiled while a test runs."""
    events = []

    def listener(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(kwargs)

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield events
    jax.monitoring.unregister_event_duration_listener(listener)


@CLASSES
def test_a_second_call_of_the_same_shapes_compiles_nothing(model_class, random_model, compilations):
    # a width of its own, so that no other test has compiled this already
    model = random_model(model_class, TINY.replace(intermediate_size=56))
    shown = {"output_hidden_states": True, "output_attentions": True}
    key = jax.random.key(0)
    model(PIXELS, **inputs_of(model_class), **shown, key=key)
    assert compilations
    compilations.clear()
    for mask in (MASK[::-1], MASK[:, ::-1]):
        inputs = inputs_of(model_class)
        inputs = {"labels": LABELS + 0} if "labels" in inputs else {"bool_masked_pos": mask}
        model(PIXELS + 1, **inputs, **shown, key=key)
    assert compilations == []


def test_a_model_with_the_same_configuration_compiles_nothing(random_model, compilations):
    config = TINY.replace(intermediate_size=64)
    random_model(CLASSIFIER, config, seed=0)(PIXELS)
    assert compilations
    other = random_model(CLASSIFIER, dataclasses.replace(config), seed=1)
    compilations.clear()
    other(PIXELS)
    assert compilations == []


def changed_pixels(**changes):
    """Pixels of another shape: channels=1, frames=6, ..."""
    names = ("batch", "frames", "channels", "height", "width")
    return np.zeros([changes.get(n, size) for n, size in zip(names, PIXELS.shape, strict=True)])


UNEQUAL = MASK.copy()
UNEQUAL[1, 0] = True
# what is passed instead of good inputs, and what the message has to name
BAD_FOR_ALL = {
    "no pixels": ({"pixel_values": None}, "pixel_values is None"),
    "height": ({"pixel_values": changed_pixels(height=24)}, "24 height .the model takes 16"),
    "width": ({"pixel_values": changed_pixels(width=8)}, "8 width .the model takes 16"),
    "channels": ({"pixel_values": changed_pixels(channels=1)}, "1 channels .the model takes 3"),
    "frames": ({"pixel_values": changed_pixels(frames=6)}, "6 frames .the model takes 4"),
    "odd frames": ({"pixel_values": changed_pixels(frames=5)}, "5 frames .the model takes 4"),
    "one clip without batch": ({"pixel_values": PIXELS[0]}, r"shape \(4, 3, 16, 16\)"),
    "integer pixels": ({"pixel_values": PIXELS.astype(np.uint8)}, "dtype uint8"),
    "heads": ({"head_mask": np.ones(3)}, r"head_mask has shape \(3,\).*\(2, 4\)"),
    "layers": ({"head_mask": np.ones((3, 4))}, r"head_mask has shape \(3, 4\).*\(2, 4\)"),
    "keys": ({"key": jax.random.split(jax.random.key(0), 3)}, r"key has shape \(3,\).*\(2,\)"),
}
BAD_MASKS = {
    "integer mask": (MASK.astype(np.int32), "dtype int32"),
    "float mask": (MASK.astype(np.float32), "dtype float32"),
    "grid mask": (MASK.reshape(2, 2, 4), r"shape \(2, 2, 4\)"),
    "flat mask": (MASK[0], r"shape \(8,\)"),
    "unequal counts": (UNEQUAL, r"\[5, 6\]"),
    "all hidden": (np.ones((2, 8), bool), "8 of 8"),
    "none hidden": (np.zeros((2, 8), bool), "0 of 8"),
    "too long": (np.pad(MASK, ((0, 0), (0, 2))), r"\(2, 10\).*\(2, 8\)"),
    "too short": (MASK[:, :7], r"\[4, 4\]|\(2, 7\).*\(2, 8\)"),
    "too few clips": (MASK[:1], r"\(1, 8\).*\(2, 8\)"),
    "too many clips": (np.tile(MASK, (2, 1)), r"\(4, 8\).*\(2, 8\)"),
    "indices for fewer clips": (vmae_jax.Mask.from_bool(MASK[:1]), r"\(1, 8\).*\(2, 8\)"),
    "indices for more tokens": (
        vmae_jax.Mask.from_bool(np.pad(MASK, ((0, 0), (0, 2)))),
        r"\(2, 10\).*\(2, 8\)",
    ),
}
BAD_FOR_MASKED = {k: ({"bool_masked_pos": v}, message) for k, (v, message) in BAD_MASKS.items()}
BAD_FOR_MASKED["other count"] = ({"num_masked": 4}, "num_masked=4.* hides 5")
BAD_FOR_PRETRAINING = {"no mask": ({"bool_masked_pos": None}, "bool_masked_pos is None")}
BAD_FOR_CLASSIFIER = {
    "class too large": ({"labels": np.array([0, 3])}, r"labels hold 3.*\[0, 3\)"),
    "negative class": ({"labels": np.array([-1, 0])}, r"labels hold -1.*\[0, 3\)"),
    "too few labels": ({"labels": np.array([1])}, r"shape \(1,\)"),
    "too many labels": ({"labels": np.array([[1, 0], [0, 0]])}, r"shape \(4,\)|shape \(2, 2\)"),
    "one flag per clip": ({"labels": np.array([1.0, 0.0])}, r"\(2,\)"),
    "too few flags": ({"labels": np.ones((2, 2))}, r"\(2, 2\)"),
}
BAD = [
    *((c, case) for c in (MODEL, PRETRAINING, CLASSIFIER) for case in BAD_FOR_ALL.items()),
    *((c, case) for c in (MODEL, PRETRAINING) for case in BAD_FOR_MASKED.items()),
    *((PRETRAINING, case) for case in BAD_FOR_PRETRAINING.items()),
    *((CLASSIFIER, case) for case in BAD_FOR_CLASSIFIER.items()),
]


@pytest.mark.parametrize(
    ("model_class", "changes", "message"),
    [pytest.param(c, *case, id=f"{c.__name__}-{name}") for c, (name, case) in BAD],
)
def test_bad_inputs_are_value_errors_that_name_the_value(
    model_class, changes, message, random_model
):
    model = random_model(model_class, TINY.replace(hidden_dropout_prob=0.1))
    with pytest.raises(ValueError, match=message):
        model(**{"pixel_values": PIXELS, **inputs_of(model_class), **changes})


def test_labels_for_a_model_without_classes_are_refused(random_model):
    model = random_model(CLASSIFIER, TINY.replace(num_labels=0))
    with pytest.raises(ValueError, match="num_labels=0"):
        model(PIXELS, labels=LABELS)


def test_labels_that_are_not_of_the_problem_type_are_refused(random_model):
    model = random_model(CLASSIFIER, TINY.replace(problem_type="single_label_classification"))
    with pytest.raises(ValueError, match="float32"):
        model(PIXELS, labels=np.array([1.0, 0.0], np.float32))
    model = random_model(CLASSIFIER, TINY.replace(problem_type="regression"))
    with pytest.raises(ValueError, match=r"\(2,\).*\(2, 3\)"):
        model(PIXELS, labels=np.array([1.0, 0.0], np.float32))


@pytest.mark.parametrize("model_class", [MODEL, PRETRAINING])
def test_under_jit_a_boolean_mask_needs_the_number_of_hidden_tokens(model_class, random_model):
    model = random_model(model_class, TINY)
    with pytest.raises(ValueError, match=r"num_masked=None.*static"):
        jax.jit(lambda mask: model(PIXELS, mask))(MASK)
    with pytest.raises(ValueError, match="dtype int32"):
        jax.jit(lambda mask: model(PIXELS, mask, num_masked=5))(MASK.astype(np.int32))


def test_out_of_range_labels_are_not_looked_at_under_jit(random_model):
    model = random_model(CLASSIFIER, TINY)
    loss = jax.jit(lambda labels: model(PIXELS, labels=labels).loss)(np.array([0, 3]))
    assert loss.shape == ()  # no error; what it is then worth is the caller's affair


def test_first_token_pooling_is_warned_of_once(caplog):
    _warn_of_first_token_pooling.cache_clear()
    first_token = TINY.replace(use_mean_pooling=False)
    with caplog.at_level(logging.WARNING, "vmae_jax"):
        nnx.eval_shape(lambda: CLASSIFIER(TINY))
        nnx.eval_shape(lambda: MODEL(first_token))
        assert caplog.records == []
        nnx.eval_shape(lambda: CLASSIFIER(first_token))
        nnx.eval_shape(lambda: CLASSIFIER(first_token.replace(num_labels=5)))
    assert len(caplog.records) == 1
    assert "first token only" in caplog.text


def test_problem_type_is_inferred_anew_in_each_call(random_model):
    """transformers writes the first one into the config, so that the second of these would fail."""
    model = random_model(CLASSIFIER, TINY)
    logits = np.asarray(model(PIXELS).logits, np.float64)
    flags = np.array([[0, 1, 1], [1, 0, 0]], np.float32)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_softmax[[0, 1], LABELS].mean()
    np.testing.assert_allclose(model(PIXELS, labels=LABELS).loss, expected, rtol=1e-5)
    expected = np.mean(np.log1p(np.exp(logits)) - flags * logits)
    np.testing.assert_allclose(model(PIXELS, labels=flags).loss, expected, rtol=1e-5)
    assert model.config.problem_type is None
    assert model.config == TINY


def test_labels_of_minus_100_are_not_counted(random_model):
    model = random_model(CLASSIFIER, TINY)
    both = model(PIXELS, labels=np.array([2, -100]))
    alone = model(PIXELS[:1], labels=np.array([2]))
    np.testing.assert_allclose(both.loss, alone.loss, rtol=1e-5)
    gradient = jax.grad(lambda x: model(x, labels=np.array([2, -100])).loss)(jnp.asarray(PIXELS))
    assert np.all(gradient[1] == 0)
    assert np.any(gradient[0] != 0)


RATES = pytest.mark.parametrize(
    ("model_class", "rate"),
    [
        (PRETRAINING, "hidden_dropout_prob"),
        (PRETRAINING, "attention_probs_dropout_prob"),
        (PRETRAINING, "drop_path_rate"),
        (CLASSIFIER, "drop_path_rate"),
        (CLASSIFIER, "head_dropout_prob"),
    ],
)


@RATES
def test_randomness_comes_from_the_key_alone(model_class, rate, random_model):
    model = random_model(model_class, TINY.replace(**{rate: 0.5}))

    def logits(seed):
        keys = jax.random.split(jax.random.key(seed), 2)
        return np.asarray(model(PIXELS, **inputs_of(model_class), key=keys).logits)

    np.testing.assert_array_equal(logits(1), logits(1))
    assert np.abs(logits(1) - logits(2)).max() > 1e-3
    plain = random_model(model_class, TINY)(PIXELS, **inputs_of(model_class)).logits
    assert np.abs(logits(1) - plain).max() > 1e-3


@pytest.mark.parametrize("model_class", [PRETRAINING, CLASSIFIER])
def test_without_a_key_no_rate_matters(model_class, random_model):
    rates = ("hidden_dropout", "attention_probs_dropout", "head_dropout")
    rates = {f"{rate}_prob": 0.5 for rate in rates} | {"drop_path_rate": 0.5}
    model = random_model(model_class, TINY.replace(**rates))
    inputs = inputs_of(model_class)
    output = model(PIXELS, **inputs)
    assert_equal_trees(model(PIXELS, **inputs), output, rtol=0)
    assert_equal_trees(random_model(model_class, TINY)(PIXELS, **inputs), output, rtol=0)


@RATES
def test_a_clip_does_not_depend_on_its_batch(model_class, rate, random_model):
    """With a key for each clip, neither position nor company matters, nor do they share draws."""
    model = random_model(model_class, TINY.replace(**{rate: 0.5}))
    pixels = {"a": PIXELS[0], "b": PIXELS[1], "c": PIXELS[0] + PIXELS[1]}
    masks = {"a": MASK[0], "b": MASK[1], "c": MASK[1]}
    keys = jax.random.split(jax.random.key(0), 4)

    def logits(clips, key_idx):
        inputs = {"key": keys[jnp.array(key_idx)]}
        if model_class is PRETRAINING:
            inputs["bool_masked_pos"] = np.stack([masks[clip] for clip in clips])
        return np.asarray(model(np.stack([pixels[clip] for clip in clips]), **inputs).logits)

    a, b = logits("ab", [0, 1])
    np.testing.assert_allclose(logits("ba", [1, 0]), [b, a], atol=1e-5)
    np.testing.assert_allclose(logits("ca", [2, 0])[1], a, atol=1e-5)
    same_clip, same_clip_other_key = logits("aa", [0, 3])
    np.testing.assert_allclose(same_clip, a, atol=1e-5)
    assert np.abs(same_clip_other_key - a).max() > 1e-3


def test_a_key_changes_nothing_where_no_rate_is_set(random_model):
    model = random_model(PRETRAINING, TINY)
    with_key = model(PIXELS, MASK, key=jax.random.key(0))
    assert_equal_trees(with_key, model(PIXELS, MASK), rtol=0)


def test_old_style_keys_are_keys(random_model):
    model = random_model(CLASSIFIER, TINY.replace(head_dropout_prob=0.5))
    new, old = (model(PIXELS, key=make(7)).logits for make in (jax.random.key, jax.random.PRNGKey))
    np.testing.assert_array_equal(new, old)


def test_drop_path_skips_branches_of_later_blocks_more_often_and_each_anew(random_model):
    """Rates of 0, 1/4 and 1/2. The first clip, 256 times: counts of 4 standard deviations."""
    model = random_model(MODEL, TINY.replace(drop_path_rate=0.5, num_hidden_layers=3))
    pixels = np.tile(PIXELS[:1], (256, 1, 1, 1, 1))
    hidden = np.asarray(
        model(pixels, output_hidden_states=True, key=jax.random.key(0)).hidden_states
    )
    added = np.diff(hidden, axis=0)
    np.testing.assert_allclose(added[0], added[0, :1].repeat(256, axis=0), atol=1e-5)
    outcomes = {x.round(3).tobytes() for x in added[1]}
    assert len(outcomes) == 4  # attention and MLP, each kept or not
    _, skipped, skipped_last = np.all(added == 0, axis=(2, 3))  # both of a block's branches
    assert 1 <= skipped.sum() <= 31  # 1/16 expected
    assert 37 <= skipped_last.sum() <= 91  # 1/4 expected
    assert not np.all(skipped_last[skipped])  # the same noise in both would do that


def test_dropout_doubles_the_half_that_it_keeps(random_model):
    config = TINY.replace(num_labels=0, head_dropout_prob=0.5)
    model = random_model(CLASSIFIER, config)
    features = np.asarray(model(PIXELS).logits)
    dropped = np.asarray(model(PIXELS, key=jax.random.key(0)).logits)
    kept = dropped != 0
    assert 16 <= kept.sum() <= 48  # of 2 x 32; 4 standard deviations
    np.testing.assert_allclose(dropped[kept], 2 * features[kept], rtol=1e-5)


def test_the_decoder_draws_too(random_model):
    """An encoder of one block has a drop path rate of 0, so that the decoder is left."""
    model = random_model(PRETRAINING, TINY.replace(drop_path_rate=0.5, num_hidden_layers=1))
    plain, drawn = (
        model(PIXELS, MASK, output_hidden_states=True, key=key) for key in (None, jax.random.key(2))
    )
    np.testing.assert_allclose(drawn.hidden_states[1], plain.hidden_states[1], atol=1e-5)
    assert np.abs(drawn.logits - plain.logits).max() > 1e-3


def num_remats(model):
    """How many stacks recompute their blocks."""
    inputs = inputs_of(type(model))
    program = jax.make_jaxpr(jax.grad(lambda model: model(PIXELS, **inputs).loss))(model)
    return len(re.findall(r"= (?:checkpoint|remat2?)\[", str(program)))


def test_gradient_checkpointing_changes_neither_loss_nor_gradients(random_model):
    """Nor do its finer setting and the unrolled stack; drop path draws the same in all of them."""
    config = TINY.replace(drop_path_rate=0.5)

    def evaluate(model):
        def loss(model):
            return model(PIXELS, labels=LABELS, key=jax.random.key(0)).loss

        value, gradient = jax.jit(jax.value_and_grad(loss))(model)
        return value, layouts.parameters(gradient.core)

    model = random_model(CLASSIFIER, config)
    assert num_remats(model) == 0
    expected = evaluate(model)
    model.gradient_checkpointing_enable()
    assert num_remats(model) > 0
    assert_equal_trees(evaluate(model), expected, rtol=1e-4, atol=1e-6)
    model.gradient_checkpointing_disable()
    assert num_remats(model) == 0

    for compute in ({"remat": "attention"}, {"unroll": True}):
        model = random_model(CLASSIFIER, config, **compute)
        assert (num_remats(model) > 0) == ("remat" in compute)
        assert_equal_trees(evaluate(model), expected, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_is_for_encoder_and_decoder(random_model):
    pretraining, classifier = (random_model(c, TINY) for c in (PRETRAINING, CLASSIFIER))
    pretraining.gradient_checkpointing_enable()
    classifier.gradient_checkpointing_enable()
    assert num_remats(pretraining) == 2 * num_remats(classifier) > 0


@CLASSES
def test_dtype_sets_that_of_the_outputs_but_not_of_the_loss(model_class, random_model):
    output = random_model(model_class, TINY, dtype=jnp.bfloat16)(
        PIXELS, **inputs_of(model_class), output_hidden_states=True, output_attentions=True
    )
    dtypes = {
        name: {x.dtype for x in jax.tree.leaves(value)} for name, value in vars(output).items()
    }
    assert dtypes.pop("loss", {jnp.dtype("float32")}) == {jnp.dtype("float32")}
    assert all(found == {jnp.dtype("bfloat16")} for found in dtypes.values())


def test_names_are_exported():
    assert vmae_jax.VideoMAEModel is MODEL
    for name in ("VideoMAEConfig", "VideoMAEForPreTraining", "VideoMAEForVideoClassification"):
        assert name in vmae_jax.__all__
