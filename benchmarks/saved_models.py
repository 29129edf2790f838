"""Writes a classifier with random weights, for benchmarks that load one; a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from training_step import recipe


def write(folder: Path, args, *kinds: str) -> dict[str, str]:
    """A path for each kind: "folder" (Hugging Face's form) or "run" (a workdir of ours).

    Args:
      args: of a benchmark: `size`, `model`.
    """
    command = [sys.executable, __file__, str(folder), args.size, json.dumps(args.model), *kinds]
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    return {kind: str(folder / kind) for kind in kinds}


def main(folder: str, size: str, model: str, *kinds: str) -> None:
    # its classifier is large enough to tell right logits from wrong ones, and its last LayerNorm is
    # that of transformers
    fields = {"num_labels": 400, "initialization": "huggingface", "fc_norm_eps": 1e-5}
    fields |= json.loads(model)
    for kind in kinds:
        {"folder": _write_folder, "run": _write_run}[kind](Path(folder, kind), size, fields)


def _write_folder(path: Path, size: str, fields: dict) -> None:
    from flax import nnx

    from vmae_jax import VideoMAEConfig, VideoMAEForVideoClassification

    config = VideoMAEConfig.from_size(size, **fields)
    VideoMAEForVideoClassification(config, rngs=nnx.Rngs(0)).save_pretrained(path)


def _write_run(path: Path, size: str, fields: dict) -> None:
    import jax

    from vmae_jax import assembly
    from vmae_jax.checkpoints.saving import Checkpoints
    from vmae_jax.tasks import make_task

    config = recipe(
        {
            "task": "finetuning",
            "size": size,
            "model": fields,
            "batch": 2,
            "dtype": "float32",
            "attention": "xla",
            "remat": "none",
            "unroll": False,
        }
    )
    steps = assembly.make_steps(
        config, make_task(config), num_records=None, devices=jax.devices()[:1]
    )
    with jax.set_mesh(steps.mesh):
        state, _ = steps.init()  # with the optimizer's, which loading has to leave aside
    checkpoints = Checkpoints(path / "checkpoints", keep=1)
    checkpoints.save(state, 1, {"model": steps.model_config.to_dict()})
    checkpoints.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
