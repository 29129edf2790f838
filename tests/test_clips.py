from fractions import Fraction

import numpy as np
import pytest

from vmae_jax.data.video.clips import (
    SHORT_RULES,
    centre_indices,
    dense_centre_indices,
    dense_indices,
    dense_view_indices,
    pretraining_indices,
    timed_indices,
    tsn_centre_indices,
    tsn_indices,
    tsn_view_indices,
)


def reference_indices(start, length, num_frames, stride):
    """The original's loop (V1 kinetics.py), written out step by step; it counts from 1."""
    position, indices = start + 1, []
    for _ in range(num_frames):
        indices.append(position - 1)
        if position + stride < length:
            position += stride
    return indices


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        # By hand, 16 frames with stride 4, from the rule's description.
        (40, [0, 4, 8, 12, 16, 20, 24, 28, 32] + [36] * 7),
        (10, [0, 4] + [8] * 14),
        (9, [0] + [4] * 15),
        (4, [0] * 16),
        (1, [0] * 16),
        (64, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]),
    ],
)
def test_videos_with_one_possible_start_give_the_original_frames(length, expected):
    indices = pretraining_indices(length, 16, 4, np.random.default_rng(0))
    assert indices.dtype == np.int64
    assert indices.tolist() == expected
    assert centre_indices(length, 16, 4).tolist() == expected


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_frames", [1, 2, 16])
def test_every_length_gives_the_frames_of_the_original_loop(num_frames, stride):
    rng = np.random.default_rng(0)
    for length in range(1, 150):
        for indices in (
            pretraining_indices(length, num_frames, stride, rng),
            centre_indices(length, num_frames, stride),
        ):
            expected = reference_indices(indices[0], length, num_frames, stride)
            assert indices.tolist() == expected
            assert indices.min() >= 0
            assert indices.max() < length


def test_starts_are_uniform_and_reach_both_ends():
    # 70 frames hold a clip of 16 x 4 at the 7 starts 0 to 6.
    rng = np.random.default_rng(0)
    starts = [pretraining_indices(70, 16, 4, rng)[0] for _ in range(7000)]
    counts = np.bincount(starts)
    assert len(counts) == 7
    # 1000 expected, standard deviation 29.3.
    assert np.abs(counts - 1000).max() < 4 * 29.3


def test_the_last_frames_are_never_reached_with_stride_4():
    # As in the original: the last possible index is length - 4.
    rng = np.random.default_rng(0)
    assert max(pretraining_indices(70, 16, 4, rng).max() for _ in range(200)) == 66


@pytest.mark.parametrize(
    ("length", "start"), [(64, 0), (65, 0), (66, 1), (100, 18), (101, 18), (264, 100)]
)
def test_centre_clip_leaves_equal_rests_on_both_sides(length, start):
    assert centre_indices(length, 16, 4)[0] == start


@pytest.mark.parametrize("name", ["video_frames", "num_frames", "frame_stride"])
def test_counts_below_one_are_refused(name):
    counts = {"video_frames": 40, "num_frames": 16, "frame_stride": 4} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0"):
        pretraining_indices(**counts, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"{name}=0"):
        centre_indices(**counts)


