"""Mixing of clips: the official arithmetic in numpy, and the distributions of what is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vmae_jax import randomness
from vmae_jax.errors import SettingError
from vmae_jax.mixup import MODES, Mix, Mixup, mix_targets, mix_videos, reverse_groups

pytestmark = pytest.mark.usefixtures("hasty_compiler")
SIZE = (40, 64)


def keys(count, seed=0):
    return randomness.clip_keys(jax.random.key(seed), count)


def drawn(count=4000, **options) -> Mix:
    mixup = Mixup(mode="elem", **options)
    return jax.tree.map(np.asarray, jax.jit(lambda k: mixup.mix(mixup.draw(k), SIZE))(keys(count)))


@pytest.mark.parametrize("mode", MODES)
def test_pixels_and_targets_are_the_originals(mode):
    """timm's three loops, in numpy."""
    B, group, K = 12, 6, 3
    mixup = Mixup(mode=mode, group=group)
    rng = np.random.default_rng(0)
    video = rng.standard_normal((B, 2, *SIZE, 3)).astype(np.float32)
    targets = rng.random((B, K)).astype(np.float32)
    mix = mixup.mix(mixup.draw(mixup.drawing_keys(keys(B, seed=3))), SIZE)
    found = np.asarray(mix_videos(video, reverse_groups(jnp.asarray(video), group), mix))
    found_targets = mix_targets(targets, reverse_groups(jnp.asarray(targets), group), mix)

    expected, expected_targets = video.copy(), targets.copy()
    weights, boxes = np.asarray(mix.weight), np.asarray(mix.box)
    for i in range(B):
        j = i // group * group + group - 1 - i % group
        owner = {"batch": i // group * group, "pair": min(i, j), "elem": i}[mode]
        weight, (top, bottom, left, right) = weights[owner], boxes[owner]
        if bottom > top:
            expected[i, :, top:bottom, left:right] = video[j, :, top:bottom, left:right]
        else:
            expected[i] = weight * video[i] + (1 - weight) * video[j]
        expected_targets[i] = weight * targets[i] + (1 - weight) * targets[j]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found_targets, expected_targets, atol=1e-6)
    draws = {"batch": 2, "pair": 6, "elem": 12}[mode]
    assert len(np.unique(weights)) > draws / 2  # cutmix may cut nothing, or everything
    assert len(np.unique(weights)) <= draws


def test_a_box_follows_from_the_weight_and_its_centre():
    mix = drawn(alpha=0.0)
    top, bottom, left, right = mix.box.T
    area = (bottom - top) * (right - left)
    np.testing.assert_allclose(mix.weight, 1 - area / (SIZE[0] * SIZE[1]), atol=1e-6)
    inside = (top > 0) & (bottom < SIZE[0]) & (left > 0) & (right < SIZE[1])
    height, width = (bottom - top)[inside], (right - left)[inside]
    # both sides are even, and in the frame's ratio up to the rounding of each
    assert not (height % 2).any()
    assert not (width % 2).any()
    assert np.abs(height / SIZE[0] - width / SIZE[1]).max() < 2 / SIZE[0] + 2 / SIZE[1]


def test_boxes_are_distributed_as_in_the_original():
    rng = np.random.default_rng(1)
    expected = []
    for weight in rng.beta(1, 1, 4000):
        height, width = (int(side * np.sqrt(1 - weight)) for side in SIZE)
        y, x = rng.integers(SIZE[0]), rng.integers(SIZE[1])
        rows = np.clip([y - height // 2, y + height // 2], 0, SIZE[0])
        columns = np.clip([x - width // 2, x + width // 2], 0, SIZE[1])
        expected.append([*rows, *columns])
    found = drawn(alpha=0.0).box
    for ours, theirs in zip(found.T, np.array(expected).T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.8, 0.3, 2.0])
def test_mixup_weights_are_beta(alpha):
    mix = drawn(alpha=alpha, cutmix_alpha=0.0)
    assert stats.kstest(mix.weight, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert not mix.box.any()


def test_shares_of_what_is_done():
    mix = drawn(prob=0.6, switch_prob=0.25)
    untouched = (mix.weight == 1) & ~mix.box.any(axis=1)
    cut = mix.box.any(axis=1)
    assert untouched.mean() == pytest.approx(0.4, abs=0.03)
    assert cut.mean() == pytest.approx(0.6 * 0.25, abs=0.03)


def test_an_untouched_clip_stays_bit_by_bit():
    video = np.random.default_rng(0).standard_normal((2, 1, 4, 4, 3)).astype(np.float32)
    mix = Mix(jnp.ones(2), jnp.zeros((2, 4), jnp.int32))
    np.testing.assert_array_equal(mix_videos(video, video[::-1], mix), video)


def test_groups_do_not_depend_on_how_many_there_are():
    """The first 8 of 16 clips are mixed as 8 clips would be, whatever follows."""
    mixup = Mixup(group=4)
    all_keys = keys(16)
    whole = mixup.mix(mixup.draw(mixup.drawing_keys(all_keys)), SIZE)
    half = mixup.mix(mixup.draw(mixup.drawing_keys(all_keys[:8])), SIZE)
    np.testing.assert_array_equal(whole.weight[:8], half.weight)
    np.testing.assert_array_equal(whole.box[:8], half.box)


@pytest.mark.parametrize(
    ("options", "batch", "words"),
    [
        ({"group": 3}, 9, "even"), ({"group": 4}, 6, "divides"), ({}, 7, "pairs"), ({}, 1, "pairs"),
        ({"group": 0}, 4, "group=0"),
    ],
    ids=str,
)  # fmt: skip
def test_groups_that_cannot_be(options, batch, words):
    with pytest.raises(SettingError, match=words):
        Mixup(**options).group_of(batch)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -1}, {"cutmix_alpha": float("nan")}, {"prob": 1.5}, {"switch_prob": -0.1},
        {"mode": "row"},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range(options):
    with pytest.raises(SettingError, match=next(iter(options))):
        Mixup(**options)


@pytest.mark.parametrize("options", [{"prob": 0}, {"alpha": 0, "cutmix_alpha": 0}])
def test_nothing_is_mixed(options):
    assert not Mixup(**options).mixes
