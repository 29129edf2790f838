"""The newest checkpoint of a run that is intact; `saving` writes them, `loading` reads one.

Nothing here writes, but for `restore_newest`, which gives damaged steps another name.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from vmae_jax.checkpoints.checkpoint_info import CheckpointError, CheckpointMismatch
from vmae_jax.checkpoints.finished_steps import absolute, saved_steps
from vmae_jax.checkpoints.loading import Restored, restore
from vmae_jax.checkpoints.migrations import OPTIONAL
from vmae_jax.processes.distributed import all_gather_text, is_main

logger = logging.getLogger(__name__)


def restore_newest(
    directory: str | os.PathLike,
    template: Any,
    *,
    optional: Mapping[str, str | float] = OPTIONAL,
) -> Restored | None:
    """The newest intact checkpoint, or None if there is none at all.

    A damaged one is skipped; once an older one is restored it is named in the log and renamed to
    `<step>.corrupt-<n>`. If none is intact, nothing is renamed. In a run of several processes all
    have to call it, and a step is intact if all of them find it so. For the trainer alone: it may
    rename what others are reading.

    The log names the parts that the checkpoint lacks, with how they start, and those that the
    template has no place for.

    Args:
      directory: of a run's checkpoints.
      template: a tree of `jax.ShapeDtypeStruct` with shardings, as the state should come out.
      optional: parts that a checkpoint may lack, as of `loading.restore`.
    Raises:
      CheckpointError: if there are checkpoints and none of them is intact; or if the newest is
        intact but of another model or a newer format.
      OSError, MemoryError: if a process may not read, or has no room; that is no damage.
    """
    directory = absolute(directory)
    restored, damaged = _newest_intact(directory, template, optional)
    if restored is None and damaged:
        raise CheckpointError(
            f"no usable checkpoint is left in {directory}. {_causes(damaged)} Restore one from a "
            "backup, or start with another workdir."
        )
    if restored is not None:
        if is_main():
            for step, error in damaged.items():
                _set_aside(directory / str(step), error)
            for part in restored.started:
                logger.info("%s starts %s", restored.path, part)
            if restored.left_out:
                logger.warning(
                    "%s also holds %s, which this run has no place for: left out, and missing from "
                    "the checkpoints to come",
                    restored.path, ", ".join(restored.left_out),
                )  # fmt: skip
        all_gather_text("set_aside", "")  # nobody saves before that is done
    return restored


def read_newest(
    directory: str | os.PathLike,
    template: Any,
    *,
    optional: Mapping[str, str | float] = OPTIONAL,
) -> Restored:
    """The newest intact checkpoint, for those who only look: a trainer may be at work there.

    Args:
      directory, template, optional: as of `restore_newest`; the template may be a part of the
        state, e.g. `{"params": ...}`.
    Raises:
      CheckpointError: if there is none; and as `restore_newest`.
    """
    directory = absolute(directory)
    tried: set[int] = set()
    while True:
        restored, damaged = _newest_intact(directory, template, optional)
        if restored is not None:
            return restored
        if damaged.keys() <= tried:
            raise CheckpointError(
                f"there is no usable checkpoint in {directory}. {_causes(damaged)}".strip()
            )
        tried |= damaged.keys()  # meanwhile the trainer may have deleted them for a newer one


def _newest_intact(
    directory: epath.Path, template: Any, optional: Mapping[str, str | float]
) -> tuple[Restored | None, dict[int, CheckpointError]]:
    """It, and what was wrong with those that are newer."""
    # listings of a shared folder may differ for a while
    steps = json.loads(all_gather_text("steps", json.dumps(saved_steps(directory)))[0])
    damaged: dict[int, CheckpointError] = {}
    for step in reversed(steps):
        try:
            return restore(directory / str(step), template, optional=optional), damaged
        except CheckpointMismatch:
            raise
        except CheckpointError as error:
            damaged[step] = error
    return None, damaged


def _causes(damaged: Mapping[int, CheckpointError]) -> str:
    return " ".join(map(str, damaged.values()))


def _set_aside(step: epath.Path, why: CheckpointError) -> None:
    n = 0
    while (renamed := step.parent / f"{step.name}.corrupt-{n}").exists():
        n += 1
    try:
        step.rename(renamed)
    except OSError as error:
        logger.error("%s It cannot be renamed (%s); the one before is used.", why, error)
    else:
        logger.error("%s Renamed to %s; the one before is used.", why, renamed.name)
