"""FLOPs that our loss and gradient compile to, over the least that any program needs.

    PYTHONPATH=. python benchmarks/flops.py

Nothing is run and no parameter is made: programs are compiled from shapes, for the CPU. XLA counts
the body of a scan once, however often it runs, so the blocks are unrolled here. Its count has
everything in it: LayerNorm, softmax, targets, masks. The least (`vmae_jax.flops`) is only products.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # other backends count otherwise, and kernels of their own as 0

import jax
import jax.numpy as jnp
from flax import nnx
from train_step import command_line, machine, versions, write_json

from vmae_jax import objectives, training
from vmae_jax.config import VideoMAEConfig
from vmae_jax.flops import pretraining_flops
from vmae_jax.masking import tube_mask
from vmae_jax.vit import Compute


def count(size: str, batch_size: int, mask_ratio: float, remat: str) -> dict:
    """FLOPs per clip of one size at 16 x 224²: the least, as traced, as compiled."""
    config = VideoMAEConfig.from_size(size, use_mean_pooling=False)
    compute = Compute(unroll=True, remat=remat)
    graphdef = training.graph_definition(config, compute)
    objective = functools.partial(objectives.pretraining_objective, mask_ratio=mask_ratio)

    def init():
        return nnx.to_pure_dict(nnx.state(training.make_model(config, compute, 0), nnx.Param))

    def loss_and_gradient(params, video, key):
        def loss_of(params):
            return objective(nnx.merge(graphdef, params), {"video": video}, key)[0]

        return jax.value_and_grad(loss_of)(params)

    shape = (batch_size, config.num_frames, *config.frame_size, config.num_channels)
    video = jax.ShapeDtypeStruct(shape, jnp.uint8)
    key = jax.eval_shape(jax.random.key, 0)
    lowered = jax.jit(loss_and_gradient).lower(jax.eval_shape(init), video, key)

    mask = jax.eval_shape(lambda key: tube_mask(key, 1, config.grid, mask_ratio), key)
    least = pretraining_flops(config, mask.masked.shape[1])
    traced = lowered.cost_analysis()["flops"] / batch_size
    compiled = lowered.compile().cost_analysis()["flops"] / batch_size
    return {
        "least": least,
        "traced": traced,
        "compiled": compiled,
        "traced_over_least": traced / least,
        "compiled_over_least": compiled / least,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["S", "B", "L"])
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--mask-ratio", type=float, default=0.9)
    parser.add_argument("--remat", choices=["none", "attention", "full"], default="none")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "flops_cpu.json"
    )
    args = parser.parse_args()

    print(f"{'GFLOP per clip':<16}{'least':>10}{'traced':>18}{'compiled':>18}")
    sizes = {}
    for size in args.sizes:
        sizes[size] = x = count(size, args.batch, args.mask_ratio, args.remat)
        cells = "".join(
            f"{x[name] / 1e9:>10.1f} ({x[f'{name}_over_least']:.3f})"
            for name in ("traced", "compiled")
        )
        print(f"{size:<16}{x['least'] / 1e9:>10.1f}{cells}", flush=True)
    result = {
        "benchmark": "flops",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "flax", "optax", "numpy"),
        "settings": {"batch": args.batch, "mask_ratio": args.mask_ratio, "remat": args.remat},
        "sizes": sizes,
    }
    write_json(result, args.output)


if __name__ == "__main__":
    main()
