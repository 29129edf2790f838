"""The ways to attend compute the same, and each is taken where it can run."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vmae_jax import attention, blockwise_attention
from vmae_jax.attention import OUTPUT_NAME, choose, dot_product_attention
from vmae_jax.config import VideoMAEConfig
from vmae_jax.sizes import SIZES
from vmae_jax.vit import Compute, resolve_attention

pytestmark = pytest.mark.usefixtures("hasty_compiler")


@pytest.fixture
def splash(monkeypatch):
    """Splash attention, emulated, of sequences however short."""
    monkeypatch.setitem(attention.MIN_TOKENS, "splash", 1)
    return functools.partial(dot_product_attention, implementation="splash", interpret=True)


@pytest.fixture
def blockwise(monkeypatch):
    """Attention in blocks of at most 50 queries, of sequences however short."""
    monkeypatch.setitem(attention.MIN_TOKENS, "blockwise", 1)
    monkeypatch.setattr(blockwise_attention, "MAX_QUERIES", 50)
    return functools.partial(dot_product_attention, implementation="blockwise")


def queries_keys_values(num_tokens, num_heads, head_dim, dtype=jnp.float32, batch_size=1):
    rng = np.random.default_rng(num_tokens + head_dim)
    shape = (3, batch_size, num_tokens, num_heads, head_dim)
    return jnp.asarray(rng.standard_normal(shape), dtype)


def numpy_attention(q, k, v, gradient):
    """The output, and the gradients by q, k and v of its product with `gradient`; in fp64."""
    q, k, v, gradient = (np.asarray(x, np.float64) for x in (q, k, v, gradient))
    scale = q.shape[-1] ** -0.5
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * scale
    probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    by_probs = np.einsum("bqhd,bkhd->bhqk", gradient, v)
    by_scores = probs * (by_probs - (by_probs * probs).sum(axis=-1, keepdims=True)) * scale
    return (
        np.einsum("bhqk,bkhd->bqhd", probs, v),
        np.einsum("bhqk,bkhd->bqhd", by_scores, k),
        np.einsum("bhqk,bqhd->bkhd", by_scores, q),
        np.einsum("bhqk,bqhd->bkhd", probs, gradient),
    )


plain = functools.partial(dot_product_attention, implementation="xla")


def output_and_gradients(attend, qkv, gradient):
    def compute(qkv, gradient):
        output, backward = jax.vjp(attend, *qkv)
        return output, *backward(gradient)

    return jax.jit(compute)(qkv, gradient)


# What is computed


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "head_dim"),
    [(200, 2, 64), (200, 1, 88), (256, 1, 64), (20, 1, 16)],  # padded, exact, less than a block
)
def test_splash_and_its_gradients_are_those_of_plain_attention(
    splash, num_tokens, num_heads, head_dim
):
    qkv = queries_keys_values(num_tokens, num_heads, head_dim)
    gradient = jnp.cos(qkv[0] + 1)
    found = output_and_gradients(splash, qkv, gradient)
    for ours, expected in zip(found, numpy_attention(*qkv, gradient), strict=True):
        assert ours.shape == qkv[0].shape
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "head_dim"),
    # even blocks, a last one filled up, a block and one token, less than a block, one token
    [(200, 2, 64), (111, 1, 88), (51, 3, 8), (20, 1, 16), (1, 2, 8)],
)
@pytest.mark.parametrize("backend", ["cpu", "default"])
def test_blocks_and_their_gradients_are_those_of_plain_attention(
    blockwise, monkeypatch, backend, num_tokens, num_heads, head_dim
):
    if backend == "default":  # what GPUs and TPUs run
        monkeypatch.setattr(
            jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args)
        )
    qkv = queries_keys_values(num_tokens, num_heads, head_dim, batch_size=2)
    gradient = jnp.cos(qkv[0] + 1)
    found = output_and_gradients(blockwise, qkv, gradient)
    for ours, expected in zip(found, numpy_attention(*qkv, gradient), strict=True):
        assert ours.shape == qkv[0].shape
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_large_scores_do_not_overflow_in_blocks(blockwise):
    q, k, v = queries_keys_values(111, 1, 8)
    found = output_and_gradients(blockwise, (100 * q, k, v), v)
    for ours, expected in zip(found, numpy_attention(100 * q, k, v, v), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_blocks_in_bfloat16_are_as_near_as_xla(blockwise):
    qkv = queries_keys_values(200, 1, 64, jnp.bfloat16)
    expected = numpy_attention(*qkv, qkv[0])
    error = {}
    for name, attend in (("blockwise", blockwise), ("xla", plain)):
        found = output_and_gradients(attend, qkv, qkv[0])
        assert all(x.dtype == jnp.bfloat16 for x in found)
        error[name] = [
            np.linalg.norm(np.asarray(x, np.float64) - y)
            for x, y in zip(found, expected, strict=True)
        ]
    assert all(ours < 1.2 * xla for ours, xla in zip(*error.values(), strict=True)), error


def test_no_program_of_blocks_holds_all_scores(blockwise):
    qkv = queries_keys_values(150, 2, 8)
    for attend, holds in ((blockwise, False), (plain, True)):
        traced = str(jax.make_jaxpr(jax.grad(lambda *x, f=attend: f(*x).sum(), (0, 1, 2)))(*qkv))
        assert ("150,150]" in traced) == holds


def test_blocks_multiply_backwards_as_precisely_as_forwards(blockwise):
    qkv = queries_keys_values(20, 1, 8)

    def loss(*qkv):
        with jax.default_matmul_precision("highest"):  # as the models do, around the forward pass
            return blockwise(*qkv).sum()

    traced = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*qkv))
    products = traced.count("dot_general[")
    assert products > 0
    assert traced.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


def test_splash_takes_several_blocks_of_keys(splash, monkeypatch):
    monkeypatch.setattr(attention, "SPLASH_MAX_KEYS", 128)
    assert attention.splash_blocks(200) == (256, 128, 128)
    qkv = queries_keys_values(200, 1, 8)
    gradient = jnp.cos(qkv[0] + 1)
    found = output_and_gradients(splash, qkv, gradient)
    for ours, expected in zip(found, numpy_attention(*qkv, gradient), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_splash_in_bfloat16_is_as_near_as_xla(splash):
    qkv = queries_keys_values(200, 1, 64, jnp.bfloat16)
    expected, *_ = numpy_attention(*qkv, qkv[0])
    error = {}
    for name, attend in (("splash", splash), ("xla", plain)):
        output = jax.jit(attend)(*qkv)
        assert output.dtype == jnp.bfloat16
        error[name] = np.abs(np.asarray(output, np.float64) - expected).max()
    assert error["splash"] < 1.5 * error["xla"] < 0.02


def test_xla_is_plain_attention():
    qkv = queries_keys_values(20, 2, 8)
    found = output_and_gradients(plain, qkv, jnp.cos(qkv[0]))
    for ours, expected in zip(found, numpy_attention(*qkv, jnp.cos(qkv[0])), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


# Blocks


@pytest.mark.parametrize(
    ("num_tokens", "blocks"),
    [
        (1568, (1664, 128, 1664)),  # 13 x 128: no other size divides it
        (2048, (2048, 512, 2048)),
        (784, (896, 896, 896)),
        (160, (256, 256, 256)),
        (3136, (3328, 128, 1664)),
        (6272, (6656, 128, 1664)),
    ],
)
def test_blocks_of_queries_and_keys(num_tokens, blocks):
    assert attention.splash_blocks(num_tokens) == blocks


def test_blocks_divide_what_they_are_cut_from():
    for num_tokens in range(1, 9000, 61):
        padded, queries, keys = attention.splash_blocks(num_tokens)
        assert padded >= num_tokens
        assert padded % keys == padded % queries == queries % 128 == keys % 128 == 0
        assert keys <= attention.SPLASH_MAX_KEYS


# How it is traced


def calls(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("pallas_call[")


def test_short_sequences_are_left_to_xla():
    attend = functools.partial(dot_product_attention, implementation="splash")
    short = queries_keys_values(attention.MIN_TOKENS["splash"] - 1, 1, 8)
    long = queries_keys_values(attention.MIN_TOKENS["splash"], 1, 8)
    assert (calls(attend, *short), calls(attend, *long)) == (0, 1)


@pytest.mark.parametrize(("remat", "kernel_calls"), [("attention", 2), ("full", 3)])
def test_remat_attention_does_not_run_the_kernel_again(splash, remat, kernel_calls):
    from vmae_jax.vit import REMAT_POLICIES

    def layer(x, _):
        return x + splash(x, jnp.sin(x), jnp.cos(x)), None

    def loss(x):
        body = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)
        return jnp.sum(jax.lax.scan(body, x, length=3)[0] ** 2)

    x = queries_keys_values(140, 1, 8)[0]
    mesh = jax.make_mesh((1, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    assert calls(jax.grad(loss), x) == kernel_calls
    with jax.set_mesh(mesh):
        assert calls(jax.grad(loss), x) == kernel_calls


@pytest.mark.parametrize(("remat", "products"), [("attention", 2 + 5), ("full", 2 + 2 + 5)])
def test_remat_attention_does_not_mix_in_blocks_again(blockwise, remat, products):
    from vmae_jax.vit import REMAT_POLICIES

    def loss(x):
        body = jax.checkpoint(
            lambda x, _: (x + blockwise(x, jnp.sin(x), jnp.cos(x)), None),
            policy=REMAT_POLICIES[remat],
            prevent_cse=False,
        )
        return jnp.sum(jax.lax.scan(body, x, length=3)[0] ** 2)

    lowered = jax.jit(jax.grad(loss)).lower(queries_keys_values(140, 1, 8)[0])
    assert lowered.as_text().count("stablehlo.dot_general") == products


def test_kernels_are_traced_at_default_precision():
    attend = functools.partial(dot_product_attention, implementation="splash")
    qkv = queries_keys_values(attention.MIN_TOKENS["splash"], 1, 8)
    with jax.default_matmul_precision("highest"):  # Mosaic refuses it for bf16
        backward = jax.make_jaxpr(jax.grad(lambda *qkv: jnp.sum(attend(*qkv)), argnums=(0, 1, 2)))
        traced = str(backward(*qkv))
    assert traced.count("pallas_call[") == 2
    assert "HIGHEST" not in traced


def test_the_output_bears_the_name_that_remat_keeps():
    x = queries_keys_values(4, 1, 8)
    assert f"name={OUTPUT_NAME}" in str(jax.make_jaxpr(dot_product_attention)(*x))


# Over a mesh


SPLIT = """
import functools, sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from vmae_jax import attention, blockwise_attention
attention.MIN_TOKENS = {}
jax.config.update("jax_disable_most_optimizations", True)
name = sys.argv[1]
attend = functools.partial(
    attention.dot_product_attention, implementation=name, interpret=name == "splash")
