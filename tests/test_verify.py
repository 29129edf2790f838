"""`python -m vmae_jax verify`."""

from __future__ import annotations

import shutil

import pytest
from prepared_sets import (
    put,
    quietly,
    source_of,
    twelve_videos,
    unbroken_set,
)

from vmae_jax.__main__ import main
from vmae_jax.data.prepared.video_encoding import Settings


@pytest.fixture(scope="module")
def videos():
    return twelve_videos()


@pytest.fixture
def finished(tmp_path):
    return put(unbroken_set(), tmp_path / "finished")


def verify(folder, *more):
    return main(["verify", str(folder), "--option", "held_out_ratio=0", *map(str, more)])


def test_an_intact_set_passes(finished, videos, capsys):
    assert verify(finished) == 0
    assert "no damage" in capsys.readouterr().out
    assert verify(finished, "--source", videos) == 0
    assert "PSNR to the source: 4" in capsys.readouterr().out


def test_damage_is_listed_with_shard_and_record(finished, capsys):
    shard = finished / "shard-00002.array_record"
    data = bytearray(shard.read_bytes())
    data[15_000] ^= 4  # within the second of three records of 10 kB
    shard.write_bytes(data)
    (finished / "shard-00003.array_record").unlink()
    assert verify(finished) == 1
    captured = capsys.readouterr()
    first, second, *others = captured.out.splitlines()
    assert "shard-00002.array_record: sha256=" in first
    assert "shard-00002.array_record, record 1 (clip_id='07.mp4')" in second
    assert len(others) == 1
    assert "No such file" in others[0]
    assert "damaged in 3 places" in captured.err


def test_poor_and_foreign_sets_fail(videos, finished, tmp_path, capsys):
    poor = tmp_path / "poor"
    quietly(source_of(videos), poor, Settings(shard_size=30, quality=5))
    assert verify(poor) == 0  # nothing is broken
    assert verify(poor, "--source", videos) == 1
    assert "is below min_psnr=35.0; prepare it with more --quality" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        verify(poor, "--source", videos, "--num-videos", "0")
    assert "'0' is not a whole number from 1 on" in capsys.readouterr().err
    changed = tmp_path / "changed"
    shutil.copytree(videos, changed)
    shutil.copy(videos / "03.mp4", changed / "00.mp4")
    assert verify(finished, "--source", changed) == 1
    assert "00.mp4: the file is not the one that was prepared" in capsys.readouterr().out
    (changed / "00.mp4").rename(changed / "aa.mp4")
    for file in changed.glob("[01]*.mp4"):
        file.unlink()
    assert verify(finished, "--source", changed) == 1
    assert "none of the videos" in capsys.readouterr().err
