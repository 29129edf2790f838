import numpy as np
import pytest

from vmae_jax.data.motion.appearances import APPEARANCES, EDGE, PATCH_SIDES

# every pixel says where it is: frame, row, column
FOOTAGE = np.stack(np.meshgrid(range(5), range(40), range(60), indexing="ij"), -1).astype(np.uint8)


@pytest.mark.parametrize("name", APPEARANCES)
def test_patches_are_natural_crops_from_anywhere(name):
    rng = np.random.default_rng(0)
    corners, sides = [], set()
    for _ in range(400):
        patch = APPEARANCES[name](FOOTAGE, rng)
        assert patch.dtype == np.float32
        side = len(patch)
        frame, top, left = patch[0, 0, :3].astype(int)
        np.testing.assert_array_equal(
            patch[..., :3], FOOTAGE[frame, top : top + side, left : left + side]
        )
        corners.append((frame, top, left, 40 - top - side, 60 - left - side))
        sides.add(side)
    assert sides == set(range(PATCH_SIDES[0], PATCH_SIDES[1] + 1))
    assert np.min(corners, axis=0).tolist() == [0, 0, 0, 0, 0]  # all borders are reached
    assert np.max(corners, axis=0)[0] == 4


def test_squares_are_opaque_and_discs_fade_out():
    rng = np.random.default_rng(0)
    assert (APPEARANCES["square"](FOOTAGE, rng)[..., 3] == 1).all()
    opacity = APPEARANCES["disc"](FOOTAGE, rng)[..., 3]
    side = len(opacity)
    for row in range(side):
        for column in range(side):
            distance = np.hypot(row + 0.5 - side / 2, column + 0.5 - side / 2)
            expected = min(max((side / 2 - distance) / EDGE, 0), 1)
            assert opacity[row, column] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", APPEARANCES)
def test_the_same_numbers_give_the_same_patch(name):
    one, other = (APPEARANCES[name](FOOTAGE, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(one, other)
