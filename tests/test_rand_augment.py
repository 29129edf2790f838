"""What RandAugment draws, and clips against the original's arithmetic on Pillow's images."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vmae_jax.data.video import rand_augment
from vmae_jax.data.video.rand_augment import RandAugment, operations, parse_policy
from vmae_jax.errors import SettingError

MAGNITUDES = [0.0, 0.3, 4.999, 5.0, 7.0, 7.51, 10.0]
FILL = (128, 128, 128)
NAMES = [
    *["AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"],
    *["Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY"],
    *["TranslateX", "TranslateY"],
]


def original(image, name, magnitude, sign, increasing):
    """One operation as the original does it, written from rand_augment.py's formulas."""
    level = magnitude / 10.0

    def moved(*matrix):
        method, resample = Image.Transform.AFFINE, Image.Resampling.BICUBIC
        return image.transform(image.size, method, matrix, resample=resample, fillcolor=FILL)

    if name == "AutoContrast":
        return ImageOps.autocontrast(image)
    if name == "Equalize":
        return ImageOps.equalize(image)
    if name == "Invert":
        return ImageOps.invert(image)
    if name == "Rotate":
        degrees = level * 30.0 if sign > 0 else -(level * 30.0)
        return image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=FILL)
    if name == "Posterize":
        bits = 4 - int(level * 4) if increasing else int(level * 4)
        return ImageOps.posterize(image, bits)
    if name == "Solarize":
        return ImageOps.solarize(image, 256 - int(level * 256) if increasing else int(level * 256))
    if name == "SolarizeAdd":
        added = int(level * 110)
        table = [min(255, i + added) if i < 128 else i for i in range(256)]
        return image.point(table * 3)
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        change = level * 0.9 if sign > 0 else -(level * 0.9)
        factor = 1.0 + change if increasing else level * 1.8 + 0.1
        return getattr(ImageEnhance, name)(image).enhance(factor)
    most = 0.3 if name.startswith("Shear") else 0.45
    by = level * most if sign > 0 else -(level * most)
    if name == "ShearX":
        return moved(1, by, 0, 0, 1, 0)
    if name == "ShearY":
        return moved(1, 0, 0, by, 1, 0)
    if name == "TranslateX":
        return moved(1, 0, by * image.size[0], 0, 1, 0)
    if name == "TranslateY":
        return moved(1, 0, 0, 0, 1, by * image.size[1])
    raise AssertionError(name)


@pytest.fixture(scope="module")
def frames():
    """Noise on a slope, in three frames of different brightness."""
    slope = np.indices((36, 50)).sum(0)[None, :, :, None] * np.array([1, 2, 0.5])
    noise = np.random.default_rng(0).normal(0, 25, (3, 36, 50, 3))
    return np.clip(slope + noise + [[[[10]]], [[[60]]], [[[100]]]], 0, 255).astype(np.uint8)


@pytest.mark.parametrize("increasing", [True, False])
def test_there_are_the_fifteen_operations(increasing):
    assert list(operations(increasing)) == NAMES


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_clips_are_those_of_the_original(name, increasing, frames):
    operation, argument = operations(increasing)[name]
    for magnitude in MAGNITUDES:
        for sign in (1, -1):
            result = operation(frames, *argument(magnitude, sign))
            expected = [
                original(Image.fromarray(frame), name, magnitude, sign, increasing)
                for frame in frames
            ]
            np.testing.assert_array_equal(
                result, [np.asarray(image) for image in expected], err_msg=f"{magnitude} {sign}"
            )


@pytest.mark.parametrize(
    ("name", "increasing", "expected"),
    [
        # By hand at magnitude 7: int(2.8), int(179.2), int(77), 1.8 * .7 + .1, 1 + .63
        ("Posterize", False, 2),
        ("Posterize", True, 2),
        ("Solarize", False, 179),
        ("Solarize", True, 77),
        ("SolarizeAdd", True, 77),
        ("Color", False, 1.36),
        ("Sharpness", True, 1.63),
        ("Rotate", True, 21),
        ("ShearX", True, 0.21),
        ("TranslateY", True, 0.315),
    ],
)
def test_numbers_at_magnitude_seven(name, increasing, expected):
    (found,) = operations(increasing)[name][1](7.0, 1)
    assert found == pytest.approx(expected)


@pytest.fixture
def recorded(monkeypatch):
    """(name, magnitude, sign) of what is applied, instead of applying it."""
    seen = []

    def entry(name):
        return lambda frames, *numbers: seen.append((name, *numbers)) or frames, lambda m, s: (m, s)

    for table in ("PLAIN", "INCREASING"):
        monkeypatch.setattr(rand_augment, table, {name: entry(name) for name in NAMES})
    return seen


