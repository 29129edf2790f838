"""Which checkpoints of a run stay: the newest, regular ones, and the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from vmae_jax.errors import SettingError


@dataclasses.dataclass(frozen=True)
class Retention:
    """A rule; a checkpoint stays if any part of it speaks for it.

    Attributes:
      keep: so many of the newest; at least 1.
      keep_every: steps that are multiples of it; None for none.
      keep_best: so many of those with the best metric; ignored without `best_metric`.
      best_metric: its name, e.g. "held_out/loss"; None for none.
      best_mode: "min" or "max".
    Raises:
      ValueError: for numbers below 1, or another mode.
    """

    keep: int
    keep_every: int | None = None
    keep_best: int = 1
    best_metric: str | None = None
    best_mode: str = "min"

    def __post_init__(self):
        for name in ("keep", "keep_every", "keep_best"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name}={value} is below 1; give how many are to be kept.")
        if self.best_mode not in ("min", "max"):
            raise SettingError(f"best_mode={self.best_mode!r} is unknown; known are: min, max.")

    def expendable(self, metrics: Mapping[int, Mapping[str, float]]) -> list[int]:
        """The steps that may go, oldest first.

        Args:
          metrics: of each step that is there; those without the metric, or with one that is not
            finite, are never the best.
        """
        steps = sorted(metrics)
        kept = set(steps[-self.keep :])
        if self.keep_every is not None:
            kept |= {step for step in steps if step % self.keep_every == 0}
        if self.best_metric is not None:
            sign = 1 if self.best_mode == "min" else -1
            ranked = sorted(
                (sign * value, -step)  # of equals, the one that was trained longer
                for step in steps
                if (value := metrics[step].get(self.best_metric)) is not None
                and math.isfinite(value)
            )
            kept |= {-negative for _, negative in ranked[: self.keep_best]}
        return [step for step in steps if step not in kept]
