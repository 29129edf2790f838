"""Reading the checkpoints of our own runs; `saving` writes them.

A checkpoint is a folder `<workdir>/checkpoints/<step>` that appears whole or not at all. It holds
the state as plain dicts under stable names, and in its metadata the run's configuration, its
lineage and a fingerprint of every array: Orbax itself loads a flipped bit without a word.

Nothing here writes, but for `restore_newest`, which gives damaged steps another name.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from etils import epath

from vmae_jax.checkpoints import orbax_files
from vmae_jax.checkpoints.checkpoint_info import (
    LACKING,
    CheckpointError,
    CheckpointMismatch,
    damage_named,
    read_header,
    some,
)
from vmae_jax.checkpoints.fingerprints import fingerprint, named_leaves, to_plain
from vmae_jax.checkpoints.step_folder import absolute, saved_steps
from vmae_jax.processes.distributed import all_gather_text, is_main
from vmae_jax.sharding import path_name

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Restored(NamedTuple):
    """A state and where it came from.

    Attributes:
      state: as the template given, on its shardings.
      step: int.
      info: what was saved with it: "config", "lineage", "metrics", ...
      path: of the checkpoint.
    """

    state: Any
    step: int
    info: dict[str, Any]
    path: str


def restore_newest(directory: str | os.PathLike, template: Any) -> Restored | None:
    """The newest intact checkpoint, or None if there is none at all.

    A damaged one is skipped; once an older one is restored it is named in the log and renamed to
    `<step>.corrupt-<n>`. If none is intact, nothing is renamed. In a run of several processes all
    have to call it, and a step is intact if all of them find it so. For the trainer alone: it may
    rename what others are reading.

    Args:
      directory: of a run's checkpoints.
      template: a tree of `jax.ShapeDtypeStruct` with shardings, as the state should come out.
    Raises:
      CheckpointError: if there are checkpoints and none of them is intact; or if the newest is
        intact but of another model or a newer format.
      OSError, MemoryError: if a process may not read, or has no room; that is no damage.
    """
    directory = absolute(directory)
    restored, damaged = _newest_intact(directory, template)
    if restored is None and damaged:
        raise CheckpointError(
            f"no usable checkpoint is left in {directory}. {_causes(damaged)} Restore one from a "
            "backup, or start with another workdir."
        )
    if restored is not None:
        if is_main():
            for step, error in damaged.items():
                _set_aside(directory / str(step), error)
        all_gather_text("set_aside", "")  # nobody saves before that is done
    return restored


def read_newest(directory: str | os.PathLike, template: Any) -> Restored:
    """The newest intact checkpoint, for those who only look: a trainer may be at work there.

    Args:
      directory, template: as of `restore_newest`.
    Raises:
      CheckpointError: if there is none; and as `restore_newest`.
    """
    directory = absolute(directory)
    tried: set[int] = set()
    while True:
        restored, damaged = _newest_intact(directory, template)
        if restored is not None:
            return restored
        if damaged.keys() <= tried:
            raise CheckpointError(
                f"there is no usable checkpoint in {directory}. {_causes(damaged)}".strip()
            )
        tried |= damaged.keys()  # meanwhile the trainer may have deleted them for a newer one


def _newest_intact(
    directory: epath.Path, template: Any
) -> tuple[Restored | None, dict[int, CheckpointError]]:
    """It, and what was wrong with those that are newer."""
    # listings of a shared folder may differ for a while
    steps = json.loads(all_gather_text("steps", json.dumps(saved_steps(directory)))[0])
    damaged: dict[int, CheckpointError] = {}
    for step in reversed(steps):
        try:
            return restore(directory / str(step), template), damaged
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


def restore(path: str | os.PathLike, template: Any) -> Restored:
    """One checkpoint, checked against its fingerprints.

    Args:
      path: of the step's folder.
      template: as in `restore_newest`; may be a part of the state, e.g. `{"params": ...}`. In a run
        of several processes all have to call it, with the same.
    Raises:
      CheckpointMismatch: if names or shapes differ from the template, all of them named; if it was
        written by a newer version.
      CheckpointError: if it is damaged.
      OSError, MemoryError: as `restore_newest`.
    """
    path = absolute(path)
    info, state = _together(lambda: _load(path, template))
    prints = fingerprint(state)  # by all processes or by none: their devices take part
    _together(lambda: _compare(path, info["fingerprint"], prints))
    return Restored(state, int(info["step"]), info, str(path))


def _together(attempt: Callable[[], _T]) -> _T:
    """What `attempt` returns, if it succeeds in all processes; else they all raise alike."""
    result, error = None, None
    try:
        result = attempt()
    except Exception as caught:
        error = caught
    severity = _severity(error)
    outcomes = map(json.loads, all_gather_text("restore", json.dumps([severity, str(error)])))
    worst, message = max(outcomes, key=lambda outcome: outcome[0])
    if worst == 0:
        return result
    if severity == worst:
        raise error
    kind = {1: CheckpointError, 2: CheckpointMismatch, 3: RuntimeError}[worst]
    raise kind(f"In another process: {message}")


def _severity(error: Exception | None) -> int:
    """0: none; 1: an older step may do; 2 and 3 end the run."""
    if error is None:
        return 0
    if isinstance(error, CheckpointError):
        return 1 + isinstance(error, CheckpointMismatch)
    return 3


def _load(path: epath.Path, template: Any) -> tuple[dict[str, Any], Any]:
    """The info and the state; not compared with the fingerprints yet."""
    info, stored = read_header(path)
    lacking = LACKING[info["format"]]
    wanted = {n: leaf for n, leaf in named_leaves(template).items() if n not in lacking}
    _check_fits(path, named_leaves(stored), wanted, top=set(to_plain(template)))
    with damage_named(path):
        loaded = named_leaves(orbax_files.read_tree(path, to_plain(wanted)))

    def leaf(tree_path: tuple, like: jax.ShapeDtypeStruct) -> jax.Array:
        name = path_name(tree_path)
        if name in lacking:
            value = np.full(like.shape, lacking[name], like.dtype)
            return jax.make_array_from_callback(
                like.shape, like.sharding, lambda index: value[index]
            )
        return loaded[name]

    return info, jax.tree_util.tree_map_with_path(leaf, template)


def _check_fits(
    path: epath.Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], top: set[str]
) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [
        f"{name} is {tuple(stored[name].shape)} {stored[name].dtype} instead of "
        f"{tuple(leaf.shape)} {leaf.dtype}"
        for name, leaf in wanted.items()
        if name in stored
        and (tuple(stored[name].shape), stored[name].dtype) != (tuple(leaf.shape), leaf.dtype)
    ]
    problems += [
        f"{name} has no place"
        for name in stored
        if name not in wanted and name.split("/")[0] in top
    ]
    if problems:
        raise CheckpointMismatch(
            f"{path} holds another model or optimizer: {'; '.join(sorted(problems))}."
        )


def _compare(path: epath.Path, saved: Mapping[str, int], found: Mapping[str, int]) -> None:
    # a leaf that the format lacks was never saved
    wrong = [name for name, value in found.items() if saved.get(name, value) != value]
    if wrong:
        raise CheckpointError(f"{path} is damaged: {some(wrong)} changed since it was saved.")


def find_step(path: str | os.PathLike) -> epath.Path | None:
    """The folder of a step: `path` itself, or the newest of a workdir; None if it is neither."""
    path = absolute(path)
    if path.name.isdigit() and (path / orbax_files.METADATA_FILE).exists():
        return path
    for directory in (path / "checkpoints", path):
        if (directory / "config.json").exists():  # a folder of Hugging Face's
            continue
        if steps := saved_steps(directory):
            return directory / str(steps[-1])
    return None


def read_params(path: str | os.PathLike) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The parameters of one checkpoint by path name ("encoder/output/kernel"), and its info.

    They lie on the first device of this process. In a run of several processes all call it.

    Raises: CheckpointError if it is damaged.
    """
    path = absolute(path)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def template() -> Any:
        _, stored = read_header(path)
        with damage_named(path):
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                stored["params"],
            )

    restored = restore(path, {"params": _together(template)})
    return named_leaves(restored.state["params"]), restored.info
