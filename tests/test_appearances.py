import numpy as np
import pytest

from vmae_jax.data.motion.appearances import APPEARANCES, EDGE, PATCH_SIDES

# every pixel says where it is: frame, row, column
FOOTAGE = np.stack(np.meshgrid(range(5), range(40), range(60), indexing="ij"), -1).astype(np.uint8)


@pytest.mark.parametrize("name", APPEARANCES)
def test_patches_are_stretched_crops_and_half_of_them_negatives(name):
    # of two values, so that what a stretched crop was is known; no two places look the same
    footage = np.random.default_rng(1).choice([50, 100], (5, 40, 60, 3)).astype(np.uint8)
    rng = np.random.default_rng(0)
    found, sides, negatives = [], set(), 0
    for _ in range(400):
        patch = APPEARANCES[name](footage, rng)
        assert patch.dtype == np.float32
        side, colours = len(patch), patch[..., :3]
        assert set(np.unique(colours)) == {0, 255}
        places = {}
        for negative, crop in ((False, 50 + colours * 50 / 255), (True, 100 - colours * 50 / 255)):
            corner = (footage[:, : 41 - side, : 61 - side] == crop[0, 0]).all(-1)
            for k in range(1, 8):  # its first row tells it apart
                shifted = footage[:, : 41 - side, k : 61 - side + k]
                corner &= (shifted == crop[0, k]).all(-1)
            for frame, top, left in np.argwhere(corner):
                whole = footage[frame, top : top + side, left : left + side]
                if (whole == crop).all():
                    places[frame, top, left] = negative
        ((frame, top, left), negative), *others = places.items()
        assert not others
        found.append((frame, top, left, 40 - top - side, 60 - left - side))
        sides.add(side)
        negatives += negative
    assert sides == set(range(PATCH_SIDES[0], PATCH_SIDES[1] + 1))
    assert np.min(found, axis=0).tolist() == [0, 0, 0, 0, 0]  # all borders are reached
    assert np.max(found, axis=0)[0] == 4
    assert 150 < negatives < 250  # five standard deviations


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
