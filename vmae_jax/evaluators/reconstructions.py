"""What a pre-trained model makes of the hidden patches of held-out clips: pictures and PSNR."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from vmae_jax import pictures, randomness, sharding
from vmae_jax.errors import SettingError
from vmae_jax.evaluators.evaluator import Context, Evaluator
from vmae_jax.files.storage import local_folder
from vmae_jax.processes.distributed import is_main
from vmae_jax.reconstruction import Reconstruction, difference, psnr, reconstruct
from vmae_jax.videomae import VideoMAE

logger = logging.getLogger(__name__)


class Reconstructions(Evaluator):
    """Draws the first held-out clips, under <workdir>/pictures, and measures more of them.

    Each clip is seen under masks of its own, which are the same in every run, whatever its seed: so
    runs differ by their models alone.

    Args:
      num_clips: that are drawn, under the first of their masks.
      num_measured: of so many held-out clips at most the PSNR is measured, the drawn ones included.
      num_masks: of a clip that is measured. What a mask happens to show of a clip moves its PSNR by
        more than a decibel, so a small held-out set wants several.
    Raises:
      SettingError: if the task hides no patches, or a number is below 1.
    """

    measures = False

    def __init__(
        self, context: Context, *, num_clips: int = 3, num_measured: int = 32, num_masks: int = 1
    ):
        super().__init__(context)
        if not hasattr(context.task, "draw_mask"):
            raise SettingError(
                f"evals.reconstructions is for tasks that hide patches, and task="
                f"{context.config.task!r} does not; set evals.reconstructions.every_steps=0."
            )
        numbers = {"num_clips": num_clips, "num_measured": num_measured, "num_masks": num_masks}
        for name, number in numbers.items():
            if number < 1:
                raise SettingError(
                    f"evals.reconstructions.{name}={number} must be at least 1; to draw and "
                    "measure nothing, set evals.reconstructions.every_steps=0."
                )
        self._num_clips, self._num_measured, self._num_masks = numbers.values()

    def __call__(self, params: dict[str, Any], step: int) -> dict[str, float]:
        """All processes call it, as the parameters may lie on all of them; one draws and measures.

        Returns:
          "psnr" of the leak-free prediction of hidden pixels, "interpolation_psnr" of linear
          interpolation (`interpolate_visible`), and their difference "gain_over_interpolation", all
          in dB and of errors pooled over clips and masks. {} in the other processes.
        """
        context, steps = self.context, self.context.steps
        params = params | context.frozen.get("model", {})
        everywhere = jax.jit(lambda x: x, out_shardings=sharding.replicated(steps.mesh))(params)
        if not is_main() or context.workdir is None:
            return {}
        here = jax.tree.map(lambda x: x.addressable_data(0), everywhere)
        model = nnx.merge(steps.graphdef, here)
        folder = os.path.join(context.workdir, "pictures")
        with jax.set_mesh(None), local_folder(folder) as local:
            errors = np.array([
                [found.renderings[0].error[0], found.interpolated_error[0]]
                for found in self._reconstructions(model, local)
            ])  # fmt: skip
        if not errors.size:
            return {}
        error, interpolated = map(psnr, errors.T)
        gain = difference(error, interpolated)
        logger.info(
            "hidden patches of %d held-out clips, %d masks each: PSNR %.2f dB, of linear "
            "interpolation %.2f dB, gain %+.2f dB",
            len(errors) // self._num_masks, self._num_masks, error, interpolated, gain,
        )  # fmt: skip
        logger.info("pictures: %s", folder)
        return {
            "psnr": error,
            "interpolation_psnr": interpolated,
            "gain_over_interpolation": gain,
        }

    def _reconstructions(self, model: VideoMAE, folder: str) -> Iterator[Reconstruction]:
        """Of one clip and mask at a time: one program serves all, and memory is no question."""
        task, samples = self.context.task, self.context.samples
        for i in range(min(max(self._num_measured, self._num_clips), len(samples))):
            clip = samples.group(i)
            if not clip["weight"].all():  # a bad one that data.skip_bad_held_out leaves out
                continue
            key = jax.random.fold_in(jax.random.key(0), i)
            for number, mask_key in enumerate(randomness.clip_keys(key, self._num_masks)):
                mask = task.draw_mask(mask_key[None], model.config)
                found = reconstruct(model, clip["video"], mask)
                if number == 0 and i < self._num_clips:
                    self._draw(found, os.path.join(folder, f"reconstruction_{i}"), clip)
                yield found

    def _draw(self, reconstruction: Reconstruction, stem: str, clip: dict[str, Any]) -> None:
        captions = {
            "clip_name": clip["clip_id"][0],
            "mask_name": f"{self.context.task.mask_name} mask",
        }
        pictures.draw_reconstruction(reconstruction, f"{stem}.png", **captions)
        pictures.animate_reconstruction(reconstruction, f"{stem}.gif", **captions)
