import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tfds_sets import NAMES, build_listed, refuse_network, write_listed, write_videos
from video_corpus import encode, painted_numbers

from vmae_jax.data.datasets import make_source
from vmae_jax.data.tfds.building import build
from vmae_jax.data.tfds.tfds_source import TfdsSource
from vmae_jax.data.video.decoders import DECODERS
from vmae_jax.errors import SettingError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    refuse_network(monkeypatch)


@pytest.fixture
def listed(tmp_path):
    return write_listed(tmp_path)


def test_bytes_labels_and_ids_come_back_as_they_went_in(listed):
    folder, report = build_listed(listed, num_shards=3)
    assert {split: x["written"] for split, x in report.items()} == {"train": 7, "val": 3}
    train, val = TfdsSource(folder, "train"), TfdsSource(folder, "val")
    assert {r.clip_id: r.label for r in train} == {NAMES[i]: i % 3 for i in range(7)}
    assert {r.clip_id: r.label for r in val} == {NAMES[7]: 2, NAMES[8]: -1, NAMES[9]: 0}
    for source in (train, val):
        for i in np.random.default_rng(0).permutation(len(source)).tolist() * 2:
            stored = (listed / "videos" / source[i].clip_id).read_bytes()
            assert source.read_bytes(i) == stored


def test_names_that_are_not_utf8_survive(tmp_path):
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")  # as os.listdir gives Latin-1
    write_videos(tmp_path / "videos", "b.mp4")
    (tmp_path / "videos" / name).write_bytes(b"latin")
    folder, _ = build("video_folder", tmp_path / "videos", tmp_path / "sets")
    source = TfdsSource(folder, "train")
    ids = [record.clip_id for record in source]
    assert sorted(ids) == sorted([name, "b.mp4"])
    assert source.read_bytes(ids.index(name)) == b"latin"


@pytest.fixture(scope="module")
def real_set(tmp_path_factory):
    """Three H.264 videos, whose frames show their numbers, counted from 0, 50 and 100."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "videos").mkdir()
    for first in (0, 50, 100):
        encode(str(folder / "videos" / f"{first}.mp4"), frames=12, first_number=first)
    return build("video_folder", folder / "videos", folder / "sets")[0]


@pytest.mark.parametrize("backend", DECODERS)
def test_every_decoder_reads_from_the_stored_bytes(real_set, backend):
    source = TfdsSource(real_set, "train", backend)
    for i, record in enumerate(source):
        first = int(record.clip_id.removesuffix(".mp4"))
        with source.open(i) as reader:
            assert painted_numbers(reader.read([7, 0, 11])) == [first + 7, first, first + 11]


def test_a_source_can_be_pickled_before_and_after_use(real_set):
    source = TfdsSource(real_set, "train")
    fresh = pickle.dumps(source)
    expected = source.read_bytes(1)
    used = pickle.dumps(source)
    assert len(used) == len(fresh)  # nothing that was opened goes along
    for copy in map(pickle.loads, (fresh, used)):
        assert list(copy) == list(source)
        assert copy.read_bytes(1) == expected


def test_threads_share_a_source(listed):
    folder, _ = build_listed(listed, num_shards=4)
    source = TfdsSource(folder, "train")
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(source.read_bytes, list(range(7)) * 40))
    expected = [(listed / "videos" / record.clip_id).read_bytes() for record in source]
    assert found == expected * 40


def test_only_the_index_is_read_until_a_record_is_opened(listed):
    folder, _ = build_listed(listed)
    for shard in listed.glob("sets/**/*.array_record-*"):
        shard.unlink()
    source = TfdsSource(folder, "train")
    assert len(source) == 7
    assert source[0].label in range(3)
    with pytest.raises(Exception, match="array_record"):
        source.read_bytes(0)


def test_sources_are_for_isolated_processes():
    assert TfdsSource.needs_isolation


def test_an_index_of_another_build_is_noticed(listed):
    folder, _ = build_listed(listed)
    index_path = listed / "sets" / "video_folder" / "1.0.0" / "index_train.json"
    index = json.loads(index_path.read_text())
    index["records"]["clip_id"].reverse()
    index_path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="two builds"):
        TfdsSource(folder, "train").read_bytes(0)


def test_sets_are_found_by_folder_and_by_name(listed, monkeypatch):
    folder, _ = build_listed(listed)
    sets = listed / "sets"
    assert TfdsSource(sets, "val").folder == folder
    assert TfdsSource("video_folder", "val", data_dir=sets).folder == folder
    monkeypatch.setenv("TFDS_DATA_DIR", str(sets))
    assert TfdsSource("video_folder/1.0.0", "val").folder == folder
    with pytest.raises(SettingError, match="build_tfds"):
        TfdsSource("kinetics400", "val")
    with pytest.raises(ValueError, match=r"split='test'.*\['train', 'val'\]"):
        TfdsSource(folder, "test")
    with pytest.raises(ValueError, match=r"\['train', 'val'\]. Set data.options.held_out_split"):
        make_source("tfds", folder, "held_out", held_out_split="test")
    build("video_folder", listed / "videos", sets / "second")
    with pytest.raises(ValueError, match="several data sets"):
        TfdsSource(sets, "val")


def test_nothing_heavy_is_imported_before_it_is_needed():
    script = (
        "import sys, vmae_jax.data.tfds.tfds_source, vmae_jax.commands.build_tfds\n"
        "heavy = {'jax', 'flax', 'torch', 'tensorflow', 'tensorflow_datasets', 'apache_beam'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (found.stdout.strip(), found.returncode) == ("", 0), found.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: text.replace("class_names", "names"),
        lambda text: text.replace('"label": [', '"label": [1, '),
        lambda text: text.replace('"stop"', '"end"'),
    ],
)
def test_damaged_indices_are_refused(listed, change):
    folder, _ = build_listed(listed)
    file = listed / "sets" / "video_folder" / "1.0.0" / "index_train.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(SettingError, match=r"index_train\.json is damaged .*; build the set again"):
        TfdsSource(folder, "train")


def test_all_is_the_split_of_a_set_that_has_one_alone(real_set, listed):
    source = make_source("tfds", str(real_set), "all")
    assert [r.clip_id for r in source] == [r.clip_id for r in TfdsSource(real_set, "train")]
    folder, _ = build_listed(listed)
    with pytest.raises(SettingError, match=r"split='all' .* several, \['train', 'val'\]; open one"):
        make_source("tfds", str(folder), "all")
