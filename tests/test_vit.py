import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vmae_jax import randomness
from vmae_jax.activations import ACTIVATIONS
from vmae_jax.config import VideoMAEConfig
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import (
    REMAT_POLICIES,
    Block,
    Compute,
    layer_norm,
    make_blocks,
    run_blocks,
    sincos_table,
    take_tokens,
)

DEPTH, WIDTH, HEADS, MLP = 3, 8, 2, 16
CONFIG = VideoMAEConfig(hidden_act="gelu", layer_norm_eps=1e-6)


pytestmark = pytest.mark.usefixtures("hasty_compiler")


def filled(make_module, seed=0):
    """A module whose every parameter, biases and all, is a random number (and nothing compiled)."""
    module = nnx.eval_shape(make_module)
    rng = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype),
        nnx.state(module, nnx.Param),
    )
    nnx.update(module, state)
    return module


def make_stack(depth=DEPTH, config=CONFIG, compute=Compute(), seed=0):
    def block(rngs):
        return Block(WIDTH, HEADS, MLP, config, compute, nnx.initializers.zeros, rngs)

    return filled(lambda: make_blocks(depth, block, nnx.Rngs(0)), seed)


def layer_of(blocks, index):
    graph, state = nnx.split(blocks)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[index], state))


def silenced(blocks, branch):
    """With one of the residual branches adding nothing."""
    part = {"attention": blocks.attention.output, "mlp": blocks.output}[branch]
    for parameter in (part.kernel, part.bias):
        parameter[...] = jnp.zeros_like(parameter[...])
    return blocks


@functools.partial(jax.jit, static_argnames=("depth", "compute", "rate", "shown"))
def run(
    blocks, x, keys=None, *, depth=DEPTH, compute=Compute(), rate=0.0, head_mask=None, shown=True
):
    """(output, hidden states, attention probabilities)"""
    return run_blocks(
        blocks,
        x,
        depth,
        compute,
        drop_path_rate=rate,
        keys=keys,
        head_mask=head_mask,
        output_hidden_states=shown,
        output_attentions=shown,
    )


@jax.jit
def run_block(block, x, rate=None, keys=None, head_mask=None):
    return block(x, drop_path=rate, keys=keys, head_mask=head_mask, output_probs=True)


def tokens(batch_size=2, count=3, seed=1):
    return jnp.asarray(
        np.random.default_rng(seed).normal(size=(batch_size, count, WIDTH)), jnp.float32
    )


def keys_for(batch_size, seed=0):
    return jax.random.split(jax.random.key(seed), batch_size)


# Sine-cosine table. The numbers come from get_sinusoid_encoding_table of the official code.


@pytest.mark.parametrize(
    ("width", "total"),
    [
        (192, 60779.022),
        (384, 122425.858),
        (512, 163460.933),
        (640, 204714.511),
        (768, 245744.99),
        (1024, 327909.207),
        (1280, 410130.26),
        (1408, 451120.188),
    ],
)
def test_table_sums_to_that_of_the_original(width, total):
    table = sincos_table(1568, width)
    assert table.shape == (1568, width)
    assert table.dtype == np.float32
    assert table.sum(dtype=np.float64) == pytest.approx(total, abs=0.006)


def test_table_has_the_rows_of_the_original():
    table = sincos_table(1568, 768)
    assert np.array_equal(table[0], [0, 1] * 384)
    last = table[1567]
    np.testing.assert_allclose(
        table[1, :4], [0.8414710, 0.5403023, 0.8284308, 0.5600915], atol=6e-8
    )
    np.testing.assert_allclose(last[:4], [0.6089484, -0.7932098, 0.0932316, -0.9956445], atol=6e-8)
    np.testing.assert_allclose(last[-2:], [0.1598157, 0.9871469], atol=6e-8)
    narrow = sincos_table(1568, 384)
    np.testing.assert_allclose(
        narrow[1, :4], [0.8414710, 0.5403023, 0.8152506, 0.5791082], atol=6e-8
    )


