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
from ml_collections import ConfigDict, config_flags

import vmae_jax
from vmae_jax import objectives, optim, pictures, sharding, training
from vmae_jax.checkpoint import Checkpoints, Restored, restore_newest
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
from vmae_jax.data.sources import VideoSource, cached
from vmae_jax.exit_codes import CRASH, describe, exit_code
from vmae_jax.masking import MASKS
from vmae_jax.reconstruction import gain, psnr, reconstruct
from vmae_jax.run_control import Preempted, Preemption, StuckWatchdog
from vmae_jax.supervisor import newest_step, supervise
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute, resolve_attention
from vmae_jax.workdir_lock import lock_workdir
from vmae_jax.writer import MetricWriter, Progress

logger = logging.getLogger("train")


def main(config: ConfigDict, workdir: str) -> dict[str, float]:
    """A whole run, from wherever the workdir says it stands.

    Returns the last held-out metrics of this start. Raises Preempted once all is saved, when the
    scheduler wants the machine.
    """
    model_config = make_model_config(config)
    compute, attention_line = resolve_attention(Compute(**config.compute), model_config)
    objective = objectives.make_objective(**config.objective)

    run = config.run

    # Data: training samples are a function of their number, held-out clips never change.
    clip = (model_config.num_frames, config.data.frame_stride, model_config.frame_size)
    samples, held_out = open_samples(config, clip, workdir)
    mesh = sharding.make_mesh(config.data.batch_size, repeat=samples.repeat)

    # The two steps.
    schedule = make_schedule(config, len(samples.source))
    optimizer = optim.make_optimizer(schedule, **config.optimizer)
    on_all = sharding.replicated(mesh)
    bound = {"graphdef": training.graph_definition(model_config, compute), "seed": config.seed}
    train_step = jax.jit(
        functools.partial(
            training.train_step,
            objective=objective,
            optimizer=optimizer,
            schedule=schedule,
            **bound,
        ),
        donate_argnums=0,
        out_shardings=on_all,
    )
    eval_step = jax.jit(
        functools.partial(
            training.eval_step, objective=functools.partial(objective, evaluation=True), **bound
        ),
        out_shardings=on_all,
    )

    # The state: restored, or made where it will live.
    init = functools.partial(
        training.init_state, model_config, compute, optimizer, seed=config.seed
    )
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_all), jax.eval_shape(init)
    )
    # a setting that cannot work shows here, before anything is written
    jax.eval_shape(train_step, template, batch_shapes(config, model_config))
    with contextlib.ExitStack() as ending:  # undone in reverse, however the run ends
        if jax.process_index() == 0:
            ending.enter_context(lock_workdir(workdir))
        checkpoint_dir = os.path.join(workdir, "checkpoints")
        restored = restore_newest(checkpoint_dir, template)
        state = restored.state if restored else jax.jit(init, out_shardings=on_all)()
        start_step = restored.step if restored else 0

        record = describe_run(config, model_config, restored)
        checkpoints = Checkpoints(checkpoint_dir, keep=run.keep_checkpoints)
        ending.callback(checkpoints.close)
        with open(os.path.join(workdir, "run_config.json"), "w", encoding="utf-8") as file:
            json.dump(record["config"], file, indent=2)
        writer = MetricWriter(workdir, start_step=start_step)
        ending.callback(writer.close)
        ending.callback(samples.close)
        if held_out is not None:
            ending.callback(held_out.close)
        batches = loader.training_batches(
            samples,
            config.data.batch_size,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=config.data.num_threads,
            prefetch_batches=config.data.prefetch_batches,
        )
        ending.callback(batches.close)
        log_start(config, model_config, state, samples, held_out, schedule, mesh, restored)
        logger.info(attention_line)
        rate = input_probe.measure(samples.group, samples.repeat)
        logger.info("input: %s", rate.line(config.data.num_threads))

        progress = Progress(
            start_step=start_step, num_steps=schedule.num_steps, batch_size=config.data.batch_size
        )
        running: collections.deque = collections.deque()  # losses of steps that may not be done yet
        held_out_metrics: dict[str, float] = {}
        advised = preempted = False
        preemption = ending.enter_context(Preemption(jax.process_count()))
        watchdog = ending.enter_context(StuckWatchdog(run.step_timeout))
        if restored and restored.info.get("evaluation_owed"):
            held_out_metrics = evaluate(eval_step, state.params, held_out, config, mesh)
            log_held_out(writer, start_step, held_out_metrics)
        for step in range(start_step + 1, schedule.num_steps + 1):  # counts updates once done
            asked = time.perf_counter()
            batch = next(batches)
            if not running or running[-1].is_ready():  # the devices stood idle meanwhile
                progress.add_wait(time.perf_counter() - asked)

            arrays = {name: batch[name] for name in ("video", "boxes") if name in batch}
            state, metrics = train_step(state, sharding.to_devices(arrays, mesh))

            running.append(metrics["loss"])
            if len(running) > 2:  # let the host run ahead by two steps, not by all its memory
                jax.block_until_ready(running.popleft())
            if step == start_step + 1:
                jax.block_until_ready(metrics)
                logger.info("the train step is compiled (%.0f s)", progress.restart(step))
            watchdog.alive()
            preempted = preemption.requested(step)
            logs, evaluates, saves = (
                due(step, every, last=step == schedule.num_steps)
                for every in (run.log_every_steps, run.eval_every_steps, run.save_every_steps)
            )
            saves |= preempted
            if logs or saves:  # a state that is not finite is never saved
                metrics = to_floats(metrics, step)
            if logs:
                metrics |= {**progress.report(step), "bad_clips": samples.bad_count}
                writer.write(step, metrics)
                logger.info(progress.line(step, metrics))
                if not advised and (hint := input_probe.advice(metrics, config.data)):
                    logger.info(hint)
                    advised = True
            owed = evaluates and preempted  # it takes longer than the scheduler may wait
            if evaluates and not owed:
                with progress.pause(), watchdog.paused():
                    held_out_metrics = evaluate(eval_step, state.params, held_out, config, mesh)
                log_held_out(writer, step, held_out_metrics)
            if saves:
                with progress.pause(), watchdog.paused():
                    checkpoints.save(state, step, {**record, "evaluation_owed": owed})
            if preempted:
                break
        with watchdog.paused():
            checkpoints.close()  # here, where a second signal cannot cut it short
        if preempted and step < schedule.num_steps:
            raise Preempted(step)
        if run.picture_clips:
            draw(nnx.merge(bound["graphdef"], state.params), held_out, config, workdir)
    return held_out_metrics


