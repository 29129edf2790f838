import os
from pathlib import Path

import pytest

from vmae_jax.files.atomic import write_folder


def test_a_folder_appears_when_it_is_filled(tmp_path):
    path = tmp_path / "above" / "folder"
    with write_folder(path) as staging:
        (Path(staging) / "file").write_text("x")
        assert not path.exists()
    assert (path / "file").read_text() == "x"
    assert os.listdir(tmp_path / "above") == ["folder"]
    assert path.stat().st_mode == (tmp_path / "above").stat().st_mode  # others may read it, too


def test_a_folder_that_could_not_be_filled_leaves_nothing(tmp_path):
    def interrupted():
        with write_folder(tmp_path / "folder") as staging:
            (Path(staging) / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_of_two_writers_of_a_folder_the_first_one_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a path from here will do
    with write_folder("folder") as late:
        (Path(late) / "late").touch()
        with write_folder("folder") as first:
            (Path(first) / "first").touch()
    assert os.listdir("folder") == ["first"]
    assert os.listdir() == ["folder"]


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "folder").touch()
    with pytest.raises(NotADirectoryError), write_folder(tmp_path / "folder"):
        pass
    assert os.listdir(tmp_path) == ["folder"]
