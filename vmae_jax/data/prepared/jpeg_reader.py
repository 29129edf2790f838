"""Reads the JPEG frames of a prepared video, by their numbers in the original video.

Only the frames asked for are decoded, each once; none depends on another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vmae_jax.data.video.reader import VideoError, VideoReader, checked_indices
from vmae_jax.packages import import_package


class JpegReader(VideoReader):
    """A VideoReader of JPEG frames.

    Args:
      part: k -> the JPEG file of the k-th stored frame; raises VideoError if it is damaged.
      name: of the video in messages.
      num_frames, fps: of the original.
      size: (height, width) of the stored frames.
      frame_step, frame_phase: frame phase + k * step is the k-th stored one; no other can be read.
    Raises:
      MissingPackage: without simplejpeg.
    """

    codec = "jpeg"

    def __init__(
        self,
        part: Callable[[int], bytes | memoryview],
        name: str,
        *,
        num_frames: int,
        fps: float,
        size: tuple[int, int],
        frame_step: int,
        frame_phase: int,
    ):
        self._part, self._name = part, name
        simplejpeg = import_package(
            "simplejpeg", "a prepared data set of JPEG frames", install="vmae_jax[data]"
        )
        self._decode_jpeg = simplejpeg.decode_jpeg
        self.num_frames, self.fps = num_frames, fps
        self.height, self.width = size
        self.frame_step, self.frame_phase = frame_step, frame_phase

    @property
    def times(self) -> np.ndarray:
        """Seconds after the first frame, float64 [num_frames], as a constant rate gives them."""
        return np.arange(self.num_frames) / self.fps

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """RGB frames, uint8 [len(indices), height, width, 3]; see VideoReader.

        Raises:
          ValueError: if an index is outside [0, num_frames), or its frame is not stored.
          VideoError: if a frame is damaged.
        """
        indices = checked_indices(indices, self.num_frames, self._name)
        positions, remainders = np.divmod(indices - self.frame_phase, self.frame_step)
        if remainders.any():
            raise ValueError(
                f"frame {indices[remainders != 0][0]} of {self._name!r} is not stored; with "
                f"frame_step={self.frame_step} and frame_phase={self.frame_phase} choose "
                f"{self.frame_phase} + k * {self.frame_step}."
            )
        stored, rows = np.unique(positions, return_inverse=True)
        frames = np.empty((len(stored), self.height, self.width, 3), np.uint8)
        for k, frame in zip(stored.tolist(), frames, strict=True):
            self._decode(k, frame)
        in_order = len(rows) == len(stored) and (np.diff(rows) > 0).all()
        return frames if in_order else frames[rows]

    def _decode(self, k: int, frame: np.ndarray) -> None:
        try:
            # Colours are doubled, not interpolated: 7 % faster, and as near to the video (0.1 dB),
            # whose own colours FFmpeg doubled before they were encoded.
            part = self._part(k)
            decoded = self._decode_jpeg(part, "RGB", fastupsample=True, buffer=frame)
        except VideoError:
            raise
        except ValueError as error:
            raise VideoError(
                self._name, f"stored frame {k} is damaged ({error}); prepare its shard again."
            ) from error
        if decoded.shape != frame.shape:
            raise VideoError(
                self._name,
                f"stored frame {k} has shape {decoded.shape} where the record says "
                f"{frame.shape}; prepare its shard again.",
            )

    def close(self) -> None:
        """Gives back the record; the reader cannot be used afterwards."""
        del self._part
