"""The pre-training task by itself, and its model: for tests and benchmarks that need no run."""

from __future__ import annotations

from flax import nnx

from vmae_jax import randomness
from vmae_jax.device_crop import num_clips
from vmae_jax.tasks.pretraining import Pretraining
from vmae_jax.videomae import VideoMAE


def pretraining_objective(model, batch, key, *, evaluation=False, **options):
    """(loss, metrics), for one PRNG key or one per clip; options: of the task."""
    keys = randomness.clip_keys(key, num_clips(batch))
    return Pretraining(**options).objective(model, batch, keys, {}, evaluation=evaluation)


def make_model(config, compute, seed) -> VideoMAE:
    """A fresh model with a decoder."""
    return Pretraining().make_model(config, compute, nnx.Rngs(params=seed))


def graph_definition(config, compute) -> nnx.GraphDef:
    """What is left of it without its parameters; allocates nothing."""
    return nnx.graphdef(nnx.eval_shape(lambda: make_model(config, compute, seed=0)))
