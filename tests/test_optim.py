"""Schedules and rules against the official formulas (numpy) and torch's optimizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from vmae_jax import VideoMAEConfig, optim
from vmae_jax.videomae import VideoMAE


def official_schedule(peak, final, warmup, total):
    """cosine_scheduler of the official utils.py: a table over all steps."""
    i = np.arange(total - warmup)
    cosine = final + 0.5 * (peak - final) * (1 + np.cos(np.pi * i / len(i)))
    return np.concatenate([np.linspace(0, peak, warmup), cosine])


@pytest.mark.parametrize(("warmup", "total"), [(0, 7), (1, 7), (2, 7), (40, 800), (6, 7)])
def test_schedule_equals_the_official_table(warmup, total):
    schedule = optim.Schedule(1.2e-3, 8e-5, warmup, total)
    ours = [float(schedule(step)) for step in range(total)]
    np.testing.assert_allclose(ours, official_schedule(1.2e-3, 8e-5, warmup, total), rtol=2e-6)


def test_the_first_step_has_rate_zero_and_the_peak_comes_twice():
    schedule = optim.Schedule(1.0, 0.0, 5, 20)
    assert float(schedule(0)) == 0.0
    assert float(schedule(4)) == float(schedule(5)) == 1.0


def options(**changes):
    return {
        "base_lr": 1.5e-4,
        "base_final_lr": 1e-5,
        "batch_size": 2048,
        "num_clips": 240_436,
        "num_epochs": 801.0,
        "num_steps": None,
        "warmup_epochs": 40.0,
        "warmup_steps": None,
        **changes,
    }


def test_the_published_k400_base_run():
    # ViT-B on Kinetics-400: batch 2048, 117 steps an epoch, peak 1.2e-3, final 8e-5
    schedule = optim.make_schedule(**options())
    assert schedule.num_steps == 801 * 117
    assert schedule.warmup_steps == 40 * 117
    assert schedule.peak_lr == pytest.approx(1.2e-3)
    assert schedule.final_lr == pytest.approx(8e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 10}, "schedule.num_epochs=801.0 and schedule.num_steps=10"),
        ({"warmup_epochs": None}, "give exactly one"),
        ({"warmup_epochs": 801.0}, "at least one step more"),
        ({"num_clips": 100}, "data.batch_size=2048 is more than the 100 clips"),
        ({"base_lr": 0.0}, "schedule.base_lr=0.0"),
        ({"base_final_lr": 1.0}, "schedule.base_final_lr=1.0"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        optim.make_schedule(**options(**changes))


def test_matrices_decay_and_nothing_else():
    config = VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=2, hidden_size=8, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=16, decoder_hidden_size=8,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=8,
        use_mean_pooling=False,
    )  # fmt: skip
    model = nnx.eval_shape(lambda: VideoMAE(config, decoder=True, rngs=nnx.Rngs(0)))
    mask = optim.decay_mask(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, decays in jax.tree_util.tree_leaves_with_path(mask)
        if decays
    }
    block = ("attention/qkv", "attention/output", "intermediate", "output")
    assert decayed == {
        "embeddings/kernel",
        "encoder_to_decoder/kernel",
        "decoder_head/kernel",
        *(f"{stack}/{name}/kernel" for stack in ("encoder", "decoder") for name in block),
    }


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(ValueError, match="gamma"):
        optim.decay_mask({"block": {"gamma": jnp.ones(3)}})


def test_clipping_equals_torch():
    grads = {"kernel": np.full((2, 2), 3.0, np.float32), "bias": np.ones(3, np.float32)}
    params = jax.tree.map(jnp.ones_like, grads)
    optimizer = optim.make_optimizer(
        lambda step: 1.0, weight_decay=0.0, betas=(0.0, 0.0), eps=1e6, clip_norm=0.5
    )  # so large an epsilon makes the update proportional to the clipped gradient
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    expected = [torch.nn.Parameter(torch.ones(x.shape)) for x in jax.tree.leaves(grads)]
    for parameter, grad in zip(expected, jax.tree.leaves(grads), strict=True):
        parameter.grad = torch.tensor(grad)
    torch.nn.utils.clip_grad_norm_(expected, 0.5)
    for update, parameter in zip(jax.tree.leaves(updates), expected, strict=True):
        np.testing.assert_allclose(-1e6 * update, parameter.grad.numpy(), rtol=1e-4)
