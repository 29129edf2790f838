"""What the exit code of a run means, for a scheduler and for `supervisor`: start it again, or not.

Retrying is right for machines and wrong for settings. Libraries blur the two (JAX raises ValueError
when the connection to another process breaks, Orbax when the disk is full), so only an error that
says so by its attribute `exit_code` is a setting; and what the operating system says of the disk.
"""

from __future__ import annotations

import errno
import re
import signal

DONE = 0
CRASH = 70
PREEMPTED = 75
NON_FINITE = 76
NO_CHECKPOINT = 77
SETTINGS = 78
_SIGNAL = 128  # shells report death by signal n as 128 + n
INTERRUPTED = _SIGNAL + signal.SIGINT  # Ctrl-C, whether or not there was time to save
STUCK = _SIGNAL + signal.SIGALRM

MEANINGS = {
    DONE: "done",
    CRASH: "crash",
    PREEMPTED: "preempted, saved",
    NON_FINITE: "loss or gradient not finite",
    NO_CHECKPOINT: "no usable checkpoint",
    SETTINGS: "settings, data or disk need a hand",
    INTERRUPTED: "interrupted",
    STUCK: "a step took too long",
}

# What no second try mends.
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no room
    *(errno.EROFS, errno.EACCES, errno.EPERM),  # closed
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),  # a file where a folder should be
}
_STATUS_ERRNO = re.compile(r"\[os_error_code='(\d+)'\]")


class FailedElsewhere(RuntimeError):
    """Process 0 could not do what it does for all; this one ends with its code."""

    def __init__(self, code: int, message: str):
        super().__init__(f"process 0 ended: {message}")
        self.exit_code = code


def exit_code(error: BaseException) -> int:
    """The code to end with after an exception that nobody caught."""
    if isinstance(code := getattr(error, "exit_code", None), int):
        return code
    return SETTINGS if errno_of(error) in _DISK else CRASH


def from_returncode(returncode: int) -> int:
    """The code for what `subprocess` reports, where death by signal n is -n: 128 + n."""
    return returncode if returncode >= 0 else _SIGNAL - returncode


def is_retried(code: int) -> bool:
    """Whether starting again may help: after a crash, a preemption, and death by signal.

    Not after Ctrl-C: who pressed it wants the run to end.
    """
    return code in (CRASH, PREEMPTED) or (code != INTERRUPTED and _signal_of(code) is not None)


def describe(code: int) -> str:
    """E.g. "exit code 70 (crash)", "killed by SIGKILL"."""
    killer = _signal_of(code) if code != INTERRUPTED else None
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
