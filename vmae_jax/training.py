"""The train state and the two steps, as plain functions; `train.py` compiles and calls them.

    make_model -> init_state -> train_step(state, batch) -> objective(model, batch, key)

The state is a plain pytree: a model is put together from it inside the step, at trace time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vmae_jax.config import VideoMAEConfig
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute


class TrainState(NamedTuple):
    """All that a run has learnt; random numbers and data order are functions of `step`.

    Attributes:
      step: int32 scalar, updates done.
      params: nested dict of arrays; path names are stable ("encoder/output/kernel").
      opt_state: of the optimizer.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: Any


def make_model(config: VideoMAEConfig, compute: Compute, seed: int) -> VideoMAE:
    """A fresh pre-training model (encoder and decoder)."""
    return VideoMAE(config, decoder=True, compute=compute, rngs=nnx.Rngs(params=seed))


def init_state(
    config: VideoMAEConfig,
    compute: Compute,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
) -> TrainState:
    """The state before the first step. Compile it with `out_shardings`, so that each device makes
    its own part, or trace it with `jax.eval_shape` for shapes alone."""
    params = nnx.to_pure_dict(nnx.state(make_model(config, compute, seed), nnx.Param))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def graph_definition(config: VideoMAEConfig, compute: Compute) -> nnx.GraphDef:
    """What is left of a model without its parameters; allocates nothing."""
    return nnx.graphdef(nnx.eval_shape(lambda: make_model(config, compute, seed=0)))


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    graphdef: nnx.GraphDef,
    objective: Callable,
    optimizer: optax.GradientTransformation,
    schedule: Callable,
    seed: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update. Everything random in it is a function of (seed, step).

    Args:
      state: before the update.
      batch: the global batch; `video` uint8 [B, T, H, W, C].
      graphdef: from `graph_definition`.
      objective: (model, batch, key) -> (loss, metrics).
      optimizer: see `optim.make_optimizer`.
      schedule: step -> learning rate, for the metrics.
      seed: of the run.
    Returns:
      The state after it, and scalars: the objective's metrics, `grad_norm`, `learning_rate`.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_of(params):
        return objective(nnx.merge(graphdef, params), batch, key)

    (_, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": schedule(state.step)}
    return TrainState(state.step + 1, params, opt_state), metrics


def eval_step(
    params: dict[str, Any],
    batch: Mapping[str, jax.Array],
    *,
    graphdef: nnx.GraphDef,
    objective: Callable,
    seed: int,
) -> dict[str, jax.Array]:
    """Metrics of held-out clips: means over those that count, with masks that never change.

    Args:
      params: of the state.
      batch: `video` uint8 [B, T, H, W, C]; `index` int32 [B], the clip's place in the set, from
        which its mask follows; `weight` fp32 [B], 0 for clips that only fill the batch up.
      graphdef: from `graph_definition`.
      objective: (model, batch, key) -> (loss, metrics), bound with evaluation=True.
      seed: of the masks.
    Returns:
      The objective's metrics, and `weight`: how many clips they are the mean of.
    """
    key = jax.random.key(seed)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch["index"])
    _, metrics = objective(nnx.merge(graphdef, params), batch, keys)
    return metrics | {"weight": jnp.sum(batch["weight"])}
