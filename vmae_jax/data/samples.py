"""A sample is a pure function of (seed, its global number g).

Numbers count samples from the beginning of the run, over all hosts and epochs. So whoever asks for
g, in whatever thread, process or restart, gets the same bytes, and the step number is the whole
state of the data. With repeated sampling, R samples in a row are crops of the same frames, decoded
once: the unit of work is the group d = g // R.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmae_jax.data.bad_clips import BadClips, TooManyBadClips
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.data.video.augment import (
    centre_crop,
    check_resizer,
    crop_and_resize,
    fit_into,
    sample_crop_box,
)
from vmae_jax.data.video.clips import centre_indices, pretraining_indices
from vmae_jax.data.video.reader import VideoError
from vmae_jax.errors import SettingError
from vmae_jax.files.storage import is_remote
from vmae_jax.processes.isolation import ChildDied, Isolated

_UINT64 = 2**64 - 1
_MOST_IN_A_ROW = 100  # bad records that are passed over before a run gives up


def sample_rng(seed: int, g: int) -> np.random.Generator:
    """The random numbers of number g: Philox with (seed, g) as its key.

    Any two pairs give unrelated streams. `seed` may be any integer and counts modulo 2**64.
    """
    return np.random.Generator(
        np.random.Philox(key=np.array([seed & _UINT64, g & _UINT64], np.uint64))
    )


def record_index(seed: int, g: int, num_records: int, replacement: int = 0) -> int:
    """Which record number g shows: in every epoch of num_records numbers each record once.

    The order of an epoch is its own permutation, and costs no memory: only the place asked for is
    computed. That takes microseconds, but up to 10 ms for a handful of records: the cipher works
    on at least 16 bits, and is repeated until it hits one of them.

    Args:
      seed, g: as in `sample_rng`.
      num_records: of the source.
      replacement: n > 0 for the n-th record behind it in the same order, where it is bad.
    """
    from grain.experimental import index_shuffle  # loads jax, which decoding processes go without

    epoch, position = divmod(g, num_records)
    position = (position + replacement) % num_records
    epoch_seed = np.random.SeedSequence([seed & _UINT64, epoch]).generate_state(1, np.uint32)[0]
    return index_shuffle(position, max_index=num_records - 1, seed=int(epoch_seed), rounds=4)


@dataclass(frozen=True)
class RandomClip:
    """Makes the training samples of a group; can be pickled, and called anywhere.

    Attributes:
      source: the records.
      num_frames: frames in a clip (T).
      frame_stride: distance between them in frames of the video.
      image_size: (height, width) in pixels.
      repeat: crops of the same frames (R).
      resize: a key of `augment.RESIZERS`.
      canvas: (height, width) to leave the crops to the device, see `device_crop`; None cuts them
        here.
    """

    source: VideoSource
    num_frames: int
    frame_stride: int
    image_size: tuple[int, int]
    repeat: int = 1
    resize: str = "cv2"
    canvas: tuple[int, int] | None = None

    def __post_init__(self):
        _check_clip(self)
        if self.repeat < 1:
            raise SettingError(f"repeat={self.repeat} must be at least 1, the crops of one clip.")
        if self.canvas is not None and min(self.canvas) < 1:
            raise SettingError(
                f"canvas={tuple(self.canvas)} must be (height, width) in pixels, e.g. (256, 456)."
            )

    def __call__(self, i: int, seed: int, d: int) -> dict[str, np.ndarray]:
        """The clip of record i that the random numbers of group d choose.

        Returns {"video": uint8 [R, T, *image_size, C]}; with a canvas, {"video": uint8
        [1, T, *canvas, C], "boxes": int32 [1, R, 4]}.
        Raises VideoError.
        """
        rng = sample_rng(seed, d)
        with self.source.open(i) as reader:
            indices = pretraining_indices(
                reader.num_frames,
                self.num_frames,
                self.frame_stride,
                rng,
                frame_step=getattr(reader, "frame_step", 1),
                frame_phase=getattr(reader, "frame_phase", 0),
            )
            frames = reader.read(indices)
        if self.canvas is not None:
            frames = fit_into(frames, self.canvas, self.resize)
        _, height, width, channels = frames.shape
        boxes = [sample_crop_box(height, width, self.image_size, rng) for _ in range(self.repeat)]
        if self.canvas is not None:
            canvas = np.zeros((1, len(frames), *self.canvas, channels), np.uint8)
            canvas[0, :, :height, :width] = frames
            return {"video": canvas, "boxes": np.array([boxes], np.int32)}
        shape = (self.repeat, len(frames), *self.image_size, channels)
        crops = np.empty(shape, np.uint8)
        for crop, box in zip(crops, boxes, strict=True):
            crop_and_resize(frames, box, self.image_size, self.resize, out=crop)
        return {"video": crops}


@dataclass(frozen=True)
class CentreClip:
    """Makes held-out samples: the middle clip of a record, cropped in the centre.

    Attributes: as of `RandomClip`.
    """

    source: VideoSource
    num_frames: int
    frame_stride: int
    image_size: tuple[int, int]
    resize: str = "cv2"

    def __post_init__(self):
        _check_clip(self)

    def __call__(self, i: int) -> dict[str, np.ndarray]:
        """{"video": uint8 [1, T, *image_size, C]} of record i. Raises VideoError."""
        with self.source.open(i) as reader:
            indices = centre_indices(
                reader.num_frames,
                self.num_frames,
                self.frame_stride,
                frame_step=getattr(reader, "frame_step", 1),
                frame_phase=getattr(reader, "frame_phase", 0),
            )
            frames = reader.read(indices)
        return {"video": centre_crop(frames, self.image_size, self.resize)[None]}


def _check_clip(clip: RandomClip | CentreClip) -> None:
    check_resizer(clip.resize)
    for name in ("num_frames", "frame_stride"):
        if getattr(clip, name) < 1:
            raise SettingError(f"{name}={getattr(clip, name)} must be at least 1 frame.")


class _Samples:
    """What training and held-out samples share: where they are made, and what errors become."""

    def __init__(self, make: Callable[..., dict[str, np.ndarray]], timeout: float):
        self.source = make.source
        self._isolated = Isolated(make, timeout=timeout) if self.source.needs_isolation else None
        self._make = self._isolated or make

    def _try(self, i: int, *args: int) -> dict[str, Any]:
        """The sample of record i, or VideoError; other errors are bugs and say where they arose."""
        record = self.source[i]
        try:
            made = self._make(i, *args)
        except VideoError:
            raise
        except (ChildDied, MemoryError) as error:
            reason = str(error) or "out of memory"
            raise VideoError(
                record.path, f"decoding it failed: {reason}; re-encode or remove the file."
            ) from error
        except Exception as error:
            error.add_note(f"while making a sample of clip_id={record.clip_id!r}")
            raise
        count = len(made["boxes"][0]) if "boxes" in made else len(made["video"])
        label = np.full(count, record.label, np.int32)
        return {**made, "label": label, "clip_id": [record.clip_id] * count}

    def close(self) -> None:
        """Ends the processes that decode, if there are any."""
        if self._isolated is not None:
            self._isolated.close()


class PretrainingSamples(_Samples):
    """The endless training samples of a source, by group number.

    `samples.group(d)` is {"video": uint8 [R, T, H, W, 3], "label": int32 [R], "clip_id": R str}:
    R random crops of a random clip of a record (or that clip on a canvas and its "boxes").

    A record that cannot be used is replaced by the next in the order of its epoch, and reported.

    Args:
      make: what cuts the clip.
      seed: any integer.
      bad_clips: where bad records are reported; None makes them errors.
      timeout: seconds that decoding one clip may take, where a foreign file is decoded in a process
        of its own.
    """

    def __init__(
        self,
        make: RandomClip,
        seed: int,
        *,
        bad_clips: BadClips | None = None,
        timeout: float = 60,
    ):
        super().__init__(make, timeout)
        self.repeat = make.repeat
        self._seed = seed
        self._bad_clips = bad_clips

    @property
    def bad_count(self) -> int:
        """Records that turned out to be bad since the start."""
        return self._bad_clips.count if self._bad_clips else 0

    def group(self, d: int) -> dict[str, Any]:
        """Samples d * R to d * R + R - 1.

        Raises:
          IndexError: if d is negative.
          TooManyBadClips: see `BadClips`; or if a hundred records in a row cannot be used.
          VideoError: for a bad record, without `bad_clips`.
        """
        d = int(d)
        if d < 0:
            raise IndexError(f"d={d} is negative; groups are counted from 0.")
        for replacement in itertools.count():
            i = record_index(self._seed, d, len(self.source), replacement)
            if self._bad_clips is None:
                return self._try(i, self._seed, d)
            if self._bad_clips.reason(i) is None:
                try:
                    made = self._try(i, self._seed, d)
                except VideoError as error:
                    self._bad_clips.bad(i, self.source[i].clip_id, str(error))
                else:
                    self._bad_clips.good(i)
                    return made
            if replacement == min(_MOST_IN_A_ROW, len(self.source)):
                raise TooManyBadClips(
                    f"{replacement} records in a row cannot be used, the last of them "
                    f"{self.source[i].clip_id!r}: {self._bad_clips.reason(i)} Repair the data set."
                )


class HeldOutSamples(_Samples):
    """Each record of a source once, always the same.

    `samples.group(i)` has the entries of PretrainingSamples with R = 1, and "weight": fp32 [1].

    Args:
      make: what cuts the clip.
      bad_clips: where bad records are reported; they are left out then (weight 0). None makes them
        errors: a number measured on fewer clips is another number.
      timeout: as in PretrainingSamples.
    """

    repeat = 1

    def __init__(self, make: CentreClip, *, bad_clips: BadClips | None = None, timeout: float = 60):
        super().__init__(make, timeout)
        self._bad_clips = bad_clips
        self._blank = np.zeros((1, make.num_frames, *make.image_size, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.source)

    def group(self, i: int) -> dict[str, Any]:
        """Sample i. Raises IndexError if there is no record i; VideoError, TooManyBadClips."""
        record = self.source[i]
        weight = np.ones(1, np.float32)
        try:
            made = self._try(i)
        except VideoError as error:
            if self._bad_clips is None:
                error.add_note("To evaluate without such clips, set data.skip_bad_held_out=True.")
                raise
            self._bad_clips.bad(i, record.clip_id, str(error))
            label = np.full(1, record.label, np.int32)
            made = {"video": self._blank, "label": label, "clip_id": [record.clip_id]}
            weight = np.zeros(1, np.float32)
        else:
            if self._bad_clips is not None:
                self._bad_clips.good(i)
        return {**made, "weight": weight}


def bad_clips_file(workdir: str | os.PathLike, process_index: int = 0) -> str | None:
    """Where a process of a run lists its bad clips; None for an address, where nothing can be added
    to a file: the log has them all the same."""
    if is_remote(os.fspath(workdir)):
        return None
    name = f"bad_clips.{process_index}.jsonl" if process_index else "bad_clips.jsonl"
    return os.path.join(workdir, name)
