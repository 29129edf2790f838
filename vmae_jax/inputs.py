"""Opens what a configuration trains and evaluates on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from vmae_jax.assembly import make_model_config
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
    model, data = make_model_config(config), config.data
    listed = None if workdir is None else bad_clips_file(workdir, jax.process_index())
    with contextlib.ExitStack() as ending:
        source = open_source(config, "train")
        training = TrainingSamples(
            task.samples(source, model, data, held_out=False),
            config.seed,
            repeat=data.repeat,
            bad_clips=BadClips(listed, len(source), data.max_bad_share),
            timeout=data.decode_timeout,
        )
        ending.callback(training.close)
        if not evaluates:
            yield training, None
            return
        source = open_source(config, "held_out")
        blank = task.batch(model, data, held_out=True)
        bad = BadClips(listed, len(source), data.max_bad_share)
        held_out = HeldOutSamples(
            task.samples(source, model, data, held_out=True),
            repeat=next(iter(blank.values()))[0][0],
            blank=blank,
            bad_clips=bad if data.skip_bad_held_out else None,
            timeout=data.decode_timeout,
        )
        ending.callback(held_out.close)
        yield training, held_out


def open_source(config: Any, split: str) -> VideoSource:
    """One split of the data set, its files held in memory if the configuration says so.

    Raises:
      SettingError: if it cannot be opened, or does not have the frames that clips need.
    """
    data = config.data
    source = make_source(data.name, data.path, split, **data.options)
    if data.cache_size is not None:
        source = cached(source, data.cache_size)
    source.check_serves(data.frame_stride, uneven=data.fps is not None)
    return source
