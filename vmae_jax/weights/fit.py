"""How a checkpoint fits a model: what goes where; and if it does not, all that is wrong."""

from __future__ import annotations

import re
from typing import NamedTuple

from vmae_jax.weights.layouts import Row
from vmae_jax.weights.stored import Stored
from vmae_jax.weights.tensors import some

FLOATS = ("float64", "float32", "float16", "bfloat16")  # dtypes that weights may have
_REFUSED = 500  # names: all of a real model, not the million of a bad file
# What some files of related models hold, and this model has no place for.
_FOREIGN_PARTS = {
    r"\.gamma_[12]$": "layer scale (gamma_1, gamma_2), which no published VideoMAE has",
    r"\.attn\.scale$": "cosine attention (attn.scale), which no published VideoMAE has",
    r"(^|\.)pos_embed$": "a learned position table, and that of every published VideoMAE is fixed",
    r"^roi_head\.": "a detection head (roi_head), which is not supported",
}


class Fit(NamedTuple):
    """What of a checkpoint would go where in a model.

    Attributes:
      rows: the layout's row, its names per layer, and the shape of one layer of our parameter.
      missing, unexpected: names of tensors.
      misshaped, mistyped: sentences.
      loaded, dropped, fresh: parts of a model, e.g. "decoder".
      resized: names of tensors of a classifier with other classes, which is left out.
      key_biases: tensors that have no place and must be zero.
    """

    rows: list[tuple[Row, list[tuple[str, ...]], tuple[int, ...]]]
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]
    mistyped: list[str]
    loaded: list[str]
    dropped: list[str]
    fresh: list[str]
    resized: list[str]
    key_biases: list[str]

    @property
    def fits(self) -> bool:
        """Whether the model can be made of the checkpoint."""
        return not (self.missing or self.unexpected or self.misshaped or self.mistyped)

    def refusal(self, stored: Stored, decoder: bool, classifier: bool) -> str:
        """All that does not fit, and what to do about it.

        Args:
          stored: the checkpoint.
          decoder, classifier: the parts that the model has besides the encoder.
        """
        problems = [
            f"{kind}: {some(names, _REFUSED)}"
            for kind, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.misshaped),
                (f"none of {', '.join(FLOATS)}", self.mistyped),
            )
            if names
        ]
        hints = [
            f"It holds {what}."
            for pattern, what in _FOREIGN_PARTS.items()
            if any(re.search(pattern, name) for name in self.unexpected)
        ]
        if decoder and not stored.has("decoder"):
            hints.append(
                "It has no decoder, so it is no pre-training checkpoint; load it with "
                "VideoMAEModel or VideoMAEForVideoClassification."
            )
        if self.misshaped and all(
            s.startswith(("classifier", "head.", "cls_head.")) for s in self.misshaped
        ):
            hints.append(
                "Give ignore_mismatched_sizes=True to start a classifier of other classes fresh."
            )
        for norm, other, pools in (("fc_norm", "layernorm", False), ("layernorm", "fc_norm", True)):
            names = {
                name
                for row in stored.layout.rows
                if row.path.startswith(norm)
                for name in row.foreign
            }
            if classifier and names & set(self.missing) and stored.has(other):
                hints.append(
                    f"It was trained with use_mean_pooling={pools}; give that, or, to train it "
                    "anew with the other, ignore_mismatched_sizes=True."
                )
        if not hints:
            hints.append(
                "Get the file again if it should be whole, or correct what describes the model; "
                "`python -m vmae_jax inspect` shows what the file holds."
            )
        return (
            f"{stored.path} ({stored.layout.name} layout) does not fit the model that its "
            "configuration (or the given options) describes; nothing was loaded. "
            f"{'; '.join(problems)}. {' '.join(hints)}"
        ).rstrip()
