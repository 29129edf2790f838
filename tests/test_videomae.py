import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vmae_jax.config import VideoMAEConfig
from vmae_jax.masking import Mask, tube_mask
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute, run_blocks, sincos_table

CONFIG = VideoMAEConfig(
    image_size=(8, 12),
    patch_size=4,
    num_frames=4,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    decoder_hidden_size=12,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=3,
    decoder_intermediate_size=20,
    use_mean_pooling=False,
    num_labels=5,
    layer_norm_eps=1e-6,
)
N, P = 12, 2 * 4 * 4 * 3
POOLED = CONFIG.replace(use_mean_pooling=True)
# 7 of 12 tokens hidden, other ones in the second clip
MASK = Mask.from_bool(np.array([[0, 1, 1, 1, 0, 1] * 2, [1, 0, 1, 0, 1, 1] * 2], bool))
NUM_VISIBLE = 4


pytestmark = pytest.mark.usefixtures("hasty_compiler")

KEYS = jax.random.split(jax.random.key(0), 2)


def make_model(config=CONFIG, compute=Compute(), seed=0, **parts):
    """With a random number for every parameter, so that none can be forgotten; compiles nothing."""
    model = nnx.eval_shape(lambda: VideoMAE(config, compute=compute, rngs=nnx.Rngs(0), **parts))
    rng = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype),
        nnx.state(model, nnx.Param),
    )
    nnx.update(model, state)
    return model


def tubelets_for(config=CONFIG, batch_size=2):
    shape = (batch_size, config.num_tokens, config.tubelet_values)
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("hidden", "probs"))
def encode(model, tubelets, visible=None, *, keys=None, head_mask=None, hidden=False, probs=False):
    return model.encode(
        tubelets,
        visible,
        keys=keys,
        head_mask=head_mask,
        output_hidden_states=hidden,
        output_attentions=probs,
    )


@jax.jit
def decode(model, tokens, mask, keys=None):
    return model.decode(tokens, mask, keys=keys)


@functools.partial(jax.jit, static_argnums=(2, 3))
def stack(blocks, x, depth, compute=Compute()):
    return run_blocks(blocks, x, depth, compute)[0]


def layer_norm(x, norm, epsilon):
    x = np.asarray(x, np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])


def embed(model, tubelets):
    """All tokens with their positions, in numpy."""
    config = model.config
    x = tubelets @ np.asarray(model.embeddings.kernel[...]) + np.asarray(model.embeddings.bias[...])
    return x + sincos_table(config.num_tokens, config.hidden_size)


# Parameters


def block_paths(name):
    return {
        f"{name}/layernorm_before/scale",
        f"{name}/layernorm_before/bias",
        f"{name}/attention/qkv/kernel",
        f"{name}/attention/q_bias",
        f"{name}/attention/v_bias",
        f"{name}/attention/output/kernel",
        f"{name}/attention/output/bias",
        f"{name}/layernorm_after/scale",
        f"{name}/layernorm_after/bias",
        f"{name}/intermediate/kernel",
        f"{name}/intermediate/bias",
        f"{name}/output/kernel",
        f"{name}/output/bias",
    }


ENCODER = {"embeddings/kernel", "embeddings/bias"} | block_paths("encoder")
FINAL_NORM = {"layernorm/scale", "layernorm/bias"}
DECODER = {
    "encoder_to_decoder/kernel",
    "mask_token",
    "decoder_norm/scale",
    "decoder_norm/bias",
    "decoder_head/kernel",
    "decoder_head/bias",
} | block_paths("decoder")
FC_NORM = {"fc_norm/scale", "fc_norm/bias"}
CLASSIFIER = {"classifier/kernel", "classifier/bias"}


