"""What looks at a run: one module each, entered in `EVALUATORS`; each has a cadence of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vmae_jax.choices import choose
from vmae_jax.errors import SettingError
from vmae_jax.evaluators.evaluator import Context, Evaluator
from vmae_jax.evaluators.held_out import HeldOut
from vmae_jax.evaluators.loss_curve import LossCurve
from vmae_jax.evaluators.reconstructions import Reconstructions
from vmae_jax.evaluators.views import MultiView
from vmae_jax.training import TrainState

EVALUATORS = {
    "held_out": HeldOut,
    "loss_curve": LossCurve,
    "reconstructions": Reconstructions,
    "test": MultiView,
}
AT_END = -1  # a cadence: after the last step alone


class Scheduled(NamedTuple):
    """An evaluator of a run, and when it is due.

    Attributes:
      name: of its section in `config.evals`, and before its metrics' names.
      every_steps: 0: never; `AT_END`: after the last step; n: every n-th step and the last.
      weights: which part of the train state it looks at, "params" or "ema".
      evaluate: (params, step) -> metrics.
    """

    name: str
    every_steps: int
    weights: str
    evaluate: Evaluator


def is_due(every_steps: int, step: int, num_steps: int) -> bool:
    """Whether something with this cadence happens after this step."""
    if every_steps == 0:
        return False
    return step == num_steps or (every_steps > 0 and step % every_steps == 0)


def wanted(config: Any, names: Sequence[str] | None = None) -> list[str]:
    """Names of the run's evaluators: those that are due at some step, or those given.

    Raises:
      SettingError: for a name that is no section of `config.evals`, or an impossible cadence.
    """
    for name, section in config.evals.items():
        if section.every_steps < AT_END:
            raise SettingError(
                f"evals.{name}.every_steps={section.every_steps} must be 0 (never), {AT_END} (at "
                "the end) or a number of steps."
            )
    if names is None:
        return [name for name, section in config.evals.items() if section.every_steps]
    for name in names:
        if name not in config.evals:
            raise SettingError(f"{name!r} is no evaluator of this run: {list(config.evals)}.")
    return list(names)


def any_visits(config: Any, names: Sequence[str]) -> bool:
    """Whether one of these evaluators visits held-out samples.

    Raises:
      SettingError: for an unknown evaluator.
    """
    return any(getattr(_maker(config, name), "visits", True) for name in names)


class Evaluations:
    """The evaluators of a run.

    Args:
      context: what they work with.
      names: sections of `config.evals`. A section has `every_steps`, the options of its evaluator,
        and two that any may have: `weights`, "ema" to look at the averages of the parameters, and
        `evaluator`, without which the section is called like an entry of `EVALUATORS`: such a name,
        or a class derived from `Evaluator` (or a function that returns one).
      report: (name, step, function that evaluates) -> metrics, named "name/metric"; it calls the
        function.
    Raises:
      SettingError: for an unknown evaluator, an option that it does not have, or one that cannot
        work.
    """

    def __init__(
        self,
        context: Context,
        names: Sequence[str],
        report: Callable[[str, int, Callable[[], Mapping[str, float]]], dict[str, float]],
    ):
        self._num_steps = context.steps.schedule.num_steps
        self._report = report
        self._all = [_make(context, name) for name in names]

    def owed(self, step: int, preempted: bool) -> list[str]:
        """Names of those that are due after this step and not called before it is saved.

        Args:
          preempted: then all: they take longer than the scheduler may wait.
        """
        return [one.name for one in self._due(step) if preempted or not one.evaluate.measures]

    def make_up(self, names: Sequence[str], state: TrainState, step: int) -> dict[str, float]:
        """Calls those that an earlier start of the run was owed."""
        return self._call([one for one in self._all if one.name in names], state, step)

    def measure(self, state: TrainState, step: int) -> dict[str, float]:
        """Calls those that are due after this step and measure something; before it is saved."""
        return self._call([x for x in self._due(step) if x.evaluate.measures], state, step)

    def draw(self, state: TrainState, step: int) -> dict[str, float]:
        """Calls the others that are due; after it is saved, so that their failure loses nothing."""
        return self._call([x for x in self._due(step) if not x.evaluate.measures], state, step)

    def _due(self, step: int) -> list[Scheduled]:
        return [one for one in self._all if is_due(one.every_steps, step, self._num_steps)]

    def _call(self, chosen: Sequence[Scheduled], state: TrainState, step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for one in chosen:
            params = getattr(state, one.weights)
            found |= self._report(
                one.name, step, lambda one=one, params=params: one.evaluate(params, step)
            )
        return found


def _maker(config: Any, name: str) -> Callable[..., Evaluator]:
    return choose(f"evals.{name}.evaluator", config.evals[name].get("evaluator", name), EVALUATORS)


def _make(context: Context, name: str) -> Scheduled:
    options = dict(context.config.evals[name].items())
    every_steps = options.pop("every_steps")
    options.pop("evaluator", None)
    weights = options.pop("weights", "params")
    if weights not in ("params", "ema") or getattr(context.steps.state, weights) is None:
        raise SettingError(
            f"evals.{name}.weights={weights!r} must be 'params', or 'ema' in a run with "
            "optimizer.ema_decay."
        )
    make = _maker(context.config, name)
    known = [option for option in inspect.signature(make).parameters if option != "context"]
    for option in options:
        if option not in known:
            raise SettingError(
                f"evals.{name}.{option} is no option of this evaluator; it has {known}."
            )
    return Scheduled(name, every_steps, weights, make(context._replace(name=name), **options))
