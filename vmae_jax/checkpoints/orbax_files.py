"""One checkpoint on disk, written and read with Orbax; the only module that touches it.

Its free functions are used, not its `Checkpointer`: that one reads the whole folder when it is
made, fails if any step in it is damaged, and deletes what others are writing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint.experimental.v1._src.synchronization import synchronization

from vmae_jax.checkpoints.orbax_noise import quiet
from vmae_jax.processes.distributed import fail_barrier

TEMPORARY = ".orbax-checkpoint-tmp"  # follows the name of a step that is being written
_STATE = "state"
_READ_AFTERMATH = 0.2  # seconds after which the reads beside one that failed have ended as well
_WRITE_AFTERMATH = 1.0  # likewise the writes, in the background
_T = TypeVar("_T")

# Where the processes of a save wait for one another, in this order.
_BARRIERS = (
    "[op={op}] save_checkpointables_async:maybe_overwrite_existing:pre",
    "[op={op}] save_checkpointables_async:maybe_overwrite_existing:post",
    "[op={op}] create_directory:post",
    "[op={item}] save_and_finalize_{item}_commit_complete",
    "[op={item}] save_and_finalize_{item}_finalize_complete",
    "[op={op}] save_checkpointables_async:finalize",
)


def start_save(
    path: epath.Path, tree: Mapping[str, Any], info: Mapping[str, Any]
) -> Callable[[], None]:
    """Starts writing a checkpoint, in the background.

    If the arrays are spread over several processes, all of these have to call it, in the main
    thread, for the devices take part.

    Args:
      path: of the folder; it appears, whole, when all is written (a bucket has no such thing: there
        `COMMIT_FILE` appears).
      tree: nested dicts of arrays, which may be donated once this returns.
      info: JSON that is stored beside them.
    Returns:
      A function that waits until it is done, and raises what went wrong.
    Raises:
      Exception: whatever Orbax or the file system makes of a folder that cannot be written.
    """
    context = ocp.Context()
    # otherwise an unwritable folder is noticed late, and the process hangs at its end
    context.async_options.create_directories_asynchronously = False
    # weights hardly shrink (8 %), which is not worth twice the time to load and five to save
    context.array_options.saving.use_compression = False
    number = operation() + 1

    def attempt(act: Callable[[], _T]) -> _T:
        try:
            return act()
        except Exception:
            _release_others(number)
            raise

    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet(_WRITE_AFTERMATH))
        with context:
            response = attempt(
                lambda: ocp.save_checkpointables_async(
                    path, {_STATE: tree}, custom_metadata=dict(info)
                )
            )
        until_done = stack.pop_all()

    def wait() -> None:
        with until_done:
            attempt(response.result)

    return wait


def read_header(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The info of a checkpoint, and its tree with shapes and dtypes for arrays.

    Raises:
      Exception: whatever Orbax makes of a damaged file.
    """
    with quiet(_READ_AFTERMATH), _alone():
        metadata = ocp.checkpointables_metadata(path)
    return dict(metadata.custom_metadata), metadata.metadata[_STATE]


def read_tree(path: epath.Path, template: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a checkpoint that a template names.

    Each process reads what its own devices need, and waits for no other.

    Args:
      path: of the folder.
      template: nested dicts of `jax.ShapeDtypeStruct` with shardings, or of numpy arrays, whose
        values do not matter, for arrays on the host.
    Raises:
      Exception: whatever Orbax makes of a damaged file.
    """
    with quiet(_READ_AFTERMATH), _alone():
        tree = ocp.load_checkpointables(path, {_STATE: template})[_STATE]
    for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(template), strict=True):
        # Orbax hands back what the template has for a name it lacks
        if leaf is like or not isinstance(leaf, (jax.Array, np.ndarray)):
            raise ValueError(f"an array was not restored: {like.dtype}{list(like.shape)}")
    return tree


def operation() -> int:
    """How many saves and loads this process has begun; in the names of what Orbax waits for."""
    return int(synchronization.get_operation_id())


def skip_operations(until: int) -> None:
    """Counts up: processes that have not loaded equally often would wait for one another."""
    while operation() < until:
        synchronization.OperationIdGenerator.next_operation_id()


def _release_others(number: int) -> None:
    """Fails the barriers at which the other processes wait for one whose save has failed.

    They would do so for up to twenty minutes, even at the end of the process.
    """
    for name in _BARRIERS if jax.process_count() > 1 else ():
        fail_barrier(name.format(op=number, item=f"{number}.{_STATE}"))


def _alone() -> ocp.Context:
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    if jax.process_count() > 1:
        context.multiprocessing_options.primary_host = jax.process_index()
        context.multiprocessing_options.active_processes = {jax.process_index()}
    return context
