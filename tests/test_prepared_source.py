from __future__ import annotations

import pickle

import numpy as np
import pytest
from prepared_sets import (
    FRAMES,
    SHARD,
    all_frames,
    copied,
    edit_index,
    set_of_six,
    six_videos,
)
from video_corpus import painted_numbers

from vmae_jax.data.prepared.preparation import prepare
from vmae_jax.data.prepared.prepared_source import PreparedSource, prepared
from vmae_jax.data.prepared.video_encoding import (
    Settings,
    frame_phase,
)
from vmae_jax.data.sources.cached_source import cached
from vmae_jax.data.video.reader import VideoError


@pytest.fixture(scope="module")
def videos():
    return six_videos()


@pytest.fixture(scope="module")
def finished():
    return set_of_six()


@pytest.fixture
def prepared_set(tmp_path):
    return copied(set_of_six(), tmp_path)


def test_a_set_lists_what_the_source_does(finished, videos):
    source = PreparedSource(finished)
    assert len(source) == 6
    assert [x.clip_id for x in source] == [x.clip_id for x in videos]
    assert [x.label for x in source] == [10, 9, 8, 7, 6, 5]
    assert source.class_names == videos.class_names
    assert source[4].path == str(finished / "shard-00001.array_record")
    for i in (5, 0, 4, 1):  # across shards and back
        numbers = painted_numbers(all_frames(source, i))
        phase = frame_phase(f"{i}.mp4", 2 if i == 5 else FRAMES, 4)
        assert numbers == list(range(20 * i + phase, 20 * i + (2 if i == 5 else FRAMES), 4))


def test_a_set_can_be_pickled_after_use(finished):
    source = PreparedSource(finished)
    expected = all_frames(source, 1)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(all_frames(copy, 1), expected)
    assert copy.needs_isolation is False


def test_a_set_can_be_read_relative_to_the_working_directory(finished, monkeypatch):
    monkeypatch.chdir(finished.parent)
    assert len(all_frames(PreparedSource(finished.name), 0)) == 10


def test_making_a_source_opens_no_shard(prepared_set):
    shard = prepared_set / SHARD
    shard.write_bytes(bytes(shard.stat().st_size))
    source = PreparedSource(prepared_set)
    assert source[0].clip_id == "0.mp4"
    with pytest.raises(VideoError, match=SHARD):
        source.open(0)
    assert len(all_frames(source, 3)) == 10  # the other shard


def test_missing_and_truncated_shards_are_told_at_once(prepared_set):
    shard = prepared_set / SHARD
    data = shard.read_bytes()
    source = PreparedSource(prepared_set)
    shard.write_bytes(data[:-70000])
    with pytest.raises(ValueError, match=f"{SHARD}.*has 61072 bytes instead of 131072"):
        PreparedSource(prepared_set)
    with pytest.raises(VideoError, match=f"{SHARD}.*no whole shard"):
        source.open(1)  # one that became so later
    shard.unlink()
    with pytest.raises(ValueError, match=f"{SHARD}.*is missing"):
        PreparedSource(prepared_set)
    with pytest.raises(VideoError, match=f"{SHARD}.*no such shard"):
        source.open(1)


def test_shards_that_the_index_does_not_describe_are_noticed(prepared_set):
    other = prepared_set / "shard-00001.array_record"
    (prepared_set / SHARD).write_bytes(other.read_bytes())  # of the same size
    source = PreparedSource(prepared_set)
    with pytest.raises(VideoError, match=r"it holds \('3.mp4', 7, 40, 4\) where"):
        source.open(0)


@pytest.mark.parametrize(
    ("frame_step", "frame_stride", "uneven", "needed"),
    [
        (4, 4, False, None),
        (4, 8, False, None),
        (4, 2, False, 2),
        (4, 6, False, 2),
        (4, 3, False, 1),
        (4, 4, True, 1),
        (2, 2, False, None),
        (2, 1, False, 1),
        (1, 3, False, None),
        (1, 4, True, None),
    ],
)
def test_clips_that_a_set_cannot_serve_are_refused(
    prepared_set, frame_step, frame_stride, uneven, needed
):
    edit_index(prepared_set, lambda m: m["settings"].update(frame_step=frame_step))
    source = PreparedSource(prepared_set)
    if needed is None:
        source.check_serves(frame_stride, uneven)
    else:
        with pytest.raises(ValueError, match=f"prepare with --frame-step {needed}"):
            source.check_serves(frame_stride, uneven)


def test_whole_files_of_a_set_cannot_be_opened(finished):
    source = PreparedSource(finished)
    with pytest.raises(ValueError, match="by number"):
        source.open_whole(source[0])
    with pytest.raises(ValueError, match=r"leave data\.cache_size out"):
        cached(source, (32, 32))


def test_sets_at_addresses_are_refused():
    with pytest.raises(ValueError, match="path='gs://bucket/set' is remote"):
        PreparedSource("gs://bucket/set")


def test_sets_of_video_files_need_isolation(videos, tmp_path):
    settings = Settings(encoding="original", frame_step=1)
    prepare(videos, tmp_path, settings, workers=1, say=lambda line: None)
    source = PreparedSource(tmp_path)
    assert source.needs_isolation
    with source.open(3) as reader:
        assert painted_numbers(reader.read([1, 0, 39])) == [61, 60, 99]
    source.check_serves(3, uneven=True)


def test_all_is_a_set_itself_or_the_one_of_that_name(prepared_set, tmp_path):
    assert len(prepared(str(prepared_set), "all")) == 6
    (tmp_path / "sets").mkdir()
    copied(set_of_six(), tmp_path / "sets" / "all")
    assert len(prepared(str(tmp_path / "sets"), "all")) == 6
    with pytest.raises(ValueError, match=r"all' holds no index\.json"):
        prepared(str(tmp_path / "elsewhere"), "all")
