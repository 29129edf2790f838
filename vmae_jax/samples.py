"""A sample is a pure function of (seed, its global number g).

Numbers count samples from the beginning of the run, over all hosts and epochs. So whoever asks for
g, in whatever thread, process or restart, gets the same bytes, and the step number is the whole
state of the data.
"""

from __future__ import annotations

import numpy as np
from grain.experimental import index_shuffle

from vmae_jax.augment import centre_crop, multi_scale_corner_crop
from vmae_jax.clips import centre_indices, pretraining_indices
from vmae_jax.sources import VideoSource

_UINT64 = 2**64 - 1


def sample_rng(seed: int, g: int) -> np.random.Generator:
    """The random numbers of sample g: Philox with (seed, g) as its key.

    Any two pairs give unrelated streams. `seed` may be any integer and counts modulo 2**64.
    """
    return np.random.Generator(
        np.random.Philox(key=np.array([seed & _UINT64, g & _UINT64], np.uint64))
    )


def record_index(seed: int, g: int, num_records: int) -> int:
    """Which record sample g shows: in every epoch of num_records samples each record once.

    The order of an epoch is its own permutation, and costs no memory: only the place asked for is
    computed. That takes microseconds, but up to 10 ms for a handful of records: the cipher works
    on at least 16 bits, and is repeated until it hits one of them.
    """
    epoch, position = divmod(g, num_records)
    epoch_seed = np.random.SeedSequence([seed & _UINT64, epoch]).generate_state(1, np.uint32)[0]
    return index_shuffle(position, max_index=num_records - 1, seed=int(epoch_seed), rounds=4)


class PretrainingSamples:
    """The endless training samples of a source, by global number.

    `samples[g]` is {"video": uint8 [T, H, W, 3], "label": np.int32, "clip_id": str}: a random clip
    of a record, cropped at random.

    Args:
      source: the records.
      num_frames: frames in a clip (T).
      frame_stride: distance between them in frames of the video.
      image_size: (height, width) in pixels.
      seed: any integer.
    Raises:
      IndexError: from `samples[g]`, if g is negative.
    """

    def __init__(
        self,
        source: VideoSource,
        num_frames: int,
        frame_stride: int,
        image_size: tuple[int, int],
        seed: int,
    ):
        self.source = source
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.image_size = image_size
        self.seed = seed

    def __getitem__(self, g: int) -> dict:
        g = int(g)
        if g < 0:
            raise IndexError(f"g={g} is negative; samples are counted from 0.")
        i = record_index(self.seed, g, len(self.source))
        record = self.source[i]
        rng = sample_rng(self.seed, g)
        try:
            reader = self.source.open(i)
            indices = pretraining_indices(
                reader.num_frames, self.num_frames, self.frame_stride, rng
            )
            video = multi_scale_corner_crop(reader.read(indices), self.image_size, rng)
        except Exception as error:
            error.add_note(f"while making sample g={g} of clip_id={record.clip_id!r}")
            raise
        return {"video": video, "label": np.int32(record.label), "clip_id": record.clip_id}


class HeldOutSamples:
    """Each record of a source once, always the same: its middle clip, cropped in the centre.

    `samples[i]` has the same entries as in PretrainingSamples.

    Args:
      source, num_frames, frame_stride, image_size: as in PretrainingSamples.
    Raises:
      IndexError: from `samples[i]`, if there is no record i.
    """

    def __init__(
        self,
        source: VideoSource,
        num_frames: int,
        frame_stride: int,
        image_size: tuple[int, int],
    ):
        self.source = source
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict:
        record = self.source[i]
        try:
            reader = self.source.open(i)
            indices = centre_indices(reader.num_frames, self.num_frames, self.frame_stride)
            video = centre_crop(reader.read(indices), self.image_size)
        except Exception as error:
            error.add_note(f"while making held-out sample {i} of clip_id={record.clip_id!r}")
            raise
        return {"video": video, "label": np.int32(record.label), "clip_id": record.clip_id}
