"""The same numbers as transformers, stage by stage, from the same random parameters.

Expected values come from transformers' PyTorch classes in fp32, except where that library cannot be
asked (head masks, raw targets of other than three channels, other epsilons): there from torch, in a
few lines here. Measured deviations of logits, losses and gradients are a twentieth of what is
allowed, or less.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vmae_jax
from vmae_jax.activations import ACTIVATIONS
from vmae_jax.vit import Compute, layer_norm, sincos_table
from vmae_jax.weights import export, layouts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("hasty_compiler")

TINY = {
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
    "use_mean_pooling": False,
}
MODEL, PRETRAINING, CLASSIFIER = (
    "VideoMAEModel",
    "VideoMAEForPreTraining",
    "VideoMAEForVideoClassification",
)

# (class, what differs from TINY, batch size)
MODELS = {
    "model": (MODEL, {}, 2),
    "model mean pooling": (MODEL, {"use_mean_pooling": True, "hidden_act": "gelu_new"}, 1),
}
PRETRAININGS = {
    "pretraining": (PRETRAINING, {}, 2),
    "one clip, mean pooling": (PRETRAINING, {"use_mean_pooling": True}, 1),
    "three clips, 16 frames": (PRETRAINING, {"num_frames": 16}, 3),
    "tubelet 1": (PRETRAINING, {"tubelet_size": 1, "num_frames": 3}, 2),
    "tubelet 4": (PRETRAINING, {"tubelet_size": 4, "num_frames": 8}, 2),
    "1 channel": (PRETRAINING, {"num_channels": 1}, 2),
    "4 channels": (PRETRAINING, {"num_channels": 4, "image_size": (8, 24)}, 2),
    "wide": (PRETRAINING, {"image_size": (16, 32)}, 2),
    "high": (PRETRAINING, {"image_size": (48, 16), "patch_size": 16, "tubelet_size": 4}, 2),
    "no qkv bias": (PRETRAINING, {"qkv_bias": False}, 2),
    "raw targets": (PRETRAINING, {"norm_pix_loss": False}, 2),
    "raw targets, wide": (PRETRAINING, {"norm_pix_loss": False, "image_size": (8, 24)}, 3),
    "shallow decoder": (
        PRETRAINING,
        {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 6},
        2,
    ),
    "decoder above encoder": (
        PRETRAINING,
        {
            "num_hidden_layers": 1,
            "decoder_num_hidden_layers": 3,
            "decoder_hidden_size": 64,
            "decoder_num_attention_heads": 8,
        },
        1,
    ),
    "patch 7": (PRETRAINING, {"image_size": (28, 14), "patch_size": 7}, 2),
    "patch 14, one head": (
        PRETRAINING,
        {"image_size": 28, "patch_size": 14, "num_attention_heads": 1},
        1,
    ),
    "odd widths": (
        PRETRAINING,
        {"hidden_size": 33, "num_attention_heads": 3, "decoder_hidden_size": 15}
        | {"decoder_num_attention_heads": 5},
        2,
    ),
    "large epsilon": (PRETRAINING, {"layer_norm_eps": 0.1}, 2),
    "original epsilon, quick gelu": (
        PRETRAINING,
        {"layer_norm_eps": 1e-6, "hidden_act": "quick_gelu"},
        2,
    ),
}
CLASSIFIERS = {
    "7 classes": (CLASSIFIER, {"num_labels": 7}, 3),
    "mean pooling": (CLASSIFIER, {"num_labels": 3, "use_mean_pooling": True}, 2),
    "no classes": (CLASSIFIER, {"num_labels": 0, "use_mean_pooling": True}, 2),
    "one number": (CLASSIFIER, {"num_labels": 1, "use_mean_pooling": True}, 3),
    "one number, one clip": (CLASSIFIER, {"num_labels": 1}, 1),
    "three numbers": (CLASSIFIER, {"num_labels": 3, "problem_type": "regression"}, 2),
    "several classes at once": (CLASSIFIER, {"num_labels": 5, "use_mean_pooling": True}, 2),
    "classes, tubelet 1, relu": (
        CLASSIFIER,
        {"tubelet_size": 1, "num_channels": 4, "hidden_act": "relu", "qkv_bias": False},
        1,
    ),
    "classes, patch 5, large epsilon": (
        CLASSIFIER,
        {"image_size": (15, 25), "patch_size": 5, "layer_norm_eps": 0.1, "use_mean_pooling": True},
        2,
    ),
}
CONFIGURATIONS = {**MODELS, **PRETRAININGS, **CLASSIFIERS}


def make_theirs(ours):
    """transformers' model with the parameters of ours, in evaluation mode."""
    name = type(ours).__name__
    c = ours.config
    fields = {**TINY, "num_channels": 3, "tubelet_size": 2}
    fields |= {"norm_pix_loss": True, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    fields = {field: getattr(c, field) for field in fields}
    theirs = getattr(transformers, name)(
        transformers.VideoMAEConfig(
            **fields,
            qv_bias=c.qkv_bias,
            num_labels=c.num_labels,
            problem_type=c.problem_type,
            attn_implementation="eager",
        )
    )
    theirs.load_state_dict(as_state_dict(ours.core, name), strict=True)
    return theirs.eval()


def as_state_dict(core, class_name):
    """In memory the biases have other names than in files."""
    return {
        name.replace("q_bias", "query.bias").replace("v_bias", "value.bias"): torch.tensor(tensor)
        for name, tensor in export.hugging_face_tensors(core, class_name).items()
    }


def make_pixels(config, batch_size):
    shape = (batch_size, config.num_frames, config.num_channels, *config.frame_size)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def make_mask(config, batch_size):
    """About two thirds hidden, others in each clip."""
    order = np.random.default_rng(2).random((batch_size, config.num_tokens)).argsort(axis=1)
    return order < max(1, config.num_tokens * 2 // 3)


def make_inputs(class_name, config, batch_size):
    """Keywords that both models take, as numpy arrays."""
    inputs = {"pixel_values": make_pixels(config, batch_size)}
    rng = np.random.default_rng(3)
    if class_name != CLASSIFIER:
        inputs["bool_masked_pos"] = make_mask(config, batch_size)
    elif config.problem_type == "regression" or config.num_labels == 1:
        shape = (batch_size, config.num_labels) if config.num_labels > 1 else batch_size
        inputs["labels"] = rng.standard_normal(shape).astype(np.float32)
    elif config.num_labels == 5:
        inputs["labels"] = rng.integers(0, 2, (batch_size, 5)).astype(np.float32)
    elif config.num_labels:
        inputs["labels"] = rng.integers(0, config.num_labels, batch_size)
    return inputs


def build(random_model, name):
    class_name, changes, batch_size = CONFIGURATIONS[name]
    config = vmae_jax.VideoMAEConfig(**{**TINY, **changes})
    ours = random_model(getattr(vmae_jax, class_name), config)
    inputs = make_inputs(class_name, config, batch_size)
    return ours, make_theirs(ours), inputs, {k: torch.tensor(v) for k, v in inputs.items()}


def assert_near(stage, ours, theirs, tolerance):
    """Absolute, over all entries."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs.detach(), np.float64)
    assert ours.shape == theirs.shape, stage
    deviation = np.abs(ours - theirs).max()
    assert deviation <= tolerance, f"{stage}: deviates by {deviation:.2e}, allowed {tolerance:.0e}"


def assert_relatively_near(stage, ours, theirs, tolerance):
    """Euclidean norm of the difference over that of the expected values."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, stage
    deviation = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert deviation <= tolerance, f"{stage}: deviates by {deviation:.2e}, allowed {tolerance:.0e}"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_stage_matches_transformers(name, random_model):
    ours, theirs, inputs, torch_inputs = build(random_model, name)
    is_encoder = type(ours).__name__ == MODEL
    output = ours(**inputs, output_hidden_states=True)
    seen = {}
    encoder = theirs if is_encoder else theirs.videomae
    encoder.register_forward_hook(lambda *args: seen.update(encoder=args[-1].last_hidden_state))
    with torch.no_grad():
        expected = theirs(**torch_inputs, output_hidden_states=True)
    hidden = output.hidden_states
    assert len(hidden) == len(expected.hidden_states) == ours.config.num_hidden_layers + 1
    assert_near("embeddings", hidden[0], expected.hidden_states[0], 3e-5)
    assert_near("first block", hidden[1], expected.hidden_states[1], 3e-5)
    assert_near("last block", hidden[-1], expected.hidden_states[-1], 1e-4)
    if is_encoder:
        assert_near("encoder", output.last_hidden_state, expected.last_hidden_state, 1e-4)
        return
    if not ours.config.use_mean_pooling:
        normed = jax.jit(lambda core, x: core.layernorm(x))(ours.core, hidden[-1])
        assert_near("encoder", normed, seen["encoder"], 1e-4)
    assert_near("logits", output.logits, expected.logits, 1e-4)
    if "labels" not in inputs and "bool_masked_pos" not in inputs:
        assert output.loss is None
        return
    assert output.loss.dtype == jnp.float32
    assert_relatively_near("loss", output.loss, expected.loss, 1e-5)


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_all_tokens_match_transformers_without_a_mask(use_mean_pooling, random_model):
    config = vmae_jax.VideoMAEConfig(**{**TINY, "use_mean_pooling": use_mean_pooling})
    ours = random_model(vmae_jax.VideoMAEModel, config)
    pixels = make_pixels(config, 2)
    with torch.no_grad():
        expected = make_theirs(ours)(torch.tensor(pixels)).last_hidden_state
    assert_near("encoder", ours(pixels).last_hidden_state, expected, 1e-4)


@pytest.mark.parametrize("num_channels", [1, 4])
def test_raw_targets_of_other_channel_counts_are_the_pixels(num_channels, random_model):
    """transformers refuses these. Its logits do not depend on targets; the loss is written out."""
    changes = {"norm_pix_loss": False, "num_channels": num_channels, "image_size": (8, 16)}
    config = vmae_jax.VideoMAEConfig(**{**TINY, **changes})
    ours = random_model(vmae_jax.VideoMAEForPreTraining, config)
    inputs = make_inputs(PRETRAINING, config, 2)
    theirs = make_theirs(ours)
    theirs.config.norm_pix_loss = True
    with torch.no_grad():
        logits = theirs(**{k: torch.tensor(v) for k, v in inputs.items()}).logits
    output = ours(**inputs)
    assert_near("logits", output.logits, logits, 1e-4)

    # cut each hidden tubelet out by hand; then (time, row, column, channel)
    targets = []
    for clip, hidden in zip(inputs["pixel_values"], inputs["bool_masked_pos"], strict=True):
        for token in np.flatnonzero(hidden):
            t, h, w = np.unravel_index(token, config.grid)
            tubelet = clip[2 * t : 2 * t + 2, :, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
            targets.append(tubelet.transpose(0, 2, 3, 1).reshape(-1))
    targets = np.reshape(targets, logits.shape)
    assert_relatively_near("loss", output.loss, np.mean((logits.numpy() - targets) ** 2), 1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "pretraining",
        "tubelet 4",
        "raw targets",
        "7 classes",
        "mean pooling",
        "several classes at once",
    ],
)
def test_gradients_match_transformers(name, random_model):
    ours, theirs, inputs, torch_inputs = build(random_model, name)
    theirs(**torch_inputs).loss.backward()
    expected = {name: p.grad for name, p in theirs.named_parameters()}

    gradients = jax.jit(jax.grad(lambda model: model(**inputs).loss))(ours)
    gradients = as_state_dict(gradients.core, type(ours).__name__)
    assert set(gradients) == set(expected)
    for tensor, gradient in gradients.items():
        assert_relatively_near(tensor, gradient, expected[tensor], 1e-4)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_matches_the_one_of_that_name_in_transformers(name):
    x = np.concatenate([np.linspace(-12, 12, 481), [0.0, -0.0, 50, -50]]).astype(np.float32)
    expected = transformers.activations.ACT2FN[name](torch.tensor(x))
    # a few units in the last place: the library functions differ between machines
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_slope_of_an_activation_matches_the_one_of_that_name_in_transformers(name):
    # not at a corner, where conventions differ; both directions of differentiation
    x = np.linspace(-11.97, 11.98, 400).astype(np.float32)
    tensor = torch.tensor(x, requires_grad=True)
    transformers.activations.ACT2FN[name](tensor).sum().backward()
    reverse = jax.vmap(jax.grad(ACTIVATIONS[name]))(jnp.asarray(x))
    _, forward = jax.jvp(ACTIVATIONS[name], [jnp.asarray(x)], [jnp.ones(400)])
    for slope in (reverse, forward):
        np.testing.assert_allclose(slope, tensor.grad, rtol=1e-5, atol=2e-5)


def test_gelu_of_float64_is_computed_in_float64():
    x = np.linspace(-6, 6, 99)
    with jax.enable_x64(True):
        got = np.asarray(ACTIVATIONS["gelu"](jnp.asarray(x)))
    np.testing.assert_allclose(got, torch.nn.functional.gelu(torch.tensor(x)), rtol=0, atol=1e-14)


def test_gelu_of_bfloat16_has_no_error_but_its_rounding():
    x = jnp.linspace(-6, 6, 999).astype(jnp.bfloat16)
    wide = torch.tensor(np.asarray(x, np.float32), requires_grad=True)
    expected = torch.nn.functional.gelu(wide)
    expected.sum().backward()
    got, pull = jax.vjp(ACTIVATIONS["gelu"], x)
    (slope,) = pull(jnp.ones_like(x))
    for rounded, exact in ((got, expected), (slope, wide.grad)):
        np.testing.assert_allclose(
            np.asarray(rounded, np.float32), exact.detach().numpy(), rtol=2**-8, atol=1e-6
        )


EPSILONS = ("layer_norm_eps", "decoder_norm_eps", "fc_norm_eps")
WIDTH = 32
# LayerNorm: (class, its epsilon, the branch of a block through which it is seen)
FAINT = {
    "layernorm": (MODEL, "layer_norm_eps", None),
    "layernorm_before": (MODEL, "layer_norm_eps", "encoder/attention"),
    "layernorm_after": (MODEL, "layer_norm_eps", "encoder/mlp"),
    "decoder layernorm_after": (PRETRAINING, "layer_norm_eps", "decoder/mlp"),
    "decoder_norm": (PRETRAINING, "decoder_norm_eps", None),
    "fc_norm": (CLASSIFIER, "fc_norm_eps", None),
}


def faint_model(class_name, branch=None, **changes):
    """A model in which token 0 is a vector of variance 1e-6, and that vector.

    There epsilons matter, as they do not for random parameters of ordinary size: 1e-12, 1e-6 and
    1e-5 scale the norm's result by 1, 0.71 and 0.30. Embedding and mask token take the position of
    token 0 away and put the vector there instead. The blocks add nothing, except that `branch`
    hands its LayerNorm's result through unchanged.
    """
    fields = {"image_size": 8, "num_frames": 4 if class_name == PRETRAINING else 2}
    fields |= {"hidden_size": WIDTH, "decoder_hidden_size": WIDTH, "hidden_act": "linear"}
    fields |= {"intermediate_size": WIDTH, "decoder_intermediate_size": WIDTH, "num_labels": 0}
    fields |= {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
    fields |= {"use_mean_pooling": class_name == CLASSIFIER}
    config = vmae_jax.VideoMAEConfig(**{**TINY, **fields, **changes})
    model = nnx.eval_shape(lambda: getattr(vmae_jax, class_name)(config))
    values = {
        path: (np.ones if path.endswith("scale") else np.zeros)(p.shape, np.float32)
        for path, p in layouts.parameters(model.core).items()
    }
    noise = np.random.default_rng(0).standard_normal(WIDTH)
    noise = 1e-3 * (noise - noise.mean()) / noise.std()
    position = sincos_table(config.num_tokens, WIDTH)[0]
    start = (noise - position).astype(np.float32)
    token = start + position
    np.testing.assert_allclose(token.var(), 1e-6, rtol=1e-3)

    values["embeddings/bias"] = start
    identity = np.eye(WIDTH, dtype=np.float32)
    if class_name == PRETRAINING:
        values["mask_token"] = start
        values["decoder_head/kernel"][:, :WIDTH] = identity
    if branch == "encoder/attention":
        kernel = values["encoder/attention/qkv/kernel"]  # [1, D, 3, heads, head_dim]
        kernel[0, :, 2] = identity.reshape(kernel[0, :, 2].shape)
        output = values["encoder/attention/output/kernel"]
        output[0] = identity.reshape(output[0].shape)
    elif branch:
        stack = branch.split("/")[0]
        values[f"{stack}/intermediate/kernel"][0] = identity
        values[f"{stack}/output/kernel"][0] = identity
    layouts.set_parameters(model.core, values)
    return model, token


def faint_inputs(model):
    """Without contents; a decoder predicts token 0 from token 1."""
    c = model.config
    pixels = np.zeros((1, c.num_frames, c.num_channels, *c.frame_size), np.float32)
    return (pixels, np.array([[True, False]])) if c.num_tokens == 2 else (pixels,)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-5])
@pytest.mark.parametrize("part", FAINT)
def test_each_layer_norm_has_its_own_epsilon(part, epsilon):
    """Each setting has another value, so that none can stand in for another."""
    class_name, setting, branch = FAINT[part]
    wrong = [e for e in (1e-12, 1e-6, 1e-5) if e != epsilon]
    epsilons = dict(zip([s for s in EPSILONS if s != setting], wrong, strict=True))
    epsilons[setting] = epsilon
    through_decoder_norm = part == "decoder layernorm_after"
    if through_decoder_norm:
        epsilons["decoder_norm_eps"] = 1.0  # else it would normalise the difference away
    model, token = faint_model(class_name, branch, **epsilons)
    output = model(*faint_inputs(model), output_hidden_states=True)
    if class_name == PRETRAINING:
        result = output.logits[0, 0, :WIDTH]
    elif branch:
        result = output.hidden_states[1][0, 0]
    else:
        result = output[0].reshape(-1)

    def expected(epsilon):
        def torch_layer_norm(x, epsilon):
            return torch.nn.functional.layer_norm(x, (WIDTH,), eps=epsilon)

        x = torch.tensor(token)
        x = torch_layer_norm(x, epsilon) + (x if branch else 0)
        return torch_layer_norm(x, 1.0) if through_decoder_norm else x

    assert_relatively_near(part, result, expected(epsilon), 1e-4)
    for other in wrong:  # the test would notice
        with pytest.raises(AssertionError, match="deviates"):
            assert_relatively_near(part, result, expected(other), 1e-2)


@pytest.mark.parametrize("part", ["layernorm", "decoder_norm", "fc_norm"])
def test_default_epsilons_are_those_of_transformers(part):
    """1e-12, and 1e-5 for the last two, where the variance shows them."""
    model, _ = faint_model(FAINT[part][0])
    inputs = faint_inputs(model)
    output = model(*inputs)
    with torch.no_grad():
        expected = make_theirs(model)(*map(torch.tensor, inputs))
    if part == "decoder_norm":
        assert_relatively_near(part, output.logits, expected.logits, 1e-4)
    else:
        assert_relatively_near(part, output[0], expected[0], 1e-4)


@pytest.mark.parametrize("name", ["model", "wide", "7 classes"])
def test_attentions_match_transformers(name, random_model):
    """Asked for, the probabilities are spelled out; the other results must not change by that."""
    ours, theirs, inputs, torch_inputs = build(random_model, name)
    with torch.no_grad():
        expected = theirs(**torch_inputs, output_attentions=True)
    output = ours(**inputs, output_attentions=True)
    assert len(output.attentions) == len(expected.attentions) == ours.config.num_hidden_layers
    for layer, pair in enumerate(zip(output.attentions, expected.attentions, strict=True)):
        assert_near(f"attentions of block {layer}", *pair, 1e-5)
    fields = ("last_hidden_state",) if name == "model" else ("loss", "logits")
    for field in fields:
        assert_near(field, output[field], expected[field], 1e-4)


def torch_encoder(videomae, pixels, mask, head_mask):
    """transformers' encoder with the head mask that version 5 ignores.

    As in version 4: factors of the probabilities after the softmax, not renormalised. head_mask:
    [layers, heads].
    """
    x = videomae.embeddings(pixels, mask)
    attentions = []
    for layer, factors in zip(videomae.encoder.layer, head_mask, strict=True):
        attention = layer.attention.attention
        y = layer.layernorm_before(x)
        q, k, v = (
            linear(y).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for linear in (attention.query, attention.key, attention.value)
        )
        probs = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) * factors[:, None, None]
        attentions.append(probs)
        x = x + layer.attention.output.dense((probs @ v).transpose(1, 2).flatten(2))
        x = x + layer.output.dense(layer.intermediate(layer.layernorm_after(x)))
    return x if videomae.layernorm is None else videomae.layernorm(x), attentions


