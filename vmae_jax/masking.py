"""Which tokens the encoder sees, and which the decoder must predict.

A mask is two index arrays of fixed length, never a boolean array: shapes stay static under jit and
there is no polarity to remember. Each row is ascending, as the originals' boolean indexing leaves
it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax import randomness
from vmae_jax.errors import SettingError


class Mask(NamedTuple):
    """Token indices into the flattened (t, h, w) grid, each row ascending.

    Attributes:
      visible: int32 [B, N_vis], given to the encoder.
      masked: int32 [B, N_mask], predicted by the decoder.
    """

    visible: jax.Array
    masked: jax.Array

    @classmethod
    def from_bool(cls, bool_masked_pos, *, num_masked: int | None = None) -> Mask:
        """The mask that hides the True tokens.

        Outside jit everything is checked. Under jit values cannot be looked at: `num_masked` has to
        be given, only dtype and shape are checked, and a row with another count gives wrong
        indices.

        Args:
          bool_masked_pos: bool [B, N], True (1) = hidden; at least one hidden and one visible
            token, the same number of hidden ones in each row.
          num_masked: hidden tokens per row; needed under jit, checked outside.
        Raises:
          ValueError: for other dtypes or shapes, and outside jit for unequal or impossible counts.
        """
        traced = isinstance(bool_masked_pos, jax.core.Tracer)
        hidden = bool_masked_pos if traced else np.asarray(bool_masked_pos)
        if hidden.dtype != bool:
            raise ValueError(
                f"bool_masked_pos has dtype {hidden.dtype}, but must be boolean (True = hidden); "
                "convert it with .astype(bool)."
            )
        if hidden.ndim != 2:
            raise ValueError(
                f"bool_masked_pos has shape {hidden.shape}, but must be (batch, tokens)."
            )
        num_tokens = hidden.shape[1]
        if traced:
            if num_masked is None:
                raise ValueError(
                    "num_masked=None: under jit the number of hidden tokens must be given as a "
                    "static keyword; or convert the mask outside jit with Mask.from_bool."
                )
        else:
            counts = hidden.sum(axis=1)
            if len(set(counts.tolist())) > 1:
                raise ValueError(
                    f"bool_masked_pos hides {counts.tolist()} tokens in its rows; every clip of a "
                    "batch must hide the same number."
                )
            found = int(counts[0]) if len(counts) else 0
            if num_masked is not None and num_masked != found:
                raise ValueError(f"num_masked={num_masked}, but bool_masked_pos hides {found}.")
            num_masked = found
        if not 0 < num_masked < num_tokens:
            raise ValueError(
                f"{num_masked} of {num_tokens} tokens are hidden; at least one must be hidden and "
                "one visible."
            )
        return cls._from_order(jnp.argsort(jnp.asarray(hidden), axis=1), num_masked)

    @classmethod
    def _from_order(cls, order: jax.Array, num_masked: int) -> Mask:
        """From token indices [B, N], the hidden ones last; the rows are sorted here."""
        order = order.astype(jnp.int32)
        num_visible = order.shape[1] - num_masked
        return cls(
            visible=jnp.sort(order[:, :num_visible], axis=1),
            masked=jnp.sort(order[:, num_visible:], axis=1),
        )

    def to_bool(self) -> jax.Array:
        """bool [B, N], True = hidden."""
        batch_size, num_visible = self.visible.shape
        num_tokens = num_visible + self.masked.shape[1]
        rows = jnp.arange(batch_size)[:, None]
        return jnp.zeros((batch_size, num_tokens), bool).at[rows, self.masked].set(True)


def _num_hidden(name: str, places: int, mask_ratio: float) -> int:
    """Truncates as the originals do: 0.9 of 196 is 176."""
    count = int(mask_ratio * places)
    if not 0 < count < places:
        raise SettingError(
            f"mask_ratio={mask_ratio} hides {count} of {places} {name}; "
            "at least one must be hidden and one visible."
        )
    return count


def tube_mask(
    key: jax.Array, batch_size: int, grid: tuple[int, int, int], mask_ratio: float
) -> Mask:
    """Hides the same patches at every time step (VideoMAE, section 3.3).

    Args:
      key: one PRNG key, or one per clip [B].
      batch_size: B.
      grid: (t, h, w) of tokens.
      mask_ratio: share hidden in each time step, in (0, 1).
    Returns:
      Mask with N_mask = t * int(mask_ratio * h * w): 1408 of 1568 for 0.9 at 16 frames of 224².
    Raises:
      ValueError: if nothing would be hidden, or nothing visible.
    Source: masking_generator.py of the official code.
    """
    t, h, w = grid
    per_step = _num_hidden("patches of a frame", h * w, mask_ratio)
    noise = randomness.uniform(randomness.clip_keys(key, batch_size), (h * w,))
    space = Mask._from_order(jnp.argsort(noise, axis=1), per_step)
    steps = jnp.arange(t, dtype=jnp.int32)[:, None] * (h * w)
    over_time = [(steps + x[:, None, :]).reshape(batch_size, -1) for x in space]
    return Mask(*over_time)


def random_mask(
    key: jax.Array, batch_size: int, grid: tuple[int, int, int], mask_ratio: float
) -> Mask:
    """Hides tokens anywhere in space and time; N_mask = int(mask_ratio * t * h * w).

    Arguments and errors as in `tube_mask`. Source: VideoMAE, table 1c ("random").
    """
    num_tokens = math.prod(grid)
    noise = randomness.uniform(randomness.clip_keys(key, batch_size), (num_tokens,))
    return Mask._from_order(
        jnp.argsort(noise, axis=1), _num_hidden("tokens", num_tokens, mask_ratio)
    )


def frame_mask(
    key: jax.Array, batch_size: int, grid: tuple[int, int, int], mask_ratio: float
) -> Mask:
    """Hides whole time steps; N_mask = int(mask_ratio * t) * h * w.

    Arguments and errors as in `tube_mask`. Source: VideoMAE, table 1c ("frame", 0.875: 7 of 8).
    """
    t, h, w = grid
    hidden_steps = _num_hidden("time steps", t, mask_ratio)
    noise = randomness.uniform(randomness.clip_keys(key, batch_size), (t,))
    time = Mask._from_order(jnp.argsort(noise, axis=1), hidden_steps)
    places = jnp.arange(h * w, dtype=jnp.int32)
    over_space = [(x[:, :, None] * (h * w) + places).reshape(batch_size, -1) for x in time]
    return Mask(*over_space)


MASKS = {"tube": tube_mask, "random": random_mask, "frame": frame_mask}