def due(step: int, every: int, last: bool) -> bool:
    """Whether something that happens every so many steps (0: never) and at the end happens now."""
    return every > 0 and (last or step % every == 0)


def make_model_config(config: ConfigDict) -> VideoMAEConfig:
    """The published size, with the fields that the run's configuration sets otherwise."""
    changes = {name: value for name, value in config.model.items() if value is not None}
    return VideoMAEConfig.from_size(changes.pop("size"), **changes)


def make_schedule(config: ConfigDict, num_records: int) -> optim.Schedule:
    """The run's schedule; all `num_records` make an epoch, unless the configuration says how many
    do."""
    data = config.data
    return optim.make_schedule(
        # the published rates and epochs count videos, not the crops made of each (V2)
        batch_size=data.batch_size // data.repeat,
        num_clips=num_records if data.num_clips is None else data.num_clips,
        **config.schedule,
    )


def open_samples(
    config: ConfigDict, clip: tuple, workdir: str
) -> tuple[PretrainingSamples, HeldOutSamples | None]:
    """The training samples, and the held-out ones if the run looks at any.

    `clip`: num_frames, frame_stride, image_size.
    """
    data, run = config.data, config.run
    source = open_source(config, "train")
    source.check_serves(data.frame_stride)
    bad = BadClips(bad_clips_file(workdir), len(source), data.max_bad_share)
    make = RandomClip(source, *clip, data.repeat, data.resize, data.canvas_size)
    samples = PretrainingSamples(make, config.seed, bad_clips=bad, timeout=data.decode_timeout)
    if not run.eval_every_steps and not run.picture_clips:
        return samples, None
    source = open_source(config, "held_out")
    source.check_serves(data.frame_stride)
    bad = BadClips(bad_clips_file(workdir), len(source), data.max_bad_share)
    held_out = HeldOutSamples(
        CentreClip(source, *clip, data.resize),
        bad_clips=bad if data.skip_bad_held_out else None,
        timeout=data.decode_timeout,
    )
    return samples, held_out


