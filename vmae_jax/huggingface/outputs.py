"""What the models return: named values that are also a mapping, a tuple, and a pytree.

outputs.loss, outputs["loss"], outputs[0]        # the same
list(outputs)                                    # ["loss", "logits"]: None is left out
features, *others = outputs.to_tuple()           # what return_dict=False returns
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import struct


class ModelOutput(Mapping):
    """An ordered mapping from the names of the fields that are not None to their values.

    Integers and slices index the tuple of these values. It cannot be changed; `replace` makes
    another.
    """

    def _names(self) -> list[str]:
        names = (field.name for field in dataclasses.fields(self))
        return [name for name in names if getattr(self, name) is not None]

    def to_tuple(self) -> tuple:
        """The values that are not None, in order: what `return_dict=False` returns."""
        return tuple(getattr(self, name) for name in self._names())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self._names():
            raise KeyError(f"{key!r} is none of what was asked for: {self._names()}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())


@struct.dataclass
class BaseModelOutput(ModelOutput):
    """Attributes:
    last_hidden_state: [B, N or N_vis, D].
    hidden_states: depth + 1 arrays [B, N or N_vis, D], the embeddings first; or None.
    attentions: depth arrays [B, heads, N, N] or with N_vis; or None.
    """

    last_hidden_state: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@struct.dataclass
class VideoMAEForPreTrainingOutput(ModelOutput):
    """Attributes:
    loss: fp32 scalar.
    logits: [B, N_mask, P], predicted targets of the masked tubelets.
    hidden_states, attentions: of the encoder, as in `BaseModelOutput`.
    """

    loss: jax.Array | None = None
    logits: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@struct.dataclass
class ImageClassifierOutput(ModelOutput):
    """Attributes:
    loss: fp32 scalar; None without labels.
    logits: [B, num_labels]; the pooled features [B, D] if num_labels is 0.
    hidden_states, attentions: as in `BaseModelOutput`.
    """

    loss: jax.Array | None = None
    logits: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
