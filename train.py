"""Trains a model: `python train.py --config=configs/demo.py --workdir=runs/demo`.

Run it again with the same workdir and it goes on from the newest checkpoint, with the same numbers
as if it had never stopped: data order, augmentation, masks and dropout are functions of the step.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import logging
import math
import os
import sys
import time
import traceback
import uuid
from typing import Any

import jax
import numpy as np
from absl import app, flags
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict, config_flags

import vmae_jax
from vmae_jax import assembly, pictures, sharding, training
from vmae_jax.checkpoints.fingerprints import fingerprint
from vmae_jax.checkpoints.loading import Restored
from vmae_jax.checkpoints.restoring import read_newest, restore_newest
from vmae_jax.checkpoints.retention import Retention
from vmae_jax.checkpoints.saving import Checkpoints
from vmae_jax.config import VideoMAEConfig
from vmae_jax.data import input_probe, loader
from vmae_jax.data.bad_clips import BadClips
from vmae_jax.data.datasets import make_source
from vmae_jax.data.samples import (
    CentreClip,
    HeldOutSamples,
    PretrainingSamples,
    RandomClip,
    bad_clips_file,
)
from vmae_jax.data.sources.source import VideoSource, cached
from vmae_jax.files.storage import local_folder
from vmae_jax.masking import MASKS
from vmae_jax.processes import distributed
from vmae_jax.processes.distributed import by_main, is_main
from vmae_jax.processes.exit_codes import CRASH, DONE, describe, exit_code
from vmae_jax.reconstruction import gain, psnr, reconstruct
from vmae_jax.running.goodput import Goodput
from vmae_jax.running.health import Health
from vmae_jax.running.profiling import Profile
from vmae_jax.running.run_config import write_run_config
from vmae_jax.running.run_control import Preemption, StuckWatchdog
from vmae_jax.running.supervisor import newest_step, supervise
from vmae_jax.running.workdir import check_address, check_shared, check_workdir
from vmae_jax.running.workdir_lock import lock_workdir
from vmae_jax.running.writer import MetricWriter, Rates
from vmae_jax.weights.initial_params import initial_params

logger = logging.getLogger("train")

# Options that a run may go on with another value of, and with a dot at the end sections of such:
# where the data and the devices are, how fast it goes, when it looks at itself, what it puts up
# with. All others change what is learnt, up to rounding in the case of `compute` and `mesh`.
MAY_CHANGE = (
    "run.",
    "mesh.",
    "optimizer.accumulation",
    "compute.attention",
    "compute.remat",
    "data.path",
    "data.options.root",
    "data.num_threads",
    "data.prefetch_batches",
    "data.decode_timeout",
    "data.max_bad_share",
    "data.skip_bad_held_out",
)


def main(
    config: ConfigDict, workdir: str, *, force: bool = False, profile: str = ""
) -> dict[str, float]:
    """A whole run, from wherever the workdir says it stands; the same in each of its processes.

    Args:
      config: see `configs/default.py`.
      workdir: a folder or an address ("gs://..."), the same for all processes.
      force: go on in a workdir whose run had other settings.
      profile: "first:last" steps to trace, "" for none.
    Returns:
      The last held-out metrics of this start.
    Raises:
      Preempted: once all is saved, when the scheduler wants the machine.
      ValueError: for settings that cannot work, before anything is written.
    """
    run, data = config.run, config.data
    check_run(run)
    check_address(workdir)
    # Training samples are a function of their number, held-out clips never change.
    samples, held_out = open_samples(config, workdir)
    steps = assembly.make_steps(config, num_records=len(samples.source))
    mesh, num_steps = steps.mesh, steps.schedule.num_steps
    with contextlib.ExitStack() as ending:  # undone in reverse, however the run ends
        ending.callback(samples.close)
        if held_out is not None:
            ending.callback(held_out.close)
        ending.enter_context(jax.set_mesh(mesh))
        tracer = ending.enter_context(Profile(profile, os.path.join(workdir, "profile")))
        jax.eval_shape(steps.train, steps.state, steps.batch)  # what cannot work shows here
        said = f"workdir={workdir!r} force={force}\n{config.to_json_best_effort(indent=0)}"
        distributed.check_same("what the run was told", said)
        by_main("lock", lambda: ending.enter_context(lock_workdir(workdir)))
        check_workdir(
            workdir,
            as_dict(config),
            may_change=MAY_CHANGE,
            own_keys=("data.options.",),
            force=force,
        )
        check_shared(workdir)
        keep_compiled_programs(run.compilation_cache)

        # The state: restored, or made where it will live.
        checkpoint_dir = os.path.join(workdir, "checkpoints")
        restored = restore_newest(checkpoint_dir, steps.state)
        state = restored.state if restored else fresh_state(config, steps)
        start_step = restored.step if restored else 0
        checkpoints = Checkpoints(checkpoint_dir, **retention(run))
        ending.callback(checkpoints.close)
        checkpoints.check_room(state)
        record = describe_run(config, steps.model, restored)

        # What is written besides, by one process; and the data from here on.
        by_main("run config", lambda: write_run_config(workdir, record["config"]))
        writer = by_main("metrics", lambda: MetricWriter(workdir, start_step=start_step))
        if writer is not None:
            ending.callback(writer.close)
        own_folder = workdir if is_main() else None
        goodput = Goodput(own_folder, start_step)
        ending.callback(goodput.close)
        health = Health(
            own_folder,
            start_step=start_step,
            max_streak=run.max_skipped_in_a_row,
            gather=functools.partial(distributed.all_gather_text, "health"),
            saved_step=lambda: newest_step(checkpoint_dir),
        )
        ending.callback(health.close)
        batches = loader.training_batches(
            samples,
            data.batch_size,
            start_step=start_step,
            rows=sharding.local_rows(mesh, data.batch_size // data.repeat),
            num_threads=data.num_threads,
            prefetch_batches=data.prefetch_batches,
        )
        ending.callback(batches.close)
        log_start(config, steps, samples, held_out, restored)
        rate = input_probe.measure(samples.group, samples.repeat)
        logger.info("input: %s", rate.line(data.num_threads))
        with goodput.time("compile"):
            compile_steps(steps, state)
            # or the first step, whose time is limited, would wait for the last to be ready
            distributed.all_gather_text("compiled", "")

        rates = Rates(
            goodput, start_step=start_step, num_steps=num_steps, batch_size=data.batch_size
        )
        held_out_metrics: dict[str, float] = {}
        advised = preempted = False
        preemption = ending.enter_context(Preemption(jax.process_count()))
        watchdog = ending.enter_context(StuckWatchdog(run.step_timeout))
        ending.enter_context(distributed.end_all_on_error())  # innermost: nothing below may wait
        if restored and restored.info.get("evaluation_owed") and held_out is not None:
            with goodput.time("evaluate"):
                held_out_metrics = evaluate(steps, state.params, held_out, config)
            log_held_out(writer, start_step, held_out_metrics)
        for step in range(start_step + 1, num_steps + 1):  # counts batches once done
            tracer.before(step)
            asked = time.perf_counter()
            batch = next(batches)
            # time counts as waiting if the devices stood idle meanwhile
            waited = time.perf_counter() - asked if health.idle() else 0.0

            with jax.transfer_guard("disallow"):  # nothing is copied unless it is said here
                arrays = sharding.to_devices({name: batch[name] for name in steps.batch}, mesh)
                state, metrics = steps.train(state, arrays)
                health.add(step, metrics, batch["clip_id"])

            with watchdog.paused() if tracer.running else contextlib.nullcontext():
                tracer.after(step, health.metrics)
            goodput.step(step, waited)
            watchdog.alive()
            preempted = preemption.requested(step)
            logs, evaluates, saves = (
                due(step, every, last=step == num_steps)
                for every in (run.log_every_steps, run.eval_every_steps, run.save_every_steps)
            )
            saves |= preempted
            if logs:
                # first the numbers: a process that has died is missed there at once
                floats = health.metrics() | rates.report(step)
                bad = distributed.all_gather_text("bad clips", str(samples.bad_count))
                floats["bad_clips"] = sum(map(int, bad))
                log_step(writer, rates, step, floats)
                goodput.write()
                if not advised and (hint := input_probe.advice(floats, data)):
                    logger.info(hint)
                    advised = True
            owed = evaluates and preempted  # it takes longer than the scheduler may wait
            if evaluates and not owed:
                with goodput.time("evaluate"), watchdog.paused():
                    held_out_metrics = evaluate(steps, state.params, held_out, config)
                log_held_out(writer, step, held_out_metrics)
            if saves:
                measured = held_out_metrics if evaluates and not owed else None
                with goodput.time("save"), watchdog.paused():
                    checkpoints.save(state, step, {**record, "evaluation_owed": owed}, measured)
            if preempted:
                break
        with watchdog.paused():
            health.metrics()
            with goodput.time("save"):
                checkpoints.wait()  # here, where a second signal cannot cut it short
            logger.info("%s", goodput.line())
            if preempted and (step < num_steps or owed):
                raise preemption.error(step)
            if run.picture_clips:
                with goodput.time("evaluate"):
                    draw(steps, state.params, held_out, config, workdir, writer)
    return held_out_metrics


def due(step: int, every: int, last: bool) -> bool:
    """Whether something that happens every so many steps (0: never) and at the end happens now."""
    return every > 0 and (last or step % every == 0)


def open_samples(
    config: ConfigDict, workdir: str | None
) -> tuple[PretrainingSamples, HeldOutSamples | None]:
    """The training samples, and the held-out ones if the run looks at any."""
    data, run = config.data, config.run
    model = assembly.make_model_config(config)
    clip = (model.num_frames, data.frame_stride, model.frame_size)
    source = open_source(config, "train")
    source.check_serves(data.frame_stride)
    listed = None if workdir is None else bad_clips_file(workdir, jax.process_index())
    bad = BadClips(listed, len(source), data.max_bad_share)
    make = RandomClip(source, *clip, data.repeat, data.resize, data.canvas_size)
    samples = PretrainingSamples(make, config.seed, bad_clips=bad, timeout=data.decode_timeout)
    if not run.eval_every_steps and not run.picture_clips:
        return samples, None
    source = open_source(config, "held_out")
    source.check_serves(data.frame_stride)
    bad = BadClips(listed, len(source), data.max_bad_share)
    held_out = HeldOutSamples(
        CentreClip(source, *clip, data.resize),
        bad_clips=bad if data.skip_bad_held_out else None,
        timeout=data.decode_timeout,
    )
    return samples, held_out


def open_source(config: ConfigDict, split: str) -> VideoSource:
    """One split of the data set, its files held in memory if the configuration says so."""
    source = make_source(config.data.name, config.data.path, split, **config.data.options)
    if config.data.cache_size is not None:
        source = cached(source, config.data.cache_size)
    return source


def describe_run(
    config: ConfigDict, model: VideoMAEConfig, restored: Restored | None
) -> dict[str, Any]:
    """What is saved with every checkpoint: configuration, model, and where the weights come
    from."""
    start = {
        "step": restored.step if restored else 0,
        "vmae_jax": vmae_jax.__version__,
        "jax": jax.__version__,
        "processes": jax.process_count(),
        "devices": jax.device_count(),
    }
    lineage = {"run": uuid.uuid4().hex, "parent": config.init.checkpoint or None, "starts": []}
    if restored:
        lineage = restored.info["lineage"]
    lineage = {**lineage, "starts": [*lineage["starts"], start]}
    return {"config": as_dict(config), "model": model.to_dict(), "lineage": lineage}


def check_run(run: ConfigDict) -> None:
    """What would show only once something is written, or not at all.

    Raises: ValueError.
    """
    names = ("log_every_steps", "eval_every_steps", "save_every_steps", "picture_clips")
    for name in (*names, "step_timeout"):
        if not 0 <= run[name] < math.inf:
            raise ValueError(f"run.{name}={run[name]} must be 0 (never) or more.")
    if run.max_skipped_in_a_row < 1:
        raise ValueError(f"run.max_skipped_in_a_row={run.max_skipped_in_a_row} must be at least 1.")
    Retention(**retention(run))
    meets = run.eval_every_steps and run.save_every_steps % run.eval_every_steps == 0
    if run.keep_best and not meets:
        raise ValueError(
            f"run.keep_best={run.keep_best} needs every checkpoint measured: "
            f"run.save_every_steps={run.save_every_steps} must be a multiple of "
            f"run.eval_every_steps={run.eval_every_steps}."
        )


def keep_compiled_programs(folder: str) -> None:
    """A restart finds its programs there instead of compiling them again.

    Programs are code: the folder must be one that only its user writes, so it is not the workdir.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        compilation_cache.reset_cache()  # an earlier run of this process may have had none
        compilation_cache.set_cache_dir(folder or os.path.join(cache_home(), "compiled"))


