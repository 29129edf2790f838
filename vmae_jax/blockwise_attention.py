"""Attention that never holds all scores, in plain XLA: for every backend without a fused kernel.

A head's queries are taken a block at a time. The scores of a block, [queries, N], are small enough
for a processor's cache; of its softmax only the logarithm of the sum is kept, and the backward pass
computes the probabilities again from it. Memory is linear in the number of tokens, where XLA's own
is quadratic. On a CPU one head at a time is a plain, well-laid-out matrix product, where XLA walks
over strided batches; other devices take all heads of a block together.

Source: the recomputation is that of FlashAttention (Dao et al., NeurIPS 2022, algorithm 4), without
its blocks of keys: all keys of one head fit.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Scores of 392 queries and 1568 keys take 2.4 MB in fp32; 112 to 784 queries are equally fast.
MAX_QUERIES = 392


class _How(NamedTuple):
    """What forward and backward pass have in common.

    Attributes:
      dtype: of what is multiplied; sums, scores and softmax are fp32.
      precision: of the products, None or as `jax.default_matmul_precision` has it.
      output_name: what rematerialisation may keep is called.
    """

    dtype: jnp.dtype
    precision: str | None
    output_name: str

    def dot(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """a b, fp32."""
        return jnp.dot(
            a.astype(self.dtype),
            b.astype(self.dtype),
            precision=self.precision,
            preferred_element_type=jnp.float32,
        )


def blockwise_attention(q: jax.Array, k: jax.Array, v: jax.Array, output_name: str) -> jax.Array:
    """softmax(q·kᵀ / sqrt(head_dim))·v, every token seeing every other; the softmax is fp32.

    Products are of q's dtype with fp32 sums; on CPUs, which are slow at others, of fp32. It has a
    gradient of its own, so that JAX refuses forward-mode derivatives (`jax.jvp`).

    Args:
      q, k, v: [B, N, heads, head_dim], of one dtype.
      output_name: what rematerialisation may keep is called (`checkpoint_name`).
    Returns:
      [B, N, heads, head_dim] in q's dtype.
    """
    B, N, H, D = q.shape
    # the backward pass is traced outside of the context that the forward pass may be in
    how = _How(q.dtype, jax.config.jax_default_matmul_precision, output_name)
    in_fp32 = functools.partial(_head, how._replace(dtype=jnp.dtype(jnp.float32)))
    heads = tuple(jnp.swapaxes(x, 1, 2).reshape(B * H, N, D) for x in (q, k, v))
    mixed = jax.lax.platform_dependent(
        *heads,
        cpu=lambda *heads: jax.lax.map(lambda head: in_fp32(*head), heads),
        default=jax.vmap(functools.partial(_head, how)),
    )
    return jnp.swapaxes(mixed.reshape(B, H, N, D), 1, 2)


def _num_queries(num_tokens: int) -> int:
    """Of a block: as few blocks as MAX_QUERIES allows, of equal length."""
    num_blocks = -(-num_tokens // MAX_QUERIES)
    return -(-num_tokens // num_blocks)


def _blocks(x: jax.Array) -> jax.Array:
    """[N, ...] -> [blocks, queries, ...], filled up with zeros."""
    num_tokens, *rest = x.shape
    queries = _num_queries(num_tokens)
    padding = ((0, -num_tokens % queries), *((0, 0),) * len(rest))
    return jnp.pad(x, padding).reshape(-1, queries, *rest)


def _tokens(x: jax.Array, num_tokens: int) -> jax.Array:
    """Back from `_blocks`."""
    return x.reshape(-1, *x.shape[2:])[:num_tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _head(how: _How, q, k, v):
    """One head, [N, D] each."""
    return _forward(how, q, k, v)[0]


def _forward(how, q, k, v):
    def block(queries):
        scores = how.dot(queries, k.T)
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        return how.dot(weights, v) / total, (largest + jnp.log(total))[:, 0]

    mixed, log_totals = jax.lax.map(block, _blocks(_scaled(q)))
    mixed = checkpoint_name(_tokens(mixed, q.shape[0]).astype(q.dtype), how.output_name)
    log_totals = checkpoint_name(_tokens(log_totals, q.shape[0]), how.output_name)
    return mixed, (q, k, v, mixed, log_totals)


def _backward(how, saved, d_mixed):
    q, k, v, mixed, log_totals = saved
    # a score's gradient is p (dp - sum(p dp)), and the sum over a row is that of output by gradient
    d_totals = (d_mixed.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1)

    def block(sums, rows):
        d_k, d_v = sums
        queries, log_total, d_rows, d_total = rows
        probs = jnp.exp(how.dot(queries, k.T) - log_total[:, None])
        d_scores = probs * (how.dot(d_rows, v.T) - d_total[:, None])
        # transposed, as then no [queries, N] is: on a CPU that is 7 % of the whole gradient
        sums = (d_k + how.dot(queries.T, d_scores), d_v + how.dot(d_rows.T, probs))
        return sums, how.dot(d_scores, k)

    # rows of zeros, with which the last block is filled up, have gradients of zero
    rows = jax.tree.map(_blocks, (_scaled(q), log_totals, d_mixed, d_totals))
    nothing = jnp.zeros(k.T.shape, jnp.float32)
    (d_k, d_v), d_scaled = jax.lax.scan(block, (nothing, nothing), rows)
    d_q = _tokens(d_scaled, q.shape[0]) * q.shape[-1] ** -0.5
    return d_q.astype(q.dtype), d_k.T.astype(k.dtype), d_v.T.astype(v.dtype)


_head.defvjp(_forward, _backward)


def _scaled(q: jax.Array) -> jax.Array:
    """In fp32, so that nothing is rounded twice."""
    return q.astype(jnp.float32) * q.shape[-1] ** -0.5
