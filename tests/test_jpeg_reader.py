from __future__ import annotations

import numpy as np
import pytest
from prepared_sets import (
    FRAMES,
    HEIGHT,
    WIDTH,
    made_record,
    six_videos,
    stored,
)
from video_corpus import painted_numbers

from vmae_jax.data.prepared.record import StoredVideo


@pytest.fixture(scope="module")
def videos():
    return six_videos()


@pytest.mark.parametrize("frame_step", [1, 2, 4])
def test_frames_keep_the_numbers_that_they_have_in_the_original(videos, frame_step):
    for i in range(6):
        with StoredVideo(stored(videos, i, frame_step=frame_step), "x").open() as reader:
            assert reader.num_frames == (2 if i == 5 else FRAMES)
            assert (reader.height, reader.width, reader.fps) == (HEIGHT, WIDTH, pytest.approx(25))
            np.testing.assert_allclose(reader.times, np.arange(reader.num_frames) / 25)
            assert reader.frame_step == frame_step
            kept = np.arange(reader.frame_phase, reader.num_frames, frame_step)
            # the numbers are painted into the frames
            assert painted_numbers(reader.read(kept)) == (20 * i + kept).tolist()


def test_frames_are_those_of_the_source_but_for_jpeg(videos):
    with StoredVideo(stored(videos, 1, frame_step=1, quality=95), "x").open() as reader:
        frames = reader.read(range(FRAMES))
    with videos.open(1) as original:
        error = frames.astype(float) - original.read(range(FRAMES))
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 38


def test_frames_come_in_the_order_asked_for_and_repeat():
    colours = [np.full((8, 8, 3), 20 * k, np.uint8) for k in range(10)]
    with StoredVideo(
        made_record(colours, num_frames=38, frame_step=4, frame_phase=1), "x"
    ).open() as r:
        frames = r.read([29, 5, 5, 37, 1])
        np.testing.assert_allclose(frames[:, 0, 0, 0], [140, 20, 20, 180, 0], atol=2)
        np.testing.assert_allclose(r.read([1, 5, 9])[:, 0, 0, 0], [0, 20, 40], atol=2)
        assert r.read([]).shape == (0, 8, 8, 3)
        assert r.read([1]).dtype == np.uint8


def test_each_frame_is_decoded_once(videos, monkeypatch):
    video = StoredVideo(stored(videos, 0), "x")
    taken, part = [], video.part
    monkeypatch.setattr(video, "part", lambda k: taken.append(k) or part(k))
    with video.open() as reader:
        first = reader.frame_phase
        reader.read([first + 8, first, first + 8, first + 8])
    assert sorted(taken) == [0, 2]


def test_frames_that_are_not_kept_are_refused_with_step_and_phase(videos):
    with StoredVideo(stored(videos, 0, frame_step=4), "bikes").open() as reader:
        phase = reader.frame_phase
        for wrong in (phase + 1, phase + 2, phase + 3):
            with pytest.raises(ValueError, match=f"frame {wrong} .*frame_step=4.*phase={phase}"):
                reader.read([phase, wrong])
        for outside in (-4, FRAMES, FRAMES + phase):
            with pytest.raises(ValueError, match="does not exist"):
                reader.read([outside])
