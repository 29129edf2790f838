from __future__ import annotations

import fcntl

import pytest
from prepared_sets import (
    contents,
    quietly,
    source_of,
    twelve_videos,
    unbroken_set,
)

from vmae_jax.data.prepared import shard_folder
from vmae_jax.data.prepared.video_encoding import Settings
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.errors import SettingError


@pytest.fixture(scope="module")
def videos():
    return twelve_videos()


@pytest.fixture(scope="module")
def unbroken():
    return unbroken_set()


def test_a_shard_appears_under_its_name_only_when_whole(videos, tmp_path, monkeypatch):
    def refuse(partial, name):
        raise OSError("no renaming today")

    monkeypatch.setattr(shard_folder.os, "replace", refuse)
    with pytest.raises(OSError, match="no renaming"):
        quietly(source_of(videos), tmp_path)
    assert not contents(tmp_path)


def test_two_processes_cannot_make_the_same_shards(videos, tmp_path):
    with open(tmp_path / ".lock-0-of-1", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SettingError, match="another process"):
            quietly(source_of(videos), tmp_path)


def test_other_settings_are_refused_with_the_difference(videos, unbroken, tmp_path):
    for name, data in unbroken.items():
        (tmp_path / name).write_bytes(data)
    source = source_of(videos)
    with pytest.raises(ValueError, match=r"quality=85 then, 90 now\)"):
        quietly(source, tmp_path, Settings(shard_size=3, quality=90))
    with pytest.raises(ValueError, match="num_videos=12 then, 11 now"):
        quietly(VideoSource(source.records[:-1]), tmp_path)
    relabelled = [VideoRecord(x.path, x.clip_id, label=1) for x in source]
    with pytest.raises(ValueError, match="videos_sha256"):
        quietly(VideoSource(relabelled), tmp_path)
    assert contents(tmp_path) == unbroken
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"no settings\.json"):
        quietly(source, tmp_path)