class Chosen:
    """Stands in for a Generator: what it draws is the share-th of the possible numbers."""

    def __init__(self, share):
        self.share = share

    def integers(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        assert low < high
        draw = low + int(self.share * (high - low))
        return draw if size is None else np.full(size, draw)


FIRST, MIDDLE, LAST = Chosen(0), Chosen(0.37), Chosen(0.999999)
LENGTHS = range(1, 401)


def assert_in_video(indices, length, num_frames):
    assert indices.shape == (num_frames,)
    assert indices.dtype == np.int64
    assert indices.min() >= 0
    assert indices.max() < length
    assert (np.diff(indices) >= 0).all()


# Pre-training on videos of which only some frames are kept


def test_keeping_all_frames_changes_nothing():
    for length in range(1, 150):
        plain, stepped = (np.random.default_rng(length) for _ in range(2))
        np.testing.assert_array_equal(
            pretraining_indices(length, 16, 4, plain),
            pretraining_indices(length, 16, 4, stepped, frame_step=1, frame_phase=0),
        )


@pytest.mark.parametrize(("step", "stride"), [(2, 2), (2, 4), (3, 6), (4, 4)])
def test_clips_of_kept_frames_begin_at_the_last_kept_frame_before_the_start_drawn(step, stride):
    for phase in range(step):
        for length in range(phase + 1, 120):
            kept = set(range(phase, length, step))
            for rng in (FIRST, MIDDLE, LAST):
                plain = pretraining_indices(length, 8, stride, rng)
                indices = pretraining_indices(
                    length, 8, stride, rng, frame_step=step, frame_phase=phase
                )
                assert_in_video(indices, length, 8)
                assert set(indices.tolist()) <= kept
                below = [frame for frame in kept if frame <= plain[0]]
                assert indices[0] == max(below, default=phase)
                expected = reference_indices(indices[0], length, 8, stride)
                assert indices.tolist() == expected
            centre = centre_indices(length, 8, stride, frame_step=step, frame_phase=phase)
            assert_in_video(centre, length, 8)
            assert set(centre.tolist()) <= kept


@pytest.mark.parametrize(
    ("length", "stride", "step", "phase", "problem"),
    [
        (100, 4, 3, 0, "frame_stride=4 is not a multiple of frame_step=3"),
        (100, 4, 4, 4, "frame_phase=4"),
        (100, 4, 4, -1, "frame_phase=-1"),
        (100, 4, 0, 0, "frame_step=0"),
        (3, 4, 4, 3, "video_frames=3 is too short"),
    ],
)
def test_frames_that_are_not_kept_are_refused(length, stride, step, phase, problem):
    kept = {"frame_step": step, "frame_phase": phase}
    with pytest.raises(ValueError, match=problem):
        pretraining_indices(length, 16, stride, FIRST, **kept)
    with pytest.raises(ValueError, match=problem):
        centre_indices(length, 16, stride, **kept)


# Fine-tuning, dense


def dense_rule(length, num_frames, stride, end):
    """The original's rule, one frame at a time; `end` is the number that it draws, if it does."""
    span = num_frames * stride
    indices = []
    if length > span:
        start = end - span
        for i in range(num_frames):
            place = start + span * Fraction(i, num_frames - 1)
            indices.append(int(min(max(place, start), end - 1)))
    else:
        shown = length // stride
        for i in range(num_frames):
            place = length
            if i < shown:
                place = 0 if shown == 1 else i * Fraction(length, shown - 1)
            indices.append(int(min(max(place, 0), length - 1)))
    return indices


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        # From the published behaviour; the first is the only start of 65 frames.
        (65, [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]),
        (40, [0, 4, 8, 13, 17, 22, 26, 31, 35] + [39] * 7),
        (3, [2] * 16),
        (1, [0] * 16),
    ],
)
def test_dense_clips_of_known_videos(length, expected):
    assert dense_indices(length, 16, 4, np.random.default_rng(0)).tolist() == expected
    assert dense_centre_indices(length, 16, 4).tolist() == expected


