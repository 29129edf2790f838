"""Frames through torchcodec in its exact mode.

Exact means that it knows the number and the times of all frames; it still seeks by time, which
gives other frames than were asked for behind an edit list, in MPEG-TS, with intra refresh and
more. So a file in which anything is doubtful goes to the exact reader, with a warning, by the same
rule as for decord. Damage inside of frames cannot be seen that way, and may go unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torchcodec.decoders import VideoDecoder

from vmae_jax.data.video.decoders import (
    Limits,
    VideoError,
    VideoReader,
    checked_indices,
    first_line,
    warn_of_exact_reader,
)
from vmae_jax.data.video.packets import doubts
from vmae_jax.data.video.pyav_reader import PyavReader


def open_torchcodec(file: str | bytes, name: str, limits: Limits) -> VideoReader:
    """A TorchcodecReader, or a PyavReader where torchcodec may not give the right frames."""
    exact = PyavReader(file, name, limits)
    reasons = doubts(exact.video)
    if not reasons:
        try:
            reader = TorchcodecReader(file, name, exact)
            exact.close()
            return reader
        except VideoError as error:
            reasons = [error.reason]
    for reason in reasons:
        warn_of_exact_reader("torchcodec", name, reason)
    return exact


class TorchcodecReader:
    """A VideoReader over torchcodec.

    Args:
      file, name: as in `decoders.open_video`.
      exact: a reader of the same file, which tells the number, size and times of its frames.
    Raises:
      VideoError: if torchcodec cannot open the file, or finds another number of frames.
    """

    def __init__(self, file: str | bytes, name: str, exact: PyavReader):
        self._name = name
        try:
            self._video = VideoDecoder(
                file, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact"
            )
        except (RuntimeError, ValueError) as error:
            raise VideoError(name, f"torchcodec cannot open it ({first_line(error)})") from error
        if len(self._video) != exact.num_frames:
            raise VideoError(
                name, f"torchcodec counts {len(self._video)} of num_frames={exact.num_frames}"
            )
        self.num_frames, self.fps, self.times = exact.num_frames, exact.fps, exact.times
        self.height, self.width = exact.height, exact.width

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """RGB frames, uint8 [len(indices), height, width, 3]; see VideoReader."""
        indices = checked_indices(indices, self.num_frames, self._name)
        if not len(indices):
            return np.empty((0, self.height, self.width, 3), np.uint8)
        try:
            return self._video.get_frames_at(indices.tolist()).data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise VideoError(
                self._name,
                f"torchcodec cannot decode frames {indices.min()} to {indices.max()} "
                f"({first_line(error)}); re-encode or remove the file.",
            ) from error

    def close(self) -> None:
        """Gives back file and memory; the reader cannot be used afterwards."""
        del self._video

    def __enter__(self) -> TorchcodecReader:
        return self

    def __exit__(self, *exception) -> None:
        self.close()
