"""Checkpoints of our own runs; the only module that touches Orbax.

A checkpoint is a folder `<workdir>/checkpoints/<step>` that appears whole or not at all. It holds
the state as plain dicts under stable names, and in its metadata the run's configuration, its
lineage and a fingerprint of every array: Orbax itself loads a flipped bit without a word.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from orbax.checkpoint import v1 as ocp

logger = logging.getLogger(__name__)
FORMAT = 1


def _folder(path: str | os.PathLike) -> epath.Path:
    """Absolute, because Orbax takes a relative path for a damaged checkpoint."""
    text = os.fspath(path)
    return epath.Path(text if "://" in text else os.path.abspath(text))


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; says which, and why."""


class Restored(NamedTuple):
    """A state and where it came from.

    Attributes:
      state: as the template given, on its shardings.
      step: int.
      info: what was saved with it: "config", "lineage", ...
      path: of the checkpoint.
    """

    state: Any
    step: int
    info: dict[str, Any]
    path: str


def _leaf_fingerprint(x: jax.Array) -> jax.Array:
    """A uint32 that any single flipped bit changes; the same on every mesh (sums commute)."""
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    values = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    # odd weights are invertible modulo 2^32, so no change of a single value can vanish
    return jnp.sum(values * ((place * jnp.uint32(2654435761)) | 1), dtype=jnp.uint32)


_fingerprints = jax.jit(lambda leaves: [_leaf_fingerprint(x) for x in leaves])


