from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from prepared_sets import (
    SHARD,
    all_frames,
    copied,
    set_of_six,
)

from vmae_jax.data.prepared.prepared_source import PreparedSource
from vmae_jax.data.video.reader import VideoError


@pytest.fixture(scope="module")
def finished():
    return set_of_six()


@pytest.fixture
def prepared_set(tmp_path):
    return copied(set_of_six(), tmp_path)


def test_threads_share_a_set(finished):
    source = PreparedSource(finished)
    expected = [all_frames(PreparedSource(finished), i) for i in range(6)]
    wrong = []

    def work(seed):
        rng = random.Random(seed)
        for _ in range(40):
            i = rng.randrange(6)
            if not np.array_equal(all_frames(source, i), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_flipped_bit_anywhere_costs_one_named_record_or_nothing(prepared_set):
    shard = prepared_set / SHARD
    data = shard.read_bytes()
    expected = [all_frames(PreparedSource(prepared_set), i) for i in range(3)]
    filled = np.flatnonzero(np.frombuffer(data, np.uint8))
    # The index stands behind the last record: from there on, a flip may cost the whole shard.
    records_end = filled[filled < 60000][-1] - 600
    rng = random.Random(0)
    refused = 0
    for _ in range(250):
        position = int(rng.choice(filled))
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.randrange(8)
        shard.write_bytes(damaged)
        source, lost = PreparedSource(prepared_set), 0
        for i in range(3):
            try:
                np.testing.assert_array_equal(all_frames(source, i), expected[i])
            except VideoError as error:
                assert SHARD in str(error)  # noqa: PT017
                lost += 1
        assert lost <= 1 or position > records_end
        refused += lost
    assert refused > 150  # most of the bytes do matter
