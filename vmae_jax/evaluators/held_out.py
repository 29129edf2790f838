"""The task's own metrics on the held-out clips."""

from __future__ import annotations

import collections
from typing import Any

import jax

from vmae_jax.evaluators.evaluator import Evaluator, held_out_batches


class HeldOut(Evaluator):
    """Means over all held-out clips, each counted once on whatever host."""

    def __call__(self, params: dict[str, Any], step: int) -> dict[str, float]:
        """The metrics of the task's objective."""
        evaluate, frozen = self.context.steps.evaluate, self.context.frozen
        totals: dict[str, float] = collections.defaultdict(float)
        for batch in held_out_batches(self.context):
            metrics = jax.device_get(evaluate(params, batch, frozen))
            weight = float(metrics.pop("weight"))
            if weight == 0:  # bad clips only: the other metrics are 0 / 0
                continue
            totals["weight"] += weight
            for name, value in metrics.items():
                totals[name] += weight * float(value)
        weight = totals.pop("weight")
        return {name: total / weight for name, total in totals.items()}
