"""Videos that are painted when they are read, and the clip makers of pre-training by position."""

from __future__ import annotations

import json
import os
import time

import numpy as np

from vmae_jax.data import samplers, transforms
from vmae_jax.data.bad_clips import BadClips
from vmae_jax.data.clip_maker import ClipMaker
from vmae_jax.data.samples import HeldOutSamples, TrainingSamples
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.augment import SCALES
from vmae_jax.data.video.reader import VideoError, VideoReader


class PaintedSource(VideoSource):
    """Videos in memory; red tells the record, green the frame, blue the column.

    `bad`: {record: how opening it goes wrong}.
    """

    needs_isolation = False

    def __init__(self, num_records, num_frames=100, height=30, width=40, bad=()):
        super().__init__(
            [VideoRecord(f"{i}.mp4", f"clip {i}", label=i % 3) for i in range(num_records)]
        )
        self.num_frames, self.height, self.width = num_frames, height, width
        self.bad = dict(bad)

    def open(self, i):
        how = self.bad.get(i)
        if how == "torn":
            raise VideoError(self[i].path, "it is torn; copy it again.")
        if how == "memory":
            raise MemoryError
        if how == "bug":
            raise KeyError("a mistake of ours")
        if how == "exit":
            os._exit(7)
        if how == "hang":
            time.sleep(1000)
        return PaintedReader(self, i)


class IsolatedSource(PaintedSource):
    needs_isolation = True


class SteppedSource(PaintedSource):
    """Keeps every fourth frame, from the third on."""

    def open(self, i):
        reader = super().open(i)
        reader.frame_step, reader.frame_phase = 4, 2
        return reader


class PaintedReader(VideoReader):
    def __init__(self, source, i):
        self.num_frames, self.i, self.source = source.num_frames, i, source

    def read(self, indices):
        frames = np.empty((len(indices), self.source.height, self.source.width, 3), np.uint8)
        frames[..., 0] = self.i
        frames[..., 1] = np.asarray(indices)[:, None, None]
        frames[..., 2] = np.arange(self.source.width) * 5
        return frames


def random_clip(
    source, num_frames, frame_stride, image_size, repeat=1, resize="cv2", canvas=None, scales=SCALES
) -> ClipMaker:
    return ClipMaker(
        source,
        samplers.pretraining_frames(num_frames, frame_stride),
        transforms.random_crops(image_size, repeat, resize, canvas, scales),
    )


def centre_clip(source, num_frames, frame_stride, image_size, resize="cv2") -> ClipMaker:
    return ClipMaker(
        source,
        samplers.centre_frames(num_frames, frame_stride),
        transforms.centre_view(image_size, resize),
    )


def held_out_samples(
    source, num_frames, frame_stride, image_size, resize="cv2", **options
) -> HeldOutSamples:
    make = centre_clip(source, num_frames, frame_stride, image_size, resize)
    blank = {"video": ((1, num_frames, *image_size, 3), np.uint8)}
    return HeldOutSamples(make, blank=blank, **options)


def painted(num_records, seed=0, repeat=1, canvas=None, bad_clips=None, **about):
    make = random_clip(PaintedSource(num_records, **about), 4, 2, (16, 16), repeat, "cv2", canvas)
    return TrainingSamples(make, seed, repeat=repeat, bad_clips=bad_clips)


def with_bad(num_records, num_bad, path, max_share=0.2, seed=0):
    """Samples of a source with some bad records, and their numbers."""
    bad = np.random.default_rng(1).permutation(num_records)[:num_bad].tolist()
    bad_clips = BadClips(path, num_records, max_share)
    about = {"num_frames": 8, "height": 8, "width": 8, "bad": dict.fromkeys(bad, "torn")}
    return painted(num_records, seed, bad_clips=bad_clips, **about), bad


def named(path):
    return [json.loads(line)["clip_id"] for line in path.read_text().splitlines()]
