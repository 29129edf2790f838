"""Which tokens the encoder sees, and which the decoder must predict.

A mask is two index arrays of fixed length, never a boolean array: shapes stay static under jit and
there is no polarity to remember. Each row is ascending, as the originals' boolean indexing leaves
it.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax import randomness
from vmae_jax.errors import SettingError


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """Token indices into the flattened (t, h, w) grid. A pytree; `num_tokens` is static.

    A token may be neither visible nor masked: then the encoder does not see it, and the decoder
    does not predict it (as with VideoMAE V2's decoder mask).

    Attributes:
      visible: int32 [B, N_vis], given to the encoder; each row ascending.
      masked: int32 [B, N_mask], predicted by the decoder; each row ascending.
      num_tokens: N, tokens of a clip; None if every token is either visible or masked.

    Raises:
      ValueError: for shapes, dtypes or a number of tokens that do not fit; outside jit also for an
        index that is not in [0, N), or that a clip has twice.
    """

    visible: jax.Array
    masked: jax.Array
    num_tokens: int | None = None

    def __post_init__(self):
        visible, masked = jnp.asarray(self.visible), jnp.asarray(self.masked)
        if visible.ndim != 2 or masked.ndim != 2 or len(visible) != len(masked):
            raise ValueError(
                f"visible has shape {visible.shape} and masked {masked.shape}, but both must be "
                "(batch, tokens), with the same batch."
            )
        if not all(jnp.issubdtype(array.dtype, jnp.integer) for array in (visible, masked)):
            raise ValueError(
                f"visible has dtype {visible.dtype} and masked {masked.dtype}, but both must be "
                "integer indices; Mask.from_bool takes booleans."
            )
        num_given = visible.shape[1] + masked.shape[1]
        num_tokens = num_given if self.num_tokens is None else self.num_tokens
        if num_given > num_tokens:
            raise ValueError(
                f"num_tokens={num_tokens}, but {visible.shape[1]} tokens are visible and "
                f"{masked.shape[1]} masked; no token can be both."
            )
        if _can_be_read(visible) and _can_be_read(masked):
            _check_indices(np.concatenate([visible, masked], axis=1), num_tokens)
        self._set(visible, masked, num_tokens)

    def _set(self, visible, masked, num_tokens: int) -> None:
        object.__setattr__(self, "visible", visible)
        object.__setattr__(self, "masked", masked)
        object.__setattr__(self, "num_tokens", num_tokens)

    def tree_flatten_with_keys(self):
        """For jax: the two arrays with their names, and the static number of tokens."""
        arrays = [
            (jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in ("visible", "masked")
        ]
        return arrays, self.num_tokens

    @classmethod
    def tree_unflatten(cls, num_tokens: int, arrays) -> Mask:
        """For jax. Nothing is checked, for its transformations put in what they like."""
        mask = object.__new__(cls)
        mask._set(*arrays, num_tokens)
        return mask

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
        """bool [B, N], True = hidden from the encoder, whether or not the decoder predicts it."""
        hidden = jnp.ones((*self.visible.shape[:-1], self.num_tokens), bool)
        return jnp.put_along_axis(hidden, self.visible, False, axis=-1, inplace=False)


def _can_be_read(array) -> bool:
    """Whether the values are at hand: not under jit, nor spread over other processes."""
    if isinstance(array, jax.core.Tracer):
        return False
    return getattr(array, "is_fully_addressable", True)


def _check_indices(indices: np.ndarray, num_tokens: int) -> None:
    """Checks that each row [B, n] holds n different tokens of N.

    Raises:
      ValueError: if one does not.
    """
    if outside := indices[(indices < 0) | (indices >= num_tokens)].tolist():
        raise ValueError(f"token {outside[0]} is not in [0, num_tokens={num_tokens}).")
    ordered = np.sort(indices, axis=1)
    clips, places = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
    if len(clips):
        raise ValueError(
            f"token {ordered[clips[0], places[0]]} of clip {clips[0]} occurs twice; a token is "
            "visible, or masked, or neither."
        )


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

    def over_time(places):
        return (steps + places[:, None, :]).reshape(batch_size, -1)

    return Mask(over_time(space.visible), over_time(space.masked))


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

    def over_space(steps):
        return (steps[:, :, None] * (h * w) + places).reshape(batch_size, -1)

    return Mask(over_space(time.visible), over_space(time.masked))


MASKS = {"tube": tube_mask, "random": random_mask, "frame": frame_mask}
