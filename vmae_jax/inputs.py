"""Opens what a configuration trains and evaluates on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from vmae_jax.assembly import classes_of, make_model_config
from vmae_jax.config import VideoMAEConfig
from vmae_jax.data.bad_clips import BadClips
from vmae_jax.data.datasets import make_source
from vmae_jax.data.samples import HeldOutSamples, TrainingSamples, bad_clips_file
from vmae_jax.data.sources.cached_source import cached
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.tasks.task import Task


@contextlib.contextmanager
def open_samples(
    config: Any, task: Task, workdir: str | None, *, evaluates: bool
) -> Iterator[tuple[TrainingSamples, HeldOutSamples | None]]:
    """The training samples, and the held-out ones if anything looks at them.

    Args:
      config: of the run.
      task: of it, which says how samples are made.
      workdir: where bad clips are listed; None: nowhere.
      evaluates: whether anything looks at held-out samples.
    Raises:
      SettingError: if a data set cannot be opened, or cannot serve the run.
    """
    data = config.data
    listed = None if workdir is None else bad_clips_file(workdir, jax.process_index())
    with contextlib.ExitStack() as ending:
        source = open_source(config, task, "train")
        model = make_model_config(config, classes_of(task, source))
        held_out_source = open_source(config, task, "held_out") if evaluates else None
        task.check_data(source, held_out_source, model)
        training = TrainingSamples(
            task.samples(source, model, data, held_out=False),
            config.seed,
            repeat=data.repeat,
            bad_clips=BadClips(listed, len(source), data.max_bad_share),
            timeout=data.decode_timeout,
        )
        ending.callback(training.close)
        held_out = None
        if held_out_source is not None:
            held_out = _held_out_samples(held_out_source, config, task, model, listed)
            ending.callback(held_out.close)
        yield training, held_out


@contextlib.contextmanager
def open_held_out(
    config: Any, task: Task, workdir: str | None, model: VideoMAEConfig, split: str = "held_out"
) -> Iterator[HeldOutSamples]:
    """Held-out samples by themselves, for an evaluator with a data set or views of its own.

    Args:
      config, task, workdir: as of `open_samples`.
      model: of the run.
      split: of the data set.
    Raises:
      SettingError: as `open_samples`.
    """
    listed = None if workdir is None else bad_clips_file(workdir, jax.process_index())
    samples = _held_out_samples(open_source(config, task, split), config, task, model, listed)
    with contextlib.closing(samples):
        yield samples


def _held_out_samples(
    source: VideoSource, config: Any, task: Task, model: VideoMAEConfig, listed: str | None
) -> HeldOutSamples:
    data = config.data
    blank = task.batch(model, data, held_out=True)
    bad = BadClips(listed, len(source), data.max_bad_share)
    return HeldOutSamples(
        task.samples(source, model, data, held_out=True),
        repeat=next(iter(blank.values()))[0][0],
        blank=blank,
        bad_clips=bad if data.skip_bad_held_out else None,
        timeout=data.decode_timeout,
    )


def open_source(config: Any, task: Task, split: str) -> VideoSource:
    """One split of the data set, its files held in memory if the configuration says so.

    Raises:
      SettingError: if it cannot be opened, or does not have the frames that clips need.
    """
    data = config.data
    source = make_source(data.name, data.path, split, **data.options)
    if data.cache_size is not None:
        source = cached(source, data.cache_size)
    uneven = task.uneven_frames or data.fps is not None
    source.check_serves(data.frame_stride, uneven)
    return source
