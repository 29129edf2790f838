import numpy as np
import pytest

from vmae_jax.clips import centre_indices, pretraining_indices


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