# Long videos: no inner frame of these spans falls on a whole number, so that floating point and the
# fractions of the restated rule cannot round to different sides.
@pytest.mark.parametrize(("num_frames", "stride"), [(16, 4), (16, 2), (16, 1), (8, 8), (32, 2)])
def test_dense_clips_of_every_length_follow_the_rule(num_frames, stride):
    span = num_frames * stride
    for length in LENGTHS:
        for rng in (FIRST, MIDDLE, LAST):
            indices = dense_indices(length, num_frames, stride, rng)
            end = rng.integers(span, length) if length > span else None
            assert indices.tolist() == dense_rule(length, num_frames, stride, end)
            assert_in_video(indices, length, num_frames)
        centre = dense_centre_indices(length, num_frames, stride)
        assert centre.tolist() == dense_rule(length, num_frames, stride, (span + length) // 2)


def test_dense_clips_never_show_the_last_frame_of_a_long_video():
    ends = {int(dense_indices(67, 16, 4, np.random.default_rng(i))[-1]) for i in range(60)}
    # Ends 64, 65, 66 are drawn, and the last frame is the one before.
    assert ends == {63, 64, 65}


# Fine-tuning, the whole video


def test_tsn_clips_of_known_videos():
    # By hand, 16 parts of 3 frames, 2 frames left out at the end.
    assert tsn_indices(50, 16, FIRST).tolist() == list(range(0, 48, 3))
    assert tsn_indices(50, 16, LAST).tolist() == list(range(2, 48, 3))
    assert tsn_centre_indices(50, 16).tolist() == list(range(1, 48, 3))
    # From the published behaviour of either version.
    assert tsn_indices(5, 16, FIRST, short="v1").tolist() == [0] * 16
    assert tsn_indices(5, 16, FIRST, short="v2").tolist() == [0] * 11 + [0, 1, 2, 3, 4]
    assert tsn_centre_indices(5, 16).tolist() == [0] * 11 + [0, 1, 2, 3, 4]
    assert tsn_centre_indices(5, 16, short="v1").tolist() == [0] * 16


@pytest.mark.parametrize("short", SHORT_RULES)
def test_tsn_clips_of_every_length_follow_the_rule(short):
    for length in LENGTHS:
        part = length // 16
        for rng in (FIRST, MIDDLE, LAST):
            expected = []
            for i in range(16):
                if part > 0:
                    expected.append(i * part + rng.integers(part))
                else:
                    expected.append(0 if short == "v1" else max(0, i - 16 + length))
            indices = tsn_indices(length, 16, rng, short=short)
            assert indices.tolist() == expected
            assert_in_video(indices, length, 16)
        if part > 0:
            expected = [i * part + part // 2 for i in range(16)]
        assert tsn_centre_indices(length, 16, short=short).tolist() == expected


def test_tsn_frames_are_drawn_for_each_part_and_uniformly():
    rng = np.random.default_rng(0)
    draws = np.array([tsn_indices(40, 8, rng) for _ in range(1000)]) - 5 * np.arange(8)
    # 200 expected for each of 5 frames in each of 8 parts, standard deviation 12.6.
    for part in range(8):
        assert np.abs(np.bincount(draws[:, part], minlength=5) - 200).max() < 4.5 * 12.6
    # The parts draw for themselves: correlation 0, standard deviation 0.032.
    assert np.abs(np.corrcoef(draws.T) - np.eye(8)).max() < 4.5 * 0.032


# Test views


def test_dense_views_of_a_known_video():
    # From the published behaviour: 300 frames, 16 frames with stride 4, 5 views.
    views = [dense_view_indices(300, 16, 4, view, 5) for view in range(5)]
    assert [view[0] for view in views] == [0, 56, 116, 176, 236]
    assert all((np.diff(view) == 4).all() for view in views)


def test_dense_views_of_a_short_video_are_equal():
    for length in (1, 7, 40, 64):
        views = {tuple(dense_view_indices(length, 16, 4, view, 5)) for view in range(5)}
        assert len(views) == 1


@pytest.mark.parametrize("num_views", [2, 3, 5, 10])
@pytest.mark.parametrize("stride", [2, 4])
def test_dense_views_of_every_length_are_cut_from_the_strided_video(num_views, stride):
    for length in LENGTHS:
        strided = [frame for frame in range(length) if frame % stride == 0]
        while len(strided) < 16:
            strided.append(strided[-1])
        step = max(1.0 * (len(strided) - 16) / (num_views - 1), 0)
        for view in range(num_views):
            start = int(view * step)
            indices = dense_view_indices(length, 16, stride, view, num_views)
            assert indices.tolist() == strided[start : start + 16]
            assert_in_video(indices, length, 16)


def test_one_dense_view_is_the_middle_one():
    assert dense_view_indices(300, 16, 4, 0, 1)[0] == dense_view_indices(300, 16, 4, 1, 3)[0]


@pytest.mark.parametrize("num_views", [1, 2, 3, 5])
def test_tsn_views_of_every_length_deal_out_the_sorted_frames(num_views):
    for length in LENGTHS:
        tick = length / 16.0
        frames = []
        for k in range(num_views):
            for x in range(16):
                frames.append(int(k * tick / num_views + tick * x))
        frames.sort()
        for view in range(num_views):
            indices = tsn_view_indices(length, 16, view, num_views)
            assert indices.tolist() == frames[view::num_views]
            assert_in_video(indices, length, 16)


def test_two_tsn_views_are_those_of_the_first_version():
    # V1 writes its two views out: at the beginning and in the middle of each part.
    for length in LENGTHS:
        tick = length / 16.0
        frames = [int(tick / 2.0 + tick * x) for x in range(16)]
        frames = sorted(frames + [int(tick * x) for x in range(16)])
        for view in range(2):
            assert tsn_view_indices(length, 16, view, 2).tolist() == frames[view::2]


@pytest.mark.parametrize(("view", "num_views"), [(-1, 5), (5, 5), (0, 0)])
def test_views_that_do_not_exist_are_refused(view, num_views):
    with pytest.raises(ValueError, match=f"view={view} .*num_views={num_views}"):
        dense_view_indices(100, 16, 4, view, num_views)
    with pytest.raises(ValueError, match=f"view={view} .*num_views={num_views}"):
        tsn_view_indices(100, 16, view, num_views)


def test_unknown_rules_for_short_videos_are_refused():
    with pytest.raises(ValueError, match=r"short='v3'.*v1.*v2"):
        tsn_indices(100, 16, FIRST, short="v3")
    with pytest.raises(ValueError, match=r"short='v3'.*v1.*v2"):
        tsn_centre_indices(100, 16, short="v3")


@pytest.mark.parametrize(
    ("function", "rest"),
    [
        (dense_indices, [4, FIRST]),
        (dense_centre_indices, [4]),
        (dense_view_indices, [4, 0, 5]),
        (tsn_indices, [FIRST]),
        (tsn_centre_indices, []),
        (tsn_view_indices, [0, 2]),
    ],
)
def test_every_rule_refuses_videos_and_clips_without_frames(function, rest):
    with pytest.raises(ValueError, match="video_frames=0"):
        function(0, 16, *rest)
    with pytest.raises(ValueError, match="num_frames=0"):
        function(100, 0, *rest)


@pytest.mark.parametrize(
    ("times", "num_frames", "fps", "start", "expected"),
    [
        # By hand.
        ([0, 0.1, 0.2, 0.3, 0.4], 3, 10, 0.1, [1, 2, 3]),
        ([0, 0.1, 0.2, 0.3, 0.4], 8, 10, 0.0, [0, 1, 2, 3, 4, 4, 4, 4]),
        ([0, 0.1, 0.2, 0.3, 0.4], 3, 5, 0.06, [1, 3, 4]),
        ([0, 0.1, 0.2, 0.3, 0.4], 3, 5, 0.04, [0, 2, 4]),
        ([0, 0.1, 0.2, 0.3, 0.4], 3, 10, 9.0, [4, 4, 4]),
        ([0, 0.1, 5.0, 5.1], 4, 0.5, 0.0, [0, 1, 2, 3]),  # at 0, 2, 4 and 6 s
        ([0.0], 3, 25, 0.0, [0, 0, 0]),
    ],
)
def test_timed_clips_take_the_nearest_frames(times, num_frames, fps, start, expected):
    indices = timed_indices(np.array(times), num_frames, fps, start)
    assert indices.dtype == np.int64
    assert indices.tolist() == expected


@pytest.mark.parametrize("rate", [10, 25, 30, Fraction(30000, 1001)])
def test_of_two_frames_as_near_the_earlier_is_taken(rate):
    # Every second time wanted lies half way, in floating point on either side of it.
    times = np.array([float(i / Fraction(rate)) for i in range(500)])
    indices = timed_indices(times, 998, float(2 * rate), 0.0)
    assert indices.tolist() == [k // 2 for k in range(998)]


def test_timed_clips_are_those_of_exact_arithmetic():
    rng = np.random.default_rng(0)
    for _ in range(100):
        ticks = np.cumsum(rng.integers(1, 200, 40)) * 7
        ticks -= ticks[0]
        step, start = int(rng.integers(1, 900)), int(rng.integers(0, ticks[-1]))
        expected = [
            min(range(40), key=lambda i: (abs(ticks[i] - start - k * step), i)) for k in range(12)
        ]
        found = timed_indices(ticks / 1000, 12, 1000 / step, start / 1000)
        assert found.tolist() == expected


@pytest.mark.parametrize(("num_frames", "fps"), [(0, 8), (4, 0), (4, -8), (4, np.nan), (4, 1001)])
def test_impossible_timed_clips_are_refused(num_frames, fps):
    with pytest.raises(ValueError, match=r"num_frames=0|fps=.* must be in \(0, 1000\]"):
        timed_indices(np.arange(9) / 10, num_frames, fps, 0.0)
