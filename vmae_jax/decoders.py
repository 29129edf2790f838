"""From a video file to frames.

A reader belongs to one thread and one process: open the file where its frames are wanted, do not
share or pickle readers. Files whose frame order a decoder guesses (open GOP, edit lists, MPEG-TS,
AVI with B frames) may come out a few frames off with decord; ordinary mp4 files are exact.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np


class VideoError(ValueError):
    """A video file that cannot be used; its text names the file, the reason and the remedy."""

    def __init__(self, path: str, reason: str):
        # Both go to args, so that the error survives pickling between processes.
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"video {self.path!r}: {self.reason}"


class VideoReader(Protocol):
    """An open video: what every entry of DECODERS returns.

    Attributes:
      num_frames: at least 1.
      height, width: of a frame as `read` returns it, in pixels.
      fps: average frames per second.
    """

    num_frames: int
    height: int
    width: int
    fps: float

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """RGB frames, uint8 [len(indices), height, width, 3], in the order asked for.

        Raises:
          ValueError: if an index is outside [0, num_frames).
          VideoError: if the file turns out to be damaged.
        """


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


class DecordReader:
    """A VideoReader over the decord package (or decord2, which is imported under the same name)."""

    def __init__(self, path: str):
        try:
            import decord
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "backend='decord' needs the package decord; run `pip install decord` "
                "(decord2 where decord has no wheel, as on ARM)."
            ) from error
        self._path = path
        self._decode_error = decord.DECORDError
        try:
            # Threads of its own would lower one clip's latency but cost more CPU for each clip.
            self._video = decord.VideoReader(path, num_threads=1)
        except (RuntimeError, decord.DECORDError) as error:
            raise VideoError(
                path, f"decord cannot open it ({_first_line(error)}); re-encode or remove the file."
            ) from error
        self.num_frames = len(self._video)
        if self.num_frames == 0:
            raise VideoError(path, "it has no frames; re-encode or remove the file.")
        self.fps = float(self._video.get_avg_fps())

    @functools.cached_property
    def _frame_shape(self) -> tuple[int, int, int]:
        # decord tells the size only with a frame; most callers never ask.
        return self.read([0]).shape[1:]

    @property
    def height(self) -> int:
        """Pixels; the first call decodes a frame."""
        return self._frame_shape[0]

    @property
    def width(self) -> int:
        """Pixels; the first call decodes a frame."""
        return self._frame_shape[1]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """RGB frames, uint8 [len(indices), height, width, 3]; see VideoReader."""
        indices = checked_indices(indices, self.num_frames, self._path)
        # Short videos repeat frames; each is decoded once, and in order, which saves seeks.
        unique, position = np.unique(indices, return_inverse=True)
        try:
            frames = self._video.get_batch(unique).asnumpy()
        except self._decode_error as error:
            raise VideoError(
                self._path,
                f"decord cannot decode frames {unique[0]} to {unique[-1]} ({_first_line(error)}); "
                "re-encode or remove the file.",
            ) from error
        return frames if np.array_equal(unique, indices) else frames[position]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_video(path: str | os.PathLike, backend: str = "decord") -> VideoReader:
    """A reader of the file at `path`.

    Args:
      path: of a video file; any container and codec that the backend's FFmpeg knows.
      backend: a key of DECODERS.
    Raises:
      ValueError: for an unknown backend.
      VideoError: if the file is missing, empty, no video, or cannot be opened.
    """
    if backend not in DECODERS:
        raise ValueError(f"backend={backend!r} is unknown; choose one of {sorted(DECODERS)}.")
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise VideoError(path, "there is no such file; check the path in the data set.")
    if os.path.getsize(path) == 0:
        raise VideoError(path, "the file is empty; copy it again or remove it.")
    return DECODERS[backend](path)


DECODERS = {
    "decord": DecordReader,
}
