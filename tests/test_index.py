from __future__ import annotations

import numpy as np
import pytest
from prepared_sets import (
    SHARD,
    all_frames,
    copied,
    edit_index,
    quietly,
    set_of_six,
    six_videos,
)

from vmae_jax.data.prepared.prepared_source import PreparedSource
from vmae_jax.data.video.reader import VideoError


@pytest.fixture
def prepared_set(tmp_path):
    return copied(set_of_six(), tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(version=2), "is of format"),
        (lambda m: m.update(format="else"), "is of format"),
        (lambda m: m.pop("shards"), r"is damaged \("),
        (lambda m: m.update(shards=3), r"is damaged \("),
        (lambda m: m["shards"][0].update(file="../../etc/passwd"), r"is damaged \("),
        (lambda m: m["shards"][0].update(file="shard-00001.array_record"), r"is damaged \("),
        (lambda m: m["settings"].update(encoding="gif"), r"is damaged \("),
        (lambda m: m["settings"].pop("frame_step"), r"is damaged \("),
        (lambda m: m["shards"][0]["records"][0].pop("label"), r"is damaged \("),
        (lambda m: m["shards"][0]["records"].pop(), None),
        (lambda m: m["shards"][0]["records"].reverse(), None),
    ],
)
def test_damaged_indices_are_refused(prepared_set, edit, message):
    edit_index(prepared_set, edit)
    if message is None:  # only seen when the shard is opened
        with pytest.raises(VideoError, match=SHARD):
            PreparedSource(prepared_set).open(0)
    else:
        with pytest.raises(ValueError, match=message):
            PreparedSource(prepared_set)


def test_no_index_and_garbage_are_refused(prepared_set):
    file = prepared_set / "index.json"
    for text in ("", "{", "[" * 100_000, "[]", "null"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"is damaged \("):
            PreparedSource(prepared_set)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"is damaged \("):
        PreparedSource(prepared_set)
    file.unlink()
    with pytest.raises(ValueError, match="not finished; run `python -m vmae_jax prepare`"):
        PreparedSource(prepared_set)


def test_sets_whose_index_has_its_former_name_are_read(prepared_set):
    expected = all_frames(PreparedSource(prepared_set), 4)
    (prepared_set / "index.json").rename(prepared_set / "manifest.json")
    np.testing.assert_array_equal(all_frames(PreparedSource(prepared_set), 4), expected)
    quietly(six_videos(), prepared_set)
    assert (prepared_set / "index.json").is_file()
    (prepared_set / "manifest.json").write_text("{")  # is looked at no more
    assert len(PreparedSource(prepared_set)) == 6
