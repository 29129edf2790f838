"""The run's losses as a picture."""

from __future__ import annotations

import os
from typing import Any

from vmae_jax import pictures
from vmae_jax.evaluators.evaluator import Evaluator
from vmae_jax.files.storage import local_folder


class LossCurve(Evaluator):
    """Draws <workdir>/pictures/loss.png."""

    measures = False
    visits = False

    def __call__(self, params: dict[str, Any], step: int) -> dict[str, float]:
        """Draws, in the process that writes the metrics."""
        context = self.context
        logs = context.config.run.log_every_steps > 0
        if not logs or context.metrics_file is None or context.workdir is None:
            return {}
        with local_folder(os.path.join(context.workdir, "pictures")) as folder:
            pictures.draw_curve(
                context.metrics_file,
                os.path.join(folder, "loss.png"),
                baseline=context.task.baseline(context.steps.model_config),
            )
        return {}
