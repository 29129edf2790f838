"""Losses and gradients that are not finite at chosen steps; and the run that leaves those out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from tests.chaos import faults
from vmae_jax import assembly, training

NAN_LOSS, INF_LOSS, NAN_GRADIENT = "NaN loss", "infinite loss", "NaN gradient"
SKIP = "left out"  # what the comparison does at the same steps
PLACE = "the compiled step"  # of all of these, and none that is ever counted as happened
# what loss and gradient are multiplied by
_FACTORS = {
    NAN_LOSS: (jnp.nan, jnp.nan),
    INF_LOSS: (jnp.inf, jnp.inf),
    NAN_GRADIENT: (1.0, jnp.nan),
}


def install(folder: Path) -> None:
    """Prepares the train step for the plan, if it wants any of this."""
    plan = faults.whole_plan(folder)
    poisoned = [fault for fault in plan if fault.kind in _FACTORS]
    left_out = [fault.at for fault in plan if fault.kind == SKIP]
    if poisoned or left_out:
        training.train_step = _poisoned(training.train_step, poisoned)
    if left_out:
        make_steps = assembly.make_steps

        def skipping_steps(*args, **kwargs):
            steps = make_steps(*args, **kwargs)
            return dataclasses.replace(steps, train=_Skipping(steps.train, left_out))

        assembly.make_steps = skipping_steps


def _poisoned(train_step: Callable, poisoned: Sequence[faults.Fault]) -> Callable:
    """The step, whose objective is multiplied by what the plan says of it, mostly by one."""

    def step(state, batch, frozen, *, objective, **bound):
        loss_factor = gradient_factor = jnp.ones(())
        for fault in poisoned:
            here = state.step + 1 == fault.at
            of_loss, of_gradient = _FACTORS[fault.kind]
            loss_factor = jnp.where(here, of_loss, loss_factor)
            gradient_factor = jnp.where(here, of_gradient, gradient_factor)

        def multiplied(model, batch, keys, frozen):
            loss, metrics = objective(model, batch, keys, frozen)
            loss = _times(loss, loss_factor, gradient_factor)
            return loss, metrics | {"loss": metrics["loss"] * loss_factor}

        return train_step(state, batch, frozen, objective=multiplied, **bound)

    return step


@jax.custom_vjp
def _times(x, factor, gradient_factor):
    """x * factor, whose gradient is multiplied by another."""
    return x * factor


_times.defvjp(
    lambda x, factor, gradient_factor: (x * factor, gradient_factor),
    lambda gradient_factor, gradient: (gradient * gradient_factor, None, None),
)


class _Skipping:
    """A train step that does not take place at some calls: they are counted, no more."""

    def __init__(self, train: Callable, steps: Sequence[int]):
        self._train, self._steps, self._step = train, set(steps), 0
        self.lower = train.lower
        self._metrics = None
        self._count = jax.jit(
            lambda state: state._replace(
                step=state.step + 1, skipped=state.skipped + 1, streak=state.streak + 1
            )
        )
        self._nothing = jax.jit(
            lambda metrics, state: {
                **{name: jnp.full_like(value, jnp.nan) for name, value in metrics.items()},
                "skipped": state.skipped,
                "streak": state.streak,
            }
        )

    def __call__(self, state, batch, frozen):
        if isinstance(state.step, jax.core.Tracer):  # of its shapes
            return self._train(state, batch, frozen)
        self._step += 1
        if self._step not in self._steps:
            state, self._metrics = self._train(state, batch, frozen)
            return state, self._metrics
        state = self._count(state)
        return state, self._nothing(self._metrics, state)
