"""Squares that move, labelled by where they go: a data set that is made in no time.

A recipe may name `squares` as its data set; a label is a class, several, or a number, as asked for.
"""

from __future__ import annotations

import numpy as np

from vmae_jax.configs import finetune_default
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.reader import VideoReader

SIDE, FRAMES, CLASSES = 16, 6, ("right", "left", "down")
NUM_RECORDS = {"train": 48, "held_out": 9}


def squares(path: str | None, split: str, *, kind: str = "class") -> VideoSource:
    start = 0 if split == "train" else 1000
    labels = {
        "class": lambda i: i % 3,
        "several": lambda i: (i % 3, 2) if i % 3 < 2 else (2,),
        "number": lambda i: (float(i % 3 == 0) - float(i % 3 == 1), float(i % 3 == 2)),
    }
    records = [
        VideoRecord(f"{i}.mp4", f"square {i}", label=labels[kind](i))
        for i in range(start, start + NUM_RECORDS[split])
    ]
    return _Squares(records, class_names=() if kind == "number" else CLASSES)


class _Squares(VideoSource):
    needs_isolation = False

    def open(self, i):
        return _Reader(int(self[i].clip_id.split()[1]))


class _Reader(VideoReader):
    num_frames, fps, height, width = FRAMES, 25.0, SIDE, SIDE

    def __init__(self, number):
        self._number = number
        self.times = np.arange(FRAMES) / self.fps

    def read(self, indices):
        rng = np.random.default_rng(self._number)
        place, colour = rng.integers(0, SIDE - 6), rng.integers(100, 256, 3)
        frames = np.zeros((len(indices), SIDE, SIDE, 3), np.uint8)
        for frame, i in zip(frames, indices, strict=True):
            along = slice(2 * i, 2 * i + 5)
            across = slice(place, place + 6)
            direction = self._number % 3
            if direction == 0:
                frame[across, along] = colour
            elif direction == 1:
                frame[across, ::-1][:, along] = colour
            else:
                frame[along, across] = colour
        return frames


def make_config(**changes):
    """A run that takes seconds."""
    import labelled_squares  # under the name by which other processes know it

    config = finetune_default.get_config()
    config.update_from_flattened_dict(
        {
            "model.image_size": (SIDE, SIDE), "model.num_frames": 4, "model.patch_size": 4,
            "model.hidden_size": 32, "model.num_hidden_layers": 2,
            "model.num_attention_heads": 2, "model.intermediate_size": 64,
            "compute.dtype": "float32",
            "finetuning.augment.flip": False, "finetuning.augment.rand_augment": "",
            "finetuning.augment.scale": (0.9, 1.0), "finetuning.augment.erase_prob": 0.1,
            "finetuning.mixup.alpha": 0.1, "finetuning.mixup.cutmix_alpha": 0.0,
            "finetuning.mixup.group": 4, "finetuning.head_init_scale": 1.0,
            "data.name": labelled_squares.squares,
            "data.batch_size": 16, "data.frame_stride": 1, "data.num_threads": 1,
            "schedule.base_lr": 0.3, "schedule.num_steps": 60,
            "schedule.warmup_epochs": None, "schedule.warmup_steps": 5,
            "run.log_every_steps": 1, "run.save_every_steps": 10,
            "evals.held_out.every_steps": 20, "evals.loss_curve.every_steps": 0,
            "evals.test.data.segments": 1, "evals.test.data.crops": 1,
            **changes,
        }
    )  # fmt: skip
    return config
