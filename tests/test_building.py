import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from tfds_sets import (
    build_listed,
    refuse_network,
    write,
    write_listed,
)

from vmae_jax.errors import SettingError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    refuse_network(monkeypatch)


@pytest.fixture
def listed(tmp_path):
    return write_listed(tmp_path)


def test_a_split_without_any_video_is_left_out_and_a_set_is_an_error(listed):
    write(listed / "val.txt", "gone.mp4 1\n")
    folder, report = build_listed(listed)
    assert report["val"]["written"] == 0
    assert list(tfds.builder_from_directory(folder).info.splits) == ["train"]
    write(listed / "train.csv", "gone too.mp4 1\n")
    with pytest.raises(ValueError, match="none of 2 videos"):
        build_listed(listed, "others")
    assert not list(listed.glob("others/**/*.array_record*"))


def test_a_set_is_not_built_over_another(listed):
    build_listed(listed)
    with pytest.raises(SettingError, match="delete it"):
        build_listed(listed)


@pytest.mark.parametrize(
    ("package", "options", "install"),
    [
        ("apache_beam", {"beam_options": ""}, r"vmae_jax\[beam\]"),
        ("tensorflow_datasets", {}, r"vmae_jax\[tfds\]"),
        ("array_record", {}, r"vmae_jax\[tfds\]"),
    ],
)
def test_a_missing_package_is_named(listed, monkeypatch, package, options, install):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {install}`"):
        build_listed(listed, **options)


@pytest.mark.parametrize("option", ["num_shards", "num_threads", "split_number"])
def test_numbers_below_one_are_refused(listed, option):
    with pytest.raises(ValueError, match=f"{option}=0"):
        build_listed(listed, **{option: 0})


def test_building_and_reading_import_neither_jax_nor_tensorflow_nor_beam(listed):
    script = (
        "import sys\n"
        "from vmae_jax.data.tfds.building import build\n"
        "from vmae_jax.data.tfds.tfds_source import TfdsSource\n"
        f"folder, _ = build('video_folder', {str(listed / 'videos')!r}, {str(listed / 'x')!r})\n"
        "assert TfdsSource(folder, 'train').read_bytes(0)\n"
        "heavy = {'jax', 'flax', 'torch', 'tensorflow', 'apache_beam'}\n"
        "print('heavy:', *sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1:] == ["heavy:"], found.stderr
