"""Scaled dot-product attention over all tokens: the ways to compute it, and which to take.

XLA writes the [heads, N, N] scores to memory; cuDNN's kernel (NVIDIA), splash (the TPU kernel that
comes with JAX) and blocks of queries (anywhere) never do, which is most of a decoder's memory. All
compute the same, up to rounding. The platform is always an argument or told by JAX, never looked up
while a model is put together: a program for a TPU can be compiled where there is none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec

from vmae_jax import sharding
from vmae_jax.blockwise_attention import blockwise_attention
from vmae_jax.errors import SettingError

IMPLEMENTATIONS = ("auto", "xla", "blockwise", "cudnn", "splash")
# what a fused kernel runs on, computes in, and takes as head_dim: multiples of 8 up to a limit
FUSED = {
    "cudnn": ("gpu", ("bfloat16", "float16"), 128),
    "splash": ("tpu", ("bfloat16",), 128),
}
OUTPUT_NAME = "attention_output"  # what rematerialisation may keep, so that no kernel runs twice
# Shorter sequences go to XLA. Splash pads them, which costs more than their scores: ViT-B's
# encoder, 64 clips of 160 visible tokens on a v5e: 1.60 GiB by XLA, 1.97 by splash (the TPU
# compiler's report).
MIN_TOKENS = {"blockwise": 512, "splash": 512}
SPLASH_LANES = 128  # block lengths are multiples of it
SPLASH_MAX_KEYS = 2048  # of one block; two blocks of 3200 exceed the 16 MiB of VMEM backwards
SPLASH_MAX_SCORES = 2**20  # of one block, fp32


class Choice(NamedTuple):
    """A name in IMPLEMENTATIONS other than "auto", and why it was taken, for the log."""

    implementation: str
    reason: str


def this_platform() -> str:
    """JAX's default backend ("cpu", "gpu", "tpu"); "other gpu" for one without cuDNN's kernel,
    which needs compute capability 8.0 (A100 or later)."""
    platform = jax.default_backend()
    if platform != "gpu":
        return platform
    capability = getattr(jax.devices()[0], "compute_capability", "")  # "9.0"; AMD: "gfx90a"
    major = capability.partition(".")[0]
    return "gpu" if major.isdecimal() and int(major) >= 8 else "other gpu"


def choose(name: str, *, platform: str, dtype, head_dims: Iterable[int] = ()) -> Choice:
    """What `name` stands for where the model will run.

    Args:
      name: in IMPLEMENTATIONS. "auto" is the platform's fused kernel if it can be used, else
        "blockwise".
      platform: "cpu", "gpu" (NVIDIA), "tpu"; need not be this process's own.
      dtype: of q, k and v.
      head_dims: of each stack of the model.
    Raises:
      ValueError: if `name` is unknown or cannot work here; says why.
    """
    if name not in IMPLEMENTATIONS:
        raise SettingError(f"attention={name!r} is unknown; choose from {IMPLEMENTATIONS}.")
    dtype = jnp.dtype(dtype).name
    if name == "auto":
        kernels = [kernel for kernel, (where, *_) in FUSED.items() if where == platform]
        problem = f"there is no fused kernel for platform {platform!r}"
        for kernel in kernels:
            if not (problem := _problem(kernel, platform, dtype, head_dims)):
                return Choice(kernel, f"{platform.upper()}, {dtype}{_but_short(kernel)}")
        return Choice("blockwise", f"{problem}{_but_short('blockwise')}")
    if name in FUSED and (problem := _problem(name, platform, dtype, head_dims)):
        raise SettingError(
            f"attention={name!r} cannot be used: {problem}; set attention='auto' or 'xla'."
        )
    return Choice(name, "as configured")


def _but_short(name: str) -> str:
    return f"; shorter than {MIN_TOKENS[name]} tokens: xla" if name in MIN_TOKENS else ""


def _problem(kernel: str, platform: str, dtype: str, head_dims: Iterable[int]) -> str:
    """Why a fused kernel cannot be used; "" if it can."""
    where, dtypes, max_head_dim = FUSED[kernel]
    if platform != where:
        return f"{kernel} runs on platform {where!r}, not {platform!r}"
    if dtype not in dtypes:
        return f"{kernel} computes in {' or '.join(dtypes)}, not dtype={dtype}"
    for head_dim in head_dims:
        if head_dim % 8 or head_dim > max_head_dim:
            return f"{kernel} takes multiples of 8 up to {max_head_dim}, not head_dim={head_dim}"
    return ""


def dot_product_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "xla", *, interpret=False
) -> jax.Array:
    """softmax(q·kᵀ / sqrt(head_dim))·v, every token seeing every other.

    Under a mesh (`jax.set_mesh`) splash and blockwise run once per device: XLA cannot split a
    Pallas call, nor a loop over clips, so the batch is split over the axes "data" and "fsdp" and
    the heads over "tensor", where the mesh has them. What remat="attention" keeps bears
    OUTPUT_NAME.

    Args:
      q, k, v: [B, N, heads, head_dim], of one dtype.
      implementation: "auto" decides for JAX's default backend; any other name is taken at its word,
        except that sequences shorter than its MIN_TOKENS are left to XLA.
      interpret: emulate splash on any device; very slow.
    Returns:
      [B, N, heads, head_dim] in q's dtype; the softmax is fp32.
    Raises:
      ValueError: if the mesh does not divide the batch, or the name is unknown.
    """
    if implementation == "auto":
        implementation, _ = choose(
            "auto", platform=this_platform(), dtype=q.dtype, head_dims=q.shape[3:]
        )
    if q.shape[1] < MIN_TOKENS.get(implementation, 0):
        implementation = "xla"
    if implementation == "splash":
        return _on_each_device(functools.partial(_splash, interpret), q, k, v)
    if implementation == "blockwise":
        return _on_each_device(
            functools.partial(blockwise_attention, output_name=OUTPUT_NAME), q, k, v
        )
    if implementation not in IMPLEMENTATIONS:
        raise SettingError(
            f"attention={implementation!r} is unknown; choose from {IMPLEMENTATIONS}."
        )
    mixed = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    return checkpoint_name(mixed, OUTPUT_NAME)


def _on_each_device(attend, q, k, v):
    """`attend` on every device's own clips and heads; just `attend` without a mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    # inside a shard_map some axes are split by hand already, and what we see is one device's part
    sizes = {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }
    if not sizes:
        return attend(q, k, v)
    batch_axes = tuple(axis for axis in sharding.CLIPS[0] if axis in sizes)
    ways = int(np.prod([sizes[axis] for axis in batch_axes]))
    if q.shape[0] % ways:
        raise SettingError(
            f"a batch of {q.shape[0]} clips cannot be split over the {ways} devices of the mesh's "
            f"axes {batch_axes}; make it a multiple of {ways}, or set attention='xla'."
        )
    # heads that cannot be shared out stay whole, computed by every device of the axis
    shares_heads = "tensor" in sizes and q.shape[2] % sizes["tensor"] == 0
    spec = PartitionSpec(batch_axes or None, None, "tensor" if shares_heads else None, None)
    return jax.shard_map(
        attend,
        in_specs=(spec, spec, spec),
        out_specs=spec,
        axis_names=set(sizes),
        check_vma=False,  # a Pallas call does not say over which axes its output varies
    )(q, k, v)


