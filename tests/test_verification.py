from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from prepared_sets import (
    FRAMES,
    VIDEOS,
    put,
    source_of,
    twelve_videos,
    unbroken_set,
)

from vmae_jax.data.prepared.prepared_source import PreparedSource
from vmae_jax.data.prepared.verification import damage, psnr_to_source


@pytest.fixture(scope="module")
def videos():
    return twelve_videos()


@pytest.fixture
def finished(tmp_path):
    return put(unbroken_set(), tmp_path / "finished")


def test_records_that_the_index_lists_otherwise_are_damage(finished):
    index = json.loads((finished / "index.json").read_text())
    entries = index["shards"][1]["records"]
    entries[0]["phase"] = entries[0]["phase"] + 1
    index["counts"]["videos"] = 13
    (finished / "index.json").write_text(json.dumps(index))
    lines = damage(finished, 2)
    assert len(lines) == 2
    assert "shard-00001.array_record, record 0: holds ('03.mp4'" in lines[0]
    assert "lists 12 records" in lines[1]


def test_damage_from_before_the_sums_were_made_is_found(finished):
    file = finished / "shard-00001.array_record"
    reader = ArrayRecordReader(str(file), "readahead_buffer_size:0,max_parallelism:0")
    records = [bytearray(record) for record in reader.read_all()]
    records[1][-20] ^= 1
    writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    for record in records:
        writer.write(bytes(record))
    writer.close()
    index = json.loads((finished / "index.json").read_text())
    index["shards"][1]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (finished / "index.json").write_text(json.dumps(index))
    (line,) = damage(finished, 1)
    assert "record 1 (clip_id='04.mp4'): part 9 does not have the checksum" in line


def test_psnr_is_that_of_the_stored_frames(videos, finished):
    found, lines = psnr_to_source(finished, source_of(videos), VIDEOS)
    assert not lines
    prepared, squares = PreparedSource(finished), []
    for i, original in enumerate(source_of(videos)):
        with prepared.open(i) as reader, source_of(videos).open(i) as source:
            assert original.clip_id == prepared[i].clip_id
            kept = range(reader.frame_phase, FRAMES, 4)  # ten frames, of which it compares eight
            error = reader.read(kept).astype(float) - source.read(kept)
            squares.append(np.mean(error**2))
    assert found == pytest.approx(10 * np.log10(255**2 / np.mean(squares)), abs=0.2)
