"""The training loop: from a configuration to a trained model, whatever the task.

    from vmae_jax.configs import demo
    from vmae_jax.loop import train

    train(demo.get_config(), "runs/demo")

Call it again with the same workdir and it goes on from the newest checkpoint, with the same numbers
as if it had never stopped: data order, augmentation, masks and dropout are functions of the step.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax import assembly, evaluators, sharding
from vmae_jax.assembly import Steps
from vmae_jax.checkpoints.finished_steps import saved_steps
from vmae_jax.checkpoints.loading import Restored
from vmae_jax.checkpoints.restoring import read_newest
from vmae_jax.choices import name_of, qualified_name
from vmae_jax.data import input_probe, loader
from vmae_jax.data.samples import HeldOutSamples, TrainingSamples
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.errors import SettingError
from vmae_jax.evaluators import is_due
from vmae_jax.evaluators.evaluator import Context
from vmae_jax.inputs import open_held_out, open_samples
from vmae_jax.processes import distributed
from vmae_jax.running.session import Session, check_settings, log_measured
from vmae_jax.tasks import make_task
from vmae_jax.tasks.task import Task
from vmae_jax.training import TrainState, split_params
from vmae_jax.weights.initial_params import initial_params, parts_of

logger = logging.getLogger(__name__)


def train(
    config: ConfigDict,
    workdir: str,
    *,
    force: bool = False,
    profile: str = "",
    on_log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> dict[str, float]:
    """Trains, from wherever the workdir says the run stands; the same in each of its processes.

    Args:
      config: see `configs/default.py`.
      workdir: a folder or an address ("gs://..."), the same for all processes.
      force: go on in a workdir whose run had other settings.
      profile: "first:last" steps to trace, "" for none.
      on_log: called as (step, metrics) with whatever is logged, to draw a live curve, say.
    Returns:
      The last metrics of the evaluators in this start, as "held_out/loss".
    Raises:
      Preempted: once all is saved, when the run was asked to end.
      SettingError: for settings that cannot work, before anything is written.
    """
    check_config(config, workdir)
    task, every = make_task(config), config.run
    looked_at = evaluators.wanted(config)
    visits = evaluators.any_visits(config, looked_at)
    with open_samples(config, task, workdir, evaluates=visits) as (samples, held_out):
        steps = make_run_steps(config, task, samples.source)
        num_steps = steps.schedule.num_steps
        session = make_session(
            config, task, workdir, steps, force=force, profile=profile, on_log=on_log
        )
        with jax.set_mesh(steps.mesh), session as run:
            state, frozen = initial_state(config, task, steps, run.restored)
            evals = evaluators.Evaluations(
                make_context(config, task, steps, samples.source, workdir)._replace(
                    samples=held_out, frozen=frozen, metrics_file=run.metrics_file
                ),
                looked_at,
                run.evaluate,
            )
            log_start(config, task, steps, samples, held_out, run.restored)
            hint = input_probe.Hint(config.data, samples)
            batches = run.closing(training_batches(config, steps, samples, run.start_step))
            run.begin(steps.train, state, *steps.arguments[1:])

            step = run.start_step
            last = evals.make_up(run.owed, state, step)
            for step in run.steps():  # counts batches once done
                batch = run.next(batches)
                with jax.transfer_guard("disallow"):  # nothing is copied unless it is said here
                    arrays = sharding.to_devices(batch, steps.batch, steps.mesh)
                    state, metrics = steps.train(state, arrays, frozen)
                    run.done(step, metrics, batch["clip_id"])

                if is_due(every.log_every_steps, step, num_steps):
                    hint.give(run.log(step, samples.bad_count))
                measured = {} if run.preempted else evals.measure(state, step)
                if run.preempted or is_due(every.save_every_steps, step, num_steps):
                    run.save(state, step, measured, evals.owed(step, run.preempted))
                if not run.preempted:
                    last |= measured | evals.draw(state, step)
            run.finish(step, evals.owed(step, run.preempted))
    return last


def evaluate(
    config: ConfigDict, workdir: str, names: Sequence[str] | None = None
) -> dict[str, float]:
    """What evaluators say of the newest checkpoint of a workdir, which a trainer may be using.

    Args:
      config, workdir: as of `train`.
      names: of the evaluators, sections of `config.evals`; None for all that measure something.
    Raises:
      CheckpointError: if there is no checkpoint.
      SettingError: for an unknown name, or if there is nothing to call.
    """
    task = make_task(config)
    chosen = evaluators.wanted(config, names)
    if not chosen:
        raise SettingError("every_steps=0 in each section of evals: nothing is evaluated.")
    visits = evaluators.any_visits(config, chosen)
    with open_samples(config, task, None, evaluates=visits) as (samples, held_out):
        steps = make_run_steps(config, task, samples.source)
        with jax.set_mesh(steps.mesh), distributed.end_all_on_error():
            state, frozen, step = _newest_state(config, task, steps, workdir)
            context = make_context(config, task, steps, samples.source, workdir if names else None)
            context = context._replace(samples=held_out, frozen=frozen)
            evals = evaluators.Evaluations(context, chosen, _log_evaluation)
            return evals.make_up(chosen, state, step)


def _newest_state(
    config: ConfigDict, task: Task, steps: Steps, workdir: str
) -> tuple[TrainState, dict[str, Any], int]:
    """The newest parameters of a workdir, without what only training needs, and their step; those
    of `init.checkpoint` at step 0 if it has none."""
    directory = os.path.join(workdir, "checkpoints")
    if config.init.checkpoint and not saved_steps(directory):
        logger.info("no checkpoint in %s: evaluating init.checkpoint", directory)
        state, frozen = fresh_state(config, task, steps)
        return state, frozen, 0
    wanted = {"params": steps.state.params}
    if steps.state.ema is not None:
        wanted["ema"] = steps.state.ema
    newest = read_newest(directory, wanted)
    _, frozen = fresh_state(config, task, steps) if steps.frozen else (None, {})
    return steps.state._replace(**newest.state), frozen, newest.step


def make_context(
    config: ConfigDict, task: Task, steps: Steps, training: VideoSource, workdir: str | None
) -> Context:
    """What evaluators work with, but for held-out samples and what is frozen."""

    @contextlib.contextmanager
    def open_other(data: Mapping[str, Any], split: str) -> Iterator[HeldOutSamples]:
        if unknown := set(data) - set(config.data):
            raise SettingError(
                f"{sorted(unknown)} of an evaluator's data are no options of section data; there "
                f"are {sorted(config.data)}."
            )
        changed = copy.deepcopy(config)  # a ConfigDict of it would share its sections
        with changed.data.options.unlocked():
            changed.data.update(data)
        with open_held_out(changed, task, workdir, steps.model_config, split) as samples:
            task.check_data(training, samples.source, steps.model_config)
            yield samples

    return Context(config, task, steps, None, {}, workdir, open_samples=open_other)


def _log_evaluation(
    name: str, step: int, evaluate: Callable[[], Mapping[str, float]]
) -> dict[str, float]:
    measured = {f"{name}/{metric}": value for metric, value in evaluate().items()}
    if measured:
        log_measured(step, measured)
    return measured


def make_run_steps(config: ConfigDict, task: Task, source: VideoSource) -> Steps:
    """The steps of a run whose data set is open."""
    return assembly.make_steps(
        config, task, num_records=len(source), class_names=assembly.classes_of(task, source)
    )


def check_config(config: ConfigDict, workdir: str) -> None:
    """Looks for settings that would fail only once something is written, or not at all.

    Raises:
      SettingError: for the first one.
    """
    check_settings(config.run, workdir)
    if config.run.keep_best:
        evaluator = config.run.best_metric.split("/")[0]
        every = config.evals[evaluator].every_steps if evaluator in config.evals else 0
        if every <= 0 or config.run.save_every_steps % every:
            raise SettingError(
                f"run.keep_best={config.run.keep_best} needs every checkpoint measured: "
                f"run.save_every_steps={config.run.save_every_steps} must be a multiple of "
                f"evals.{evaluator}.every_steps={every}."
            )


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """What JSON holds of a configuration; functions by their names."""
    return json.loads(json.dumps(config.to_dict(), default=qualified_name))


def make_session(
    config: ConfigDict, task: Task, workdir: str, steps: Steps, **options: Any
) -> Session:
    """What surrounds the steps of this run; options: as of `train`."""
    with jax.set_mesh(steps.mesh):
        jax.eval_shape(steps.train, *steps.arguments)  # what cannot work shows here
    # the options of a task that a recipe brings along have no version of this code
    own_section = [f"{name_of(config.task)}."] if callable(config.task) else []
    lora = {} if task.lora is None else {"lora": task.lora._asdict()}
    return Session(
        config.run,
        workdir,
        run_config=as_dict(config),
        may_change=config.may_change,
        own_keys=("data.options.", *own_section),
        about={"model": steps.model_config.to_dict(), **lora},
        parent=config.init.checkpoint or None,
        template=steps.state,
        num_steps=steps.schedule.num_steps,
        batch_size=config.data.batch_size,
        **options,
    )


def initial_state(
    config: ConfigDict, task: Task, steps: Steps, restored: Restored | None
) -> tuple[TrainState, dict[str, Any]]:
    """The state to go on from, made where it will live, and what is not trained."""
    if restored is None:
        return fresh_state(config, task, steps)
    frozen = fresh_state(config, task, steps)[1] if steps.frozen else {}
    return restored.state, frozen


def fresh_state(config: ConfigDict, task: Task, steps: Steps) -> tuple[TrainState, dict[str, Any]]:
    """The state before the first step, and what is not trained: fresh weights, or those that the
    configuration and the task name."""
    state, frozen = steps.init()
    others = {name: tree for name, tree in frozen.items() if name != "model"}
    frozen = frozen | (task.load_frozen(others) if others else {})
    if not config.init.checkpoint:
        return state, frozen
    params = state.params | frozen.get("model", {})
    try:
        params, _ = initial_params(
            config.init.checkpoint, params, steps.model_config, parts_of(config.init.parts)
        )
    except FileNotFoundError as error:
        raise SettingError(f"init.checkpoint={config.init.checkpoint!r}: {error}") from error
    trained, frozen_params = split_params(params, task.frozen_parts)
    if frozen_params:
        frozen = {**frozen, "model": frozen_params}
    state = state._replace(params=trained)
    if state.ema is not None:
        state = state._replace(ema=jax.tree.map(jnp.copy, trained))
    return state, frozen


def training_batches(
    config: ConfigDict, steps: Steps, samples: TrainingSamples, start_step: int
) -> loader.BatchIterator:
    """This process's batches from a step on."""
    data = config.data
    return loader.training_batches(
        samples,
        data.batch_size,
        start_step=start_step,
        rows=sharding.local_rows(steps.mesh, data.batch_size // data.repeat),
        num_threads=data.num_threads,
        prefetch_batches=data.prefetch_batches,
    )


def log_start(
    config: ConfigDict,
    task: Task,
    steps: Steps,
    samples: TrainingSamples,
    held_out: HeldOutSamples | None,
    restored: Restored | None,
) -> None:
    """Says what the run is, in a few lines: sizes, data, rates, devices, where it starts."""
    num_parameters = sum(x.size for x in jax.tree.leaves((steps.state.params, steps.frozen)))
    model, schedule = steps.model_config, steps.schedule
    logger.info(
        "model: %s parameters, %d tokens (%d x %d x %d)",
        f"{num_parameters:,}", model.num_tokens, *model.grid,
    )  # fmt: skip
    if steps.frozen:
        frozen = sum(x.size for x in jax.tree.leaves(steps.frozen))
        logger.info("of them %s are not trained", f"{frozen:,}")
    logger.info(
        "data: %s, %d training and %d held-out records, %d clips a step",
        name_of(config.data.name), len(samples.source), len(held_out or ()), config.data.batch_size,
    )  # fmt: skip
    logger.info(
        "schedule: %d steps, %d of warmup, learning rate %.2e down to %.2e",
        schedule.num_steps, schedule.warmup_steps, schedule.peak_lr, schedule.final_lr,
    )  # fmt: skip
    logger.info("%s", sharding.describe(steps.mesh, steps.state))
    logger.info("%s", steps.attention)
    if (baseline := task.baseline(model)) is not None:
        logger.info("%s would give a loss of %.4f", baseline.name, baseline.loss)
    if restored:
        logger.info("going on from %s", restored.path)
