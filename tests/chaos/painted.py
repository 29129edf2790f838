"""A data set of random pictures, made in no time: what is under test is not the decoder."""

from __future__ import annotations

import numpy as np

from vmae_jax.data.datasets import Dataset
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.reader import checked_indices

NUM_RECORDS = {"train": 24, "held_out": 4}
_NUM_FRAMES, _SIZE = 12, (20, 24)


class _Painted(VideoSource):
    needs_isolation = False

    def open(self, i: int) -> _Reader:
        return _Reader(self[i])


class _Reader:
    num_frames, fps = _NUM_FRAMES, 25.0
    height, width = _SIZE

    def __init__(self, record: VideoRecord):
        self._record = record
        self.times = np.arange(_NUM_FRAMES) / self.fps

    def read(self, indices) -> np.ndarray:
        indices = checked_indices(indices, _NUM_FRAMES, self._record.clip_id)
        rng = np.random.default_rng(self._record.label)
        frames = rng.integers(0, 256, (_NUM_FRAMES, *_SIZE, 3), np.uint8)
        return frames[indices]

    def close(self) -> None:
        pass

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exception) -> None:
        pass


def _open(path: str | None, split: str) -> VideoSource:
    first = 0 if split == "train" else NUM_RECORDS["train"]
    numbers = range(first, first + NUM_RECORDS[split])
    return _Painted([VideoRecord(f"{i}.mp4", f"clip {i}", label=i) for i in numbers])


PAINTED = Dataset(load=lambda: _open)
