"""One record to one or more samples: a sampler chooses frames, a transform makes arrays of them.

    make = ClipMaker(source, pretraining_frames(16, 4), random_crops((224, 224)))
    make(i, seed, d)  # {"video": uint8 [1, 16, 224, 224, 3]}

`samplers` and `transforms` have those that there are. Decoding may take place in processes of its
own, so all three can be pickled: write samplers and transforms as `functools.partial` of functions
at the top of a module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vmae_jax.data.sample_numbers import sample_rng
from vmae_jax.data.samplers import Sampler
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.data.transforms import Arrays, Transform


@dataclass(frozen=True)
class ClipMaker:
    """Makes the samples of a group; can be pickled, and called anywhere.

    Attributes:
      source: the records.
      sampler: (reader, rng) -> int64 [T], which frames of a record.
      transform: (frames uint8 [T, H, W, C], rng) -> arrays, their first axis the samples that are
        made of these frames (or what several of them share).
      label: makes of a record's label the row "label" of each of its samples, called with (label,
        clip_id), see `labels.encoder`: by `samples`, as it needs no frames. None: int32, the class.
    """

    source: VideoSource
    sampler: Sampler
    transform: Transform
    label: Callable[..., np.ndarray] | None = None

    def __call__(self, i: int, seed: int, d: int) -> Arrays:
        """The samples of record i that the random numbers of group d choose.

        Raises:
          VideoError: if the record cannot be read.
        """
        rng = sample_rng(seed, d)
        with self.source.open(i) as reader:
            frames = reader.read(self.sampler(reader, rng))
        return self.transform(frames, rng)
