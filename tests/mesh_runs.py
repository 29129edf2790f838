"""Ten steps on meshes of eight pretended devices, and on one; prints JSON.

python tests/mesh_runs.py 8x1x1/1 2x4x1/2      # data x fsdp x tensor / micro-batches
python tests/mesh_runs.py --finetuning 2x2x2/2

test_sharding.py runs a few of them, the fault campaign all.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import tiny
from flax import nnx

from configs import default
from vmae_jax import assembly, masking, sharding
from vmae_jax.tasks import make_task
from vmae_jax.vit import Block, Compute, make_blocks, run_blocks

ALL = [f"{m}/{a}" for m in ("8x1x1", "1x8x1", "2x2x2", "2x4x1") for a in (1, 2)]
SETTINGS = {
    **tiny.MODEL,
    "model.patch_size": 8,
    "model.drop_path_rate": 0.3,
    "model.hidden_dropout_prob": 0.2,
    "compute.dtype": "float32",
    "pretraining.mask_ratio": 0.5,
    "data.batch_size": 16,
    "schedule.num_steps": 20,
    "schedule.warmup_steps": 2,
    "schedule.base_lr": 1e-2 * 16,
}

# groups of four clips, of which a device holds two
FINE_TUNING = {
    "task": "finetuning",
    "model.use_mean_pooling": True,
    "model.num_labels": 8,
    "model.head_dropout_prob": 0.2,
    "finetuning.mixup.group": 4,
    "finetuning.head_init_scale": 1.0,
    "optimizer.layer_decay": 0.75,
    "optimizer.ema_decay": 0.9,
}


def make_config(**changes):
    config = default.get_config()
    config.update_from_flattened_dict(SETTINGS | changes)
    return config


def run(videos, num_devices: int, **changes) -> dict:
    """Losses, masks (as drawn inside the step) and what of the state lies on the first device."""
    masks = []

    def spied(*args):
        mask = original(*args)
        jax.debug.callback(lambda hidden: masks.append(np.asarray(hidden)), mask.masked)
        return mask

    original, masking.MASKS["tube"] = masking.MASKS["tube"], spied
    try:
        config = make_config(**changes)
        steps = assembly.make_steps(
            config, make_task(config), num_records=None, devices=jax.devices()[:num_devices]
        )
        losses = []
        with jax.set_mesh(steps.mesh):
            state, frozen = steps.init()
            for video in videos:
                batch = {"video": video, "label": video[:, 0, 0, 0, 0].astype(np.int32) % 8}
                batch = sharding.to_devices(batch, steps.batch, steps.mesh)
                state, metrics = steps.train(state, batch, frozen)
                losses.append(float(metrics["loss"]))
        jax.effects_barrier()
    finally:
        masking.MASKS["tube"] = original
    rows = sorted(map(tuple, np.concatenate(masks).tolist())) if masks else []
    kernel = state.params["encoder"]["intermediate"]["kernel"]
    return {
        "losses": losses,
        "masks": rows,
        "shard": kernel.addressable_shards[0].data.shape,
        "moment_shard": state.opt_state["adam"]
        .mu["encoder"]["intermediate"]["kernel"]
        .addressable_shards[0]
        .data.shape,
    }


def gradient_memory() -> int:
    """Bytes that a device needs besides its arguments for the gradient of a stack over fsdp 4."""
    model_config = assembly.make_model_config(make_config())
    compute = Compute(dtype="bfloat16")
    depth = 8

    def stack():
        def block(rngs):
            return Block(128, 2, 512, model_config, compute, nnx.initializers.normal(), rngs)

        return make_blocks(depth, block, nnx.Rngs(0))

    graphdef, shapes = nnx.split(nnx.eval_shape(stack))
    shapes = {"encoder": nnx.to_pure_dict(shapes)}

    def loss(params, x):
        return run_blocks(nnx.merge(graphdef, params), x, depth, compute)[0].astype("float32").sum()

    mesh = sharding.make_mesh(fsdp=4)
    shardings = sharding.state_shardings(shapes, mesh)["encoder"]
    params = jax.tree.map(
        lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
        shapes["encoder"],
        shardings,
    )
    x = jax.ShapeDtypeStruct((8, 8, 128), "bfloat16", sharding=sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss), out_shardings=shardings).lower(params, x).compile()
    return program.memory_analysis().temp_size_in_bytes


def main() -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    sharding.MIN_FSDP_BYTES = 256  # or nothing of so small a model would be split
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 256, (16, 4, 32, 32, 3), dtype=np.uint8) for _ in range(10)]
    names = [name for name in sys.argv[1:] if name != "--finetuning"]
    common = FINE_TUNING if len(names) < len(sys.argv) - 1 else {}
    results = {"one": run(videos, 1, **common)}
    for name in names or ALL:
        mesh, accumulation = name.split("/")
        data, fsdp, tensor = map(int, mesh.split("x"))
        changes = {
            "mesh.data": data,
            "mesh.fsdp": fsdp,
            "mesh.tensor": tensor,
            "optimizer.accumulation": int(accumulation),
            **common,
        }
        results[name] = run(videos, 8, **changes)
    if not common:
        results["memory"] = gradient_memory()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
