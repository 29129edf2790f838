"""A workdir belongs to one configuration: `run_config` knows which.

Going on with another batch size or schedule would train a model that no configuration describes,
so that is refused, unless it is forced. What does not change the numbers may change.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vmae_jax.checkpoints.finished_steps import absolute, newest_first
from vmae_jax.errors import SettingError
from vmae_jax.files.storage import is_remote
from vmae_jax.processes.distributed import all_gather_text, by_main
from vmae_jax.running.run_config import flat, read_run_config

logger = logging.getLogger(__name__)

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
    workdir: str | os.PathLike,
    run_config: Mapping[str, Any],
    *,
    may_change: Sequence[str] = (),
    own_keys: Sequence[str] = (),
    force: bool = False,
) -> None:
    """Compares a run's configuration with the one that the workdir was trained with.

    Differences are logged, one line each. A workdir without checkpoints is nobody's yet. An option
    that only one side has came or went with a version of the code, whose default keeps what was
    before.

    Args:
      workdir: local or remote; need not exist.
      run_config: the whole configuration, of what JSON can hold.
      may_change: options that change no number, and with a dot at the end sections of such:
        ("optimizer.accumulation", "run.").
      own_keys: sections whose keys are the run's own and not the code's: ("data.options.",). One
        that only one side has is a difference there.
      force: go on with differences that would be refused.
    Raises:
      WorkdirMismatch: if options that matter differ, or the file cannot be understood.
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
    saved = newest_first(absolute(workdir) / "checkpoints")
    if before is None or next(saved, None) is None:
        return
    refused, allowed = [], []
    for name, old, new in differences(before, run_config):
        came_or_went = _UNSET in (old, new) and not _is_in(name, own_keys)
        free = came_or_went or _is_in(name, may_change)
        (allowed if free else refused).append(f"{name}: {old} -> {new}")
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
    """Option ("data.batch_size"), old and new value as JSON; "unset" for what is not there."""
    old, new = (
        # in JSON a tuple is a list
        {name: json.dumps(value) for name, value in flat(config).items()}
        for config in (before, now)
    )
    return [
        (name, old.get(name, _UNSET), new.get(name, _UNSET))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _is_in(name: str, names: Sequence[str]) -> bool:
    return any(name == key or (key.endswith(".") and name.startswith(key)) for key in names)
