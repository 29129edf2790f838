"""One record to one or more samples: a sampler chooses frames, a transform makes arrays of them.

    make = ClipMaker(source, pretraining_frames(16, 4), random_crops((224, 224)))
    make(i, seed, d)  # {"video": uint8 [1, 16, 224, 224, 3]}

`samplers` and `transforms` have those there are; they can be had from here, too. Decoding may take
place in processes of its own, so all three can be pickled: write samplers and transforms as
`functools.partial` of functions at the top of a module.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmae_jax.data.sample_numbers import sample_rng
from vmae_jax.data.samplers import (
    Sampler,
    centre_frames,
    fine_tuning_frames,
    pretraining_frames,
    validation_frames,
    view_frames,
)
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.data.transforms import (
    Arrays,
    Transform,
    augmented_clips,
    centre_view,
    random_crops,
    test_views,
)

__all__ = [
    "Arrays",
    "ClipMaker",
    "Sampler",
    "Transform",
    "augmented_clips",
    "centre_frames",
    "centre_view",
    "fine_tuning_frames",
    "pretraining_frames",
    "random_crops",
    "test_views",
    "validation_frames",
    "view_frames",
]


@dataclass(frozen=True)
class ClipMaker:
    """Makes the samples of a group; can be pickled, and called anywhere.

    Attributes:
      source: the records.
      sampler: (reader, rng) -> int64 [T], which frames of a record.
      transform: (frames uint8 [T, H, W, C], rng) -> arrays, their first axis the samples that are
        made of these frames (or what several of them share).
    """

    source: VideoSource
    sampler: Sampler
    transform: Transform

    def __call__(self, i: int, seed: int, d: int) -> Arrays:
        """The samples of record i that the random numbers of group d choose.

        Raises:
          VideoError: if the record cannot be read.
        """
        rng = sample_rng(seed, d)
        with self.source.open(i) as reader:
            frames = reader.read(self.sampler(reader, rng))
        return self.transform(frames, rng)
