"""FLOPs that our loss and gradient compile to, over the least that any program needs.

    PYTHONPATH=. python benchmarks/flops.py

Nothing is run and no parameter is made: programs are compiled from shapes, for the CPU. XLA counts
the body of a scan once, however often it runs, so the blocks are unrolled here. Its count has
everything in it: LayerNorm, softmax, targets, masks, mixup. The least (`vmae_jax.flops`) is only
products. Exit status 1 if a program has more than the goal.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # other backends count otherwise, and kernels of their own as 0

import jax
import jax.numpy as jnp
import training_step
from flax import nnx
from side_by_side import command_line, machine, versions, write_json

from vmae_jax import randomness
from vmae_jax.assembly import make_model_config
from vmae_jax.tasks import make_task
from vmae_jax.vit import Compute

GOAL = 1.05  # compiled over least, at most
PROGRAMS = ("S", "B", "L", "H", "B fine-tuning")


def count(program: str, settings: dict) -> dict:
    """FLOPs per clip of one program: the least, as traced, as compiled.

    Args:
      program: a size, for pre-training; or a size and "fine-tuning".
      settings: `batch`, `mask_ratio`, `remat`; `model`, fields to set otherwise than 16 x 224².
    """
    size, *tuning = program.split()
    own = {"num_labels": 400, "drop_path_rate": 0.1} if tuning else {}
    recipe = training_step.recipe(
        {
            "task": "finetuning" if tuning else "pretraining",
            "size": size,
            "dtype": "float32",
            "attention": "xla",
            "unroll": True,
            **settings,
            "model": {"use_mean_pooling": bool(tuning), **own, **settings["model"]},
        }
    )
    task, config = make_task(recipe), make_model_config(recipe)
    compute = Compute(**recipe.compute)

    def make_model():
        return task.make_model(config, compute, nnx.Rngs(params=0))

    def loss_and_gradient(params, batch, key):
        keys = randomness.clip_keys(key, settings["batch"])
        batch = task.prepare(batch, keys)

        def loss_of(params):
            return task.objective(nnx.merge(graphdef, params), batch, keys, {})[0]

        return jax.value_and_grad(loss_of)(params)

    graphdef = nnx.graphdef(nnx.eval_shape(make_model))
    params = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(make_model(), nnx.Param)))
    shape = (settings["batch"], config.num_frames, *config.frame_size, config.num_channels)
    batch = {"video": jax.ShapeDtypeStruct(shape, jnp.uint8)}
    if tuning:
        batch["label"] = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    key = jax.eval_shape(jax.random.key, 0)
    lowered = jax.jit(loss_and_gradient).lower(params, batch, key)

    least = task.work(config).flops()
    traced = lowered.cost_analysis()["flops"] / settings["batch"]
    compiled = lowered.compile().cost_analysis()["flops"] / settings["batch"]
    return {
        "least": least,
        "traced": traced,
        "compiled": compiled,
        "traced_over_least": traced / least,
        "compiled_over_least": compiled / least,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", nargs="+", default=PROGRAMS)
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--mask-ratio", type=float, default=0.9)
    parser.add_argument("--remat", choices=["none", "attention", "full"], default="none")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "flops_cpu.json"
    )
    args = parser.parse_args()

    print(f"{'GFLOP per clip':<16}{'least':>10}{'traced':>18}{'compiled':>18}")
    sizes = {}
    settings = {"batch": args.batch, "mask_ratio": args.mask_ratio, "remat": args.remat}
    for program in args.programs:
        sizes[program] = x = count(program, {**settings, "model": {}})
        cells = "".join(
            f"{x[name] / 1e9:>10.1f} ({x[f'{name}_over_least']:.3f})"
            for name in ("traced", "compiled")
        )
        print(f"{program:<16}{x['least'] / 1e9:>10.1f}{cells}", flush=True)
    result = {
        "benchmark": "flops",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "flax", "optax", "numpy"),
        "settings": settings,
        "goal": GOAL,
        "sizes": sizes,
    }
    write_json(result, args.output)
    return 0 if all(x["compiled_over_least"] <= GOAL for x in sizes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
