"""One trainer for one workdir: two would delete each other's checkpoints.

The lock is the kernel's, on an open file: it goes with its process, however that ends, and what a
dead one left in the file does not matter. Those that only read (evaluators, plots) do not take it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import TextIO

from vmae_jax.files.storage import is_remote
from vmae_jax.processes.exit_codes import SETTINGS

logger = logging.getLogger(__name__)
NAME = ".lock"
# of file systems that were mounted without locks
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class WorkdirInUse(RuntimeError):
    """Another trainer has the workdir; says which."""

    exit_code = SETTINGS


@contextlib.contextmanager
def lock_workdir(workdir: str | os.PathLike) -> Iterator[None]:
    """Keeps other trainers out while the context is open.

    In a run of several processes the first one takes it for all.

    Args:
      workdir: made if needed. An address ("gs://...") cannot be locked, which is logged.
    Raises:
      WorkdirInUse: if another trainer holds it.
      OSError: if nothing can be written there.
    """
    workdir = os.fspath(workdir)
    if is_remote(workdir):
        logger.info("%s cannot be locked; see to it that only one trainer writes there", workdir)
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(workdir, exist_ok=True)
            # not truncated when opened: it may name the holder
            file = stack.enter_context(open(os.path.join(workdir, NAME), "a+", encoding="utf-8"))
            _take(file, workdir)
            with tempfile.TemporaryFile(dir=workdir) as probe:  # the lock file may be an old one
                probe.write(bytes(4096))
            _write_holder(file)
        except OSError as error:
            raise OSError(
                error.errno,
                f"workdir={workdir!r} cannot be written to ({error.strerror}); make room, see to "
                "its permissions, or choose another.",
            ) from error
        yield


def _take(file: TextIO, workdir: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise WorkdirInUse(
            f"workdir={workdir!r} is in use by a trainer ({_read_holder(file)}); end that one "
            "first, or choose another workdir."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "%s cannot be locked (%s); see to it that only one trainer writes there",
            workdir, error.strerror,
        )  # fmt: skip


def _write_holder(file: TextIO) -> None:
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
    file.truncate(0)
    file.write(json.dumps(holder) + "\n")
    file.flush()


def _read_holder(file: TextIO) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"host {holder['host']}, pid {holder['pid']}, since {holder['started']}"
    except (ValueError, TypeError, KeyError):  # it has not written itself down yet
        return "just started"
