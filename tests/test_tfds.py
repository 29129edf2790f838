import csv
import importlib
import json
import pickle
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from video_corpus import encode, painted_numbers

from vmae_jax.__main__ import main
from vmae_jax.data import tfds as tfds_builders
from vmae_jax.data.datasets import make_source
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.tfds.annotations import read_annotations
from vmae_jax.data.tfds.building import build
from vmae_jax.data.tfds.tfds_source import TfdsSource
from vmae_jax.data.video.decoders import DECODERS
from vmae_jax.data.video.frame_reader import FrameNames
from vmae_jax.files import storage


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here may look up a name or connect, to anything: an attempt fails its test."""

    def refuse(*args, **kwargs):
        pytest.fail(f"the network was asked for: {args[:2]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def write_videos(folder, *names):
    """Files that no decoder reads, each with contents of its own, zero bytes at the end."""
    for name in names:
        write(folder / name, b"\x00\xff" + name.encode() + b"\x00\x00")


def rows(splits):
    """{split: [(clip id, label, path)]} of what a reader returns."""
    return {
        split: [(r.clip_id, r.label, r.path) for r in source.records]
        for split, source in splits.items()
    }


NAMES = [f"clips of a/{i}.mp4" for i in range(10)]


@pytest.fixture
def listed(tmp_path):
    """A folder of 10 videos and lists that name them and one more."""
    write_videos(tmp_path / "videos", *NAMES)
    write(tmp_path / "train.csv", "".join(f"{NAMES[i]} {i % 3}\n" for i in range(7)))
    write(tmp_path / "val.txt", f"{NAMES[7]} 2\n{NAMES[8]} -1\ngone.mp4 1\n{NAMES[9]} 0\n")
    return tmp_path


def build_listed(folder, dest="sets", **options):
    return build("video_folder", folder / "videos", folder / dest, annotations=folder, **options)


# Round trip


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


def test_tfds_reads_a_set_without_our_code_and_without_tensorflow(listed):
    folder, _ = build_listed(listed)
    builder = tfds.builder_from_directory(folder)
    assert builder.info.features["label"].num_classes == 3  # labels 0, 1, 2 are in the lists
    assert builder.info.splits["train"].num_examples == 7
    examples = builder.as_data_source("train")
    assert {(x["clip_id"].decode(), x["label"]) for x in examples} == {
        (NAMES[i], i % 3) for i in range(7)
    }
    assert "tensorflow" not in sys.modules


def test_the_order_is_the_one_of_tfds_own_writer(listed, tmp_path):
    # The reference is a GeneratorBasedBuilder, whose examples TFDS orders by itself.
    class Reference(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            features = tfds.features.FeaturesDict({"clip_id": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((name, {"clip_id": name}) for name in NAMES[:7])

    reference = Reference(data_dir=str(tmp_path / "reference"), file_format="array_record")
    reference.download_and_prepare(download_dir=str(tmp_path / "downloads"))
    expected = [x["clip_id"].decode() for x in reference.as_data_source("train")]
    assert expected != sorted(expected)  # or the order would prove nothing
    folder, _ = build_listed(listed, num_shards=3)
    assert [record.clip_id for record in TfdsSource(folder, "train")] == expected


def test_every_number_of_shards_and_threads_gives_the_same_records(listed):
    # 12 shards: more than 10, whose numbers sort differently as text; 40: more than records
    write_videos(listed / "videos", *(f"{i}.mp4" for i in range(30)))
    write(listed / "train.csv", "".join(f"{i}.mp4 {i % 3}\n" for i in range(30)))
    found = []
    for shards, threads in ((1, 1), (12, 5), (40, 2)):
        folder, _ = build_listed(listed, f"sets{shards}", num_shards=shards, num_threads=threads)
        source = TfdsSource(folder, "train")
        found.append([(r.clip_id, r.label, source.read_bytes(i)) for i, r in enumerate(source)])
        lengths = tfds.builder_from_directory(folder).info.splits["train"].shard_lengths
        assert len(lengths) == min(shards, 30)
        assert sum(lengths) == 30
    assert found[0] == found[1] == found[2]


def test_names_that_are_not_utf8_survive(tmp_path):
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")  # as os.listdir gives Latin-1
    write_videos(tmp_path / "videos", "b.mp4")
    (tmp_path / "videos" / name).write_bytes(b"latin")
    folder, _ = build("video_folder", tmp_path / "videos", tmp_path / "sets")
    source = TfdsSource(folder, "train")
    ids = [record.clip_id for record in source]
    assert sorted(ids) == sorted([name, "b.mp4"])
    assert source.read_bytes(ids.index(name)) == b"latin"


def test_limits_of_records_and_class_names_are_kept(tmp_path):
    builders = importlib.import_module("vmae_jax.data.tfds.builders")
    write_videos(tmp_path, "a.mp4")
    records = [
        VideoRecord(str(tmp_path / "a.mp4"), "whole"),
        VideoRecord(str(tmp_path / "a.mp4"), "frames", 4, 9, label=1),
        VideoRecord(str(tmp_path / "a.mp4"), "seconds", start_time=0.5, stop_time=2.25),
    ]
    builder = builders.VideoFolder(
        sources={"train": VideoSource(records, class_names=("still", "moving"))},
        data_dir=str(tmp_path / "sets"),
    )
    builder.download_and_prepare(download_dir=str(tmp_path / "downloads"))
    source = TfdsSource(tmp_path / "sets", "train")
    assert source.class_names == ("still", "moving")
    found = {r.clip_id: (r.start, r.stop, r.start_time, r.stop_time, r.label) for r in source}
    assert found == {
        "whole": (0, None, None, None, -1),
        "frames": (4, 9, None, None, 1),
        "seconds": (0, None, 0.5, 2.25, -1),
    }
    stored = {x["clip_id"].decode(): x for x in builder.as_data_source("train")}
    assert (stored["frames"]["start"], stored["frames"]["stop"]) == (4, 9)
    assert (stored["whole"]["stop"], stored["seconds"]["stop_time"]) == (-1, 2.25)
    assert builder.info.features["label"].names == ["still", "moving"]


# Reading


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
    if backend == "torchcodec":  # which is not required, and often does not load
        try:
            importlib.import_module("torchcodec")
        except (ImportError, OSError, RuntimeError) as error:
            pytest.skip(f"torchcodec cannot be imported: {type(error).__name__}")
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
    with pytest.raises(FileNotFoundError, match="build_tfds"):
        TfdsSource("kinetics400", "val")
    with pytest.raises(ValueError, match=r"split='test'.*\['train', 'val'\]"):
        TfdsSource(folder, "test")
    with pytest.raises(ValueError, match=r"\['train', 'val'\]. Set data.options.held_out_split"):
        make_source("tfds", folder, "held_out", held_out_split="test")
    build("video_folder", listed / "videos", sets / "second")
    with pytest.raises(ValueError, match="several data sets"):
        TfdsSource(sets, "val")


# What cannot be stored


def test_missing_and_unreadable_videos_are_skipped_and_reported(listed, monkeypatch):
    write(listed / "videos" / NAMES[1], b"")
    (listed / "videos" / NAMES[2]).unlink()
    (listed / "videos" / NAMES[2]).mkdir()
    read_bytes = storage.read_bytes

    def failing(path, max_bytes):
        if path.endswith("3.mp4"):
            raise PermissionError(13, "Permission denied", path)
        return read_bytes(path, max_bytes)

    monkeypatch.setattr(storage, "read_bytes", failing)
    folder, report = build_listed(listed, num_shards=7)  # the shard of 3.mp4 stays empty
    skipped = {x["clip_id"]: x["reason"] for split in report.values() for x in split["skipped"]}
    assert set(skipped) == {NAMES[1], NAMES[2], NAMES[3], "gone.mp4"}
    assert "empty" in skipped[NAMES[1]]
    assert "folder" in skipped[NAMES[2]]
    assert "Permission denied" in skipped[NAMES[3]]
    assert "No such file" in skipped["gone.mp4"]
    assert (report["train"]["listed"], report["train"]["written"]) == (7, 4)
    assert (report["val"]["listed"], report["val"]["written"]) == (4, 3)
    assert json.loads((listed / "sets/video_folder/1.0.0/report.json").read_text()) == report
    source = TfdsSource(folder, "train")
    for i, record in enumerate(source):
        assert source.read_bytes(i) == (listed / "videos" / record.clip_id).read_bytes()


def test_folders_of_pictures_and_too_large_files_are_skipped(tmp_path, monkeypatch):
    shards = importlib.import_module("vmae_jax.data.tfds.shard_writing")
    monkeypatch.setattr(shards, "LARGEST_VIDEO", 9)
    small, large = write(tmp_path / "s", b"9" * 9), write(tmp_path / "l", b"9" * 10)
    records = [
        VideoRecord(str(small), "small"),
        VideoRecord(str(large), "large"),
        VideoRecord(str(tmp_path), "pictures", frames=FrameNames(25.0, None, 1)),
    ]
    kept, size, skipped = shards.readable(records)
    assert (kept, size) == (records[:1], 9)
    assert [x["clip_id"] for x in skipped] == ["large", "pictures"]
    assert "10 bytes" in skipped[0]["reason"]
    assert "pictures" in skipped[1]["reason"]


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
    with pytest.raises(FileExistsError, match="delete it"):
        build_listed(listed)


# Beam


def test_beam_builds_the_same_files(listed):
    plain, plain_report = build_listed(listed, "plain", num_shards=3)
    # DirectRunner: the name under which Beam would ask the network (refused here)
    beam, beam_report = build_listed(
        listed, "beam", num_shards=3, beam_options="runner=DirectRunner,job_name=test"
    )
    assert beam_report == plain_report
    files = {
        folder: {f.name: f.read_bytes() for f in (listed / folder).rglob("*") if f.is_file()}
        for folder in ("plain", "beam")
    }
    assert len([name for name in files["beam"] if "array_record-" in name]) == 6
    assert files["beam"] == files["plain"]
    assert TfdsSource(beam, "train").read_bytes(2) == TfdsSource(plain, "train").read_bytes(2)


@pytest.mark.parametrize(
    ("package", "options", "install"),
    [
        ("apache_beam", {"beam_options": ""}, r"vmae_jax\[beam\]"),
        ("tensorflow_datasets", {}, "vmae_jax"),
    ],
)
def test_a_missing_package_is_named(listed, monkeypatch, package, options, install):
    for name in [x for x in sys.modules if x.startswith("vmae_jax.data.tfds.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("builders", "shards"):
        monkeypatch.delattr(tfds_builders, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {install}`"):
        build_listed(listed, **options)


# Lists


def test_a_folder_without_lists_is_all_for_training(tmp_path):
    write_videos(tmp_path, "b/2.webm", "a.mp4", "notes.md", ".hidden.mp4")
    found = rows(read_annotations("video_folder", str(tmp_path), str(tmp_path)))
    assert found == {
        "train": [
            ("a.mp4", -1, str(tmp_path / "a.mp4")),
            ("b/2.webm", -1, str(tmp_path / "b/2.webm")),
        ]
    }


def test_pretraining_lists_have_a_format_of_their_own(tmp_path):
    write(tmp_path / "train.csv", "a b.mp4 0 -1\n")
    found = read_annotations(
        "video_folder", str(tmp_path), str(tmp_path), list_format="path_start_total"
    )
    assert rows(found) == {"train": [("a b.mp4", -1, str(tmp_path / "a b.mp4"))]}


def test_kinetics_tables(tmp_path):
    header = ["label", "youtube_id", "time_start", "time_end", "split"]
    tables = {
        "train.csv": [["zumba", "-A", "3", "13", "train"], ["abseiling", "B_", "0", "10", "train"]],
        "validate.csv": [["zumba", "C", "100", "110", "validate"]],
        "test.csv": [["", "D", "7", "17", "test"]],
    }
    for name, table in tables.items():
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file).writerows([header, *table])
    videos = tmp_path / "videos"
    write_videos(videos, "zumba/-A_000003_000013.mp4", "val/C_000100_000110.mkv")
    found = read_annotations("kinetics400", str(videos), str(tmp_path))
    assert found["val"].class_names == ("abseiling", "zumba")
    assert rows(found) == {
        "train": [
            ("-A_000003_000013", 1, str(videos / "zumba/-A_000003_000013.mp4")),
            ("B__000000_000010", 0, str(videos / "B__000000_000010")),  # missing
        ],
        "val": [("C_000100_000110", 1, str(videos / "val/C_000100_000110.mkv"))],
        "test": [("D_000007_000017", -1, str(videos / "D_000007_000017"))],
    }


def test_kinetics_lists_of_paths(tmp_path):
    write(tmp_path / "val.csv", "abseiling/x y.mp4 0\n")
    found = read_annotations("kinetics400", str(tmp_path), str(tmp_path))
    assert rows(found) == {"val": [("abseiling/x y.mp4", 0, str(tmp_path / "abseiling/x y.mp4"))]}


def ssv2_entry(number, template):
    return {"id": str(number), "label": "put a cup", "template": template, "placeholders": ["cup"]}


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_ssv2(tmp_path, prefix):
    labels = {"Putting something": "1", "Approaching something with your camera": "0"}
    lists = {
        "labels": labels,
        "train": [ssv2_entry(7, "Putting [something]"), ssv2_entry(70, "Putting [something]")],
        "validation": [ssv2_entry(8, "Approaching [something] with your camera")],
        "test": [{"id": "9"}],
    }
    for name, content in lists.items():
        write(tmp_path / f"{prefix}{name}.json", json.dumps(content))
    write_videos(tmp_path / "videos", "7.webm", "8.mp4", "9.webm")
    found = read_annotations("ssv2", str(tmp_path / "videos"), str(tmp_path))
    assert found["test"].class_names == (
        "Approaching something with your camera",
        "Putting something",
    )
    assert rows(found) == {
        "train": [
            ("7", 1, str(tmp_path / "videos/7.webm")),
            ("70", 1, str(tmp_path / "videos/70")),  # missing
        ],
        "val": [("8", 0, str(tmp_path / "videos/8.mp4"))],
        "test": [("9", -1, str(tmp_path / "videos/9.webm"))],
    }


@pytest.fixture
def ucf101(tmp_path):
    write(tmp_path / "classInd.txt", "1 ApplyEyeMakeup\n2 Archery\r\n")
    for number in (1, 2, 3):
        train = f"Archery/v_Archery_g0{number}_c01.avi 2\nApplyEyeMakeup/v_x_g0{number}.avi 1\n"
        write(tmp_path / f"trainlist0{number}.txt", train)
        write(tmp_path / f"testlist0{number}.txt", f"Archery/v_Archery_g2{number}_c01.avi\n\n")
    return tmp_path


def test_ucf101(ucf101):
    videos = ucf101 / "videos"
    write_videos(videos, "Archery/v_Archery_g02_c01.avi", "v_Archery_g22_c01.avi")  # one is flat
    found = read_annotations("ucf101", str(videos), str(ucf101), split_number=2)
    assert found["train"].class_names == ("ApplyEyeMakeup", "Archery")
    in_class = "Archery/v_Archery_g02_c01.avi"
    assert rows(found) == {
        "train": [
            (in_class, 1, str(videos / in_class)),
            ("ApplyEyeMakeup/v_x_g02.avi", 0, str(videos / "ApplyEyeMakeup/v_x_g02.avi")),
        ],
        "test": [("Archery/v_Archery_g22_c01.avi", 1, str(videos / "v_Archery_g22_c01.avi"))],
    }


def test_a_number_that_is_not_its_class_s_is_refused(ucf101):
    write(ucf101 / "trainlist01.txt", "Archery/v_Archery_g01_c01.avi 1\n")
    with pytest.raises(ValueError, match=r"trainlist01.txt:1.*classInd"):
        read_annotations("ucf101", str(ucf101), str(ucf101))


def test_hmdb51(tmp_path):
    for number in (1, 2, 3):
        write(tmp_path / f"wave_test_split{number}.txt", "w[1]&.avi 1 \nw2.avi 2 \nw3.avi 0 \n")
        write(tmp_path / f"brush_hair_test_split{number}.txt", f"b{number}.avi 2 \n")
    videos = tmp_path / "videos"
    write_videos(videos, "wave/w[1]&.avi", "w2.avi")
    found = read_annotations("hmdb51", str(videos), str(tmp_path), split_number=3)
    assert found["train"].class_names == ("brush_hair", "wave")
    assert rows(found) == {
        "train": [("wave/w[1]&.avi", 1, str(videos / "wave/w[1]&.avi"))],
        "test": [
            ("brush_hair/b3.avi", 0, str(videos / "brush_hair/b3.avi")),
            ("wave/w2.avi", 1, str(videos / "w2.avi")),
        ],
    }


def test_a_name_that_two_videos_have_is_not_guessed(ucf101):
    videos = ucf101 / "videos"
    write_videos(videos, "a/v_Archery_g01_c01.avi", "b/v_Archery_g01_c01.avi")
    found = read_annotations("ucf101", str(videos), str(ucf101))
    assert found["train"][0].path == str(videos / "Archery/v_Archery_g01_c01.avi")


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("video_folder", {"train.csv": "a b.mp4\n"}, "label='b.mp4'"),
        ("video_folder", {}, "no video files"),
        ("kinetics400", {"train.csv": "youtube_id,label\nA,x\n"}, "train.csv:2"),
        (
            "kinetics400",
            {
                "train.csv": "label,youtube_id,time_start,time_end\nx,A,0,10\n",
                "val.csv": "a.mp4 0\n",
            },
            "mixes",
        ),
        (
            "kinetics400",
            {"train.csv": "label,youtube_id,time_start,time_end,split\nx,A,0,1,holdout\n"},
            "holdout",
        ),
        ("ssv2", {"labels.json": "{}"}, "train.json"),
        ("ssv2", {"labels.json": "{"}, "no JSON"),
        (
            "ssv2",
            {"labels.json": "{}", "train.json": json.dumps([ssv2_entry(1, "Eating [food]")])},
            "no class",
        ),
        ("ucf101", {}, "classInd.txt"),
        ("ucf101", {"classInd.txt": "Archery\n"}, "number class"),
        ("hmdb51", {}, "_test_split1.txt"),
        ("hmdb51", {"wave_test_split1.txt": "a.avi 3\n"}, "use='3'"),
        ("k400", {}, "choose one of"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path, name, files, message):
    for file, content in files.items():
        write(tmp_path / file, content)
    with pytest.raises(ValueError, match=message):
        read_annotations(name, str(tmp_path), str(tmp_path))


def test_a_missing_folder_of_lists_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"annotations='.*none' is not a folder"):
        read_annotations("video_folder", str(tmp_path), str(tmp_path / "none"))


# Command


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


@pytest.mark.parametrize("option", ["num_shards", "num_threads", "split_number"])
def test_numbers_below_one_are_refused(listed, option):
    with pytest.raises(ValueError, match=f"{option}=0"):
        build_listed(listed, **{option: 0})


# Imports


def test_nothing_heavy_is_imported_before_it_is_needed():
    script = (
        "import sys, vmae_jax.data.tfds.tfds_source, vmae_jax.commands.build_tfds\n"
        "heavy = {'jax', 'flax', 'torch', 'tensorflow', 'tensorflow_datasets', 'apache_beam'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (found.stdout.strip(), found.returncode) == ("", 0), found.stderr


def test_building_and_reading_import_neither_jax_nor_tensorflow_nor_beam(listed):
    script = (
        "import sys\n"
        "from vmae_jax.data.tfds import build\n"
        "from vmae_jax.data.tfds.tfds_source import TfdsSource\n"
        f"folder, _ = build('video_folder', {str(listed / 'videos')!r}, {str(listed / 'x')!r})\n"
        "assert TfdsSource(folder, 'train').read_bytes(0)\n"
        "heavy = {'jax', 'flax', 'torch', 'tensorflow', 'apache_beam'}\n"
        "print('heavy:', *sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1:] == ["heavy:"], found.stderr
