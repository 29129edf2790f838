"""What the C library does with memory that XLA frees on a CPU, where it is the device's memory.

XLA asks for a step's memory anew at each step. glibc gives large pieces back to the system as soon
as they are freed and gets them back page by page, each one cleared first: a sixth of the time of
the demo's step. And what the compiler leaves behind, some 0.4 GB, stays in the process for good
unless it is asked for.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# Larger pieces go back as ever: one that no longer fits where it was, for a small one in between,
# would be held twice (500 MB in a run of ViT-S, where keeping it saved a twentieth of the time).
_LARGEST = 2**27

# NVIDIA's GPUs, AMD's, and TPUs under either of their drivers.
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


@functools.cache
def keep_freed_pieces() -> bool:
    """Makes this process keep what it frees, up to 128 MiB a piece, and use it again.

    It has no effect on threads that have asked for memory before, so it comes before JAX starts
    its own. Nothing happens without glibc, on a machine with an accelerator, or where the
    environment has settings of its own (`MALLOC_...`, `GLIBC_TUNABLES`).

    Returns:
      Whether it does.
    """
    libc = _glibc()
    own = any(name.startswith("MALLOC_") for name in os.environ)
    own = own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if libc is None or own or accelerators():
        return False
    # one arena for all threads, since the others' pieces are of at most 64 MB
    settings = {_ARENA_MAX: 1, _MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: _LARGEST}
    done = [libc.mallopt(*setting) for setting in settings.items()]
    return all(done)


def give_back_freed_pieces() -> None:
    """Gives back to the system what is free now, if glibc manages the memory."""
    if libc := _glibc():
        libc.malloc_trim(0)


def accelerators() -> list[str]:
    """Device files of accelerators, found without starting JAX."""
    return [path for pattern in _ACCELERATORS for path in glob.glob(pattern)]


def _glibc() -> ctypes.CDLL | None:
    if os.name != "posix":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