def _path_name(path: tuple) -> str:
    """E.g. "opt_state/adam/mu/encoder/output/kernel"; the same for dicts and named tuples."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {_path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _to_plain(tree: Any) -> dict[str, Any]:
    """The same leaves in nested dicts, whatever classes the tree is made of."""
    plain: dict[str, Any] = {}
    for name, leaf in _named_leaves(tree).items():
        *parents, last = name.split("/")
        node = plain
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return plain


def _from_plain(plain: Mapping[str, Any], template: Any) -> Any:
    named = _named_leaves(plain)
    return jax.tree_util.tree_map_with_path(lambda path, _: named[_path_name(path)], template)


def fingerprint(tree: Any) -> dict[str, int]:
    """A checksum for each array of a tree, by path; independent of its sharding."""
    named = _named_leaves(tree)
    return dict(
        zip(named, map(int, jax.device_get(_fingerprints(list(named.values())))), strict=True)
    )


class Checkpoints:
    """The checkpoints of one run, written in the background."""

    def __init__(self, directory: str | os.PathLike, *, keep: int):
        """Opens the folder for writing.

        Args:
          directory: made if needed.
          keep: newest checkpoints that are kept.
        Raises:
          OSError: if nothing can be written there.
        """
        self.directory = _folder(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        context = ocp.Context()
        # otherwise an unwritable folder is noticed late, and the process hangs at its end
        context.async_options.create_directories_asynchronously = False
        self._orbax = ocp.training.Checkpointer(
            self.directory,
            context=context,
            cleanup_tmp_directories=True,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        )

    def save(self, state: Any, step: int, info: Mapping[str, Any]) -> None:
        """Starts saving; the state may be donated right after. `info` must be JSON.

        A failure of the save before is raised here.
        """
        self._orbax.wait()
        metadata = {**info, "format": FORMAT, "step": step, "fingerprint": fingerprint(state)}
        self._orbax.save_checkpointables_async(
            step, {"state": _to_plain(state)}, custom_metadata=metadata
        )

    def close(self) -> None:
        """Waits until everything is on disk; closing again does nothing."""
        if self._orbax is not None:
            orbax, self._orbax = self._orbax, None
            orbax.close()


def saved_steps(directory: str | os.PathLike) -> list[int]:
    """Steps that have a finished folder, oldest first; damaged ones may be among them."""
    directory = _folder(directory)
    if not directory.exists():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def restore_newest(directory: str | os.PathLike, template: Any) -> Restored | None:
    """The newest intact checkpoint, or None if there is none at all.

    A damaged one is skipped; once an older one is restored it is named in the log and renamed to
    `<step>.corrupt-<n>`. If none is intact, nothing is renamed.
    Call it before `Checkpoints` is made: Orbax may fail to open a folder with a damaged step.

    Args:
      directory: of a run's checkpoints.
      template: a tree of `jax.ShapeDtypeStruct` with shardings, as the state should come out.
    Raises:
      CheckpointError: if there are checkpoints and none of them is intact; or if the newest is
        intact but of another model or another format.
    """
    directory = _folder(directory)
    damaged: dict[int, CheckpointError] = {}
    for step in reversed(saved_steps(directory)):
        try:
            restored = restore(directory / str(step), template)
        except CheckpointMismatch:
            raise
        except CheckpointError as error:
            damaged[step] = error
            continue
        for step, error in damaged.items():
            renamed = _free_name(directory, f"{step}.corrupt")
            (directory / str(step)).rename(renamed)
            logger.error("%s Renamed to %s; the one before is used.", error, renamed.name)
        return restored
    if damaged:
        causes = " ".join(map(str, damaged.values()))
        raise CheckpointError(
            f"no usable checkpoint is left in {directory}. {causes} Restore one from a backup, or "
            "start with another workdir."
        )
    return None


def _free_name(directory: epath.Path, stem: str) -> epath.Path:
    n = 0
    while (path := directory / f"{stem}-{n}").exists():
        n += 1
    return path


class CheckpointMismatch(CheckpointError):
    """An intact checkpoint that holds something else than was asked for."""


def restore(path: str | os.PathLike, template: Any) -> Restored:
    """One checkpoint, checked against its fingerprints.

    Args:
      path: of the step's folder.
      template: as in `restore_newest`; may be a part of the state, e.g. `{"params": ...}`.
    Raises:
      CheckpointMismatch: if names or shapes differ from the template, all of them named.
      CheckpointError: if it is damaged.
    """
    path = _folder(path)
    try:
        metadata = ocp.checkpointables_metadata(path)
        info = dict(metadata.custom_metadata)
        stored = _named_leaves(metadata.metadata["state"])
        expected_prints, step, version = info["fingerprint"], int(info["step"]), info["format"]
    except Exception as error:  # whatever Orbax makes of a damaged file
        _raise_if_not_damage(error)
        raise CheckpointError(f"{path} is damaged: {_root_cause(error)}.") from error
    if version != FORMAT:
        raise CheckpointMismatch(
            f"{path} has format {version}, this version reads {FORMAT}; use a matching version."
        )
    wanted = _named_leaves(template)
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [
        f"{name} is {tuple(stored[name].shape)} {stored[name].dtype} instead of "
        f"{tuple(leaf.shape)} {leaf.dtype}"
        for name, leaf in wanted.items()
        if name in stored
        and (tuple(stored[name].shape), stored[name].dtype) != (tuple(leaf.shape), leaf.dtype)
    ]
    top = set(_to_plain(template))
    problems += [
        f"{name} has no place"
        for name in stored
        if name not in wanted and name.split("/")[0] in top
    ]
    if problems:
        raise CheckpointMismatch(
            f"{path} holds another model or optimizer: {'; '.join(sorted(problems))}."
        )
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    try:
        with context:
            plain = ocp.load_checkpointables(path, {"state": _to_plain(template)})["state"]
        state = _from_plain(plain, template)
        found = fingerprint(state)
    except Exception as error:
        _raise_if_not_damage(error)
        raise CheckpointError(f"{path} is damaged: {_root_cause(error)}.") from error
    wrong = [name for name, value in found.items() if expected_prints.get(name) != value]
    if wrong:
        raise CheckpointError(f"{path} is damaged: {', '.join(wrong)} changed since it was saved.")
    return Restored(state, step, info, str(path))


def find_step(path: str | os.PathLike) -> epath.Path | None:
    """The folder of a step: `path` itself, or the newest of a workdir; None if it is neither."""
    path = _folder(path)
    if path.name.isdigit() and (path / "_CHECKPOINT_METADATA").exists():
        return path
    for directory in (path / "checkpoints", path):
        if (directory / "config.json").exists():  # a folder of Hugging Face's
            continue
        if steps := saved_steps(directory):
            return directory / str(steps[-1])
    return None


def read_params(path: str | os.PathLike) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The parameters of one checkpoint by path name ("encoder/output/kernel"), and its info.

    Raises: CheckpointError if it is damaged.
    """
    path = _folder(path)
    try:
        stored = ocp.checkpointables_metadata(path).metadata["state"]["params"]
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), stored
        )
    except Exception as error:
        _raise_if_not_damage(error)
        raise CheckpointError(f"{path} is damaged: {_root_cause(error)}.") from error
    restored = restore(path, {"params": template})
    return _named_leaves(restored.state["params"]), restored.info


def _raise_if_not_damage(error: BaseException) -> None:
    """A machine out of memory, or a folder closed to us, says nothing about the file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MemoryError, PermissionError)) or "RESOURCE_EXHAUSTED" in str(cause):
            raise error
        cause = cause.__cause__ or cause.__context__


def _root_cause(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
