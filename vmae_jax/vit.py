"""The parts of a video transformer: positions, attention, block, and the scanned stack.

The blocks of a stack are one `Block` whose parameters carry a leading layer axis; they run in a
`jax.lax.scan`, which compiles in a third of the time of a loop. So a rule about parameters must go
by their names: a stacked scale has two axes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vmae_jax import attention, host_memory, randomness, sharding
from vmae_jax.activations import ACTIVATIONS
from vmae_jax.config import VideoMAEConfig
from vmae_jax.errors import SettingError

host_memory.keep_freed_pieces()  # here, as whoever has a model imports this before JAX computes

REMAT_POLICIES = {
    # parameters that were gathered for a layer are gathered again rather than kept
    "none": sharding.all_but_gathered,
    "attention": jax.checkpoint_policies.save_only_these_names(attention.OUTPUT_NAME),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model is computed; what it computes is `VideoMAEConfig`'s.

    LayerNorm statistics, softmax, targets and losses are fp32 whatever is set here.

    Attributes:
      dtype: of activations and matrix products.
      param_dtype: in which parameters are stored (and gradients come back).
      precision: of fp32 matrix products: "highest" is full fp32 on every device, "default" lets a
        GPU use TF32 and a TPU bf16. Without effect on bf16.
      attention: "xla" and "blockwise", which never holds all scores, run anywhere; "cudnn" is the
        fused kernel of NVIDIA GPUs (bf16 or fp16), "splash" that of TPUs (bf16). "auto" takes the
        best of JAX's default backend each time the model is traced; `resolve_attention` decides
        once, and for any platform.
      remat: what the backward pass computes again instead of keeping: "none", "attention" (all of a
        block but the attention's output), "full" (the whole block).
      unroll: run the blocks as a Python loop would (for counting FLOPs); compiles slowly.
      trained: parameters of an encoder's block that get gradients, each with the first layer from
        which on, as `trainable.trained_layers` has them; None: all. The blocks before a first layer
        run in a scan of their own, whose gradient is then never computed.
    """

    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    precision: str = "highest"
    attention: str = "auto"
    remat: str = "none"
    unroll: bool = False
    trained: tuple[tuple[str, int], ...] | None = None

    def __post_init__(self):
        for name in ("dtype", "param_dtype"):
            try:
                dtype = jnp.dtype(getattr(self, name))
            except TypeError as error:
                raise SettingError(
                    f"{name}={getattr(self, name)!r} is no dtype; give a floating type, e.g. "
                    "'bfloat16'."
                ) from error
            if not jnp.issubdtype(dtype, jnp.floating):
                raise SettingError(f"{name}={dtype} must be a floating type, e.g. bfloat16.")
            object.__setattr__(self, name, dtype)
        for name, known in (
            ("precision", ("default", "high", "highest")),
            ("attention", attention.IMPLEMENTATIONS),
            ("remat", tuple(REMAT_POLICIES)),
        ):
            if getattr(self, name) not in known:
                raise SettingError(
                    f"{name}={getattr(self, name)!r} is unknown; choose from {known}."
                )


def resolve_attention(
    compute: Compute, config: VideoMAEConfig, platform: str | None = None
) -> tuple[Compute, str]:
    """`compute` with the attention that "auto" stands for, and a line for the log.

    Args:
      platform: where the model will run, "cpu", "gpu" or "tpu"; None is JAX's default backend.
    Raises:
      ValueError: if the attention that `compute` names cannot run there, or not in its dtype.
    """
    choice = attention.choose(
        compute.attention,
        platform=platform or attention.this_platform(),
        dtype=compute.dtype,
        head_dims=(
            config.hidden_size // config.num_attention_heads,
            config.decoder_hidden_size // config.decoder_num_attention_heads,
        ),
    )
    resolved = dataclasses.replace(compute, attention=choice.implementation)
    return resolved, f"attention: {choice.implementation} ({choice.reason})"


class LoRA(NamedTuple):
    """Low-rank updates of a block's four matrices: W + alpha / rank * A B.

    Attributes:
      rank: of A B.
      alpha: its weight is alpha / rank.
    Source: Hu et al., LoRA (arXiv 2106.09685), section 4.1.
    """

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """The weight of A B."""
        return self.alpha / self.rank


