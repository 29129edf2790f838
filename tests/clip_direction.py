"""A task that the package does not have: does a clip play forwards or backwards?

Everything that it takes is in this file, which is the recipe too: its data set, samples, objective
and evaluator.

    python train.py --config=tests/clip_direction.py --workdir=runs/direction
"""

from __future__ import annotations

import functools

import numpy as np
from ml_collections import ConfigDict

from vmae_jax import sharding
from vmae_jax.configs import default
from vmae_jax.data import samplers
from vmae_jax.data.clip_maker import ClipMaker
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.reader import VideoReader
from vmae_jax.evaluators.evaluator import Evaluator, predictions
from vmae_jax.losses import classification_loss
from vmae_jax.patches import normalize, patchify, scale_pixels
from vmae_jax.tasks.task import Task

NUM_FRAMES, SIDE = 4, 16


# The data set: squares that move to the right.


def moving_squares(path: str | None, split: str) -> VideoSource:
    first, count = (0, 32) if split == "train" else (32, 6)
    return _Squares([VideoRecord(f"{i}.mp4", f"square {i}") for i in range(first, first + count)])


class _Squares(VideoSource):
    def open(self, i):
        return _Reader(int(self[i].clip_id.split()[1]))


class _Reader(VideoReader):
    num_frames, fps = 6, 25.0

    def __init__(self, number):
        self._rng_seed = number

    def read(self, indices):
        rng = np.random.default_rng(self._rng_seed)
        top, colour = rng.integers(0, SIDE - 6), rng.integers(100, 256, 3)
        frames = np.zeros((len(indices), SIDE, SIDE, 3), np.uint8)
        for frame, i in zip(frames, indices, strict=True):
            frame[top : top + 6, 2 * i : 2 * i + 5] = colour
        return frames


# The task.


class ClipDirection(Task):
    parts = ("classifier",)

    def __init__(self, *, frozen: tuple[str, ...] = ()):
        self.frozen_parts = tuple(frozen)

    def samples(self, source, model, data, *, held_out):
        frames = samplers.pretraining_frames(model.num_frames, data.frame_stride)
        return ClipMaker(
            source, frames, functools.partial(_turned, both=held_out, repeat=data.repeat)
        )

    def batch(self, model, data, *, held_out):
        repeat = 2 if held_out else data.repeat
        video = (repeat, model.num_frames, *model.frame_size, model.num_channels)
        return {"video": (video, np.uint8), "label": ((repeat,), np.int32)}

    def objective(self, model, batch, keys, frozen, *, evaluation=False):
        logits = self._logits(model, batch, None if evaluation else keys)
        loss = classification_loss(logits, batch["label"], "single_label_classification")
        return loss, {"loss": loss}

    def predict(self, model, batch, keys, frozen):
        return {"logits": self._logits(model, batch, None), "label": batch["label"]}

    def _logits(self, model, batch, keys):
        config = model.config
        video = sharding.split_clips(batch["video"])
        pixels = scale_pixels(patchify(video, config.tubelet_size, config.patch_size))
        encoded = model.encode(normalize(pixels, config), keys=keys)
        return model.classify(encoded.tokens, keys=keys)


def _turned(frames, rng, *, both, repeat):
    """Held-out clips come both ways, as two views of a record; others as a coin says."""
    backwards = np.array([0, 1]) if both else rng.integers(0, 2, repeat)
    video = np.stack([frames[::-1] if label else frames for label in backwards])
    return {"video": video, "label": backwards.astype(np.int32)}


class Accuracy(Evaluator):
    """The share of clips whose direction is found, and of records with both ways found."""

    def __init__(self, context, *, per_record: bool = True):
        super().__init__(context)
        self._per_record = per_record

    def __call__(self, params, step):
        found = predictions(self.context, params)
        right = found["logits"].argmax(axis=1) == found["label"]
        metrics = {"accuracy": float(right.mean()), "clips": len(right)}
        if self._per_record:
            both = [right[found["index"] == i].all() for i in np.unique(found["index"])]
            metrics |= {"both_ways": float(np.mean(both)), "records": len(both)}
        return metrics


# The recipe.


def get_config() -> ConfigDict:
    import clip_direction  # this file, under the name by which other processes know it

    config = default.get_config()
    config.task = clip_direction.ClipDirection
    config.ClipDirection = ConfigDict({"frozen": ()})
    config.evals = ConfigDict()
    config.evals.direction = ConfigDict(
        {"every_steps": 10, "evaluator": clip_direction.Accuracy, "per_record": True}
    )
    config.evals.loss_curve = ConfigDict({"every_steps": -1})

    config.model.image_size = (SIDE, SIDE)
    config.model.num_frames = NUM_FRAMES
    config.model.patch_size = 4
    config.model.hidden_size = 32
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 2
    config.model.intermediate_size = 64
    config.model.use_mean_pooling = True
    config.model.drop_path_rate = 0.1
    config.compute.dtype = "float32"

    config.data.name = clip_direction.moving_squares
    config.data.batch_size = 32
    config.data.frame_stride = 1
    config.data.repeat = 2
    config.data.num_threads = 1

    config.schedule.base_lr = 0.3
    config.schedule.num_steps = 40
    config.schedule.warmup_steps = 5
    config.run.log_every_steps = 1
    config.run.save_every_steps = 10
    return config
