"""From a video file to an open reader, by the decoder asked for.

The readers are modules of their own, imported when first asked for, so that each package is needed
only where it is used.
"""

from __future__ import annotations

import os

from vmae_jax.data.video.reader import Limits, VideoError, VideoReader, first_line
from vmae_jax.errors import SettingError
from vmae_jax.files.storage import remote_path
from vmae_jax.packages import import_package


def _open_pyav(file: str | bytes, name: str, limits: Limits) -> VideoReader:
    import_package("av", "backend='pyav'")
    from vmae_jax.data.video.pyav_reader import PyavReader

    return PyavReader(file, name, limits)


def _open_decord(file: str | bytes, name: str, limits: Limits) -> VideoReader:
    import_package("av", "backend='decord'")
    import_package(
        "decord",
        "backend='decord'",
        remark="; it has no wheel for ARM, where backend='pyav' serves",
    )
    from vmae_jax.data.video.decord_reader import open_decord

    return open_decord(file, name, limits)


DECODERS = {"pyav": _open_pyav, "decord": _open_decord}


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
      backend: a key of DECODERS. "pyav" gives the right frames of every file that it opens.
        "decord" hands files over to it (with one warning) where decord would give other frames.
      name: what messages call the video; needed for bytes, otherwise the path.
      limits: what is refused for its size.
    Raises:
      ValueError: for bytes without a name.
      SettingError: for an unknown backend.
      MissingPackage: if the backend's package is missing.
      VideoError: if the file is missing, empty, too large, no video, or cannot be opened.
    """
    if backend not in DECODERS:
        raise SettingError(f"backend={backend!r} is unknown; choose one of {sorted(DECODERS)}.")
    if isinstance(file, bytes | bytearray | memoryview):
        if not name:
            raise ValueError("name=None does not tell which video the bytes are; give a name.")
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
