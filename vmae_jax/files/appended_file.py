"""A file that grows by whole records, through kills, full disks, and on stores that cannot append.

Nothing here ends a run: what cannot be written now is kept and written with the next record.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable

from vmae_jax.files.storage import is_remote, read_bytes, write_bytes

logger = logging.getLogger(__name__)
COPY_EVERY = 30.0  # seconds
_MAX_BYTES = 1 << 32


class AppendedFile:
    """Appends records to a file, local or remote.

    A remote one is kept in a temporary folder of this machine and copied up as a whole, every
    `COPY_EVERY` seconds at most, behind the caller's back; a kill loses what came since.

    Args:
      path: of the file.
      start: what the file shall hold at first, made of what it holds now (b"" if it is not there).
    Raises:
      OSError: if it cannot be read or made; only later troubles are borne.
    """

    def __init__(
        self, path: str | os.PathLike, *, start: Callable[[bytes], bytes] = lambda old: old
    ):
        self._path = os.fspath(path)
        self._cleanup = contextlib.ExitStack()
        self._remote = is_remote(self._path)
        self._local = self._path
        if self._remote:
            folder = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vmae_jax_"))
            self._local = os.path.join(folder, "file")
        old = read_if_there(self._path)
        new = start(old)
        if self._remote or new != old:
            write_bytes(f"{self._local}.partial", new)
            os.replace(f"{self._local}.partial", self._local)
        else:
            os.makedirs(os.path.dirname(self._local) or ".", exist_ok=True)
        self._descriptor = os.open(self._local, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = len(new)  # up to the last whole record
        self._unwritten: deque[bytes] = deque()
        self._warned = False
        self._copied, self._copied_at = (len(old) if new == old else -1), time.monotonic()
        self._copying: threading.Thread | None = None

    @property
    def local_path(self) -> str:
        """Of the file, or of its copy on this machine."""
        return self._local

    def append(self, record: bytes) -> None:
        """Adds a record; a crash right after loses nothing of it, if the file is local."""
        self._unwritten.append(record)
        self._write()
        if self._remote and time.monotonic() - self._copied_at >= COPY_EVERY:
            if self._copying is not None and self._copying.is_alive():
                return
            self._copied_at = time.monotonic()
            self._copying = threading.Thread(target=self._copy, name="copy up", daemon=True)
            self._copying.start()

    def close(self) -> None:
        """Writes and copies what is left."""
        self._write()
        if self._copying is not None:
            self._copying.join()
        if self._remote and self._copied != self._size:
            self._copy()
        os.close(self._descriptor)
        self._cleanup.close()

    def _write(self) -> None:
        try:
            while self._unwritten:
                rest = self._unwritten[0]
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
                self._size += len(self._unwritten.popleft())
        except OSError as error:
            with contextlib.suppress(OSError):  # half a record would spoil the next one
                os.ftruncate(self._descriptor, self._size)
            self._warn(error)
        else:
            self._warned = False

    def _copy(self) -> None:
        size = self._size
        try:
            with open(self._local, "rb") as file:
                write_bytes(self._path, file.read(size))
        except Exception as error:  # each kind of store has errors of its own
            self._warn(error)
        else:
            self._copied = size

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            logger.warning(
                "%s cannot be written (%s); it will be tried again with each record",
                self._path, " ".join(str(error).split()),
            )  # fmt: skip
        self._warned = True


def read_if_there(path: str | os.PathLike) -> bytes:
    """The contents of a file, b"" if there is none.

    Raises:
      OSError: if it cannot be read.
    """
    try:
        return read_bytes(os.fspath(path), _MAX_BYTES)
    except FileNotFoundError:
        return b""


def cut_after(contents: bytes, step: int) -> bytes:
    """Of JSON lines that each have a "step", those up to a step, without one that a kill cut
    short: what came later will be done again."""
    kept = []
    for line in contents.splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= step:
            kept.append(line)
    return b"".join(kept)
