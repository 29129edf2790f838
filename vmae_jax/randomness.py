"""Random numbers that belong to a clip, not to a batch.

Every draw comes from a key of its own for each clip. So it does not matter which device holds the
clip, nor into how many micro-batches the batch is cut: masks, dropout and drop path stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def clip_keys(key: jax.Array, batch_size: int) -> jax.Array:
    """One key per clip, [batch_size].

    Args:
      key: one PRNG key (it is split), or the [batch_size] keys themselves.
      batch_size: number of clips in the global batch.
    Raises:
      ValueError: if `key` is neither.
    """
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # a raw uint32 key, as jax.random.PRNGKey makes it
    if key.ndim == 0:
        return jax.random.split(key, batch_size)
    if key.shape != (batch_size,):
        raise ValueError(
            f"key has shape {key.shape}, but must be one key or one per clip, ({batch_size},)."
        )
    return key


def fold_in(keys: jax.Array, data: int | jax.Array) -> jax.Array:
    """New keys [B] for another purpose (or layer) named by an integer."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def uniform(keys: jax.Array, shape: Sequence[int]) -> jax.Array:
    """fp32 noise [B, *shape], in [0, 1)."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def dropout(x: jax.Array, rate: float | jax.Array, keys: jax.Array, shape: Sequence[int]):
    """`x` with entries set to 0 with probability `rate`, the others scaled by 1 / (1 - rate).

    Args:
      x: [B, ...].
      rate: in [0, 1); may be traced.
      keys: [B].
      shape: of one clip's draw, broadcast against x[i]: x.shape[1:] for dropout, all ones for drop
        path, which drops the whole residual branch of a clip.
    """
    keep = uniform(keys, shape) >= rate
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))