@pytest.mark.parametrize("shape", ["(heads,)", "(layers, heads)", "ones"])
@pytest.mark.parametrize("name", ["model", "pretraining", "mean pooling"])
def test_head_mask_scales_the_probabilities_of_the_encoder(name, shape, random_model):
    ours, theirs, inputs, torch_inputs = build(random_model, name)
    head_mask = np.array([[1, 0, 0.5, 1], [0, 1, 1, 2]], np.float32)
    given = {"(heads,)": head_mask[0], "(layers, heads)": head_mask, "ones": np.ones(4)}[shape]
    head_mask = torch.tensor(np.broadcast_to(given, (2, 4)).astype(np.float32))
    videomae = theirs if name == "model" else theirs.videomae
    mask = torch_inputs.get("bool_masked_pos")
    with torch.no_grad():
        untouched = videomae(torch_inputs["pixel_values"], mask).last_hidden_state
        tokens, attentions = torch_encoder(videomae, torch_inputs["pixel_values"], mask, head_mask)
        assert torch.allclose(tokens, untouched, atol=1e-5) == (shape == "ones")
        if name != "model":
            encoded = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=tokens)
            videomae.forward = lambda *args, **kwargs: encoded
            expected = theirs(**torch_inputs)

    output = ours(**inputs, head_mask=given, output_attentions=True)
    for layer, pair in enumerate(zip(output.attentions, attentions, strict=True)):
        assert_near(f"attentions of block {layer}", *pair, 1e-5)
    if name == "model":
        assert_near("encoder", output.last_hidden_state, tokens, 1e-4)
    else:
        assert_near("logits", output.logits, expected.logits, 1e-4)
        assert_relatively_near("loss", output.loss, expected.loss, 1e-5)