def cache_home() -> str:
    """Where this user's caches of ours are."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "vmae_jax")


def compile_steps(steps: assembly.Steps, state: training.TrainState) -> None:
    """Before the first step, so that its time and memory are known; calls find the program.

    Raises: ValueError if the compiler finds no room for it.
    """
    started = time.perf_counter()
    try:
        memory = steps.train.lower(state, steps.batch).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            "the train step does not fit into the memory of a device; lower data.batch_size, raise "
            "optimizer.accumulation or mesh.fsdp, or choose compute.remat ('attention', 'full'). "
            "`python -m vmae_jax plan` says what fits. "
            f"The compiler: {str(error).strip().splitlines()[0]}"
        ) from error
    fingerprint(state)  # or the first save would wait for its compilation
    logger.info(
        "compiled in %.0f s; a step takes %.2f GiB on each device",
        time.perf_counter() - started, memory.peak_memory_in_bytes / 2**30,
    )  # fmt: skip


def retention(run: ConfigDict) -> dict[str, Any]:
    """Which checkpoints stay, as `Checkpoints` is told."""
    rule = {"keep": run.keep_checkpoints, "keep_every": run.keep_every_steps}
    if run.keep_best:
        names = ("keep_best", "best_metric", "best_mode")
        rule |= {name: run[name] for name in names}
    return rule


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """What JSON holds of a configuration."""
    return json.loads(config.to_json_best_effort())


def fresh_state(config: ConfigDict, steps: assembly.Steps) -> training.TrainState:
    """The state before the first step: fresh weights, or those that the configuration names."""
    state = steps.init()
    if not config.init.checkpoint:
        return state
    try:
        params, _ = initial_params(config.init.checkpoint, state.params, steps.model)
    except FileNotFoundError as error:
        raise ValueError(f"init.checkpoint={config.init.checkpoint!r}: {error}") from error
    return state._replace(params=params)


def log_start(config, steps, samples, held_out, restored) -> None:
    """What the run is, in a few lines: sizes, data, rates, devices, where it starts."""
    num_parameters = sum(x.size for x in jax.tree.leaves(steps.state.params))
    t, h, w = steps.model.grid
    schedule = steps.schedule
    logger.info(
        "model: %s parameters, %d tokens (%d x %d x %d)",
        f"{num_parameters:,}", steps.model.num_tokens, t, h, w,
    )  # fmt: skip
    logger.info(
        "data: %s, %d training and %d held-out records, %d clips a step",
        config.data.name, len(samples.source), len(held_out or ()), config.data.batch_size,
    )  # fmt: skip
    logger.info(
        "schedule: %d steps, %d of warmup, learning rate %.2e down to %.2e",
        schedule.num_steps, schedule.warmup_steps, schedule.peak_lr, schedule.final_lr,
    )  # fmt: skip
    logger.info("%s", sharding.describe(steps.mesh, steps.state))
    logger.info("%s", steps.attention)
    if (loss := zero_loss(config, steps.model)) is not None:
        logger.info("predicting zero would give a loss of %.4f", loss)
    if restored:
        logger.info("going on from %s", restored.path)


def zero_loss(config: ConfigDict, model: VideoMAEConfig) -> float | None:
    """The loss of a prediction of zeros, where it is a constant.

    The squares of n pixels that are divided by their unbiased deviation have the mean (n - 1) / n.
    """
    if not model.norm_pix_loss or config.objective.loss != "mse":
        return None
    pixels = model.tubelet_size * model.patch_size**2
    return (pixels - 1) / pixels


def log_step(
    writer: MetricWriter | None, rates: Rates, step: int, metrics: dict[str, float]
) -> None:
    """To the files and the screen; JSON has no word for what is not finite."""
    if writer is not None:
        writer.write(step, {name: x for name, x in metrics.items() if math.isfinite(x)})
    logger.info(rates.line(step, metrics))


def log_held_out(writer: MetricWriter | None, step: int, metrics: dict[str, float]) -> None:
    """To the files and the screen: "held_out/loss 0.9534"."""
    if writer is not None:
        writer.write(step, metrics)
    text = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    logger.info("held out at step %d: %s", step, text)


def evaluate_newest(config: ConfigDict, workdir: str) -> dict[str, float]:
    """Held-out metrics of the newest checkpoint of a workdir, which a trainer may be using.

    Raises: CheckpointError if there is none.
    """
    samples, held_out = open_samples(config, None)
    with contextlib.ExitStack() as ending:
        ending.callback(samples.close)
        steps = assembly.make_steps(config, num_records=len(samples.source))
        if held_out is None:
            raise ValueError("run.eval_every_steps=0 and run.picture_clips=0: nothing is held out.")
        ending.callback(held_out.close)
        ending.enter_context(jax.set_mesh(steps.mesh))
        ending.enter_context(distributed.end_all_on_error())
        restored = read_newest(os.path.join(workdir, "checkpoints"), {"params": steps.state.params})
        metrics = evaluate(steps, restored.state["params"], held_out, config)
        log_held_out(None, restored.step, metrics)
    return metrics


def evaluate(
    steps: assembly.Steps, params: dict, held_out: HeldOutSamples, config: ConfigDict
) -> dict[str, float]:
    """Means over all held-out clips, each counted once on whatever host, as "held_out/<metric>"."""
    totals: dict[str, float] = collections.defaultdict(float)
    batch_size = config.data.batch_size // config.optimizer.accumulation  # what fits at a time
    batches = loader.held_out_batches(
        held_out,
        batch_size,
        rows=sharding.local_rows(steps.mesh, batch_size),
        num_threads=config.data.num_threads,
    )
    for batch in batches:
        arrays = {name: batch[name] for name in ("video", "index", "weight")}
        metrics = jax.device_get(steps.evaluate(params, sharding.to_devices(arrays, steps.mesh)))
        weight = float(metrics.pop("weight"))
        if weight == 0:  # bad clips only: the other metrics are 0 / 0
            continue
        totals["weight"] += weight
        for name, value in metrics.items():
            totals[name] += weight * float(value)
    weight = totals.pop("weight")
    return {f"held_out/{name}": total / weight for name, total in totals.items()}


def draw(
    steps: assembly.Steps,
    params: dict,
    held_out: HeldOutSamples,
    config: ConfigDict,
    workdir: str,
    writer: MetricWriter | None,
) -> None:
    """The loss curve, and reconstructions of the first held-out clips, under <workdir>/pictures.

    All processes call it, as the parameters may lie on all of them; one draws.
    """
    everywhere = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(steps.mesh))(params)
    if writer is None:
        return
    here = jax.tree.map(lambda x: x.addressable_data(0), everywhere)
    model = nnx.merge(steps.graphdef, here)
    clips = [held_out.group(i) for i in range(min(config.run.picture_clips, len(held_out)))]
    with jax.set_mesh(None), local_folder(os.path.join(workdir, "pictures")) as folder:
        if config.run.log_every_steps:
            pictures.draw_curve(
                writer.metrics_file,
                os.path.join(folder, "loss.png"),
                zero_loss=zero_loss(config, model.config),
            )
        draw_mask = MASKS[config.objective.mask]
        key, ratio = jax.random.key(config.seed), config.objective.mask_ratio
        mask = draw_mask(key, len(clips), model.config.grid, ratio)
        reconstruction = reconstruct(model, np.concatenate([clip["video"] for clip in clips]), mask)
        for i, clip in enumerate(clips):
            names = {"clip_name": clip["clip_id"][0], "mask_name": f"{config.objective.mask} mask"}
            stem = os.path.join(folder, f"reconstruction_{i}")
            pictures.draw_reconstruction(reconstruction, f"{stem}.png", clip=i, **names)
            pictures.animate_reconstruction(reconstruction, f"{stem}.gif", clip=i, **names)
    for rendering in reconstruction.renderings:
        logger.info(
            "hidden patches, %s: PSNR %.2f dB, of a zero prediction %.2f dB, gain %+.2f dB",
            rendering.name, psnr(rendering.error), psnr(rendering.zero_error), gain(rendering),
        )  # fmt: skip
    logger.info("pictures: %s", os.path.join(workdir, "pictures"))


flags_config = config_flags.DEFINE_config_file("config", None, "The run's configuration file.")
flags_workdir = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics, pictures.")
flags_distributed = flags.DEFINE_string(
    "distributed",
    "off",
    "Processes of the run: off (this one is all), auto (as the cluster says: TPU VM, SLURM, GKE, "
    "Open MPI), or host:port,num_processes,process_index.",
)
flags_supervise = flags.DEFINE_integer(
    "supervise",
    0,
    "Start the run again, up to so many times in a row without progress, when it is preempted or "
    "crashes. Exit codes: vmae_jax/processes/exit_codes.py.",
)
flags_evaluate = flags.DEFINE_bool(
    "evaluate", False, "Only measure the newest checkpoint on the held-out clips."
)
flags_force = flags.DEFINE_bool(
    "force", False, "Go on in a workdir whose run had other settings. They are logged."
)
flags_profile = flags.DEFINE_string(
    "profile", "", "Trace these steps, first:last, to <workdir>/profile."
)


def _run(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    _set_up_log()
    config, workdir = flags_config.value, flags_workdir.value
    if flags_supervise.value:
        code = supervise(
            [sys.executable, *sys.argv, "--supervise=0"],
            restarts=flags_supervise.value,
            progress=functools.partial(newest_step, os.path.join(workdir, "checkpoints")),
        )
        sys.exit(code)
    code = DONE
    try:
        distributed.start(flags_distributed.value)
        if not is_main():  # one of them speaks
            logging.getLogger("train").setLevel(logging.WARNING)
            logging.getLogger("vmae_jax").setLevel(logging.WARNING)
        distributed.check_devices()
        if flags_evaluate.value:
            evaluate_newest(config, workdir)
        else:
            main(config, workdir, force=flags_force.value, profile=flags_profile.value)
    except Exception as error:
        code = exit_code(error)
        if code == CRASH:
            traceback.print_exc()
        else:
            logger.error("%s: %s", describe(code), " ".join(str(error).split()))
    distributed.end(code)


def _set_up_log() -> None:
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout, force=True
    )
    for name, level in (
        ("", logging.WARNING),  # libraries only speak up when something is wrong
        ("absl", logging.WARNING),
        ("train", logging.INFO),
        ("vmae_jax", logging.INFO),
    ):
        logging.getLogger(name).setLevel(level)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(_run)
