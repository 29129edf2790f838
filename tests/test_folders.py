import shutil
from pathlib import Path

import pytest
from PIL import Image

from vmae_jax.data.datasets import make_source
from vmae_jax.errors import SettingError


@pytest.fixture
def video_folder(tmp_path):
    """200 empty files: whoever opens one fails."""
    for i in range(200):
        path = tmp_path / f"class_{i % 3}" / f"clip_{i:03}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_video_folder_finds_all_videos_in_order(tmp_path):
    names = ["b.MP4", "a/z.mkv", "a/b/c.webm", "a.b.avi"]
    for name in [*names, "notes.txt", "a/picture.jpg", "a/._z.mkv"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = make_source("video_folder", str(tmp_path), "train", held_out_ratio=0)
    assert [record.clip_id for record in source] == ["a.b.avi", "a/b/c.webm", "a/z.mkv", "b.MP4"]
    assert [Path(record.path).relative_to(tmp_path).as_posix() for record in source] == [
        record.clip_id for record in source
    ]
    assert {(record.start, record.stop, record.label) for record in source} == {(0, None, -1)}


@pytest.mark.parametrize(
    ("path", "split", "ratio", "problem"),
    [
        ("missing", "train", 0.1, r"missing.* is not a folder"),
        ("", "train", 0.1, "holds no video files"),
        ("class_0", "held_out", 0, r"split='held_out' .*empty: 67 videos with held_out_ratio=0"),
        ("class_0", "train", 1.0, r"held_out_ratio=1.0 must be in \[0, 1\)"),
    ],
)
def test_video_folder_says_what_is_wrong(video_folder, path, split, ratio, problem):
    if path == "":
        video_folder = video_folder / "without_videos"
        video_folder.mkdir()
    with pytest.raises(ValueError, match=problem):
        make_source("video_folder", str(video_folder / path), split, held_out_ratio=ratio)


def test_video_folder_without_a_path_is_refused():
    with pytest.raises(ValueError, match="path=None is not a folder"):
        make_source("video_folder", None, "train")


def test_folders_are_classes_if_asked_for(tmp_path):
    names = ["run/b.mp4", "jump/deep/a.mp4", "run/a.mp4", "walk/c.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    options = {"labels": "folders", "held_out_ratio": 0}
    source = make_source("video_folder", str(tmp_path), "train", **options)
    assert source.class_names == ("jump", "run", "walk")
    assert [(r.clip_id, r.label) for r in source] == [
        ("jump/deep/a.mp4", 0),
        ("run/a.mp4", 1),
        ("run/b.mp4", 1),
        ("walk/c.mp4", 2),
    ]


def test_classes_are_the_same_in_both_splits(video_folder):
    shutil.rmtree(video_folder / "class_1")
    (video_folder / "class_1").mkdir()
    (video_folder / "class_1" / "alone.mp4").touch()
    sources = [
        make_source("video_folder", str(video_folder), split, labels="folders")
        for split in ("train", "held_out")
    ]
    assert {source.class_names for source in sources} == {("class_0", "class_1", "class_2")}
    assert {len({r.label for r in source}) for source in sources} == {2, 3}


def test_videos_without_a_class_are_refused(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"labels='folders', but 'a.mp4'"):
        make_source("video_folder", str(tmp_path), "train", labels="folders")
    with pytest.raises(ValueError, match=r"labels='files' is unknown"):
        make_source("video_folder", str(tmp_path), "train", labels="files")


def test_folders_that_are_links_are_classes_as_all_others(tmp_path):
    videos, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    for folder in (videos / "a", videos / "c", elsewhere / "b" / "deep"):
        folder.mkdir(parents=True)
        (folder / "1.mp4").touch()
    (videos / "b").symlink_to(elsewhere / "b")
    options = {"labels": "folders", "held_out_ratio": 0}
    source = make_source("video_folder", str(videos), "train", **options)
    assert source.class_names == ("a", "b", "c")
    assert [(r.clip_id, r.label) for r in source] == [
        ("a/1.mp4", 0),
        ("b/deep/1.mp4", 1),
        ("c/1.mp4", 2),
    ]
    # or with a disk that is not mounted every class behind it would have another number
    (videos / "b").unlink()
    (videos / "b").symlink_to(elsewhere / "gone")
    with pytest.raises(SettingError, match=r"videos/b' is a link that leads nowhere"):
        make_source("video_folder", str(videos), "train", **options)
    assert len(make_source("video_folder", str(videos), "train", held_out_ratio=0)) == 2
    (videos / "b").rename(videos / ".#b")  # as editors mark what they have open
    assert make_source("video_folder", str(videos), "train", **options).class_names == ("a", "c")


@pytest.fixture
def picture_folders(tmp_path):
    """Six videos in two classes, of 3, 4, ... frames, their numbers in red."""
    for i in range(6):
        folder = tmp_path / f"class_{i % 2}" / f"video_{i}"
        folder.mkdir(parents=True)
        for number in range(1, i + 4):
            Image.new("RGB", (24, 16), (number * 20, 0, 0)).save(folder / f"img_{number:05}.png")
    (tmp_path / "class_0" / "notes.txt").touch()
    return tmp_path


@pytest.mark.parametrize("template", [None, "img_{:05}.png"])
def test_folders_of_pictures_are_videos(picture_folders, template):
    options = {"fps": 12, "template": template, "labels": "folders", "held_out_ratio": 0}
    source = make_source("frame_folders", str(picture_folders), "train", **options)
    assert [(r.clip_id, r.label) for r in source] == [
        (f"class_{i % 2}/video_{i}", i % 2) for i in (0, 2, 4, 1, 3, 5)
    ]
    reader = source.open(1)
    assert (reader.num_frames, reader.height, reader.width, reader.fps) == (5, 16, 24, 12)
    assert reader.read([4, 0])[:, 0, 0, 0].tolist() == [100, 20]


def test_a_folder_without_folders_of_pictures_is_refused(tmp_path):
    Image.new("RGB", (24, 16)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="holds no folders with pictures"):
        make_source("frame_folders", str(tmp_path), "train", fps=12)


def test_the_rate_of_pictures_has_to_be_given(picture_folders):
    with pytest.raises(ValueError, match=r"data\.options\.fps is missing"):
        make_source("frame_folders", str(picture_folders), "train")
    with pytest.raises(ValueError, match="fps=0 must be positive"):
        make_source("frame_folders", str(picture_folders), "train", fps=0)


def test_linked_folders_of_pictures_are_videos(picture_folders, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "class_1").mkdir()
    (linked / "class_1" / "video").symlink_to(picture_folders / "class_1" / "video_3")
    (linked / "class_0").symlink_to(picture_folders / "class_0")
    options = {"fps": 12, "labels": "folders", "held_out_ratio": 0}
    source = make_source("frame_folders", str(linked), "train", **options)
    assert [(r.clip_id, r.label) for r in source] == [
        ("class_0/video_0", 0),
        ("class_0/video_2", 0),
        ("class_0/video_4", 0),
        ("class_1/video", 1),
    ]
    assert source.open(3).num_frames == 6