qkv = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 130, 4, 8)), jnp.float32)
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
sharding = NamedSharding(mesh, P(None, ("data", "fsdp"), None, "tensor"))

@jax.jit
def compute(qkv):
    output, backward = jax.vjp(lambda qkv: attend(*qkv), qkv)
    return output, *backward(jnp.cos(output))

alone = compute(qkv)
with jax.set_mesh(mesh):
    split = compute.lower(jax.device_put(qkv, sharding)).compile()
    found = split(jax.device_put(qkv, sharding))
    odd_heads = jax.jit(attend)(*qkv[:, :, :, :3])
for one, eight in zip(alone, found):
    np.testing.assert_allclose(one, eight, atol=1e-6)
np.testing.assert_allclose(odd_heads, alone[0][:, :, :3], atol=1e-6)
assert found[0].sharding.shard_shape(found[0].shape) == (1, 130, 2, 8), found[0].sharding
for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert collective not in split.as_text(), collective
"""


@pytest.mark.parametrize("name", ["splash", "blockwise"])
def test_eight_devices_each_attend_to_their_own_clips_and_heads(name):
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SPLIT, name]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("axes", [("model",), ("data", "fsdp", "tensor")])
def test_any_mesh_of_one_device_changes_nothing(splash, axes):
    qkv = queries_keys_values(140, 1, 8)
    mesh = jax.make_mesh((1,) * len(axes), axes, axis_types=(AxisType.Auto,) * len(axes))
    expected, *_ = numpy_attention(*qkv, qkv[0])
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(jax.jit(splash)(*qkv), expected, atol=1e-5)


def test_a_batch_that_the_mesh_does_not_divide_is_refused(splash):
    qkv = queries_keys_values(140, 1, 8, batch_size=3)
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    message = r"batch of 3 clips .* 4 devices .*'data', 'fsdp'.*multiple of 4, or .*'xla'"
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(ValueError, match=message):
        jax.eval_shape(splash, *qkv)


# Which is taken


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dims", "implementation", "reason"),
    [
        ("tpu", "bfloat16", (64, 64), "splash", "TPU, bfloat16; shorter than 512 tokens: xla"),
        ("tpu", "bfloat16", (88, 64), "splash", "TPU, bfloat16; shorter than 512 tokens: xla"),
        ("tpu", "float32", (64,), "blockwise", "splash computes in bfloat16, not dtype=float32"),
        ("tpu", "float16", (64,), "blockwise", "splash computes in bfloat16, not dtype=float16"),
        ("gpu", "bfloat16", (64, 80), "cudnn", "GPU, bfloat16"),
        ("gpu", "float16", (64,), "cudnn", "GPU, float16"),
        (
            "gpu",
            "float32",
            (64,),
            "blockwise",
            "cudnn computes in bfloat16 or float16, not dtype=float32",
        ),
        ("gpu", "bfloat16", (64, 20), "blockwise", "multiples of 8 up to 128, not head_dim=20"),
        ("gpu", "bfloat16", (136,), "blockwise", "multiples of 8 up to 128, not head_dim=136"),
        ("other gpu", "bfloat16", (64,), "blockwise", "no fused kernel for platform 'other gpu'"),
        ("cpu", "bfloat16", (64,), "blockwise", "no fused kernel for platform 'cpu'"),
    ],
)
def test_auto_takes_the_fused_kernel_where_there_is_one(
    platform, dtype, head_dims, implementation, reason
):
    choice = choose("auto", platform=platform, dtype=jnp.dtype(dtype), head_dims=head_dims)
    assert choice.implementation == implementation
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "head_dim", "message"),
    [
        ("flash", "gpu", "bfloat16", 64, r"attention='flash' is unknown; choose from .*'splash'"),
        (
            "cudnn",
            "cpu",
            "bfloat16",
            64,
            r"'cudnn' .* runs on platform 'gpu', not 'cpu'; set .*xla",
        ),
        ("cudnn", "gpu", "float32", 64, r"'cudnn' .* not dtype=float32; set attention='auto' or"),
        ("cudnn", "gpu", "bfloat16", 12, r"'cudnn' .* multiples of 8 up to 128, not head_dim=12"),
        ("splash", "gpu", "bfloat16", 64, r"'splash' .* runs on platform 'tpu', not 'gpu'; set .*"),
        ("splash", "tpu", "float32", 64, r"'splash' .* computes in bfloat16, not dtype=float32"),
    ],
)
def test_a_name_that_cannot_work_is_refused_with_the_reason(
    name, platform, dtype, head_dim, message
):
    with pytest.raises(ValueError, match=message):
        choose(name, platform=platform, dtype=dtype, head_dims=(head_dim,))


@pytest.mark.parametrize("name", ["xla", "cudnn"])
def test_a_name_that_can_work_is_taken(name):
    assert choose(name, platform="gpu", dtype="bfloat16", head_dims=[64]).implementation == name


@pytest.mark.parametrize("size", SIZES)
def test_published_models_have_fused_kernels(size):
    config = VideoMAEConfig.from_size(size)
    compute = Compute(dtype="bfloat16", attention="auto", remat="full")
    for platform, implementation in (("tpu", "splash"), ("gpu", "cudnn"), ("cpu", "blockwise")):
        resolved, line = resolve_attention(compute, config, platform)
        assert resolved == Compute(
            dtype="bfloat16", attention=implementation, remat="full"
        )  # nothing else changes
        assert line.startswith(f"attention: {implementation} (")


def test_by_default_it_is_resolved_for_this_machine():
    here, line = resolve_attention(Compute(attention="auto"), VideoMAEConfig())
    assert here.attention == "blockwise"
    assert line == (
        "attention: blockwise (there is no fused kernel for platform 'cpu'; shorter than 512 "
        "tokens: xla)"
    )


def test_auto_can_be_computed_with_unresolved():
    qkv = queries_keys_values(20, 1, 8, jnp.bfloat16)
    ours = dot_product_attention(*qkv, "auto")
    np.testing.assert_array_equal(ours, dot_product_attention(*qkv, "xla"))


@pytest.mark.parametrize(
    ("backend", "capability", "platform"),
    [
        ("cpu", None, "cpu"),
        ("tpu", None, "tpu"),
        ("gpu", "9.0", "gpu"),
        ("gpu", "12.0", "gpu"),
        ("gpu", "7.5", "other gpu"),  # T4: has no flash attention in cuDNN
        ("gpu", "gfx90a", "other gpu"),  # AMD
    ],
)
def test_gpus_without_the_kernel_are_told_apart(monkeypatch, backend, capability, platform):
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert attention.this_platform() == platform
