"""What happens to a trainer under test: the kinds of faults, and what each does to its process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests import checkpoint_damage
from tests.chaos.faults import Fault
from vmae_jax.checkpoints import finished_steps

_FOREVER = 10**6  # seconds
BALLAST = "ballast"  # the file that fills a disk


def act(fault: Fault, folder: Path) -> None:
    """Makes a fault happen."""
    ACTIONS[fault.kind](fault, folder)


def _signal_self(number: signal.Signals) -> Callable:
    def send(fault, folder):
        os.kill(os.getpid(), number)
        while number == signal.SIGKILL:  # nothing may be done until it arrives
            time.sleep(1)

    return send


def _signal_group(fault, folder) -> None:
    os.killpg(os.getpgrp(), signal.SIGTERM)


def _fail(fault, folder) -> None:
    raise RuntimeError("a fault of the campaign")


def _hang(fault, folder) -> None:
    time.sleep(_FOREVER)


def _hang_with_lock(fault, folder) -> None:
    # a PyDLL keeps Python's lock while it is called, so that no other thread moves either
    ctypes.PyDLL(None).sleep(_FOREVER)


def _damage_newest(fault, folder: Path) -> None:
    """The newest checkpoint is damaged, and its trainer killed."""
    checkpoints = folder / "workdir" / "checkpoints"
    if steps := finished_steps.saved_steps(checkpoints):
        newest = checkpoints / str(steps[-1])
        damages = checkpoint_damage.all_damages(newest)
        damages[fault.detail % len(damages)].apply(newest)
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(folder: Path) -> Callable[[], None]:
    """Takes all room on the disk of a run's workdir, down to the last byte; returns what gives it
    back."""
    ballast = folder / "workdir" / BALLAST
    with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return lambda: ballast.unlink(missing_ok=True)


ACTIONS = {
    "kill -9": _signal_self(signal.SIGKILL),
    "SIGTERM": _signal_self(signal.SIGTERM),
    "SIGTERM to the process group": _signal_group,
    "freeze": _signal_self(signal.SIGSTOP),
    "exception": _fail,
    "hang": _hang,
    "hang with Python's lock": _hang_with_lock,
    "damaged checkpoint": _damage_newest,
}
# kind -> what begins it and returns what ends it
DISK_FAULTS = {"full disk": fill_disk}
