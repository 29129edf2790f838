"""From samples to batches: only scheduling, no randomness.

The global batch of step s holds the samples s*B to s*B + B - 1, and each host brings the rows of it
that its devices hold. So the stream is the same for every number of threads and hosts, and a run
resumes by its step number. Threads are enough: decoding and resizing release Python's lock, and
what may crash is decoded in other processes anyway (`isolation`). The unit of work is a group: the
R samples that are made of the same frames.

Memory on a host: prefetch_batches of its batches and the one in use, T*H*W*C bytes for each clip.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import grain
import numpy as np

from vmae_jax.data.samples import HeldOutSamples
from vmae_jax.errors import SettingError

# grain's ranges end, training does not: more local samples than any run will see.
_ENDLESS = 2**48


class Samples(Protocol):
    """What the loader needs: groups of `repeat` samples by number, arrays equal in shape.

    Axis 0 of an array: one entry per sample, or one per group where its samples share it.
    """

    repeat: int

    def group(self, d: int) -> Mapping:
        """Samples d * repeat to d * repeat + repeat - 1."""


class BatchIterator(Protocol):
    """An iterator over batches whose threads end with `close()`."""

    def __iter__(self) -> Iterator[dict]: ...

    def __next__(self) -> dict: ...

    def close(self) -> None:
        """Ends the threads; asking for a further batch is then a ValueError."""


def training_batches(
    samples: Samples,
    batch_size: int,
    *,
    start_step: int,
    rows: Sequence[int] | None = None,
    num_threads: int,
    prefetch_batches: int,
) -> BatchIterator:
    """This host's batches from step start_step on, without end.

    Args:
      samples: for example TrainingSamples; asked from several threads.
      batch_size: clips in the global batch (B).
      start_step: the first step to serve; any step starts at once.
      rows: which groups of a batch this host brings, numbers below B / R in ascending order; None
        for all. On a mesh: `sharding.local_rows(mesh, B // R)`.
      num_threads: threads that make samples; 0 makes them when a batch is asked for.
      prefetch_batches: batches that are made ahead, at least 1.
    Returns:
      An iterator of the arrays of the samples, joined: {"video": uint8 [b, T, H, W, C], "label":
      int32 [b], "clip_id": list of b str, ...} with b = len(rows) * R. Errors of a sample come out
      of it. Call its `close()` to end its threads.
    Raises:
      SettingError: if a number is out of range, or the batch cannot be shared equally.
    """
    if start_step < 0:
        raise SettingError(f"start_step={start_step} is negative; steps are counted from 0.")
    rows = _checked_rows(rows, batch_size, samples.repeat)
    num_groups = batch_size // samples.repeat

    def group(k: int) -> Mapping:
        return samples.group(_global_number(k, num_groups, rows))

    numbers = range(start_step * len(rows), _ENDLESS)
    return _batches(group, numbers, len(rows), num_threads, prefetch_batches)


def held_out_batches(
    samples: HeldOutSamples,
    batch_size: int,
    *,
    rows: Sequence[int] | None = None,
    num_threads: int = 0,
    prefetch_batches: int = 1,
) -> BatchIterator:
    """This host's part of one pass over the held-out samples, each of which counts once.

    Args:
      samples: with a length, in groups of R views of a record.
      batch_size, rows, num_threads, prefetch_batches: as in `training_batches`.
    Returns:
      An iterator of batches as in `training_batches`, equally many on every host, with a further
      "index": int32 [b], the record's number, and "weight": float32 [b], 1 for a sample and 0 for
      padding (which repeats the first samples) and for bad clips that are left out.
    Raises:
      SettingError: as `training_batches`.
    """
    rows = _checked_rows(rows, batch_size, samples.repeat)
    num_groups = batch_size // samples.repeat
    num_batches = -(-len(samples) // num_groups)

    def group(k: int) -> dict:
        i = _global_number(k, num_groups, rows)
        made = samples.group(i % len(samples))
        index = np.full(samples.repeat, i % len(samples), np.int32)
        return {**made, "index": index, "weight": made["weight"] * np.float32(i < len(samples))}

    return _batches(group, range(num_batches * len(rows)), len(rows), num_threads, prefetch_batches)


def _checked_rows(rows: Sequence[int] | None, batch_size: int, repeat: int) -> Sequence[int]:
    if batch_size < 1 or batch_size % repeat:
        raise SettingError(
            f"batch_size={batch_size} is not a positive multiple of repeat={repeat}."
        )
    rows = range(batch_size // repeat) if rows is None else rows
    if not rows or rows[0] < 0 or rows[-1] >= batch_size // repeat:
        raise SettingError(
            f"rows={list(rows)} must be at least one of the {batch_size // repeat} groups of a "
            "batch, counted from 0."
        )
    return rows


def _global_number(k: int, num_groups: int, rows: Sequence[int]) -> int:
    """The global number of the k-th group that the host with these rows makes, of num_groups a
    step."""
    step, position = divmod(k, len(rows))
    return step * num_groups + rows[position]


def _batches(
    group: Callable[[int], Mapping],
    numbers: range,
    local_size: int,
    num_threads: int,
    prefetch_batches: int,
) -> BatchIterator:
    if num_threads < 0:
        raise SettingError(f"num_threads={num_threads} is negative; choose 0 or more.")
    if prefetch_batches < 1:
        raise SettingError(f"prefetch_batches={prefetch_batches} must be at least 1.")
    # The buffer is stated because grain's own (500 elements) would take gigabytes. It lies before
    # the batching, so that the threads share the work of one batch instead of each making its own.
    ahead = prefetch_batches * local_size
    options = grain.ReadOptions(num_threads=min(num_threads, ahead), prefetch_buffer_size=ahead)
    dataset = (
        grain.MapDataset.range(numbers.start, numbers.stop)
        .map(group)
        .to_iter_dataset(options)
        .batch(local_size, drop_remainder=True, batch_fn=_joined)
    )
    return iter(dataset)


def _joined(groups: Sequence[Mapping]) -> dict:
    columns = {name: [group[name] for group in groups] for name in groups[0]}
    return {
        name: list(itertools.chain(*values))
        if isinstance(values[0], list)
        else np.concatenate(values)
        for name, values in columns.items()
    }