def test_table_is_exact_to_the_last_digit_of_fp32():
    # python floats are fp64; fp32 angles would be wrong by 1e-4 in the last rows
    table = sincos_table(1568, 768)
    for position, j in itertools.product((1, 777, 1567), (0, 3, 100, 767)):
        angle = position / 10000 ** (2 * (j // 2) / 768)
        exact = math.cos(angle) if j % 2 else math.sin(angle)
        assert table[position, j] == np.float32(exact)


def test_shared_table_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        sincos_table(4, 4)[0, 0] = 1


def test_take_tokens_gathers_rows():
    x = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    idx = np.array([[4, 0], [1, 1]])
    expected = np.stack([x[0][[4, 0]], x[1][[1, 1]]])
    assert np.array_equal(take_tokens(jnp.asarray(x), jnp.asarray(idx)), expected)
    flat = take_tokens(jnp.asarray(x[..., 0]), jnp.asarray(idx))
    assert np.array_equal(flat, expected[..., 0])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.activations").ACT2FN[name]
    x = np.linspace(-12, 12, 97, dtype=np.float32)
    expected = theirs(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), expected, atol=2e-6, rtol=2e-6)


# Starting values. The distributions were read off the originals and checked on their models.

WIDE = VideoMAEConfig(
    image_size=16,
    patch_size=8,
    num_frames=2,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    decoder_hidden_size=48,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=96,
    use_mean_pooling=False,
    num_labels=50,
    initializer_range=0.03,
)
D, F, E, G, P = 64, 128, 48, 96, 2 * 8 * 8 * 3
STACKED = ("encoder/", "decoder/")
MODELS = {
    "official pre-training": ({"decoder": True}, {}),
    "official fine-tuning": ({"classifier": True}, {"use_mean_pooling": True}),
    "Hugging Face": ({"decoder": True, "classifier": True}, {"initialization": "huggingface"}),
}


@functools.cache
def fresh_parameters(kind):
    parts, changes = MODELS[kind]
    config = WIDE.replace(**changes)
    model = jax.jit(lambda: VideoMAE(config, rngs=nnx.Rngs(0), **parts))()
    return {
        "/".join(map(str, path)): np.asarray(leaf.get_value())
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


def uniform(bound):
    return "uniform", bound


def normal(std):
    return "normal", std


def xavier(fan_in, fan_out):
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


def dense_kernels(stack, width, mlp, distribution):
    return {
        f"{stack}/attention/qkv/kernel": distribution(width, 3 * width),  # one fused matrix
        f"{stack}/attention/output/kernel": distribution(width, width),
        f"{stack}/intermediate/kernel": distribution(width, mlp),
        f"{stack}/output/kernel": distribution(mlp, width),
    }


PROJECTION = {  # torch's default for a Conv3d, also for its bias
    "embeddings/kernel": uniform(1 / math.sqrt(P)),
    "embeddings/bias": uniform(1 / math.sqrt(P)),
}
STARTS = {
    "official pre-training": {
        **PROJECTION,
        **dense_kernels("encoder", D, F, xavier),
        "encoder_to_decoder/kernel": uniform(1 / math.sqrt(D)),  # torch's default for a Linear
        "mask_token": ("truncated normal", 0.02),
        **dense_kernels("decoder", E, G, xavier),
        "decoder_head/kernel": xavier(E, P),
    },
    "official fine-tuning": {
        **PROJECTION,
        **dense_kernels("encoder", D, F, lambda *_: normal(0.02)),
        "classifier/kernel": normal(0.02 * 0.001),
    },
    "Hugging Face": {
        "embeddings/kernel": normal(0.03),
        **dense_kernels("encoder", D, F, lambda *_: normal(0.03)),
        "encoder_to_decoder/kernel": normal(0.03),
        **dense_kernels("decoder", E, G, lambda *_: normal(0.03)),
        "decoder_head/kernel": normal(0.03),
        "classifier/kernel": normal(0.03),
    },
}


def check_distribution(values, kind, scale, name):
    values = values.astype(np.float64).ravel()
    n = values.size
    largest = np.abs(values).max()
    # standard deviation of the distribution, and of its estimate relative to it
    std, error = {
        "uniform": (scale / math.sqrt(3), math.sqrt(0.2 / n)),
        "normal": (scale, math.sqrt(0.5 / n)),
        "truncated normal": (0.53956 * scale, math.sqrt(0.25 / n)),
    }[kind]
    assert abs(values.mean()) < 4.5 * std / math.sqrt(n), name
    assert abs(values.std() / std - 1) < 4.5 * error, name
    if kind == "normal":
        assert largest > 2.5 * std, name  # not cut at two standard deviations
    else:
        assert 0.9 * scale < largest <= scale, name


@pytest.mark.parametrize("kind", MODELS)
def test_every_part_starts_from_the_published_distribution(kind):
    parameters = fresh_parameters(kind)
    assert set(STARTS[kind]) <= set(parameters)
    for name, values in parameters.items():
        layers = values if name.startswith(STACKED) else [values]
        for layer in layers:
            if name in STARTS[kind]:
                check_distribution(layer, *STARTS[kind][name], name)
            else:
                assert name.endswith(("scale", "bias", "mask_token")), name
                assert (layer == (1 if name.endswith("scale") else 0)).all(), name


@pytest.mark.parametrize("kind", MODELS)
def test_each_layer_is_drawn_separately(kind):
    for name, values in fresh_parameters(kind).items():
        if name.startswith(STACKED) and name.endswith("kernel"):
            assert not np.intersect1d(values[0], values[1]).size > values[0].size / 100, name


# Attention and block, against numpy in fp64


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def numpy_attention(attention, x, key_bias, head_mask=None):
    """As the originals write it: one (D -> 3D) matrix with a bias [q_bias, key_bias, v_bias]."""
    f64 = functools.partial(np.asarray, dtype=np.float64)
    qkv = f64(attention.qkv.kernel[...]).reshape(WIDTH, 3 * WIDTH)
    bias = np.zeros(3 * WIDTH)
    if attention.has_bias:
        bias = np.concatenate(
            [f64(attention.q_bias[...]).ravel(), key_bias, f64(attention.v_bias[...]).ravel()]
        )
    fused = f64(x) @ qkv + bias
    q, k, v = (
        part.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)
        for part in np.split(fused, 3, axis=-1)
    )
    probs = softmax((q * (WIDTH // HEADS) ** -0.5) @ k.transpose(0, 1, 3, 2))
    if head_mask is not None:
        probs = probs * head_mask[:, None, None]
    mixed = (probs @ v).transpose(0, 2, 1, 3).reshape(x.shape)
    kernel = f64(attention.output.kernel[...]).reshape(WIDTH, WIDTH)
    return mixed @ kernel + f64(attention.output.bias[...]), probs


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_attention_without_a_key_bias_equals_one_with_any(qkv_bias):
    block = layer_of(make_stack(config=CONFIG.replace(qkv_bias=qkv_bias)), 1)
    assert hasattr(block.attention, "q_bias") == qkv_bias
    x = tokens()
    ours, no_probs = block.attention(x)
    assert no_probs is None
    # what every query adds to all its scores alike, the softmax takes out again
    for key_bias in (np.zeros(WIDTH), np.random.default_rng(3).normal(size=WIDTH)):
        expected, probs = numpy_attention(block.attention, x, key_bias)
        np.testing.assert_allclose(ours, expected, atol=2e-5)
        spelled_out, our_probs = block.attention(x, output_probs=True)
        np.testing.assert_allclose(spelled_out, expected, atol=2e-5)
        np.testing.assert_allclose(our_probs, probs, atol=2e-5)


def test_head_mask_scales_the_probabilities_after_the_softmax():
    attention = layer_of(make_stack(), 0).attention
    head_mask = np.array([0.0, 0.5])
    expected, probs = numpy_attention(attention, tokens(), np.zeros(WIDTH), head_mask)
    ours, our_probs = attention(tokens(), head_mask=jnp.asarray(head_mask), output_probs=True)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    np.testing.assert_allclose(our_probs, probs, atol=2e-5)


def numpy_layer_norm(x, norm, epsilon):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    scale, bias = (np.asarray(p[...], np.float64) for p in (norm.scale, norm.bias))
    return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


def test_block_normalises_before_each_branch_and_adds_the_branch():
    block = layer_of(make_stack(), 0)
    x = np.asarray(tokens(), np.float64)
    erf = np.vectorize(math.erf)
    f64 = functools.partial(np.asarray, dtype=np.float64)
    y = (
        x
        + numpy_attention(
            block.attention, numpy_layer_norm(x, block.layernorm_before, 1e-6), np.zeros(WIDTH)
        )[0]
    )
    z = numpy_layer_norm(y, block.layernorm_after, 1e-6)
    z = z @ f64(block.intermediate.kernel[...]) + f64(block.intermediate.bias[...])
    z = z * (1 + erf(z / math.sqrt(2))) / 2
    y = y + z @ f64(block.output.kernel[...]) + f64(block.output.bias[...])
    np.testing.assert_allclose(block(tokens())[0], y, atol=5e-5)


@pytest.mark.parametrize(
    ("dtype", "spread", "tolerance"), [(jnp.float32, 0.01, 2e-3), (jnp.bfloat16, 1.0, 2e-2)]
)
def test_layer_norm_keeps_small_variances(dtype, spread, tolerance):
    # E[x²] - E[x]² would lose a spread of 0.01 around 100 in fp32, and statistics in bf16 one of 1
    x = jnp.asarray(100 + spread * np.random.default_rng(0).normal(size=(4, 64)), dtype)
    norm = layer_norm(64, 1e-6, Compute(dtype=dtype), nnx.Rngs(0))
    y = norm(x)
    assert y.dtype == dtype
    x = np.asarray(x, np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=tolerance)


def test_epsilon_is_that_of_the_config():
    # with a variance far below epsilon the output is x / sqrt(epsilon)
    x = jnp.asarray([[1e-4, -1e-4] * 4])
    block = Block(
        WIDTH, HEADS, MLP, CONFIG.replace(layer_norm_eps=0.01), Compute(), nnx.initializers.zeros,
        nnx.Rngs(0),
    )  # fmt: skip
    for norm in (block.layernorm_before, block.layernorm_after):
        np.testing.assert_allclose(norm(x), x / 0.1, rtol=1e-5)


# The scanned stack


def test_stack_equals_its_blocks_one_by_one():
    config = CONFIG.replace(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)
    blocks = make_stack(config=config)
    x = tokens()
    head_mask = jnp.asarray(np.random.default_rng(5).uniform(0.5, 1.5, (DEPTH, HEADS)))

    def check(keys, rate):
        y, hidden, probs = run(blocks, x, keys, head_mask=head_mask, rate=rate)
        assert hidden.shape == (DEPTH, 2, 3, WIDTH)
        assert probs.shape == (DEPTH, 2, HEADS, 3, 3)
        expected = x
        for i in range(DEPTH):
            np.testing.assert_allclose(hidden[i], expected, atol=1e-4)
            expected, expected_probs = run_block(
                layer_of(blocks, i),
                expected,
                None if keys is None else rate * i / (DEPTH - 1),
                None if keys is None else randomness.fold_in(keys, i),
                head_mask[i],
            )
            np.testing.assert_allclose(probs[i], expected_probs, atol=1e-5)
        np.testing.assert_allclose(y, expected, atol=1e-4)
        return y

    assert not np.allclose(check(None, 0.0), check(keys_for(2), 0.5), atol=0.1)


def test_nothing_is_shown_unless_asked_for():
    y, hidden, probs = run(make_stack(), tokens(), shown=False)
    assert y.shape == (2, 3, WIDTH)
    assert hidden is None
    assert probs is None
    shown, _, _ = run(make_stack(), tokens())
    np.testing.assert_allclose(y, shown, atol=1e-5)


@functools.cache
def value_and_gradients(compute):
    blocks = make_stack()
    graph, state = nnx.split(blocks)

    @jax.jit
    def compiled(state, x):
        def loss(state, x):
            y, _, _ = run_blocks(nnx.merge(graph, state), x, DEPTH, compute)
            return jnp.square(y).mean()

        return jax.value_and_grad(loss, argnums=(0, 1))(state, x)

    return compiled(state, tokens())


@pytest.mark.parametrize(
    "changes",
    [
        *({"remat": policy} for policy in REMAT_POLICIES if policy != "none"),
        {"remat": "full", "unroll": True},
    ],
)
def test_recomputing_and_unrolling_change_no_number(changes):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
        value_and_gradients(Compute(**changes)),
        value_and_gradients(Compute()),
    )


def test_more_recomputation_keeps_less():
    blocks = make_stack()
    graph, state = nnx.split(blocks)

    def kept(remat):
        def forward(x):
            return run_blocks(nnx.merge(graph, state), x, DEPTH, Compute(remat=remat))[0]

        residuals = jax.eval_shape(lambda x: jax.vjp(forward, x)[1], tokens(64))
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    assert kept("full") < kept("attention") < kept("none") / 2
    assert kept("attention") - kept("full") == DEPTH * tokens(64).size  # its output, per block


# Dropout and drop path


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_drop_path_rises_linearly_from_zero_to_its_rate(branch):
    batch_size, rate = 2000, 0.8
    blocks = silenced(make_stack(), {"attention": "mlp", "mlp": "attention"}[branch])
    x = tokens(batch_size)
    y, hidden, _ = run(blocks, x, keys_for(batch_size), rate=rate)
    states = np.asarray([*hidden, y])
    kept_share = []
    for i in range(DEPTH):
        p = rate * i / (DEPTH - 1)
        change = states[i + 1] - states[i]
        dropped = (change == 0).all(axis=(1, 2))
        # a kept branch is the one of evaluation, scaled by 1 / (1 - p)
        evaluated = np.asarray(run_block(layer_of(blocks, i), states[i])[0]) - states[i]
        np.testing.assert_allclose(change[~dropped], evaluated[~dropped] / (1 - p), atol=2e-4)
        kept_share.append(1 - dropped.mean())
        assert abs(dropped.mean() - p) <= 4 * math.sqrt(p * (1 - p) / batch_size)
    assert kept_share[0] == 1


def test_every_draw_of_a_stack_is_another_one():
    # Of two layers that drew from the same keys, the one of higher rate would drop all that the
    # other one drops; and so would the two branches of a block.
    batch_size = 200
    dropped = []
    for branch in ("attention", "mlp"):
        blocks = silenced(make_stack(), {"attention": "mlp", "mlp": "attention"}[branch])
        y, hidden, _ = run(blocks, tokens(batch_size), keys_for(batch_size), rate=0.5)
        dropped += [(hidden[2] == hidden[1]).all((1, 2)), (y == hidden[2]).all((1, 2))]
    for a, b in itertools.permutations(np.asarray(dropped), 2):
        assert (a & ~b).any()


def test_one_block_alone_is_never_dropped():
    blocks = make_stack(depth=1)
    y, _, _ = run(blocks, tokens(), keys_for(2), depth=1, rate=0.9)
    np.testing.assert_allclose(y, run(blocks, tokens(), depth=1)[0], atol=1e-6)


def test_without_keys_nothing_is_dropped():
    config = CONFIG.replace(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    y, _, _ = run(make_stack(config=config), tokens(), rate=0.9)
    np.testing.assert_allclose(y, run(make_stack(), tokens())[0], atol=1e-6)


def differs_along_every_axis(dropped):
    return all((dropped != dropped.take([0], axis)).any() for axis in range(dropped.ndim))


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_hidden_dropout_acts_on_the_output_of_each_branch(branch):
    # and nowhere inside: the entries that are kept are those of evaluation, scaled
    rate, x = 0.3, tokens(200)
    silent = {"attention": "mlp", "mlp": "attention"}[branch]
    block = layer_of(
        silenced(make_stack(config=CONFIG.replace(hidden_dropout_prob=rate)), silent), 0
    )
    evaluated = np.asarray(run_block(block, x)[0] - x)
    change = np.asarray(run_block(block, x, keys=keys_for(200))[0] - x)
    dropped = change == 0
    assert abs(dropped.mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / x.size)
    assert differs_along_every_axis(dropped)
    np.testing.assert_allclose(change[~dropped], evaluated[~dropped] / (1 - rate), atol=1e-4)


def test_attention_dropout_acts_on_the_probabilities():
    rate, x = 0.3, tokens(200)
    config = CONFIG.replace(attention_probs_dropout_prob=rate)
    attention = layer_of(make_stack(config=config), 0).attention
    _, evaluated = attention(x, output_probs=True)
    y, probs = attention(x, output_probs=True, keys=keys_for(200))
    evaluated, probs = np.asarray(evaluated), np.asarray(probs)
    dropped = probs == 0
    assert abs(dropped.mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / probs.size)
    assert differs_along_every_axis(dropped)
    np.testing.assert_allclose(probs[~dropped], evaluated[~dropped] / (1 - rate), rtol=1e-5)
    hidden_from_view, _ = attention(x, keys=keys_for(200))
    np.testing.assert_allclose(hidden_from_view, y, atol=1e-6)


# Compute


def test_compute_names_types_and_policies():
    compute = Compute(dtype="bfloat16")
    assert compute.dtype == jnp.bfloat16
    assert hash(compute) == hash(Compute(dtype=jnp.bfloat16))  # it is static under jit
    assert compute == Compute(dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": jnp.int32}, "dtype=int32 must be a floating type"),
        ({"param_dtype": "uint8"}, "param_dtype=uint8 must be a floating type"),
        ({"dtype": "bf16"}, "dtype='bf16' is no dtype"),
        ({"precision": "tf32"}, "precision='tf32' is unknown; choose from .*'highest'"),
        ({"attention": "flash"}, "attention='flash' is unknown; choose from .*'cudnn'"),
        ({"remat": "all"}, "remat='all' is unknown; choose from .*'full'"),
        ({"remat": True}, "remat=True is unknown"),
    ],
)
def test_bad_compute_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Compute(**values)


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_stack_computes_in_its_dtype_and_stores_in_the_other(param_dtype):
    compute = Compute(dtype=jnp.bfloat16, param_dtype=param_dtype)
    blocks = make_stack(compute=compute)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(blocks))} == {jnp.dtype(param_dtype)}
    x = tokens().astype(jnp.bfloat16)
    y, _, probs = run(blocks, x, compute=compute)
    assert y.dtype == probs.dtype == jnp.bfloat16
    expected, _, _ = run(make_stack(), tokens())
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=0.3)
