from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from prepared_sets import FRAMES, six_videos, stored
from video_corpus import encode, painted_numbers

import vmae_jax
from vmae_jax.data.prepared.record import StoredVideo
from vmae_jax.data.prepared.video_encoding import (
    Settings,
    encoded_video,
    frame_phase,
    resized,
    stored_size,
)
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.decoders import open_video


@pytest.fixture(scope="module")
def videos():
    return six_videos()


def test_phases_are_spread_and_depend_on_the_id_alone():
    counts = np.bincount([frame_phase(f"{i}.mp4", 300, 4) for i in range(2000)], minlength=4)
    assert counts.min() > 430  # of 500; the standard deviation is 19
    digest = hashlib.sha256(b"a/b.mp4").hexdigest()
    assert frame_phase("a/b.mp4", 300, 4) == int(digest[:16], 16) % 4
    assert {frame_phase(f"{i}", 2, 4) for i in range(50)} == {0, 1}  # never behind the end
    assert {frame_phase(f"{i}", 300, 1) for i in range(50)} == {0}


def test_videos_are_reduced_and_never_enlarged(videos):
    assert stored_size(1080, 1920, 320) == (320, 569)  # 568.9
    assert stored_size(1920, 1080, 320) == (569, 320)
    assert stored_size(240, 320, 320) == (240, 320)
    assert stored_size(1080, 1920, 320, 2) == (320, 568)
    assert stored_size(241, 321, 320, 2) == (240, 320)
    with StoredVideo(stored(videos, 0, short_side=24), "x").open() as reader:
        assert reader.read([reader.frame_phase]).shape == (1, 24, 32, 3)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    means = noise.reshape(24, 2, 32, 2, 3).mean((1, 3))  # of squares of four pixels
    np.testing.assert_allclose(resized(noise, (24, 32)), means, atol=0.75)
    assert resized(noise, (48, 64)) is noise


def test_original_keeps_the_file(videos):
    video = StoredVideo(stored(videos, 2, encoding="original", frame_step=1), "x")
    with open(videos[2].path, "rb") as file:
        assert video.part(0) == file.read()
    with video.open() as reader, open_video(videos[2].path) as expected:
        np.testing.assert_array_equal(reader.read([3, 39]), expected.read([3, 39]))


def test_h264_has_all_frames_in_groups_of_12_with_every_second_one_discardable(videos):
    video = StoredVideo(stored(videos, 2, encoding="h264", frame_step=1), "x")
    with video.open() as reader:
        assert painted_numbers(reader.read(range(FRAMES))) == list(range(40, 40 + FRAMES))
        assert reader.fps == pytest.approx(25)
    with av.open(io.BytesIO(bytes(video.part(0)))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        keys = [packet.pts for packet in packets if packet.is_keyframe]
        assert len(packets) == FRAMES
        assert len(keys) == 4  # 0, 12, 24, 36
    with av.open(io.BytesIO(bytes(video.part(0)))) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        needed_by_others = len(list(container.decode(video=0)))
        # a group of 12 is I B P B P B P B P B P P: its last may not refer to the next group
        assert needed_by_others == 3 * 7 + 3
    again = stored(videos, 2, encoding="h264", frame_step=1)
    assert again == stored(videos, 2, encoding="h264", frame_step=1)


def test_h264_takes_odd_sizes(tmp_path):
    encode(str(tmp_path / "odd.mp4"), frames=14, size=(51, 67), pix_fmt="yuv444p", first_number=100)
    source = VideoSource([VideoRecord(str(tmp_path / "odd.mp4"), "odd")])
    with StoredVideo(stored(source, 0, encoding="h264", frame_step=1), "x").open() as reader:
        assert painted_numbers(reader.read(range(14))) == list(range(100, 114))
        assert (reader.height, reader.width) == (50, 66)


def test_parts_of_files_can_be_frames_but_not_original_files(videos):
    source = VideoSource([VideoRecord(videos[0].path, "0.mp4[8:30]", 8, 30)])
    with StoredVideo(stored(source, 0, frame_step=1), "x").open() as reader:
        assert painted_numbers(reader.read([0, 21])) == [8, 29]
    result = encoded_video(source, Settings(encoding="original", frame_step=1), 0)
    assert "not a whole file" in result["bad"]["reason"]


def test_settings_out_of_range_are_refused():
    for wrong in (
        {"frame_step": 3},
        {"encoding": "h264", "frame_step": 4},
        {"encoding": "gif"},
        {"quality": 0},
        {"quality": 101},
        {"short_side": 0},
        {"shard_size": 0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            Settings(**wrong)


def test_decoding_processes_load_neither_jax_nor_torch():
    script = "import sys, vmae_jax.data.prepared.video_encoding; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(vmae_jax.__file__).parent.parent)}
    command = [sys.executable, "-c", script]
    loaded = set(subprocess.check_output(command, env=environment, text=True).split())
    assert "vmae_jax.data.prepared.video_encoding" in loaded
    assert not {"jax", "flax", "grain", "torch", "tensorflow"} & loaded