@pytest.mark.parametrize(
    "name", ["pretraining", "raw targets", "three clips, 16 frames", "7 classes", "mean pooling"]
)
def test_bfloat16_stays_near_fp32(name, random_model):
    class_name, changes, batch_size = CONFIGURATIONS[name]
    config = vmae_jax.VideoMAEConfig(**{**TINY, **changes})
    inputs = make_inputs(class_name, config, batch_size)
    model_class = getattr(vmae_jax, class_name)
    exact = random_model(model_class, config)(**inputs)
    rounded = random_model(model_class, config, dtype=jnp.bfloat16)(**inputs)
    assert rounded.logits.dtype == jnp.bfloat16
    assert rounded.loss.dtype == jnp.float32
    assert_relatively_near("logits", rounded.logits, exact.logits, 3e-2)
    assert_relatively_near("loss", rounded.loss, exact.loss, 1e-2)


def equations(jaxpr):
    """All primitive operations, those of inner functions and loops included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("output_attentions", [False, True])
def test_softmax_and_layer_norm_statistics_are_fp32_in_bfloat16(output_attentions, random_model):
    """exp stands only in softmax, rsqrt only in LayerNorm, and both sum what they normalise by."""
    config = vmae_jax.VideoMAEConfig(**TINY)
    ours = random_model(
        vmae_jax.VideoMAEForPreTraining, config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16
    )
    inputs = make_inputs(PRETRAINING, config, 2)
    program = jax.make_jaxpr(lambda: ours(**inputs, output_attentions=output_attentions))()
    operands = {"exp": [], "rsqrt": [], "reduce_sum": [], "reduce_max": []}
    for equation in equations(program.jaxpr):
        dtype = equation.invars[0].aval.dtype if equation.invars else None
        if equation.primitive.name in operands and jnp.issubdtype(dtype, jnp.floating):
            operands[equation.primitive.name].append(dtype)
    # one softmax per stack; two norms per stack, the encoder's last and the decoder's last
    assert len(operands["exp"]) == 2
    assert len(operands["rsqrt"]) == 6
    assert len(operands["reduce_max"]) == 2
    assert len(operands["reduce_sum"]) >= 2 + 2 * 6
    assert {dtype for dtypes in operands.values() for dtype in dtypes} == {jnp.dtype(jnp.float32)}


def test_layer_norm_of_bfloat16_has_no_error_but_its_rounding():
    """Around 100, where bf16 has steps of 0.5: statistics in bf16 would be off by tenths."""
    x = jnp.asarray(100 + np.random.default_rng(0).standard_normal((64, 48)), jnp.bfloat16)
    norm = layer_norm(48, 1e-6, Compute(dtype=jnp.bfloat16), nnx.Rngs(0))
    expected = torch.nn.functional.layer_norm(
        torch.tensor(np.asarray(x, np.float32)), (48,), eps=1e-6
    )
    np.testing.assert_allclose(np.asarray(norm(x), np.float32), expected, rtol=2**-8, atol=1e-4)


def test_layer_norm_keeps_a_small_variance_beside_a_large_mean():
    """fp32's mean of squares, 1e6, has steps of 0.06: less it cannot tell from no variance."""
    x = (1000 + 0.1 * np.random.default_rng(0).standard_normal((8, 48))).astype(np.float32)
    norm = layer_norm(48, 1e-6, Compute(), nnx.Rngs(0))
    expected = torch.nn.functional.layer_norm(torch.tensor(x, dtype=torch.float64), (48,), eps=1e-6)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-2, atol=1e-3)
