"""`python -m vmae_jax prepare`."""

from __future__ import annotations

import pytest
from prepared_sets import (
    COMMAND,
    contents,
    twelve_videos,
    unbroken_set,
)
from video_corpus import painted_numbers

from vmae_jax.__main__ import main
from vmae_jax.data.prepared.prepared_source import PreparedSource


@pytest.fixture(scope="module")
def videos():
    return twelve_videos()


@pytest.fixture(scope="module")
def unbroken():
    return unbroken_set()


def test_the_command_prepares_as_the_function_does(videos, unbroken, tmp_path, capsys):
    assert main(["prepare", str(videos), str(tmp_path), *COMMAND]) == 0
    captured = capsys.readouterr()
    assert "12 videos will take about" in captured.err
    assert "12 of 12 videos, 0 bad" in captured.err
    assert f"{tmp_path}: 12 videos" in captured.out
    assert contents(tmp_path) == unbroken


def test_wrong_arguments_are_refused(videos, tmp_path, capsys):
    for wrong in (["--host", "3/3"], ["--option", "nothing"], ["--frame-step", "3"]):
        with pytest.raises(SystemExit):
            main(["prepare", str(videos), str(tmp_path), *wrong])
    assert main(["prepare", str(videos), str(tmp_path), "--option", "nothing=1"]) == 1
    assert main(["prepare", str(videos), str(tmp_path), "--encoding=h264", "--frame-step=2"]) == 1
    assert "frame_step=2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_address_is_no_place_for_a_set(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", str(videos), "gs://bucket/set"]) == 1
    assert "path='gs://bucket/set' is remote" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # no folder of that name, in particular


def test_video_encodings_keep_all_frames_by_default(videos, tmp_path):
    arguments = ["prepare", str(videos), str(tmp_path), *COMMAND, "--encoding", "h264"]
    assert main(arguments) == 0
    source = PreparedSource(tmp_path)
    with source.open(2) as reader:
        assert painted_numbers(reader.read([7])) == [27]
