"""Small disks of our own: to be filled, and to be made read-only, without a mark on the machine.

All is mounted in a namespace that ends with the campaign, and so do all processes that it has
started, however it ends. Root has that for the asking, others may be given one in which they are
root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_INSIDE = "CHAOS_OWN_MOUNTS"


def with_own_mounts() -> None:
    """Starts this very program again, in place of this process, where it may mount; returns if that
    is so already, or cannot be."""
    if os.environ.get(_INSIDE):
        return
    os.environ[_INSIDE] = "yes"
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    for way in (alone, [*alone, "--user", "--map-root-user"]):
        if _succeeds([*way, "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]):
            os.execvp(way[0], [*way, *sys.orig_argv])


def end_by_signals(folder: Path) -> None:
    """Lets signals end all processes of this namespace, and remove a folder.

    Its first process, which this is, dies of no signal that it does not handle.
    """

    def end(number: int, frame) -> None:
        os.kill(-1, signal.SIGKILL)  # all but this one
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + number)

    if os.getpid() == 1:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)


def why_no_mounts() -> str | None:
    """Why nothing can be mounted here, or None."""
    if os.environ.get(_INSIDE):
        probe = Path(tempfile.mkdtemp())
        with contextlib.suppress(OSError), small_disk(probe, 1):
            return None
    return "neither root nor a user namespace can be had, so no small disk can be mounted"


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A folder is a disk of its own while the context is open."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(folder))


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder cannot be written to while the context is open, not even by root."""
    _run("mount", "--bind", str(folder), str(folder))
    _run("mount", "-o", "remount,bind,ro", str(folder))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
