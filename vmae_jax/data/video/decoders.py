"""From a video file to frames: the interface, and what every decoder of it shares.

A reader belongs to one thread and one process: open the file where its frames are wanted, do not
share or pickle readers. The decoders are modules of their own, imported when first asked for, so
that each package is needed only where it is used.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vmae_jax.errors import MissingPackage, SettingError
from vmae_jax.files.storage import remote_path


class VideoError(SettingError):
    """A video file that cannot be used; its text names the file, the reason and the remedy."""

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
        """Nothing, if the video called `name` keeps to the limits in what is given.

        Raises:
          VideoError: otherwise.
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


class VideoReader(Protocol):
    """An open video: what every entry of DECODERS returns. It can serve as a context manager.

    Attributes:
      num_frames: at least 1, as many as decoding the whole file gives.
      height, width: of a frame as `read` returns it (after rotation), in pixels.
      fps: average frames per second.
      times: float64 [num_frames], seconds after the first frame.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    times: np.ndarray

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """RGB frames, uint8 [len(indices), height, width, 3], in the order asked for.

        Raises:
          ValueError: if an index is outside [0, num_frames).
          VideoError: if the file turns out to be damaged.
        """

    def close(self) -> None:
        """Gives back file and memory; the reader cannot be used afterwards."""


def checked_indices(indices: Sequence[int], num_frames: int, name: str) -> np.ndarray:
    """`indices` as int64 [n], all of them inside the video called `name`.

    Raises:
      ValueError: if one is outside [0, num_frames).
    """
    indices = np.asarray(indices, np.int64)
    outside = (indices < 0) | (indices >= num_frames)
    if outside.any():
        raise SettingError(
            f"frame {indices[outside][0]} of {name!r} does not exist; it has num_frames="
            f"{num_frames}, so choose indices in [0, {num_frames})."
        )
    return indices


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@functools.lru_cache(maxsize=10_000)  # once for each file, not each time it is opened
def warn_of_exact_reader(backend: str, name: str, reason: str) -> None:
    """Logs that PyAV decodes the video called `name` in place of `backend`, and why."""
    logging.warning("video %r: decoded by pyav in place of %s: %s", name, backend, reason)


def _open_pyav(file: str | bytes, name: str, limits: Limits) -> VideoReader:
    _require("av", "pyav")
    from vmae_jax.data.video.pyav_reader import PyavReader

    return PyavReader(file, name, limits)


def _open_decord(file: str | bytes, name: str, limits: Limits) -> VideoReader:
    _require("av", "decord")
    _require("decord", "decord", "; it has no wheel for ARM, where backend='pyav' serves")
    from vmae_jax.data.video.decord_reader import open_decord

    return open_decord(file, name, limits)


def _open_torchcodec(file: str | bytes, name: str, limits: Limits) -> VideoReader:
    _require("av", "torchcodec")
    _require("torchcodec", "torchcodec", "; it also needs torch and FFmpeg's shared libraries")
    from vmae_jax.data.video.torchcodec_reader import open_torchcodec

    return open_torchcodec(file, name, limits)


DECODERS = {
    "pyav": _open_pyav,
    "decord": _open_decord,
    "torchcodec": _open_torchcodec,
}


def _require(package: str, backend: str, remark: str = "") -> None:
    """Imports a package, so that its absence is told before anything else fails.

    Raises:
      MissingPackage: if it is not installed, or does not load (a shared library is missing).
    """
    try:
        importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingPackage(
            f"backend={backend!r} needs the package {package} ({first_line(error)}); run "
            f"`pip install {package}`{remark}."
        ) from error


def open_video(
    file: str | os.PathLike | bytes,
    backend: str = "pyav",
    *,
    name: str | None = None,
    limits: Limits = Limits(),
) -> VideoReader:
    """A reader of a video.

    Args:
      file: a path; an address ("gs://...", "s3://...", anything with "://"), read whole through
        etils.epath; or the bytes of a file.
      backend: a key of DECODERS. "pyav" gives the right frames of every file that it opens. The
        others hand files over to it (with one warning) where they would give other frames.
      name: what messages call the video; needed for bytes, otherwise the path.
      limits: what is refused for its size.
    Raises:
      ValueError: for an unknown backend, or bytes without a name.
      MissingPackage: if the backend's package is missing.
      VideoError: if the file is missing, empty, too large, no video, or cannot be opened.
    """
    if backend not in DECODERS:
        raise SettingError(f"backend={backend!r} is unknown; choose one of {sorted(DECODERS)}.")
    if isinstance(file, bytes | bytearray | memoryview):
        if not name:
            raise SettingError("name=None does not tell which video the bytes are; give a name.")
        file = bytes(file)
    else:
        file = os.fspath(file)
        name = name or file
        if "://" in file:
            file = _fetch(file, name, limits)
    if isinstance(file, str):
        if not os.path.isfile(file):
            raise VideoError(name, "there is no such file; check the path in the data set.")
        size = os.path.getsize(file)
    else:
        size = len(file)
    if size == 0:
        raise VideoError(name, "the file is empty; copy it again or remove it.")
    limits.check(name, bytes=size)
    return DECODERS[backend](file, name, limits)


def _fetch(address: str, name: str, limits: Limits) -> bytes:
    path = remote_path(address)
    try:
        limits.check(name, bytes=path.stat().length)
        return path.read_bytes()
    except OSError as error:
        raise VideoError(
            name, f"it cannot be read ({first_line(error)}); check the address and your access."
        ) from error
