"""What the exit code of a run means, for a scheduler and for `supervisor`: start it again, or not.

Retrying is right for machines and wrong for settings. Libraries blur the two: JAX raises ValueError
when the connection to another process breaks, and Orbax when the disk is full, both with the name
of a status in front; `exit_code` tells them apart.
"""

from __future__ import annotations

import errno
import re
import signal
import sys

from vmae_jax.data.bad_clips import TooManyBadClips
from vmae_jax.running.run_control import Preempted
from vmae_jax.running.workdir_lock import WorkdirInUse

DONE = 0
CRASH = 70
PREEMPTED = 75
NON_FINITE = 76
NO_CHECKPOINT = 77
SETTINGS = 78
_SIGNAL = 128  # shells report death by signal n as 128 + n
STUCK = _SIGNAL + signal.SIGALRM

MEANINGS = {
    DONE: "done",
    CRASH: "crash",
    PREEMPTED: "preempted, saved",
    NON_FINITE: "loss or gradient not finite",
    NO_CHECKPOINT: "no usable checkpoint",
    SETTINGS: "settings, data or disk need a hand",
    STUCK: "a step took too long",
}

# What no second try mends.
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no room
    *(errno.EROFS, errno.EACCES, errno.EPERM),  # closed
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),  # a file where a folder should be
}
# Statuses that come from machines, not from arguments.
_STATUS = re.compile(
    "(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL"
    "|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN): "
)
_STATUS_ERRNO = re.compile(r"\[os_error_code='(\d+)'\]")


class FailedElsewhere(RuntimeError):
    """Process 0 could not do what it does for all; this one ends with its code."""

    def __init__(self, code: int, message: str):
        super().__init__(f"process 0 ended: {message}")
        self.code = code


def exit_code(error: BaseException) -> int:
    """The code to end with after an exception that nobody caught."""
    # whoever holds a CheckpointError has imported its module; here that would load jax
    checkpoint = sys.modules.get("vmae_jax.checkpoints.checkpoint")
    if checkpoint is not None and isinstance(error, checkpoint.CheckpointError):
        return NO_CHECKPOINT
    if isinstance(error, FailedElsewhere):
        return error.code
    if isinstance(error, Preempted):
        return PREEMPTED
    if isinstance(error, FloatingPointError):
        return NON_FINITE
    if errno_of(error) in _DISK or isinstance(error, (TooManyBadClips, WorkdirInUse)):
        return SETTINGS
    if isinstance(error, (ValueError, TypeError, ImportError)) and not _STATUS.match(str(error)):
        return SETTINGS
    return CRASH


def from_returncode(returncode: int) -> int:
    """The code for what `subprocess` reports, where death by signal n is -n: 128 + n."""
    return returncode if returncode >= 0 else _SIGNAL - returncode


def is_retried(code: int) -> bool:
    """Whether starting again may help: after a crash, a preemption, and death by signal."""
    return code in (CRASH, PREEMPTED) or _signal_of(code) is not None


def describe(code: int) -> str:
    """E.g. "exit code 70 (crash)", "killed by SIGKILL"."""
    killer = _signal_of(code)
    what = f"exit code {code}" if killer is None else f"killed by {killer.name}"
    return f"{what} ({MEANINGS[code]})" if code in MEANINGS else what


def _signal_of(code: int) -> signal.Signals | None:
    return {_SIGNAL + number: number for number in signal.Signals}.get(code)


def errno_of(error: BaseException) -> int | None:
    """The number of the operating system for what went wrong, also where a library hides it."""
    if isinstance(error, OSError):
        return error.errno
    found = _STATUS_ERRNO.search(str(error))
    return int(found[1]) if found else None
