"""A sample is a pure function of (seed, its global number g).

Numbers count samples from the beginning of the run, over all hosts and epochs, so the step number
is the whole state of the data. With repeated sampling, R samples in a row are made of the same
frames, decoded once: the unit of work is the group d = g // R.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vmae_jax.data.bad_clips import BadClips, TooManyBadClips
from vmae_jax.data.clip_maker import ClipMaker
from vmae_jax.data.sample_numbers import record_index
from vmae_jax.data.sources.record_label import single_class
from vmae_jax.data.video.reader import VideoError
from vmae_jax.files.storage import is_remote
from vmae_jax.processes.isolation import ChildDied, Isolated

_MOST_IN_A_ROW = 100  # bad records that are passed over before a run gives up


class _Samples:
    """What training and held-out samples share: where they are made, and what errors become."""

    def __init__(self, make: ClipMaker, repeat: int, timeout: float):
        self.source = make.source
        self.repeat = repeat
        self._encode_label = make.label
        self._isolated = Isolated(make, timeout=timeout) if self.source.needs_isolation else None
        self._make = self._isolated or make

    def _try(self, i: int, seed: int, d: int) -> dict[str, Any]:
        """The samples of record i; other errors than these are bugs, and say where they arose.

        Raises:
          VideoError: if the record cannot be used.
        """
        record = self.source[i]
        try:
            made = self._make(i, seed, d)
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
        return {"label": self._labels(i), **made, "clip_id": [record.clip_id] * self.repeat}

    def _labels(self, i: int) -> np.ndarray:
        record = self.source[i]
        if self._encode_label is None:
            return np.full(self.repeat, single_class(record.label), np.int32)
        return np.repeat(self._encode_label(record.label, record.clip_id)[None], self.repeat, 0)

    def close(self) -> None:
        """Ends the processes that decode, if there are any."""
        if self._isolated is not None:
            self._isolated.close()


class TrainingSamples(_Samples):
    """The endless training samples of a source, by group number.

    `samples.group(d)` has the arrays of the clip maker, "label": [R, ...] as `ClipMaker.label` has
    it, int32 [R] without (the record's class, -1 if it has not just one), and "clip_id": R str.
    Labels among the arrays of the clip maker take the place of the record's.

    A record that cannot be used is replaced by the next in the order of its epoch, and reported.

    Args:
      make: what makes the samples of a record.
      seed: any integer.
      repeat: samples of a group (R), as `make` makes them.
      bad_clips: where bad records are reported; None makes them errors.
      timeout: seconds that decoding one clip may take, where a foreign file is decoded in a process
        of its own.
    """

    def __init__(
        self,
        make: ClipMaker,
        seed: int,
        *,
        repeat: int = 1,
        bad_clips: BadClips | None = None,
        timeout: float = 60,
    ):
        super().__init__(make, repeat, timeout)
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

    `samples.group(i)` has the entries of TrainingSamples, its R samples being views of record i,
    and "weight": fp32 [R].

    Args:
      make: what makes the samples of a record. Its random numbers are those of (0, i).
      repeat: views of a record (R).
      blank: array name -> (shape of a group, dtype), what stands for a bad record.
      bad_clips: where bad records are reported; they are left out then (weight 0). None makes them
        errors: a number measured on fewer clips is another number.
      timeout: as in TrainingSamples.
    """

    def __init__(
        self,
        make: ClipMaker,
        *,
        repeat: int = 1,
        blank: Mapping[str, tuple[tuple[int, ...], Any]],
        bad_clips: BadClips | None = None,
        timeout: float = 60,
    ):
        super().__init__(make, repeat, timeout)
        self._bad_clips = bad_clips
        self._blank = blank

    def __len__(self) -> int:
        return len(self.source)

    def group(self, i: int) -> dict[str, Any]:
        """The samples of record i.

        Raises:
          IndexError: if there is no such record.
          VideoError: for a bad record, without `bad_clips`.
          TooManyBadClips: see `BadClips`.
        """
        record = self.source[i]
        weight = np.ones(self.repeat, np.float32)
        try:
            made = self._try(i, 0, i)
        except VideoError as error:
            if self._bad_clips is None:
                error.add_note("To evaluate without such clips, set data.skip_bad_held_out=True.")
                raise
            self._bad_clips.bad(i, record.clip_id, str(error))
            made = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self._blank.items()}
            made = {"label": self._labels(i), **made, "clip_id": [record.clip_id] * self.repeat}
            weight = np.zeros(self.repeat, np.float32)
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