def test_draws_follow_the_formulas(recorded):
    policy, rng = parse_policy("rand-m7-n4-mstd0.5-inc1"), np.random.default_rng(0)
    frames, per_clip = np.zeros((1, 2, 2, 3), np.uint8), []
    for _ in range(10000):
        before = len(recorded)
        policy(frames, rng)
        per_clip.append(len(recorded) - before)
    # Each of four is applied with probability 1/2: binomial, 1 4 6 4 1 sixteenths.
    for count, sixteenths in enumerate([1, 4, 6, 4, 1]):
        p = sixteenths / 16
        assert abs(per_clip.count(count) - 10000 * p) < 4 * np.sqrt(10000 * p * (1 - p))
    n = len(recorded)
    counts = Counter(name for name, *_ in recorded)
    assert set(counts) == set(NAMES)
    assert max(abs(c - n / 15) for c in counts.values()) < 4 * np.sqrt(n / 15)
    magnitudes = np.array([magnitude for _, magnitude, _ in recorded])
    assert abs(magnitudes.mean() - 7) < 4 * 0.5 / np.sqrt(n)
    assert abs(magnitudes.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * n)
    signs = np.array([sign for *_, sign in recorded])
    assert set(signs) == {1, -1}
    assert abs(signs.mean()) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(magnitudes, signs)[0, 1]) < 4 / np.sqrt(n)


def test_operations_are_drawn_with_replacement(recorded):
    policy, rng = RandAugment(5, 2), np.random.default_rng(0)
    pairs = []
    for _ in range(8000):
        before = len(recorded)
        policy(np.zeros((1, 2, 2, 3), np.uint8), rng)
        if len(recorded) - before == 2:
            pairs.append(recorded[-2][0] == recorded[-1][0])
    # a fifteenth of some 2000
    assert abs(np.sum(pairs) - len(pairs) / 15) < 4 * np.sqrt(len(pairs) / 15)


def test_magnitudes_are_cut_to_their_range(recorded):
    rng = np.random.default_rng(0)
    for magnitude in (0, 10):
        recorded.clear()
        for _ in range(500):
            RandAugment(magnitude, 2, 0.5)(np.zeros((1, 2, 2, 3), np.uint8), rng)
        found = np.array([m for _, m, _ in recorded])
        assert found.min() >= 0
        assert found.max() <= 10
        assert 0.4 < (found == magnitude).mean() < 0.6


def test_without_deviation_the_magnitude_is_fixed(recorded):
    RandAugment(3, 50)(np.zeros((1, 2, 2, 3), np.uint8), np.random.default_rng(0))
    assert {magnitude for _, magnitude, _ in recorded} == {3.0}


def test_all_frames_are_treated_alike(frames):
    same, rng = np.repeat(frames[:1], 4, axis=0), np.random.default_rng(0)
    policy, changed = parse_policy("rand-m9-n3-mstd0.5-inc1"), 0
    for _ in range(40):
        result = policy(same, rng)
        assert (result == result[0]).all()
        changed += (result[0] != same[0]).any()
    assert changed > 20
    np.testing.assert_array_equal(same, np.repeat(frames[:1], 4, axis=0))


@pytest.mark.parametrize(
    ("text", "factor"), [("rand-m7-n9-inc1", 1.63), ("rand-m7-n9-inc0", 1.36), ("rand-m7-n9", 1.36)]
)
def test_the_set_is_chosen(text, factor):
    policy, rng = parse_policy(text), np.random.default_rng(0)
    drawn = [entry for _ in range(100) for entry in policy.draw(rng)]
    factors = {round(numbers[0], 6) for name, numbers in drawn if name == "Contrast"}
    assert factors == ({1.63, 0.37} if factor == 1.63 else {1.36})


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("rand-m7-n4-mstd0.5-inc1", RandAugment(7, 4, 0.5, True)),
        ("rand-n4-inc1-mstd0.5-m7", RandAugment(7, 4, 0.5, True)),
        ("rand-m7-mstd0.5-inc1", RandAugment(7, 2, 0.5, True)),
        ("rand-m9-n3", RandAugment(9, 3, 0, False)),
        ("rand-m7-n4-mstd0.5-inc0", RandAugment(7, 4, 0.5, False)),
        ("rand-m7.5", RandAugment(7.5)),
        ("rand", RandAugment(10, 2, 0, False)),
    ],
)
def test_policies_are_read(text, policy):
    assert parse_policy(text) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy


@pytest.mark.parametrize(
    "text",
    [
        *["", "m7", "augmix-m7", "rand-", "rand-m", "rand-m-7", "rand-m7-m8", "rand-x7"],
        *["rand-m7-w0", "rand-n2.5", "rand-inc2", "rand-incTrue", "rand m7", "rand-m7-n4 "],
    ],
)
def test_what_is_no_policy_is_named(text):
    with pytest.raises(SettingError, match=r"policy '.*' cannot be read; write rand and then"):
        parse_policy(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rand-m11", r"magnitude=11.0 must be in \[0, 10\]"),
        ("rand-n0", "num_ops=0 must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_named(text, message):
    with pytest.raises(SettingError, match=message):
        parse_policy(text)


def test_a_negative_deviation_is_named():
    with pytest.raises(SettingError, match="magnitude_std=-1 must be at least 0"):
        RandAugment(7, 2, -1)
