"""All that surrounds the steps of a run, in one object that knows the order at start and end."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

import vmae_jax
from vmae_jax.checkpoints.fingerprints import fingerprint
from vmae_jax.checkpoints.restoring import restore_newest
from vmae_jax.checkpoints.retention import Retention
from vmae_jax.checkpoints.saving import Checkpoints
from vmae_jax.errors import SettingError
from vmae_jax.processes import distributed
from vmae_jax.processes.distributed import by_main, is_main
from vmae_jax.running.compilation import compile_step, keep_compiled_programs
from vmae_jax.running.goodput import Goodput
from vmae_jax.running.health import Health
from vmae_jax.running.profiling import Profile
from vmae_jax.running.run_config import write_run_config
from vmae_jax.running.run_control import Preemption, StuckWatchdog
from vmae_jax.running.supervisor import newest_step
from vmae_jax.running.workdir import check_address, check_shared, check_workdir
from vmae_jax.running.workdir_lock import lock_workdir
from vmae_jax.running.writer import MetricWriter, Rates

logger = logging.getLogger(__name__)


class Session:
    """A start of a run in its workdir.

        with Session(settings, workdir, ...) as run:  # locked, checked, restored
            state = run.restored.state if run.restored else ...
            batches = run.closing(...)  # closed when the run ends
            run.begin(train_step, state, batch_shapes)  # compiled; signals are listened to
            for step in run.steps():
                batch = run.next(batches)
                state, metrics = train_step(state, batch)
                run.done(step, metrics, batch["clip_id"])
                ...  # run.log, run.evaluating, run.save
            run.finish()

    In a run of several processes each makes one, and calls the same methods in the same order.

    Args:
      settings: the section `run` of the configuration.
      workdir: a folder or an address on gs://, the same for all processes.
      run_config: the whole configuration, of what JSON can hold.
      may_change, own_keys: as `check_workdir` takes them.
      about: JSON that is saved with every checkpoint besides the configuration and the lineage.
      parent: checkpoint that the weights come from, for the lineage; None: from nowhere.
      template: the shapes of a train state, with shardings.
      num_steps, batch_size: of the run.
      force: go on in a workdir whose run had other settings.
      profile: "first:last" steps to trace, "" for none.
      on_log: called as (step, metrics) with whatever is logged.

    Attributes:
      restored: what the newest checkpoint held; None in a fresh workdir.
      start_step: the step that it is of, or 0.
      preempted: whether the run is to save now and end.
      metrics_file: the metrics up to now, on this machine; None in processes that do not write.
    """

    def __init__(
        self,
        settings: Any,
        workdir: str,
        *,
        run_config: Mapping[str, Any],
        may_change: Sequence[str],
        own_keys: Sequence[str],
        about: Mapping[str, Any],
        parent: str | None,
        template: Any,
        num_steps: int,
        batch_size: int,
        force: bool = False,
        profile: str = "",
        on_log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    ):
        self._settings, self._workdir, self._force = settings, workdir, force
        self._run_config = run_config
        self._changes = {"may_change": may_change, "own_keys": own_keys}
        self._about, self._parent, self._template = about, parent, template
        self._num_steps, self._batch_size = num_steps, batch_size
        self._on_log = on_log
        self._tracer = Profile(profile, os.path.join(workdir, "profile"))
        self._ending = contextlib.ExitStack()  # undone in reverse, however the run ends
        self.preempted = False

    # The start.

    def __enter__(self) -> Session:
        with contextlib.ExitStack() as ending:  # if the start fails
            self._enter(ending)
            self._ending = ending.pop_all()
        return self

    def _enter(self, ending: contextlib.ExitStack) -> None:
        workdir, settings = self._workdir, self._settings
        ending.enter_context(self._tracer)
        told = {"workdir": workdir, "force": self._force, "config": self._run_config}
        distributed.check_same("what the run was told", json.dumps(told, indent=0))
        by_main("lock", lambda: ending.enter_context(lock_workdir(workdir)))
        check_workdir(workdir, self._run_config, force=self._force, **self._changes)
        check_shared(workdir)
        keep_compiled_programs(settings.compilation_cache)

        folder = os.path.join(workdir, "checkpoints")
        self.restored = restore_newest(folder, self._template)
        self.start_step = start_step = self.restored.step if self.restored else 0
        self._checkpoints = Checkpoints(folder, **retention(settings))
        ending.callback(self._checkpoints.close)
        self._checkpoints.check_room(self._template)
        self._record = {"config": self._run_config, **self._about, "lineage": self._lineage()}

        by_main("run config", lambda: write_run_config(workdir, self._run_config))
        self._writer = by_main("metrics", lambda: MetricWriter(workdir, start_step=start_step))
        if self._writer is not None:
            ending.callback(self._writer.close)
        own_folder = workdir if is_main() else None
        self._goodput = Goodput(own_folder, start_step)
        ending.callback(self._goodput.close)
        self._health = Health(
            own_folder,
            start_step=start_step,
            max_streak=settings.max_skipped_in_a_row,
            gather=functools.partial(distributed.all_gather_text, "health"),
            saved_step=lambda: newest_step(folder),
        )
        ending.callback(self._health.close)

    def _lineage(self) -> dict[str, Any]:
        start = {
            "step": self.start_step,
            "vmae_jax": vmae_jax.__version__,
            "jax": jax.__version__,
            "processes": jax.process_count(),
            "devices": jax.device_count(),
        }
        lineage = {"run": uuid.uuid4().hex, "parent": self._parent, "starts": []}
        if self.restored:
            lineage = self.restored.info["lineage"]
        return {**lineage, "starts": [*lineage["starts"], start]}

    def __exit__(self, *exception: Any) -> bool | None:
        return self._ending.__exit__(*exception)

    def closing(self, thing: Any) -> Any:
        """The thing itself, whose `close()` is called when the run ends, before all else closes."""
        self._ending.callback(thing.close)
        return thing

    @property
    def metrics_file(self) -> str | None:
        """See the class."""
        return None if self._writer is None else self._writer.metrics_file

    @property
    def owed(self) -> list[str]:
        """Evaluations that the restored step is still owed, by name."""
        info = self.restored.info if self.restored else {}
        before = ["held_out"] if info.get("evaluation_owed") else []  # when there was one evaluator
        return list(info.get("evaluations_owed", before))

    def begin(self, train_step: Any, state: Any, *arguments: Any) -> None:
        """Compiles the step and begins to count; the last thing before the first step.

        Args:
          train_step: jitted.
          state: the arrays that it starts with.
          arguments: the shapes of its others.
        """
        with self._goodput.time("compile"):
            compile_step(train_step, state, *arguments)
            fingerprint(state)  # or the first save would wait for its compilation
            # or the first step, whose time is limited, would wait for the last to be ready
            distributed.all_gather_text("compiled", "")
        self._rates = Rates(
            self._goodput,
            start_step=self.start_step,
            num_steps=self._num_steps,
            batch_size=self._batch_size,
        )
        enter = self._ending.enter_context
        self._preemption = enter(Preemption(jax.process_count()))
        self._watchdog = enter(StuckWatchdog(self._settings.step_timeout))
        enter(distributed.end_all_on_error())  # innermost: nothing below may wait

    # The steps.

    def steps(self) -> Iterator[int]:
        """The steps that are left, counted from 1, until the last one or a preemption."""
        for step in range(self.start_step + 1, self._num_steps + 1):
            self._tracer.before(step)
            self._asked = self._waited = 0.0
            yield step
            if self.preempted:
                return

    def next(self, batches: Iterator[Any]) -> Any:
        """The next batch; the time until it comes counts as waiting if the devices stood idle."""
        asked = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - asked
        self._waited = waited if self._health.idle() else 0.0
        return batch

    def done(self, step: int, metrics: Mapping[str, jax.Array], clip_ids: Sequence[str]) -> None:
        """Notes that a step was given to the devices.

        Args:
          step: counted from 1.
          metrics: of the step, not computed yet.
          clip_ids: that this process brought.
        Raises:
          NonFinite: see `Health`.
        """
        self._health.add(step, metrics, clip_ids)
        with self._watchdog.paused() if self._tracer.running else contextlib.nullcontext():
            self._tracer.after(step, self._health.metrics)
        self._goodput.step(step, self._waited)
        self._watchdog.alive()
        self.preempted = self._preemption.requested(step)

    def log(self, step: int, bad_clips: int) -> dict[str, float]:
        """Writes the metrics of a step to the files and the screen, and returns them with rates.

        Args:
          step: the last one.
          bad_clips: records of this process that could not be used.
        """
        # first the numbers: a process that has died is missed there at once
        metrics = self._health.metrics() | self._rates.report(step)
        bad = distributed.all_gather_text("bad clips", str(bad_clips))
        metrics["bad_clips"] = sum(map(int, bad))
        if self._writer is not None:  # JSON has no word for what is not finite
            self._writer.write(step, {n: x for n, x in metrics.items() if math.isfinite(x)})
        logger.info(self._rates.line(step, metrics))
        self._goodput.write()
        self._on_log(step, metrics)
        return metrics

    def evaluate(
        self, name: str, step: int, evaluate: Callable[[], Mapping[str, float]]
    ) -> dict[str, float]:
        """What an evaluator measures, written as "name/metric" to the files and the screen."""
        with self._goodput.time("evaluate"), self._watchdog.paused():
            measured = {f"{name}/{metric}": x for metric, x in evaluate().items()}
        if measured:
            if self._writer is not None:
                self._writer.write(step, measured)
            log_measured(step, measured)
            self._on_log(step, measured)
        return measured

    def save(
        self, state: Any, step: int, measured: Mapping[str, float] | None, owed: Sequence[str]
    ) -> None:
        """Starts saving a checkpoint; the state may be donated right after.

        Args:
          state: after the step.
          step: counted from 1.
          measured: metrics of evaluators at this step, if there are any.
          owed: names of evaluators that this step is still owed.
        """
        with self._goodput.time("save"), self._watchdog.paused():
            info = {**self._record, "evaluations_owed": list(owed)}
            self._checkpoints.save(state, step, info, measured)

    # The end.

    def finish(self, step: int, owed: Sequence[str]) -> None:
        """Waits until all is on disk.

        Args:
          step: the last one.
          owed: as in `save`.
        Raises:
          Preempted: if there is more to do, and the run was asked to end; or Interrupted.
        """
        with self._watchdog.paused():
            self._health.metrics()
            with self._goodput.time("save"):
                self._checkpoints.wait()  # here, where a second signal cannot cut it short
            logger.info("%s", self._goodput.line())
        if self.preempted and (step < self._num_steps or owed):
            raise self._preemption.error(step)


def log_measured(step: int, measured: Mapping[str, float]) -> None:
    """On the screen: "step 250: held_out/loss 0.9534"."""
    text = "  ".join(f"{name} {value:.4f}" for name, value in measured.items())
    logger.info("evaluated at step %d: %s", step, text)


def retention(settings: Any) -> dict[str, Any]:
    """Which checkpoints stay, as `Checkpoints` is told."""
    rule = {"keep": settings.keep_checkpoints, "keep_every": settings.keep_every_steps}
    if settings.keep_best:
        names = ("keep_best", "best_metric", "best_mode")
        rule |= {name: settings[name] for name in names}
    return rule


def check_settings(settings: Any, workdir: str) -> None:
    """Looks for what would show only once something is written, or not at all.

    Raises:
      SettingError: for the first value that cannot work.
    """
    for name in ("log_every_steps", "save_every_steps", "step_timeout"):
        if not 0 <= settings[name] < math.inf:
            raise SettingError(f"run.{name}={settings[name]} must be 0 (never) or more.")
    if settings.max_skipped_in_a_row < 1:
        raise SettingError(
            f"run.max_skipped_in_a_row={settings.max_skipped_in_a_row} must be at least 1."
        )
    Retention(**retention(settings))
    check_address(workdir)
