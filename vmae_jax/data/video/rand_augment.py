"""RandAugment for clips: a few random operations on whole frames, the same for all of a clip.

    policy = parse_policy("rand-m7-n4-mstd0.5-inc1")
    frames = policy(frames, rng)  # uint8 [T, H, W, 3]

`picture_ops` has the operations; here stands what is drawn: which of them, and with what numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vmae_jax.data.video import picture_ops
from vmae_jax.errors import SettingError

PROBABILITY = 0.5  # that a chosen operation is applied
MAX_MAGNITUDE = 10.0
PART = r"m(?P<m>\d+(?:\.\d+)?)|n(?P<n>\d+)|mstd(?P<mstd>\d+(?:\.\d+)?)|inc(?P<inc>[01])"

# What an operation takes of a magnitude m in [0, 10] and a sign, 1 or -1.
Argument = Callable[[float, int], tuple]


@dataclass(frozen=True)
class RandAugment:
    """Applies num_ops random operations of fifteen, one after another; can be pickled.

    Each is chosen with replacement, all equally likely, and applied with probability 0.5, at a
    magnitude from the normal distribution of this mean and deviation, cut to [0, 10]. Operations
    with two directions take either alike. A clip draws once: what is drawn holds for all frames.

    Attributes:
      magnitude: in [0, 10]; what it means to each operation: see `operations`.
      num_ops: at least 1.
      magnitude_std: at least 0.
      increasing: whether all operations change frames more at higher magnitudes. Without it, six of
        them (posterize, solarize and the four enhancements) do not.

    Source: RandAugment, arXiv 1909.13719; VideoMAE, rand_augment.py, which varies timm's.
    """

    magnitude: float = MAX_MAGNITUDE
    num_ops: int = 2
    magnitude_std: float = 0.0
    increasing: bool = False

    def __post_init__(self):
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise SettingError(f"magnitude={self.magnitude} must be in [0, 10].")
        if self.num_ops < 1:
            raise SettingError(f"num_ops={self.num_ops} must be at least 1 operation.")
        if self.magnitude_std < 0:
            raise SettingError(f"magnitude_std={self.magnitude_std} must be at least 0.")

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The frames changed, uint8 [T, H, W, 3]; `frames` itself if nothing was to be done.

        Args:
          frames: uint8 [T, H, W, 3]; never written to.
          rng: for `draw`.
        """
        for name, numbers in self.draw(rng):
            frames = operations(self.increasing)[name][0](frames, *numbers)
        return frames

    def draw(self, rng: np.random.Generator) -> list[tuple[str, tuple]]:
        """What to do to a clip: the names of `operations`, and the numbers they take.

        Args:
          rng: num_ops integers are drawn from it, then for each operation a uniform number, and if
            it is to be applied a normal one and another uniform one.
        """
        chosen, drawn = list(operations(self.increasing).items()), []
        for number in rng.integers(len(chosen), size=self.num_ops):
            if rng.random() < PROBABILITY:
                name, (_, argument) = chosen[number]
                magnitude = float(np.clip(rng.normal(self.magnitude, self.magnitude_std), 0, 10))
                sign = 1 if rng.random() < 0.5 else -1
                drawn.append((name, argument(magnitude, sign)))
        return drawn


def parse_policy(text: str) -> RandAugment:
    """A policy from the notation of timm and the original, such as "rand-m7-n4-mstd0.5-inc1".

    After "rand" come, in any order: m, the magnitude (10 if it is left out); n, the number of
    operations (2); mstd, the deviation of the magnitude (0); inc, 1 for the increasing set, 0 for
    the other (0: the original takes any number after inc for 1).

    Raises:
      SettingError: for anything else.
    """
    name, *parts = text.split("-")
    matches = [re.fullmatch(PART, part) for part in parts]
    fields = {match.lastgroup: match[match.lastgroup] for match in matches if match}
    if name != "rand" or len(fields) < len(parts):
        raise SettingError(
            f"RandAugment policy {text!r} cannot be read; write rand and then any of m, n, mstd, "
            "inc (0 or 1), each once, with its number: rand-m7-n4-mstd0.5-inc1."
        )
    return RandAugment(
        magnitude=float(fields.get("m", MAX_MAGNITUDE)),
        num_ops=int(fields.get("n", 2)),
        magnitude_std=float(fields.get("mstd", 0)),
        increasing=fields.get("inc") == "1",
    )


def operations(increasing: bool) -> dict[str, tuple[Callable, Argument]]:
    """The fifteen operations by name: (function of `picture_ops`, its Argument).

    At magnitude m: Rotate by up to 30 m / 10 degrees; Shear by 0.3 m / 10; Translate by 0.45 m / 10
    of the side; Posterize to 4 - 0.4 m bits (0.4 m if not increasing); Solarize from 256 - 25.6 m
    up (25.6 m); SolarizeAdd of 11 m; the enhancements by a factor 0.09 m from 1 (0.1 + 0.18 m).
    """
    return INCREASING if increasing else PLAIN


def _nothing(magnitude: float, sign: int) -> tuple:
    return ()


# The arithmetic is the original's to the last bit, as is where it truncates.


def _up_to(most: float) -> Argument:
    return lambda magnitude, sign: (sign * (magnitude / 10 * most),)


def _added(magnitude: float, sign: int) -> tuple:
    return (int(magnitude / 10 * 110),)


def _bits(magnitude: float, sign: int) -> tuple:
    return (int(magnitude / 10 * 4),)


def _fewer_bits(magnitude: float, sign: int) -> tuple:
    return (4 - int(magnitude / 10 * 4),)


def _threshold(magnitude: float, sign: int) -> tuple:
    return (int(magnitude / 10 * 256),)


def _lower_threshold(magnitude: float, sign: int) -> tuple:
    return (256 - int(magnitude / 10 * 256),)


def _factor(magnitude: float, sign: int) -> tuple:
    return (magnitude / 10 * 1.8 + 0.1,)


def _factor_around_one(magnitude: float, sign: int) -> tuple:
    return (1.0 + sign * (magnitude / 10 * 0.9),)


PLAIN: dict[str, tuple[Callable, Argument]] = {
    "AutoContrast": (picture_ops.auto_contrast, _nothing),
    "Equalize": (picture_ops.equalize, _nothing),
    "Invert": (picture_ops.invert, _nothing),
    "Rotate": (picture_ops.rotate, _up_to(30.0)),
    "Posterize": (picture_ops.posterize, _bits),
    "Solarize": (picture_ops.solarize, _threshold),
    "SolarizeAdd": (picture_ops.solarize_add, _added),
    "Color": (picture_ops.color, _factor),
    "Contrast": (picture_ops.contrast, _factor),
    "Brightness": (picture_ops.brightness, _factor),
    "Sharpness": (picture_ops.sharpness, _factor),
    "ShearX": (picture_ops.shear_x, _up_to(0.3)),
    "ShearY": (picture_ops.shear_y, _up_to(0.3)),
    "TranslateX": (picture_ops.translate_x, _up_to(0.45)),
    "TranslateY": (picture_ops.translate_y, _up_to(0.45)),
}
INCREASING = PLAIN | {
    "Posterize": (picture_ops.posterize, _fewer_bits),
    "Solarize": (picture_ops.solarize, _lower_threshold),
    **{
        name: (PLAIN[name][0], _factor_around_one)
        for name in ("Color", "Contrast", "Brightness", "Sharpness")
    },
}
