"""The train state and the steps, as plain functions; `assembly.py` binds and compiles them.

    init_state -> train_step(state, batch, frozen) -> objective(model, batch, keys, frozen)

The state is a plain pytree: a model is put together from it inside the step, at trace time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vmae_jax import randomness, sharding
from vmae_jax.device_crop import num_clips
from vmae_jax.trainable import Selection, trained_part, with_trained


class TrainState(NamedTuple):
    """All that a run has learnt; random numbers and data order are functions of `step`.

    Attributes:
      step: int32 scalar, batches seen.
      params: nested dict of arrays; path names are stable ("encoder/output/kernel").
      opt_state: of the optimizer.
      skipped: int32 scalar, batches whose loss or gradient was not finite: they changed nothing.
      streak: int32 scalar, how many of them came last, in a row.
      ema: exponential moving averages of the parameters; None if nobody asked for them.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    skipped: jax.Array
    streak: jax.Array
    ema: dict[str, Any] | None = None


def split_params(
    params: dict[str, Any], frozen_parts: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters that are trained, and those whose name up to the first "/" is frozen."""
    trained = {name: p for name, p in params.items() if name not in frozen_parts}
    return trained, {name: p for name, p in params.items() if name in frozen_parts}


def init_state(
    params: dict[str, Any],
    optimizer: optax.GradientTransformation,
    selection: Selection | None = None,
    *,
    averages: bool = False,
) -> TrainState:
    """The state of these parameters before the first step.

    Args:
      selection: which of them are trained; None: all.
      averages: whether averages of the parameters are kept, which start as copies.
    """
    zero = jnp.zeros((), jnp.int32)
    opt_state = optimizer.init(trained_part(params, selection))
    ema = jax.tree.map(jnp.copy, params) if averages else None
    return TrainState(zero, params, opt_state, zero, zero, ema)


def merge(graphdef: nnx.GraphDef, params: dict[str, Any]) -> nnx.Module:
    """The model of these parameters. What the mesh splits of them is gathered: outside of the
    stacks here, inside layer by layer (`vit.run_blocks`)."""
    outside = {name: p for name, p in params.items() if name not in sharding.STACKS}
    return nnx.merge(graphdef, params | sharding.gathered(outside))


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    frozen: dict[str, Any],
    *,
    graphdef: nnx.GraphDef,
    prepare: Callable,
    objective: Callable,
    optimizer: optax.GradientTransformation,
    schedule: Callable,
    seed: int,
    accumulation: int = 1,
    selection: Selection | None = None,
    ema_decay: float | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update, unless loss or gradient is not finite. Everything random is a function of
    (seed, step).

    Args:
      state: before the update.
      batch: the global batch; `video` uint8 [B, T, H, W, C] and what else the task has.
      frozen: parameters that are not trained: "model" has those of the model itself, everything
        else is the objective's.
      graphdef: of the model.
      prepare: (batch, keys) -> batch, see `Task.prepare`.
      objective: (model, batch, keys, frozen) -> (loss, metrics), see `Task.objective`.
      optimizer: takes parameters as its third argument.
      schedule: update -> learning rate, for the metrics only.
      seed: of the run.
      accumulation: micro-batches whose gradients are averaged. Each device cuts its own clips, and
        each clip has the random numbers that it would have in the whole.
      selection: which parameters are trained; None: all.
      ema_decay: of the averages that the state keeps, once an update: average = ema_decay * average
        + (1 - ema_decay) * parameter.
    Returns:
      The state after it, and metrics, fp32 scalars: those of the objective, `grad_norm` (before any
      clipping), `learning_rate`; and the counters `skipped` and `streak`, int32.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    keys = sharding.split_clips(randomness.clip_keys(key, num_clips(batch)))
    batch = prepare(batch, keys)

    def loss_of(trained, batch, keys):
        params = with_trained(state.params, trained, selection)
        model = merge(graphdef, params | frozen.get("model", {}))
        return objective(model, batch, keys, frozen)

    trained = trained_part(state.params, selection)
    gradients = functools.partial(jax.grad(loss_of, has_aux=True), trained)
    grads, metrics = _mean_over_micro_batches(gradients, (batch, keys), accumulation)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(metrics["loss"])

    def update():
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        updated = optax.apply_updates(trained, updates)
        params = with_trained(state.params, updated, selection)
        return params, opt_state, _averages(state.ema, params, ema_decay)

    # lax.cond costs nothing; jnp.where over the state would cost more than the update itself
    params, opt_state, ema = jax.lax.cond(
        finite, update, lambda: (state.params, state.opt_state, state.ema)
    )
    skipped = state.skipped + ~finite
    streak = jnp.where(finite, 0, state.streak + 1)
    metrics |= {
        "grad_norm": grad_norm,
        "learning_rate": schedule(state.step - state.skipped),  # counts updates, as the optimizer
        "skipped": skipped,
        "streak": streak,
    }
    return TrainState(state.step + 1, params, opt_state, skipped, streak, ema), metrics


def _averages(ema: Any, params: dict[str, Any], decay: float | None) -> Any:
    if ema is None:
        return None
    return jax.tree.map(lambda average, x: decay * average + (1 - decay) * x, ema, params)


def _mean_over_micro_batches(function: Callable, inputs: Any, count: int) -> Any:
    """The mean of function(*part) over `count` parts of the inputs, along their first axis."""
    if count == 1:
        return function(*inputs)
    num_rows = min(len(x) for x in jax.tree.leaves(inputs))  # the others have several clips in each

    def parts(x):
        # every count-th row, so that each device cuts what it holds
        x = x.reshape(num_rows // count, count, len(x) // num_rows, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1).reshape(count, -1, *x.shape[3:])

    def add(total, part):
        part = sharding.split_clips(part)
        return jax.tree.map(jnp.add, total, function(*part)), None

    inputs = jax.tree.map(parts, inputs)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, inputs)
    return jax.tree.map(lambda x: x / count, total)


def eval_step(
    params: dict[str, Any],
    batch: dict[str, jax.Array],
    frozen: dict[str, Any],
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
      frozen, graphdef: as in `train_step`.
      objective: (model, batch, keys, frozen) -> (loss, metrics), bound with evaluation=True.
      seed: of the masks.
    Returns:
      The objective's metrics, and `weight`: how many clips they are the mean of.
    """
    model = merge(graphdef, params | frozen.get("model", {}))
    _, metrics = objective(model, batch, _held_out_keys(batch, seed), frozen)
    return metrics | {"weight": jnp.sum(batch["weight"])}


def predict_step(
    params: dict[str, Any],
    batch: dict[str, jax.Array],
    frozen: dict[str, Any],
    *,
    graphdef: nnx.GraphDef,
    predict: Callable,
    seed: int,
) -> dict[str, jax.Array]:
    """What a model says of each held-out clip, arrays [B, ...].

    Args:
      params, batch, frozen, graphdef, seed: as in `eval_step`.
      predict: (model, batch, keys, frozen) -> arrays, see `Task.predict`.
    Returns:
      Its arrays, and `index` and `weight` of the batch, to merge the clips of a record by.
    """
    model = merge(graphdef, params | frozen.get("model", {}))
    arrays = predict(model, batch, _held_out_keys(batch, seed), frozen)
    return arrays | {name: batch[name] for name in ("index", "weight")}


def _held_out_keys(batch: dict[str, jax.Array], seed: int) -> jax.Array:
    key = jax.random.key(seed)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch["index"])
    return sharding.split_clips(keys)