def batch_shapes(config: ConfigDict, model: VideoMAEConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """What the train step gets of a batch."""
    clips, frames, channels = config.data.batch_size, model.num_frames, model.num_channels
    if config.data.canvas_size is None:
        shape = (clips, frames, *model.frame_size, channels)
        return {"video": jax.ShapeDtypeStruct(shape, np.uint8)}
    groups, repeat = clips // config.data.repeat, config.data.repeat
    return {
        "video": jax.ShapeDtypeStruct(
            (groups, frames, *config.data.canvas_size, channels), np.uint8
        ),
        "boxes": jax.ShapeDtypeStruct((groups, repeat, 4), np.int32),
    }


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
    run_config = json.loads(config.to_json_best_effort())
    start = {
        "step": restored.step if restored else 0,
        "vmae_jax": vmae_jax.__version__,
        "jax": jax.__version__,
    }
    lineage = {"run": uuid.uuid4().hex, "starts": []}
    if restored:
        lineage = restored.info["lineage"]
        before, now = _flat(restored.info["config"]), _flat(run_config)
        for name in sorted(set(before) | set(now)):
            if before.get(name) != now.get(name):
                logger.warning(
                    "%s was %s when the checkpoint was saved and is %s now",
                    name, before.get(name), now.get(name),
                )  # fmt: skip
    lineage = {**lineage, "starts": [*lineage["starts"], start]}
    return {"config": run_config, "model": model.to_dict(), "lineage": lineage}


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


def log_start(config, model, state, samples, held_out, schedule, mesh, restored) -> None:
    """What the run is, in a few lines: sizes, data, rates, devices, where it starts."""
    num_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    t, h, w = model.grid
    logger.info(
        "model: %s parameters, %d tokens (%d x %d x %d)",
        f"{num_parameters:,}", model.num_tokens, t, h, w,
    )  # fmt: skip
    logger.info(
        "data: %s, %d training and %d held-out records, %d clips a step",
        config.data.name, len(samples.source), len(held_out or ()), config.data.batch_size,
    )  # fmt: skip
    logger.info(
        "schedule: %d steps, %d of warmup, learning rate %.2e down to %.2e",
        schedule.num_steps, schedule.warmup_steps, schedule.peak_lr, schedule.final_lr,
    )  # fmt: skip
    devices = mesh.devices.flat
    logger.info("devices: %d x %s", len(mesh.devices.flat), devices[0].device_kind)
    if (loss := zero_loss(config, model)) is not None:
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


def to_floats(metrics: dict[str, jax.Array], step: int) -> dict[str, float]:
    """Fetches metrics. Raises FloatingPointError if one of them is not finite."""
    floats = {name: float(value) for name, value in jax.device_get(metrics).items()}
    for name, value in floats.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name}={value} at step {step}; the checkpoints saved before are intact. Lower "
                "the learning rate (schedule.base_lr) or set optimizer.clip_norm, and start again."
            )
    return floats


def log_held_out(writer: MetricWriter, step: int, metrics: dict[str, float]) -> None:
    """To the files and the screen: "held_out/loss 0.9534"."""
    writer.write(step, metrics)
    text = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    logger.info("held out at step %d: %s", step, text)


def evaluate(eval_step, params, held_out: HeldOutSamples, config: ConfigDict, mesh) -> dict:
    """Means over all held-out clips, each counted once, under "held_out/<metric>"."""
    totals: dict[str, float] = collections.defaultdict(float)
    batches = loader.held_out_batches(
        held_out,
        config.data.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
    )
    for batch in batches:
        arrays = {name: batch[name] for name in ("video", "index", "weight")}
        metrics = jax.device_get(eval_step(params, sharding.to_devices(arrays, mesh)))
        weight = float(metrics.pop("weight"))
        if weight == 0:  # bad clips only: the other metrics are 0 / 0
            continue
        totals["weight"] += weight
        for name, value in metrics.items():
            totals[name] += weight * float(value)
    weight = totals.pop("weight")
    return {f"held_out/{name}": total / weight for name, total in totals.items()}


def draw(model: VideoMAE, held_out: HeldOutSamples, config: ConfigDict, workdir: str) -> None:
    """The loss curve, and reconstructions of the first held-out clips, under <workdir>/pictures."""
    folder = os.path.join(workdir, "pictures")
    os.makedirs(folder, exist_ok=True)
    if config.run.log_every_steps:
        pictures.draw_curve(
            os.path.join(workdir, "metrics.jsonl"),
            os.path.join(folder, "loss.png"),
            zero_loss=zero_loss(config, model.config),
        )
    clips = [held_out.group(i) for i in range(min(config.run.picture_clips, len(held_out)))]
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
    logger.info("pictures: %s", folder)


flags_config = config_flags.DEFINE_config_file("config", None, "The run's configuration file.")
flags_workdir = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics, pictures.")
flags_supervise = flags.DEFINE_integer(
    "supervise",
    0,
    "Start the run again, up to so many times in a row without progress, when it is preempted or "
    "crashes. Exit codes: vmae_jax/exit_codes.py.",
)


def _run(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
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
    if flags_supervise.value:
        command = [sys.executable, *sys.argv, "--supervise=0"]
        checkpoints = os.path.join(flags_workdir.value, "checkpoints")
        sys.exit(
            supervise(
                command,
                restarts=flags_supervise.value,
                progress=functools.partial(newest_step, checkpoints),
            )
        )
    try:
        main(flags_config.value, flags_workdir.value)
    except Exception as error:
        code = exit_code(error)
        if code == CRASH:
            traceback.print_exc()
        else:
            logger.error("%s: %s", describe(code), " ".join(str(error).split()))
        sys.exit(code)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(_run)