@pytest.mark.parametrize(
    ("config", "parts", "expected"),
    [
        (CONFIG, {}, ENCODER | FINAL_NORM),
        (POOLED, {}, ENCODER),
        (CONFIG, {"decoder": True}, ENCODER | FINAL_NORM | DECODER),
        (POOLED, {"decoder": True}, ENCODER | DECODER),
        (CONFIG, {"classifier": True}, ENCODER | FINAL_NORM | CLASSIFIER),
        (POOLED, {"classifier": True}, ENCODER | FC_NORM | CLASSIFIER),
        (POOLED.replace(num_labels=0), {"classifier": True}, ENCODER | FC_NORM),
        (
            CONFIG.replace(qkv_bias=False),
            {},
            (ENCODER | FINAL_NORM) - {"encoder/attention/q_bias", "encoder/attention/v_bias"},
        ),
    ],
)
def test_parameters_have_stable_names(config, parts, expected):
    # our own checkpoints and every rule by name (decay, sharding, layer-wise rates) depend on them
    state = nnx.state(make_model(config, **parts))
    assert {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)} == expected


def test_a_model_holds_parameters_only():
    _, parameters, rest = nnx.split(make_model(decoder=True, classifier=True), nnx.Param, ...)
    assert jax.tree.leaves(parameters)
    assert not jax.tree.leaves(rest)


def test_parameters_have_their_own_dtype():
    model = make_model(compute=Compute(jnp.float32, jnp.bfloat16), decoder=True, classifier=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("bfloat16")}


# Encoder


def test_encoding_the_visible_tokens_equals_gathering_them_after_the_embedding():
    # which is what the originals do
    model, tubelets = make_model(), tubelets_for()
    x = embed(model, tubelets)
    x = np.stack([clip[rows] for clip, rows in zip(x, np.asarray(MASK.visible), strict=True)])
    expected = layer_norm(stack(model.encoder, jnp.asarray(x), 2), model.layernorm, 1e-6)
    tokens = encode(model, tubelets, MASK.visible).tokens
    assert tokens.shape == (2, NUM_VISIBLE, 8)
    np.testing.assert_allclose(tokens, expected, atol=2e-5)


def test_hidden_tubelets_have_no_influence():
    model, tubelets = make_model(), tubelets_for()
    spoilt = np.where(np.asarray(MASK.to_bool())[..., None], np.nan, tubelets)
    expected = encode(model, tubelets, MASK.visible).tokens
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(encode(model, spoilt, MASK.visible).tokens, expected)


def test_without_a_mask_all_tokens_are_encoded():
    model, tubelets = make_model(), tubelets_for()
    everything = jnp.broadcast_to(jnp.arange(N), (2, N))
    tokens = encode(model, tubelets).tokens
    assert tokens.shape == (2, N, 8)
    np.testing.assert_allclose(tokens, encode(model, tubelets, everything).tokens, atol=1e-5)


def test_the_final_norm_is_there_only_without_mean_pooling():
    tubelets = tubelets_for()
    model = make_model()
    tokens, hidden, _ = encode(model, tubelets, hidden=True)
    np.testing.assert_allclose(tokens, layer_norm(hidden[-1], model.layernorm, 1e-6), atol=1e-5)
    pooled = make_model(POOLED)
    tokens, hidden, _ = encode(pooled, tubelets, hidden=True)
    np.testing.assert_array_equal(tokens, hidden[-1])


def test_hidden_states_begin_with_the_embeddings():
    model, tubelets = make_model(), tubelets_for()
    _, hidden, probs = encode(model, tubelets, hidden=True, probs=True)
    assert hidden.shape == (3, 2, N, 8)
    assert probs.shape == (2, 2, 2, N, N)
    np.testing.assert_allclose(hidden[0], embed(model, tubelets), atol=1e-5)
    np.testing.assert_allclose(probs.sum(-1), np.ones((2, 2, 2, N)), atol=1e-5)
    without = encode(model, tubelets)
    assert without.hidden_states is None
    assert without.attentions is None


def test_head_mask_reaches_its_layer_and_head():
    model, tubelets = make_model(), tubelets_for()
    head_mask = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    _, _, probs = encode(model, tubelets, head_mask=head_mask, probs=True)
    sums = np.asarray(probs.sum(-1))
    np.testing.assert_allclose(sums[1, :, 0], 0)
    np.testing.assert_allclose(sums[0], 1, atol=1e-5)
    np.testing.assert_allclose(sums[1, :, 1], 1, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 11, P), (2, N, P - 1), (2, N * P), (N, P), (2, 4, 8, 12, 3)])
