"""How a patch can move, by name, and its path through the frames of a video.

Any single place of a path is anywhere in the frame with the same chance, whatever the motion: the
place in the middle frame is drawn alone, the others lie at a distance from it that does not depend
on it, and a patch that leaves the frame enters it on the other side.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SPEEDS = (0.03, 0.055)  # sides of the frame, per frame; along a circle as along a line
RADIUS = 0.11  # of circles, in sides of the frame: a slow patch makes 0.8 of a turn in 20 frames


def make_path(motion: str, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Where the centre of a patch is in each frame: float64 [T, 2] of (row, column) in [0, 1).

    In frame num_frames // 2, generators in the same state give the same place for all motions.

    Args:
      motion: a key of MOTIONS.
      num_frames: of the path (T).
      rng: as many numbers are drawn, in the same order, whatever the motion.
    """
    middle, speed, phase = rng.random(2), rng.uniform(*SPEEDS), rng.uniform(0, 2 * np.pi)
    travel = speed * (np.arange(num_frames) - num_frames // 2)
    row, column = MOTIONS[motion](travel, phase)
    return (middle + np.stack([row, column], axis=1)) % 1


def _line(row: int, column: int) -> Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]:
    return lambda travel, phase: (row * travel, column * travel)


def _circle(sense: int) -> Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]:
    """Rows count downwards: a growing angle turns clockwise to the eye."""

    def moved(travel: np.ndarray, phase: float) -> tuple[np.ndarray, np.ndarray]:
        angle = phase + sense * travel / RADIUS
        return (
            RADIUS * (np.sin(angle) - np.sin(phase)),
            RADIUS * (np.cos(angle) - np.cos(phase)),
        )

    return moved


# name -> (travel [T], phase in radians) -> how far rows and columns have moved, each [T], where the
# patch has come that far along its path; in sides of the frame, 0 where travel is
MOTIONS = {
    "right": _line(0, 1),
    "left": _line(0, -1),
    "down": _line(1, 0),
    "up": _line(-1, 0),
    "clockwise": _circle(1),
    "anticlockwise": _circle(-1),
}
