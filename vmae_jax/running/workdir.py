"""A workdir belongs to one configuration: its `run_config.json` says which.

Going on with another batch size or schedule would train a model that no configuration describes,
so that is refused, unless it is forced. What does not change the numbers may change.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Mapping
from typing import Any

import jax

from vmae_jax.checkpoints.step_folder import absolute, saved_steps
from vmae_jax.errors import SettingError
from vmae_jax.files.atomic import write_file
from vmae_jax.files.storage import is_remote
from vmae_jax.processes.distributed import all_gather_text, by_main

logger = logging.getLogger(__name__)

NAME = "run_config.json"

# Keys, and with a dot at the end sections, that a run may go on with another value of: where the
# data and the devices are, how fast it goes, when it looks at itself, what it puts up with. All
# others change what is learnt, up to rounding in the case of `compute` and `mesh`.
HARMLESS = (
    "run.",
    "mesh.",
    "optimizer.accumulation",
    "compute.attention",
    "compute.remat",
    "data.path",
    "data.options.root",
    "data.num_threads",
    "data.prefetch_batches",
    "data.decode_timeout",
    "data.max_bad_share",
    "data.skip_bad_held_out",
)
# The keys here are the user's. Elsewhere one that only one side has came or went with a version of
# the code, whose default keeps what was before.
_FREE = ("data.options.",)
_UNSET = "unset"


class WorkdirMismatch(SettingError):
    """The workdir holds a run of another configuration; the differences are listed."""


def check_address(workdir: str | os.PathLike) -> None:
    """Whether checkpoints can be written there at all.

    Raises:
      ValueError: for an address that is not on Google Cloud Storage, the one store Orbax writes to.
    """
    if is_remote(text := os.fspath(workdir)) and not text.startswith("gs://"):
        raise SettingError(
            f"workdir={text!r} is neither a folder nor on gs://, and checkpoints cannot be written "
            "anywhere else; choose one of these, or mount the store as a folder."
        )


def check_workdir(
    workdir: str | os.PathLike, run_config: Mapping[str, Any], *, may_change=(), force: bool = False
) -> None:
    """Compares a run's configuration with the one that the workdir was trained with.

    Differences are logged, one line each. A workdir without checkpoints is nobody's yet.

    Args:
      workdir: local or remote; need not exist.
      run_config: the whole configuration, of what JSON can hold.
      force: go on with differences that would be refused.
    Raises:
      WorkdirMismatch: if keys that matter differ, or the file cannot be understood.
      OSError: if it cannot be read.
    """
    try:
        before = read_run_config(workdir)
    except ValueError as error:
        if not force:
            raise WorkdirMismatch(
                f"{error} Restore it, or force the run to go on (--force), which replaces it."
            ) from error
        logger.warning("%s It is replaced.", error)
        return
    if before is None or not saved_steps(absolute(workdir) / "checkpoints"):
        return
    refused, allowed = [], []
    for name, old, new in differences(before, run_config):
        (refused if _matters(name, old, new, may_change) else allowed).append(
            f"{name}: {old} -> {new}"
        )
    if refused and not force:
        raise WorkdirMismatch(
            f"workdir={os.fspath(workdir)!r} holds a run of another configuration:\n"
            + "".join(f"  {line}\n" for line in refused)
            + "Choose another workdir, or force the run to go on with the new one (--force)."
        )
    for line in allowed:
        logger.info("changed since the last start: %s", line)
    for line in refused:
        logger.warning("changed since the last start, by force: %s", line)


def check_shared(workdir: str | os.PathLike) -> None:
    """That all processes of a run see the same folder.

    Raises:
      ValueError: in all of them; says which see another.
    """
    if jax.process_count() == 1:
        return
    # a new name each time: file systems remember what was not there a moment ago
    name = all_gather_text("shared workdir", f".seen-{uuid.uuid4().hex}")[0]
    path = absolute(workdir) / name
    by_main("shared workdir", lambda: path.write_text(""))
    seen = all_gather_text("shared workdir", str(path.exists()))
    by_main("shared workdir", path.unlink)
    blind = [str(index) for index, answer in enumerate(seen) if answer != "True"]
    if blind:
        raise SettingError(
            f"workdir={os.fspath(workdir)!r} is another folder for process {', '.join(blind)} than "
            "for process 0; give a folder that all hosts share, or a bucket."
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key ("data.batch_size"), old and new value as JSON; "unset" for what is not there."""
    old, new = _flat(before), _flat(now)
    return [
        (name, old.get(name, _UNSET), new.get(name, _UNSET))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def read_run_config(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """What `write_run_config` wrote; None if there is nothing.

    Raises:
      ValueError: if it is no JSON object.
      OSError: if it cannot be read.
    """
    path = absolute(workdir) / NAME
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise SettingError(f"{path} is no JSON ({error}).") from error
    if not isinstance(config, dict):
        raise SettingError(f"{path} holds no configuration, but {text[:40]!r}.")
    return config


def write_run_config(workdir: str | os.PathLike, run_config: Mapping[str, Any]) -> None:
    """Writes the file, whole or not at all; once the run is sure to start.

    Raises:
      OSError: if nothing can be written there.
    """
    content = json.dumps(run_config, indent=2).encode()
    path = absolute(workdir) / NAME
    if is_remote(os.fspath(path)):  # an object appears whole
        path.write_bytes(content)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: file.write(content))


def _matters(name: str, old: str, new: str, HARMLESS) -> bool:
    if any(name == key or (key.endswith(".") and name.startswith(key)) for key in HARMLESS):
        return False
    return _UNSET not in (old, new) or name.startswith(_FREE)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value)  # a tuple is a list there, as in the file
    return flat