def test_tubelets_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"tubelets have shape .* takes \(batch, 12, 96\)"):
        make_model().encode(jnp.zeros(shape))


@pytest.mark.parametrize(
    "changes",
    [{"num_frames": 8}, {"image_size": (16, 4)}, {"num_frames": 2, "image_size": (20, 8)}],
)
def test_the_same_parameters_serve_other_grids(changes):
    config = CONFIG.replace(**changes)
    model = make_model(decoder=True)
    other = nnx.eval_shape(lambda: VideoMAE(config, decoder=True, rngs=nnx.Rngs(0)))
    state = nnx.state(model)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, nnx.state(other), state))
    nnx.update(other, state)

    tubelets = tubelets_for(config)
    tokens, hidden, _ = encode(other, tubelets, hidden=True)
    assert tokens.shape == (2, config.num_tokens, 8)
    # positions count through the new grid: it is one table over all tokens
    np.testing.assert_allclose(hidden[0], embed(other, tubelets), atol=1e-5)
    mask = tube_mask(jax.random.key(0), 2, config.grid, 0.5)
    predictions = decode(other, jnp.zeros((2, mask.visible.shape[1], 8)), mask)
    assert predictions.shape == (2, mask.masked.shape[1], P)


# Decoder


def encoded():
    return jnp.asarray(np.random.default_rng(3).normal(size=(2, NUM_VISIBLE, 8)), jnp.float32)


def test_decoder_sees_visible_tokens_first_and_predicts_the_hidden_ones():
    model = make_model(decoder=True)
    positions = sincos_table(N, 12)
    seen = np.asarray(encoded()) @ np.asarray(model.encoder_to_decoder.kernel[...])
    seen = seen + positions[np.asarray(MASK.visible)]
    hidden = np.asarray(model.mask_token[...]) + positions[np.asarray(MASK.masked)]
    x = stack(model.decoder, jnp.asarray(np.concatenate([seen, hidden], axis=1)), 2)
    x = layer_norm(x[:, NUM_VISIBLE:], model.decoder_norm, 1e-5)
    expected = x @ np.asarray(model.decoder_head.kernel[...]) + np.asarray(
        model.decoder_head.bias[...]
    )
    predictions = decode(model, encoded(), MASK)
    assert predictions.shape == (2, N - NUM_VISIBLE, P)
    np.testing.assert_allclose(predictions, expected, atol=5e-5)


def test_decoder_of_silent_blocks_gives_the_mask_tokens_back():
    # no attention, no MLP: a hidden token's prediction is a function of its position alone
    model = make_model(decoder=True)
    for part in (model.decoder.attention.output, model.decoder.output):
        for parameter in (part.kernel, part.bias):
            parameter[...] = jnp.zeros_like(parameter[...])
    x = np.asarray(model.mask_token[...]) + sincos_table(N, 12)
    x = layer_norm(x, model.decoder_norm, 1e-5)
    table = x @ np.asarray(model.decoder_head.kernel[...]) + np.asarray(
        model.decoder_head.bias[...]
    )
    predictions = decode(model, encoded(), MASK)
    np.testing.assert_allclose(predictions, table[np.asarray(MASK.masked)], atol=2e-5)


def test_order_of_the_mask_is_the_order_of_the_predictions():
    # attention knows no order but the positions'
    model = make_model(decoder=True)
    expected = decode(model, encoded(), MASK)
    order = np.random.default_rng(0).permutation(N - NUM_VISIBLE)
    shuffled = decode(model, encoded(), Mask(MASK.visible, MASK.masked[:, order]))
    np.testing.assert_allclose(shuffled, expected[:, order], atol=2e-5)
    turned = decode(model, encoded()[:, ::-1], Mask(MASK.visible[:, ::-1], MASK.masked))
    np.testing.assert_allclose(turned, expected, atol=2e-5)


def test_predictions_depend_on_every_visible_token():
    model = make_model(decoder=True)
    expected = decode(model, encoded(), MASK)
    for i in range(NUM_VISIBLE):
        change = np.abs(decode(model, encoded().at[0, i].add(1.0), MASK) - expected)
        assert (change[0].max(axis=-1) > 1e-4).all()
        assert (change[1] == 0).all()  # and on no other clip's