def splash_blocks(num_tokens: int) -> tuple[int, int, int]:
    """(padded length, queries and keys of a block) for a sequence.

    All keys make one block where VMEM allows, so that the softmax needs no second look, and each
    block of queries is as large as it may be. Compiled for v5e, forward and backward: 784 to 6272
    tokens, head_dim 64 to 128. Of 1568 tokens: (1664, 128, 1664).
    """
    num_blocks = -(-num_tokens // SPLASH_MAX_KEYS)
    keys = -(-num_tokens // (num_blocks * SPLASH_LANES)) * SPLASH_LANES
    queries = max(
        size
        for size in range(SPLASH_LANES, keys + 1, SPLASH_LANES)
        if keys % size == 0 and (size == SPLASH_LANES or size * keys <= SPLASH_MAX_SCORES)
    )
    return num_blocks * keys, queries, keys


def _padded_splash(interpret: bool, q, k, v):
    """[B, N, heads, head_dim], computed with the sequence padded to whole blocks; no token looks
    at the padding.

    Splash does not scale: q is scaled in fp32 and rounded again, which is exact where head_dim is
    a power of four.
    """
    # imported where it is used: Pallas takes a second to import
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        FullMask,
        MultiHeadMask,
        SegmentIds,
        make_splash_mha,
    )

    num_tokens, num_heads, head_dim = q.shape[1:]
    padded, queries, keys = splash_blocks(num_tokens)
    attend = make_splash_mha(
        MultiHeadMask([FullMask((padded, padded))] * num_heads),
        block_sizes=BlockSizes(
            block_q=queries,
            block_kv=keys,
            block_q_dkv=queries,
            block_kv_dkv=keys,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=OUTPUT_NAME,
        interpret=interpret,
    )
    q = (q.astype(jnp.float32) * head_dim**-0.5).astype(q.dtype)
    padding = ((0, 0), (0, 0), (0, padded - num_tokens), (0, 0))
    q, k, v = (jnp.pad(jnp.swapaxes(x, 1, 2), padding) for x in (q, k, v))
    segment = jnp.arange(padded, dtype=jnp.int32) // num_tokens  # 0, and above for the padding
    segments = SegmentIds(segment, segment) if padded > num_tokens else None
    with jax.default_matmul_precision("default"):
        mixed = jax.vmap(lambda q, k, v: attend(q, k, v, segments))(q, k, v)
    return jnp.swapaxes(mixed[:, :, :num_tokens], 1, 2)


def _splash_forward(interpret, q, k, v):
    return jax.vjp(functools.partial(_padded_splash, interpret), q, k, v)


def _splash_backward(interpret, vjp, gradient):
    with jax.default_matmul_precision("default"):
        return vjp(gradient)


# The derivative is splash's own. It is wrapped because the kernels compile at default precision
# alone: under "highest", which means nothing for bf16 elsewhere, the compiler refuses them.
_splash = jax.custom_vjp(_padded_splash, nondiff_argnums=(0,))
_splash.defvjp(_splash_forward, _splash_backward)
