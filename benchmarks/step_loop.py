"""What the host adds to a step: Python time of the loop, and what a call to save holds it up.

    PYTHONPATH=. python benchmarks/step_loop.py

The loop is `vmae_jax.loop.train` itself, with a device step that does nothing and batches that are
there already: what is left is the host's own work. The save is that of a state of 50 MB, the
moments of AdamW included, as the loop calls it between two steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from side_by_side import command_line, machine, versions, write_json

from configs import demo
from vmae_jax import assembly, loop
from vmae_jax.checkpoints.fingerprints import fingerprint
from vmae_jax.checkpoints.saving import Checkpoints
from vmae_jax.data import loader

GOALS = {"python_ms_per_step": 1.0, "save_blocked_ms": 100.0}
STATE_BYTES = 50e6
SETTINGS = {
    "model.hidden_size": 16,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 1,
    "model.intermediate_size": 16,
    "model.decoder_hidden_size": 16,
    "model.decoder_num_hidden_layers": 1,
    "model.decoder_num_attention_heads": 1,
    "model.decoder_intermediate_size": 16,
    "model.image_size": (32, 32),
    "pretraining.mask_ratio": 0.5,
    "data.batch_size": 8,
    "data.cache_size": (32, 32),
    "run.log_every_steps": 50,
    "evals.held_out.every_steps": 0,
    "evals.loss_curve.every_steps": 0,
    "evals.reconstructions.every_steps": 0,
    "run.save_every_steps": 0,
    "run.step_timeout": 600.0,
}


class ReadyBatches:
    """One batch, again and again; notes the main thread's processor time at each."""

    def __init__(self, batch: dict):
        self.batch = batch
        self.times: list[float] = []

    def __next__(self) -> dict:
        self.times.append(time.thread_time())
        return self.batch

    def close(self) -> None:
        """As the loader's."""


def measure_loop(num_steps: int) -> list[float]:
    """Milliseconds of the main thread from one step to the next, logging included."""
    config = demo.get_config()
    config.update_from_flattened_dict(
        {**SETTINGS, "schedule.num_steps": num_steps, "schedule.warmup_steps": 10}
    )
    original = assembly.make_steps, loader.training_batches
    batches = None

    def make_steps(config, task, **kwargs):
        steps = original[0](config, task, **kwargs)
        zero = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-3}
        metrics = {name: jnp.float32(x) for name, x in zero.items()}
        metrics |= {"skipped": jnp.int32(0), "streak": jnp.int32(0)}

        def nothing(state, batch, frozen):
            return state, metrics

        nothing.lower = steps.train.lower
        return dataclasses.replace(steps, train=nothing)

    def training_batches(samples, batch_size, **kwargs):
        nonlocal batches
        real = original[1](samples, batch_size, **kwargs)
        batches = ReadyBatches(next(real))
        real.close()
        return batches

    assembly.make_steps, loader.training_batches = make_steps, training_batches
    try:
        with tempfile.TemporaryDirectory() as workdir:
            loop.train(config, workdir)
    finally:
        assembly.make_steps, loader.training_batches = original
    return list(1000 * np.diff(batches.times[10:]))


def measure_saves(rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds that a save holds up the loop, and seconds that it goes on behind it."""
    size = int(STATE_BYTES / 4 / 3 / 24)
    layers = {f"layer_{i}": jax.random.normal(jax.random.key(i), (size,)) for i in range(24)}
    state = {"params": layers, "mu": layers, "nu": layers}
    fingerprint(state)  # compiled at the start of a run
    blocked, background = [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(os.path.join(folder, "checkpoints"), keep=2)
        for step in range(1, rounds + 1):
            state = jax.block_until_ready(jax.tree.map(lambda x: x + 0, state))
            started = time.perf_counter()
            checkpoints.save(state, step, {})
            blocked.append(1000 * (time.perf_counter() - started))
            checkpoints.wait()
            background.append(checkpoints.last_save.background)
        checkpoints.close()
    return blocked, background


def summary(values: list[float]) -> dict[str, float]:
    """Median and the 5th and 95th percentile."""
    return {
        "median": statistics.median(values),
        "p5": float(np.percentile(values, 5)),
        "p95": float(np.percentile(values, 95)),
    }


def main() -> int:
    """Measures, prints, writes; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/step_loop_cpu.json")
    )
    args = parser.parse_args()
    host = machine()
    loop = summary(measure_loop(args.steps))
    blocked, background = (summary(x) for x in measure_saves(args.rounds))
    results = {
        "benchmark": "step_loop",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": host,
        "versions": versions("jax", "orbax-checkpoint", "numpy"),
        "goals": GOALS,
        "python_ms_per_step": loop,
        "save": {
            "state_bytes": STATE_BYTES,
            "blocked_ms": blocked,
            "background_s": background,
        },
    }
    write_json(results, args.output)
    print(f"Python per step: {loop['median']:.2f} ms [{loop['p5']:.2f}-{loop['p95']:.2f}]")
    print(f"a save blocks {blocked['median']:.0f} ms [{blocked['p5']:.0f}-{blocked['p95']:.0f}],")
    print(f"and takes {background['median']:.2f} s in the background")
    missed = (
        loop["median"] > GOALS["python_ms_per_step"] or blocked["median"] > GOALS["save_blocked_ms"]
    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