def test_bf16_models_predict_in_bf16():
    compute = Compute(dtype=jnp.bfloat16)
    model = make_model(compute=compute, decoder=True)
    tokens = encode(model, tubelets_for(), MASK.visible).tokens
    predictions = decode(model, tokens, MASK)
    assert tokens.dtype == predictions.dtype == jnp.bfloat16
    reference = make_model(decoder=True)
    expected = decode(reference, encode(reference, tubelets_for(), MASK.visible).tokens, MASK)
    np.testing.assert_allclose(np.asarray(predictions, np.float32), expected, atol=0.25)


# Classifier


def linear(x, layer):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def test_mean_pooling_normalises_the_mean_of_all_tokens():
    model = make_model(POOLED.replace(fc_norm_eps=0.1), classifier=True)
    features = layer_norm(np.asarray(encoded()).mean(axis=1), model.fc_norm, 0.1)
    logits = model.classify(encoded())
    assert logits.shape == (2, 5)
    np.testing.assert_allclose(logits, linear(features, model.classifier), atol=1e-5)


def test_without_mean_pooling_the_first_token_is_classified():
    model = make_model(classifier=True)
    expected = linear(np.asarray(encoded())[:, 0], model.classifier)
    np.testing.assert_allclose(model.classify(encoded()), expected, atol=1e-5)


def test_without_classes_the_pooled_features_come_back():
    model = make_model(POOLED.replace(num_labels=0), classifier=True)
    features = layer_norm(np.asarray(encoded()).mean(axis=1), model.fc_norm, 1e-5)
    np.testing.assert_allclose(model.classify(encoded()), features, atol=1e-5)


def test_head_dropout_acts_on_the_pooled_features():
    rate = 0.5
    config = CONFIG.replace(num_labels=0, head_dropout_prob=rate)
    model = make_model(config, classifier=True)
    tokens = jnp.ones((500, 1, 8))
    features = np.asarray(model.classify(tokens, keys=jax.random.split(jax.random.key(0), 500)))
    assert set(np.unique(features)) == {0, 2}
    assert abs((features == 0).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / features.size)
    np.testing.assert_array_equal(model.classify(tokens), np.ones((500, 8)))


# Randomness


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_random_numbers_need_a_key(part):
    # that a clip's are the same in any micro-batch, tests/test_pretraining.py shows for the loss
    config = CONFIG.replace(hidden_dropout_prob=0.2, drop_path_rate=0.4)

    def output(model, keys=None):
        if part == "encoder":
            return encode(model, tubelets_for(), MASK.visible, keys=keys).tokens
        return decode(model, encoded(), MASK, keys)

    evaluated = output(make_model(config, decoder=True))
    np.testing.assert_allclose(evaluated, output(make_model(decoder=True)), atol=1e-5)
    drawn = output(make_model(config, decoder=True), KEYS)
    assert not np.allclose(drawn, evaluated, atol=1e-2)


def test_encoder_and_decoder_draw_different_numbers():
    # the same blocks on the same tokens would otherwise lose the same clips
    config = CONFIG.replace(
        drop_path_rate=0.5,
        decoder_hidden_size=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=12,
    )
    model = make_model(config, decoder=True)
    taken = []
    for name in ("encoder", "decoder"):
        keys = model_keys(model, name)
        taken.append(np.asarray(jax.random.key_data(keys)))
    assert not (taken[0] == taken[1]).all(axis=-1).any()


def model_keys(model, part):
    """The keys [B] with which a part runs its blocks."""
    seen = []

    def spy(blocks, x, depth, compute, *, keys, **options):
        seen.append(keys)
        return run_blocks(blocks, x, depth, compute, keys=keys, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmae_jax.videomae.run_blocks", spy)
        if part == "encoder":
            model.encode(jnp.asarray(tubelets_for()), keys=KEYS)
        else:
            model.decode(encoded(), MASK, keys=KEYS)
    return seen[0]
