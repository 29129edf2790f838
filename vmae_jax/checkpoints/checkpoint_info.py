"""What is written beside the arrays of a checkpoint, and whether it is as it was written.

The format, the step, the names, shapes, dtypes and fingerprints of the arrays, and whatever the run
adds; sealed by a checksum.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from vmae_jax.checkpoints import orbax_files
from vmae_jax.checkpoints.fingerprints import named_leaves
from vmae_jax.checkpoints.finished_steps import METADATA_FILE
from vmae_jax.checkpoints.migrations import FORMAT
from vmae_jax.checkpoints.step_folder import failure_of
from vmae_jax.processes.exit_codes import NO_CHECKPOINT, errno_of

# What a machine, a network or a store has when it cannot read just now.
_UNREAD = (
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBUSY, errno.EINTR, errno.EAGAIN),
)
_UNREAD_STATUS = re.compile(
    "RESOURCE_EXHAUSTED|(UNAVAILABLE|DEADLINE_EXCEEDED|UNAUTHENTICATED|PERMISSION_DENIED): "
)
_STORES = ("gcsfs", "google", "aiohttp", "requests")  # whose errors are no OSErrors


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; says which, and why."""

    exit_code = NO_CHECKPOINT


class CheckpointMismatch(CheckpointError):
    """An intact checkpoint that holds something else than was asked for."""


def array_types(tree: Any) -> dict[str, str]:
    """E.g. {"params/encoder/output/kernel": "float32[12,3072,768]", ...}; shapes alone will do."""
    return {
        name: f"{np.dtype(leaf.dtype)}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in named_leaves(tree).items()
    }


def checksum(info: Mapping[str, Any]) -> int:
    """Of all that is saved beside the arrays, itself left out."""
    rest = {name: value for name, value in info.items() if name != "checksum"}
    # as they will be read: lists for tuples, text for the keys
    return zlib.crc32(json.dumps(json.loads(json.dumps(rest)), sort_keys=True).encode())


def read_header(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The info of a checkpoint of a format that is known, and the tree that it holds.

    What it holds is written down twice. Only if both say the same it is compared with a template:
    damage must not look like another model.

    Raises:
      CheckpointMismatch: if it was written by a newer version.
      CheckpointError: if it is damaged.
      OSError, MemoryError: if it cannot be read, which is no damage.
    """
    with damage_named(path):
        info, stored = orbax_files.read_header(path)
        version = info["format"]
        if not isinstance(version, int) or version < 1:
            raise TypeError(f"format {version!r} in {METADATA_FILE}")
        # that of a newer format, which has it as well, is no damage
        if version > 1 and info["checksum"] != checksum(info):
            raise ValueError(f"{METADATA_FILE} is not as it was written")
        if path.name.isdigit() and int(path.name) != info["step"]:
            raise ValueError(f"it holds step {info['step']}")
    if version > FORMAT:
        raise CheckpointMismatch(
            f"{path} was written by a newer version (format {version}; this one reads up to "
            f"{FORMAT}); use that version, or start with another workdir."
        )
    with damage_named(path):
        found = array_types(stored)
        expected = info.get("arrays") or {name: found.get(name, "") for name in info["fingerprint"]}
        if odd := sorted(
            n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)
        ):
            raise ValueError(f"{some(odd)} not listed as saved")
    return info, stored


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@contextlib.contextmanager
def damage_named(path: epath.Path) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes one line about its checkpoint."""
    try:
        yield
    except Exception as error:
        _raise_if_not_damage(error)
        raise CheckpointError(f"{path} is damaged: {failure_of(error).message}.") from error


def _raise_if_not_damage(error: BaseException) -> None:
    """A machine out of memory, a folder closed to us, a store that is down say nothing about the
    file: who would take it for damaged went back to an older step, and renamed a good one."""
    cause: BaseException | None = error
    while cause is not None:
        if (
            isinstance(cause, (MemoryError, PermissionError, ConnectionError, TimeoutError))
            or errno_of(cause) in _UNREAD
            or _UNREAD_STATUS.search(str(cause))
            or type(cause).__module__.split(".")[0] in _STORES
        ):
            raise error
        cause = cause.__cause__ or cause.__context__
