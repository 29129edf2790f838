"""Splitting a batch over devices changes no number."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vmae_jax import sharding

# Five steps on as many devices as XLA was told to pretend, with drop path and dropout.
PROGRAM = """
import functools, json, sys
import jax, numpy as np
from vmae_jax import VideoMAEConfig, objectives, optim, sharding, training
from vmae_jax.vit import Compute
config = VideoMAEConfig(
    image_size=16, patch_size=4, num_frames=4, hidden_size=16, num_hidden_layers=2,
    num_attention_heads=2, intermediate_size=32, decoder_hidden_size=8,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16,
    use_mean_pooling=False, drop_path_rate=0.3, hidden_dropout_prob=0.2)
schedule = optim.Schedule(1e-2, 1e-4, 1, 10)
optimizer = optim.make_optimizer(
    schedule, weight_decay=0.05, betas=(0.9, 0.95), eps=1e-8, clip_norm=None)
mesh = sharding.make_mesh(8)
on_all = sharding.replicated(mesh)
init = functools.partial(training.init_state, config, Compute(), optimizer, seed=0)
state = jax.jit(init, out_shardings=on_all)()
step = jax.jit(functools.partial(
    training.train_step, graphdef=training.graph_definition(config, Compute()), seed=0,
    objective=objectives.make_objective("pretraining", mask_ratio=0.75), optimizer=optimizer,
    schedule=schedule), out_shardings=on_all, donate_argnums=0)
video = np.random.default_rng(0).integers(0, 256, (8, 4, 16, 16, 3), dtype=np.uint8)
batch = sharding.to_devices({"video": video}, mesh)
lowered = step.lower(state, batch).compile().as_text()
losses = []
for _ in range(5):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
print(json.dumps({
    "devices": len(jax.devices()), "losses": losses,
    "gathers": lowered.count("all-gather("), "shards": len(batch["video"].addressable_shards)}))
"""


def run_on(num_devices: int) -> dict:
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_eight_devices_give_the_losses_of_one():
    one, eight = run_on(1), run_on(8)
    assert (one["devices"], eight["devices"], eight["shards"]) == (1, 8, 8)
    assert eight["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert eight["gathers"] == 0  # masks are drawn and tokens gathered where the clips are
    assert one["losses"][-1] < one["losses"][0]


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"data\.batch_size=10 .* 4 devices; choose e\.g\. 8"):
        sharding.make_mesh(10, devices=[None] * 4)
