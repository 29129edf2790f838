"""`python -m vmae_jax build_tfds`."""

import pytest
from tfds_sets import refuse_network, write_ucf101, write_videos

from vmae_jax.__main__ import main
from vmae_jax.data.tfds.tfds_source import TfdsSource


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    refuse_network(monkeypatch)


@pytest.fixture
def ucf101(tmp_path):
    return write_ucf101(tmp_path)


def test_the_command_builds_ucf101_in_a_folder_of_its_split(ucf101, capsys):
    write_videos(ucf101 / "videos", "v_Archery_g02_c01.avi", "v_Archery_g22_c01.avi")
    arguments = ["ucf101", str(ucf101 / "videos"), str(ucf101 / "sets")]
    assert main(["build_tfds", *arguments, "--annotations", str(ucf101), "--split-number=2"]) == 0
    folder = ucf101 / "sets" / "ucf101" / "split2" / "1.0.0"
    output = capsys.readouterr().out
    assert "train: 1 of 2 listed videos" in output
    assert f"skipped 1; {folder}/report.json" in output
    source = TfdsSource("ucf101/split2", "test", data_dir=ucf101 / "sets")
    assert source.folder == str(folder)
    assert [(r.clip_id, r.label) for r in source] == [("Archery/v_Archery_g22_c01.avi", 1)]
    assert main(["build_tfds", *arguments, "--list-format=path"]) == 1
    assert "list_format is no option of 'ucf101'" in capsys.readouterr().err
