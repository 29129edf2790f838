"""What a pre-trained model makes of the hidden patches of held-out clips, as pictures."""

from __future__ import annotations

import logging
import os
from typing import Any

import jax
import numpy as np
from flax import nnx

from vmae_jax import pictures, randomness, sharding
from vmae_jax.errors import SettingError
from vmae_jax.evaluators.evaluator import Context, Evaluator
from vmae_jax.files.storage import local_folder
from vmae_jax.processes.distributed import is_main
from vmae_jax.reconstruction import gain, psnr, reconstruct

logger = logging.getLogger(__name__)


class Reconstructions(Evaluator):
    """Draws the first held-out clips, under <workdir>/pictures, and logs their PSNR.

    Args:
      num_clips: that are drawn.
    Raises:
      SettingError: if the task hides no patches, or num_clips is below 1.
    """

    measures = False

    def __init__(self, context: Context, *, num_clips: int = 3):
        super().__init__(context)
        if not hasattr(context.task, "draw_mask"):
            raise SettingError(
                f"evals.reconstructions is for tasks that hide patches, and task="
                f"{context.config.task!r} does not; set evals.reconstructions.every_steps=0."
            )
        if num_clips < 1:
            raise SettingError(
                f"evals.reconstructions.num_clips={num_clips} must be at least 1; to draw nothing, "
                "set evals.reconstructions.every_steps=0."
            )
        self._num_clips = num_clips

    def __call__(self, params: dict[str, Any], step: int) -> dict[str, float]:
        """All processes call it, as the parameters may lie on all of them; one draws."""
        context, task, steps = self.context, self.context.task, self.context.steps
        params = params | context.frozen.get("model", {})
        everywhere = jax.jit(lambda x: x, out_shardings=sharding.replicated(steps.mesh))(params)
        if not is_main() or context.workdir is None:
            return {}
        here = jax.tree.map(lambda x: x.addressable_data(0), everywhere)
        model = nnx.merge(steps.graphdef, here)
        clips = [
            context.samples.group(i) for i in range(min(self._num_clips, len(context.samples)))
        ]
        video = np.concatenate([clip["video"] for clip in clips])
        with (
            jax.set_mesh(None),
            local_folder(os.path.join(context.workdir, "pictures")) as folder,
        ):
            keys = randomness.clip_keys(jax.random.key(context.config.seed), len(clips))
            reconstruction = reconstruct(model, video, task.draw_mask(keys, model.config))
            for i, clip in enumerate(clips):
                names = {"clip_name": clip["clip_id"][0], "mask_name": f"{task.mask_name} mask"}
                stem = os.path.join(folder, f"reconstruction_{i}")
                pictures.draw_reconstruction(reconstruction, f"{stem}.png", clip=i, **names)
                pictures.animate_reconstruction(reconstruction, f"{stem}.gif", clip=i, **names)
        for rendering in reconstruction.renderings:
            logger.info(
                "hidden patches, %s: PSNR %.2f dB, of a zero prediction %.2f dB, gain %+.2f dB",
                rendering.name, psnr(rendering.error), psnr(rendering.zero_error), gain(rendering),
            )  # fmt: skip
        logger.info("pictures: %s", os.path.join(context.workdir, "pictures"))
        return {}
