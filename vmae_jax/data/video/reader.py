"""What every reader of videos has in common: its interface, its errors, its limits of size.

A reader belongs to one thread and one process: open the video where its frames are wanted, do not
share or pickle readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from vmae_jax.errors import SettingError

# Times in files are whole ticks, and the nearest floats may lie on either side of what is asked.
TIME_TOLERANCE = 1e-6  # seconds


class VideoError(SettingError):
    """A video that cannot be used; its text names the file, the reason and the remedy."""

    def __init__(self, path: str, reason: str):
        # Both go to args, so that the error survives pickling between processes.
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"video {self.path!r}: {self.reason}"


@dataclass(frozen=True)
class Limits:
    """How large a video may be: a file can claim, and hold, more than the memory of a machine.

    What the header says is checked before anything is decoded; then each packet and each frame.

    Attributes:
      max_pixels: in one frame; 4096 x 2304 takes 28 MB as RGB.
      max_frames: in the file; a million takes about 100 MB for their times.
      max_seconds: from the first frame to the last.
      max_bytes: of the file.
    """

    max_pixels: int = 4096 * 2304
    max_frames: int = 1_000_000
    max_seconds: float = 12 * 3600
    max_bytes: int = 4 << 30

    def check(
        self, name: str, *, pixels: int = 0, frames: int = 0, seconds: float = 0, bytes: int = 0
    ) -> None:
        """Compares what is given of a video with the limits.

        Args:
          name: of the video, for the error.
          pixels, frames, seconds, bytes: as the attributes count them.
        Raises:
          VideoError: if one of them is above its limit.
        """
        found = {"pixels": pixels, "frames": frames, "seconds": seconds, "bytes": bytes}
        for unit, value in found.items():
            limit = getattr(self, f"max_{unit}")
            if value > limit:
                raise VideoError(
                    name,
                    f"{unit}={value:.15g} is above max_{unit}={limit}; make the video smaller, "
                    "or give open_video wider Limits if you trust it.",
                )


class VideoReader:
    """An open video; a `with` statement closes it.

    Attributes:
      num_frames: at least 1, as many as decoding the whole file gives.
      height, width: of a frame as `read` returns it (after rotation), in pixels.
      fps: average frames per second.
      times: float64 [num_frames], seconds after the first frame.
      codec: short name of how frames are encoded, "h264" or "jpeg"; "unknown" if nobody tells.
      frame_step, frame_phase: `read` gives the frames frame_phase + k * frame_step; unless a
        prepared set left some out, that is every frame.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    times: np.ndarray
    codec: str = "unknown"
    frame_step: int = 1
    frame_phase: int = 0

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """RGB frames, uint8 [len(indices), height, width, 3], in the order asked for.

        A frame asked for twice is decoded once, and all in their own order: the views of a test
        overlap, short videos repeat frames.

        Raises:
          ValueError: if an index is outside [0, num_frames).
          VideoError: if the file turns out to be damaged.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Gives back file and memory; the reader cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def checked_indices(indices: Sequence[int], num_frames: int, name: str) -> np.ndarray:
    """`indices` as int64 [n], all of them inside the video called `name`.

    Raises:
      ValueError: if one is outside [0, num_frames).
    """
    indices = np.asarray(indices, np.int64)
    outside = (indices < 0) | (indices >= num_frames)
    if outside.any():
        raise ValueError(
            f"frame {indices[outside][0]} of {name!r} does not exist; it has num_frames="
            f"{num_frames}, so choose indices in [0, {num_frames})."
        )
    return indices


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
