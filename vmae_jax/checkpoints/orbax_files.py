"""One checkpoint on disk, written and read with Orbax; the only module that touches it.

Its free functions are used, not its `Checkpointer`: that one reads the whole folder when it is
made, fails if any step in it is damaged, and deletes what others are writing.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from etils import epath
from jax._src import distributed
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint.experimental.v1._src.synchronization import synchronization

METADATA_FILE = "_CHECKPOINT_METADATA"
TEMPORARY = ".orbax-checkpoint-tmp"  # follows the name of a step that is being written
_STATE = "state"
_ORBAX = re.compile(r"[/\\]orbax[/\\]checkpoint[/\\]")
_AFTERMATH = 0.2  # seconds after which the reads beside one that failed have ended as well
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


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    frame = sys._getframe()
    while frame is not None and not _ORBAX.search(frame.f_code.co_filename):
        frame = frame.f_back
    return frame is None


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return not _ORBAX.search(record.getMessage())


def _without_echoes(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """Leaves out that an event loop is gone, which TensorStore's threads find out, each with a
    stack, when they have written what belongs to a save that has failed."""

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return report


# Whatever goes wrong in Orbax is raised as well, and said in one line by those who called it; its
# own account of a damaged file, or of a full disk, fills screens.
logging.getLogger("absl").addFilter(_is_not_from_orbax)
logging.getLogger("asyncio").addFilter(_is_not_of_orbax)
sys.unraisablehook = _without_echoes(sys.unraisablehook)


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
    number = operation() + 1

    def attempt(act: Callable[[], _T]) -> _T:
        try:
            return act()
        except Exception:
            _release_others(number)
            raise

    with context:
        response = attempt(
            lambda: ocp.save_checkpointables_async(path, {_STATE: tree}, custom_metadata=dict(info))
        )
    return lambda: attempt(response.result)


def read_header(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The info of a checkpoint, and its tree with shapes and dtypes for arrays.

    Raises:
      Exception: whatever Orbax makes of a damaged file.
    """
    with _quietly(), _alone():
        metadata = ocp.checkpointables_metadata(path)
    return dict(metadata.custom_metadata), metadata.metadata[_STATE]


def read_tree(path: epath.Path, template: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a checkpoint that a template names.

    Each process reads what its own devices need, and waits for no other.

    Args:
      path: of the folder.
      template: nested dicts of `jax.ShapeDtypeStruct` with shardings.
    Raises:
      Exception: whatever Orbax makes of a damaged file.
    """
    with _quietly(), _alone():
        tree = ocp.load_checkpointables(path, {_STATE: template})[_STATE]
    for leaf in jax.tree.leaves(tree):  # Orbax hands back the template's leaf for a name it lacks
        if not isinstance(leaf, jax.Array):
            raise ValueError(f"an array was not restored: {leaf}")
    return tree


def operation() -> int:
    """How many saves and loads this process has begun; in the names of what Orbax waits for."""
    return int(synchronization.get_operation_id())


def skip_operations(until: int) -> None:
    """Counts up: processes that have not loaded equally often would wait for one another."""
    while operation() < until:
        synchronization.OperationIdGenerator.next_operation_id()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Lets an error through, and nothing else.

    The other reads that were under way end nowhere, which asyncio and uvloop report at length, as
    soon as the error lets go of them.
    """
    asyncio_logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    was_disabled = asyncio_logger.disabled
    asyncio_logger.disabled, sys.unraisablehook = True, lambda unraisable: None
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        gc.collect()
        time.sleep(_AFTERMATH)
        raise
    finally:
        asyncio_logger.disabled, sys.unraisablehook = was_disabled, hook


def _release_others(number: int) -> None:
    """Fails the barriers at which the other processes wait for one whose save has failed.

    They would do so for up to twenty minutes, even at the end of the process. A barrier fails for
    all as soon as one names other participants.
    """
    if jax.process_count() == 1:
        return
    for name in _BARRIERS:
        with contextlib.suppress(Exception):  # those that were passed, and the failure itself
            distributed.global_state.client.wait_at_barrier(
                name.format(op=number, item=f"{number}.{_STATE}"), 1000, [jax.process_index()]
            )


def _alone() -> ocp.Context:
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    if jax.process_count() > 1:
        context.multiprocessing_options.primary_host = jax.process_index()
        context.multiprocessing_options.active_processes = {jax.process_index()}
    return context
