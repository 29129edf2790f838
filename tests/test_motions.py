import numpy as np
import pytest

from vmae_jax.data.motion.motions import MOTIONS, RADIUS, SPEEDS, make_path

T = 20


def path_of(motion, seed=0, num_frames=T):
    return make_path(motion, num_frames, np.random.default_rng(seed))


def steps(path):
    """How far it goes from frame to frame, the short way around."""
    return (np.diff(path, axis=0) + 0.5) % 1 - 0.5


def test_lines_go_where_their_names_say():
    directions = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}  # row, column
    for motion, direction in directions.items():
        for seed in range(20):
            moved = steps(path_of(motion, seed))
            speed = np.abs(moved[0]).sum()
            assert SPEEDS[0] <= speed <= SPEEDS[1]
            np.testing.assert_allclose(moved, np.outer(np.full(T - 1, speed), direction), atol=1e-9)


@pytest.mark.parametrize(("motion", "sense"), [("clockwise", 1), ("anticlockwise", -1)])
def test_circles_turn_as_their_names_say(motion, sense):
    # to the eye clockwise: what goes right turns downwards, where rows grow
    for seed in range(20):
        down, right = steps(path_of(motion, seed)).T
        turn = np.arcsin((right[:-1] * down[1:] - down[:-1] * right[1:]) / (right**2 + down**2)[1:])
        np.testing.assert_allclose(turn, turn[0])
        assert SPEEDS[0] <= sense * turn[0] * RADIUS <= SPEEDS[1]
        # the chord of that turn
        np.testing.assert_allclose(
            np.hypot(right, down), 2 * RADIUS * np.sin(abs(turn[0]) / 2), rtol=1e-6
        )


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_middle_frame_and_what_is_drawn_do_not_depend_on_the_motion(motion):
    one, other = (np.random.default_rng(3) for _ in range(2))
    path, expected = make_path(motion, T, one), make_path("right", T, other)
    assert path.shape == (T, 2)
    assert path.min() >= 0
    assert path.max() < 1
    np.testing.assert_allclose(path[T // 2], expected[T // 2])
    assert one.random() == other.random()
    assert len(path_of(motion, num_frames=7)) == 7


@pytest.mark.parametrize("motion", MOTIONS)
def test_places_in_any_frame_are_uniform(motion):
    # chi-squared of 4 x 4 fields, 15 degrees of freedom: one in 10,000 is above 44.3
    draws = 4000
    rng = np.random.default_rng(0)
    paths = np.stack([make_path(motion, T, rng) for _ in range(draws)])  # [draws, T, 2]
    fields = (paths * 4).astype(int) @ [4, 1]
    for t in range(T):
        counts = np.bincount(fields[:, t], minlength=16)
        assert ((counts - draws / 16) ** 2).sum() / (draws / 16) < 44.3


@pytest.mark.parametrize("motion", MOTIONS)
def test_places_of_two_motions_have_one_distribution_in_every_frame(motion):
    # two-sample Kolmogorov-Smirnov, level 1e-4: sqrt(-ln(1e-4 / 2) / 2) * sqrt(2 / n) = 2.2 / ...
    draws = 2000
    rng = np.random.default_rng(1)
    ours, others = (
        np.stack([make_path(name, T, rng) for _ in range(draws)]) for name in (motion, "right")
    )
    for t in range(T):
        # along both sides and both diagonals of the torus
        for project in ((1, 0), (0, 1), (1, 1), (1, -1)):
            one, other = (np.sort(paths[:, t] @ project % 1) for paths in (ours, others))
            both = np.concatenate([one, other])
            shares = [np.searchsorted(x, both, side="right") / draws for x in (one, other)]
            assert np.abs(shares[0] - shares[1]).max() < 2.225 * np.sqrt(2 / draws)