@functools.lru_cache(maxsize=16)
def sincos_table(num_tokens: int, width: int) -> np.ndarray:
    """Fixed position embedding, fp32 [num_tokens, width]; one table over the flattened (t, h, w)
    grid.

    Angles are position / 10000^(2 floor(j / 2) / width), sine for even j, cosine for odd j. They
    are computed in fp64 on the host: angles reach 1,567 radians, where fp32 is wrong by 1e-4.
    Source: get_sinusoid_encoding_table of the official code.
    """
    dim = np.arange(width)
    angle = np.arange(num_tokens)[:, None] / 10000 ** (2 * (dim // 2) / width)
    table = np.where(dim % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)
    table.flags.writeable = False  # it is shared by all callers
    return table


def take_tokens(x: jax.Array, idx: jax.Array) -> jax.Array:
    """[B, K, ...] from [B, N, ...]: the rows of `x` that idx [B, K] names."""
    return jnp.take_along_axis(x, idx.reshape(*idx.shape, *(1,) * (x.ndim - 2)), axis=1)


def layer_norm(width: int, epsilon: float, compute: Compute, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with fp32 statistics; the variance as a mean of squared differences, as in torch
    (flax's default, E[x²] - E[x]², loses the small variances that epsilon is for)."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Multi-head self-attention with one fused qkv matrix, and biases for q and v alone.

    The key bias of the originals is a constant zero (it would cancel in the softmax), so it is no
    parameter. The kernel is [D, 3, heads, head_dim]: a shard of the head axis is a shard of each of
    q, k and v.
    """

    def __init__(self, width, num_heads, config, compute: Compute, dense_init, lora, rngs):
        heads = (num_heads, width // num_heads)
        linear = functools.partial(
            nnx.LinearGeneral,
            kernel_init=dense_init,
            dtype=compute.dtype,
            param_dtype=compute.param_dtype,
            rngs=rngs,
        )
        self.qkv = linear(width, (3, *heads), use_bias=False)
        self.output = linear(heads, width, axis=(-2, -1))
        self.has_bias = config.qkv_bias
        if self.has_bias:
            self.q_bias = nnx.Param(jnp.zeros(heads, compute.param_dtype))
            self.v_bias = nnx.Param(jnp.zeros(heads, compute.param_dtype))
        self.dropout_prob = config.attention_probs_dropout_prob
        self.implementation = compute.attention
        self.lora = lora
        if lora is not None:
            self.qkv_lora = _low_rank(width, 3 * width, lora, compute, rngs)
            self.output_lora = _low_rank(width, width, lora, compute, rngs)

    def __call__(self, x, *, keys=None, head_mask=None, output_probs=False):
        """[B, N, D] -> ([B, N, D], probabilities [B, heads, N, N] or None)."""
        qkv = self.qkv(x)
        if self.lora is not None:
            qkv += self.lora.scale * self.qkv_lora(x).reshape(qkv.shape)
        q, k, v = jnp.moveaxis(qkv, 2, 0)  # [B, N, heads, head_dim] each
        if self.has_bias:
            q = q + self.q_bias[...].astype(q.dtype)
            v = v + self.v_bias[...].astype(v.dtype)
        drops = keys is not None and self.dropout_prob > 0
        if drops or output_probs or head_mask is not None:
            mixed, probs = self._explicit(q, k, v, keys if drops else None, head_mask)
            mixed = checkpoint_name(mixed, attention.OUTPUT_NAME)
        else:
            mixed, probs = attention.dot_product_attention(q, k, v, self.implementation), None
        y = self.output(mixed)
        if self.lora is not None:
            y += self.lora.scale * self.output_lora(mixed.reshape(y.shape))
        return y, probs if output_probs else None

    def _explicit(self, q, k, v, keys, head_mask):
        """With the probabilities spelled out, for those who look at them or change them."""
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        probs = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1)
        if keys is not None:
            probs = randomness.dropout(probs, self.dropout_prob, keys, probs.shape[1:])
        if (
            head_mask is not None
        ):  # after softmax and dropout, not renormalised, as in transformers 4
            probs = probs * head_mask[:, None, None]
        probs = probs.astype(v.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", probs, v), probs


class Block(nnx.Module):
    """Pre-norm transformer block: x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(
        self,
        width,
        num_heads,
        mlp_width,
        config,
        compute: Compute,
        dense_init,
        rngs: nnx.Rngs,
        lora: LoRA | None = None,
    ):
        linear = functools.partial(
            nnx.Linear,
            kernel_init=dense_init,
            dtype=compute.dtype,
            param_dtype=compute.param_dtype,
            rngs=rngs,
        )
        self.layernorm_before = layer_norm(width, config.layer_norm_eps, compute, rngs)
        self.attention = Attention(width, num_heads, config, compute, dense_init, lora, rngs)
        self.layernorm_after = layer_norm(width, config.layer_norm_eps, compute, rngs)
        self.intermediate = linear(width, mlp_width)
        self.output = linear(mlp_width, width)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dropout_prob = config.hidden_dropout_prob
        self.lora = lora
        if lora is not None:
            self.intermediate_lora = _low_rank(width, mlp_width, lora, compute, rngs)
            self.output_lora = _low_rank(mlp_width, width, lora, compute, rngs)

    def __call__(self, x, *, drop_path=None, keys=None, head_mask=None, output_probs=False):
        """[B, N, D] -> ([B, N, D], attention probabilities or None).

        Args:
          drop_path: scalar chance to skip a clip's residual branch, or None for never.
          keys: [B]; None means evaluation, without any dropout.
          head_mask: [heads], factors of the attention probabilities.
        """

        def regularise(y, draw):
            """`draw` numbers the random draws of a block; the attention's is 0."""
            if keys is not None and self.dropout_prob > 0:
                clip_keys = randomness.fold_in(keys, draw)
                y = randomness.dropout(y, self.dropout_prob, clip_keys, y.shape[1:])
            if keys is not None and drop_path is not None:
                clip_keys = randomness.fold_in(keys, draw + 1)
                y = randomness.dropout(y, drop_path, clip_keys, (1,) * (y.ndim - 1))
            return y

        y, probs = self.attention(
            self.layernorm_before(x),
            keys=None if keys is None else randomness.fold_in(keys, 0),
            head_mask=head_mask,
            output_probs=output_probs,
        )
        x = x + regularise(y, 1)
        y = self.layernorm_after(x)
        if self.lora is None:
            y = self.output(self.activation(self.intermediate(y)))
        else:
            y = self.activation(self.intermediate(y) + self.lora.scale * self.intermediate_lora(y))
            y = self.output(y) + self.lora.scale * self.output_lora(y)
        return x + regularise(y, 3), probs


def _low_rank(in_width: int, out_width: int, lora: LoRA, compute: Compute, rngs: nnx.Rngs):
    return nnx.LoRA(
        in_width,
        lora.rank,
        out_width,
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        rngs=rngs,
    )


def make_blocks(depth: int, make_block: Callable[[nnx.Rngs], Block], rngs: nnx.Rngs) -> Block:
    """`depth` blocks as one, each parameter with a leading layer axis."""
    return nnx.vmap(make_block)(rngs.split(depth))


def run_blocks(
    blocks: Block,
    x: jax.Array,
    depth: int,
    compute: Compute,
    *,
    drop_path_rate: float = 0.0,
    keys: jax.Array | None = None,
    head_mask: jax.Array | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    trained: tuple[tuple[str, int], ...] | None = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """The output of a stack, and what was asked to be seen on the way.

    Args:
      blocks: from `make_blocks`.
      x: [B, N, D].
      drop_path_rate: of the last block; rises linearly from 0 in the first.
      keys: [B], None for evaluation.
      head_mask: [depth, heads] or None.
      trained: as of `Compute`.
    Returns:
      x [B, N, D]; each block's input [depth, B, N, D] or None; probabilities [depth, B, heads, N,
      N] or None.
    """
    rates = None
    if keys is not None and drop_path_rate > 0:
        rates = jnp.linspace(0, drop_path_rate, depth)

    def layer(x, scanned):
        block, index, rate, heads = scanned
        block = sharding.gathered(block, compute.dtype)
        x = sharding.split_clips(x)
        y, probs = block(
            x,
            drop_path=rate,
            keys=None if keys is None else randomness.fold_in(keys, index),
            head_mask=heads,
            output_probs=output_attentions,
        )
        return y, (x if output_hidden_states else None, probs)

    if compute.remat != "none" or sharding.gathers():
        # a scan's body cannot be merged with its recomputation, so the guard against that is waste
        layer = jax.checkpoint(
            layer, policy=REMAT_POLICIES[compute.remat], prevent_cse=compute.unroll
        )
    scanned = (blocks, jnp.arange(depth), rates, head_mask)
    seen = []
    for part, length in _parts(scanned, depth, trained):
        x, outputs = jax.lax.scan(layer, x, part, unroll=length if compute.unroll else 1)
        seen.append(outputs)
    joined = seen[0] if len(seen) == 1 else jax.tree.map(lambda *xs: jnp.concatenate(xs), *seen)
    return x, *joined


def _parts(
    scanned: tuple, depth: int, trained: tuple[tuple[str, int], ...] | None
) -> Iterator[tuple[tuple, int]]:
    """What is scanned, cut where other parameters begin to be trained; the others' gradients are
    stopped. With the number of layers of each part."""
    if trained is None:
        yield scanned, depth
        return
    for start, stop in itertools.pairwise(sorted({0, depth, *(first for _, first in trained)})):
        names = {name for name, first in trained if first <= start}
        blocks, *others = jax.tree.map(lambda leaf: leaf[start:stop], scanned)  # noqa: B023
        blocks = jax.tree_util.tree_map_with_path(
            lambda path, x: x if sharding.path_name(path) in names else jax.lax.stop_gradient(x),  # noqa: B023
            blocks,
        )
        yield (blocks, *others), stop - start
