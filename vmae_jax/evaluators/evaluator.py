"""What an evaluator is, and how it visits the held-out clips."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import numpy as np

from vmae_jax import sharding
from vmae_jax.assembly import Steps
from vmae_jax.data import loader
from vmae_jax.data.samples import HeldOutSamples
from vmae_jax.tasks.task import Task


class Context(NamedTuple):
    """What evaluators of a run work with.

    Attributes:
      config: of the run.
      task: of it.
      steps: its compiled functions.
      samples: the held-out ones; None if no evaluator of the run visits them.
      frozen: parameters that are not trained.
      workdir: where pictures may be left; None: nowhere.
      metrics_file: of the run so far, on this machine; None in processes that do not write, and
        where a checkpoint is evaluated alone.
      name: of the evaluator's section in `config.evals`.
      open_samples: (what differs from the section data, split) -> a context manager of held-out
        samples by themselves.
    """

    config: Any
    task: Task
    steps: Steps
    samples: HeldOutSamples | None
    frozen: dict[str, Any]
    workdir: str | None = None
    metrics_file: str | None = None
    name: str = ""
    open_samples: Callable[[Mapping, str], AbstractContextManager[HeldOutSamples]] | None = None


class Evaluator(abc.ABC):
    """Looks at the parameters now and then. A subclass's further arguments are its options.

    All processes of a run make one and call it for the same steps.

    Attributes:
      measures: whether its metrics are wanted with the checkpoint of the same step, so that it runs
        before that is saved. One that only draws runs after it: if it fails, nothing is lost.
      visits: whether it visits held-out samples; a run of evaluators that don't opens none.
    """

    measures = True
    visits = True

    def __init__(self, context: Context):
        self.context = context

    @abc.abstractmethod
    def __call__(self, params: dict[str, Any], step: int) -> dict[str, float]:
        """Metrics by name, to be logged as "<name of the evaluator>/<name of the metric>"; {} if it
        measures nothing.

        Args:
          params: of the train state, on the run's devices.
          step: that they are of.
        """


def held_out_batches(
    context: Context, samples: HeldOutSamples | None = None
) -> Iterator[dict[str, jax.Array]]:
    """One pass over held-out samples, as arrays on the devices; each counts once.

    Args:
      context: of the run.
      samples: those; None for the run's.
    """
    samples = context.samples if samples is None else samples
    config, steps, repeat = context.config, context.steps, samples.repeat
    ways = steps.mesh.shape["data"] * steps.mesh.shape["fsdp"]
    # as many clips as a micro-batch has, which fit; in whole groups on each device
    clips = config.data.batch_size // config.optimizer.accumulation
    num_groups = max(1, clips // (repeat * ways)) * ways
    batches = loader.held_out_batches(
        samples,
        num_groups * repeat,
        rows=sharding.local_rows(steps.mesh, num_groups),
        num_threads=config.data.num_threads,
    )
    for batch in batches:
        yield sharding.to_devices(batch, steps.held_out, steps.mesh)


def predictions(
    context: Context, params: dict[str, Any], samples: HeldOutSamples | None = None
) -> dict[str, np.ndarray]:
    """What the task predicts of every held-out sample that counts, in the order of the set.

    Args:
      context, samples: as of `held_out_batches`.
      params: of the train state.
    Returns:
      The arrays of `Task.predict`, [number of samples, ...], and "index" int32, the record that a
      sample is a view of.
    """
    found: list[dict[str, np.ndarray]] = []
    for batch in held_out_batches(context, samples):
        arrays = jax.device_get(context.steps.predict(params, batch, context.frozen))
        counted = arrays.pop("weight") > 0
        found.append({name: array[counted] for name, array in arrays.items()})
    return {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0]}
