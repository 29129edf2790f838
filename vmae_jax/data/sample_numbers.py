"""What a sample's number stands for: its random numbers, and the record that it shows.

Numbers count samples from the beginning of the run, over all hosts and epochs. So whoever asks for
one, in whatever thread, process or restart, gets the same.
"""

from __future__ import annotations

import numpy as np

_UINT64 = 2**64 - 1


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
