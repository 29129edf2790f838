"""Several processes that make one run: start, small facts between them, and their end.

Whatever several processes have to know of each other goes through JAX's coordination service here,
never through the devices: those of a process that runs other code may not answer at all.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import jax

# Private, and the only way to the key-value store by which JAX itself exchanges such facts.
from jax._src.distributed import global_state

import vmae_jax
from vmae_jax.errors import SettingError
from vmae_jax.processes.exit_codes import (
    CRASH,
    DONE,
    PREEMPTED,
    FailedElsewhere,
    describe,
    exit_code,
)
from vmae_jax.processes.roll_call import Place, call_roll, differences, split_address

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

HEARTBEAT = 30  # seconds without a sign of life after which JAX ends all processes
EXCHANGE_TIMEOUT = 600  # seconds; a dead process ends the others long before, by its heartbeat
_CONNECT_TIMEOUT = 60  # seconds, once all have answered the roll call
_SHUTDOWN_TIMEOUT = 15
_END_TIMEOUT = 5
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "libtpu")
_LOOKED_FOR = (
    "SLURM (srun), a Cloud TPU VM or GKE TPU (TPU_WORKER_HOSTNAMES), Kubernetes (with its Python "
    "package), Open MPI (mpirun)"
)

_hosts: list[str] = ["this"]
_rounds: collections.Counter[str] = collections.Counter()


def start(setting: str, *, timeout: float = 300, heartbeat: float = HEARTBEAT) -> None:
    """Makes this process one of its run; before anything else is done with JAX.

    Args:
      setting: "off": this process is the run. "auto": as the cluster says, see JAX's own
        `jax.distributed.initialize`. Or "host:port,num_processes,process_index", where host:port
        is process 0's, the same in all of them.
      timeout: seconds to wait for the others; the environment's VMAE_START_TIMEOUT goes first.
      heartbeat: seconds without a sign of life from one process after which all end;
        VMAE_HEARTBEAT goes first.
    Raises:
      ValueError: for any other setting, where no cluster is found, and if the processes differ in
        their versions of Python, JAX or this package.
      MissingProcesses: if some did not come.
    """
    global _hosts
    if setting == "off":
        return
    timeout = float(os.environ.get("VMAE_START_TIMEOUT", timeout))
    heartbeat = float(os.environ.get("VMAE_HEARTBEAT", heartbeat))
    place, local_devices = _detect(timeout) if setting == "auto" else (_parse(setting), None)
    hosts = call_roll(place, _versions(), timeout)
    jax.distributed.initialize(
        place.address,
        place.num_processes,
        place.index,
        local_device_ids=local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=_CONNECT_TIMEOUT,
        heartbeat_timeout_seconds=round(heartbeat),
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
    )
    _hosts = hosts
    logger.info("process %d of %d, %s", place.index, place.num_processes, place.address)


def is_main() -> bool:
    """Whether this is process 0, which writes what is written once. Wakes no devices."""
    return global_state.process_id == 0


def check_devices() -> None:
    """Once the devices may be woken: that they are those of as many processes as were started.

    Raises:
      ValueError: if not, as on a TPU pod that was started with "off".
    """
    if jax.process_count() != global_state.num_processes:
        raise SettingError(
            f"the devices belong to {jax.process_count()} processes, but this run was started as "
            f"{global_state.num_processes}; start it with --distributed=auto on all hosts."
        )


def all_gather_text(tag: str, text: str) -> list[str]:
    """What each process says under this tag, in the order of their indices.

    Every process calls it, as often as the others and with the same tags.

    Raises:
      TimeoutError: if one of them does not, in `EXCHANGE_TIMEOUT` seconds; says which.
    """
    client, index, count = global_state.client, global_state.process_id, global_state.num_processes
    if client is None:
        return [text]
    this_round = _rounds[tag]
    _rounds[tag] += 1
    folder = f"vmae_jax/{tag}/{this_round}"
    client.key_value_set(f"{folder}/{index}", text)
    try:
        client.wait_at_barrier(folder, round(1000 * EXCHANGE_TIMEOUT))
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("DEADLINE_EXCEEDED"):
            raise
        came = _said(client, folder)
        missing = ", ".join(
            f"process {i} (host {_hosts[i]})" for i in range(count) if i not in came
        )
        raise TimeoutError(
            f"{missing} said nothing of {tag!r} within {EXCHANGE_TIMEOUT:g} s; see its log for "
            "what it does instead, and start the run again."
        ) from error
    said = _said(client, folder)
    texts = [said[i] for i in range(count)]
    if this_round:  # all have said something new, so nobody reads the old any more
        client.key_value_delete(f"vmae_jax/{tag}/{this_round - 1}/{index}")
    return texts


def _said(client, folder: str) -> dict[int, str]:
    return {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(folder)}


def by_main(tag: str, act: Callable[[], _T]) -> _T | None:
    """What `act` returns in process 0, which alone does it; None in the others.

    Raises:
      Exception: in process 0, whatever `act` raises; in the others FailedElsewhere, which ends them
        with the same code.
    """
    result, error = None, None
    if is_main():
        try:
            result = act()
        except Exception as caught:
            error = caught
    outcome = "" if error is None else json.dumps([exit_code(error), str(error)])
    if said := all_gather_text(tag, outcome)[0]:
        raise error or FailedElsewhere(*json.loads(said))
    return result


def fail_barrier(name: str) -> None:
    """Lets go, with an error, of all processes that wait at a barrier of JAX's or come to it later.

    A barrier fails for all as soon as one of them names other participants.

    Args:
      name: of a barrier that this process will not come to; one that was passed stays so.
    """
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        global_state.client.wait_at_barrier(name, 1000, [global_state.process_id])


def check_same(what: str, value: str) -> None:
    """That all processes have the same, such as a configuration, one setting a line.

    Raises:
      ValueError: in all of them, with the lines that differ and the processes that have them.
    """
    texts = [text.splitlines() for text in all_gather_text(f"same {what}", value)]
    if all(lines == texts[0] for lines in texts):
        return
    common = set(texts[0]).intersection(*texts)
    own = [" / ".join(line.strip() for line in lines if line not in common) for lines in texts]
    different = differences([{what: f"{text[:200]!r}"} for text in own], _hosts)
    raise SettingError(f"{different or what}; give all processes the same command and files.")


@contextlib.contextmanager
def end_all_on_error() -> Iterator[None]:
    """In a run of several processes, lets an exception end this one at once, and with it the run.

    Closing what is open would wait for the others (a save in the background does, and so does the
    interpreter's normal end), and they wait for this one. So it is the innermost of the contexts.
    A preemption, of which all processes know, leaves as any exception does.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else exit_code(error)
        if global_state.client is None or code in (None, DONE, PREEMPTED):
            raise
        if code == CRASH:
            traceback.print_exc()
        message = " ".join(str(error).split())
        logger.error("process %d: %s: %s", global_state.process_id, describe(code), message)
        end(code)


def end(code: int) -> NoReturn:
    """Ends this process with a code of `exit_codes`, so that no other one waits for it in vain."""
    if (client := global_state.client) is None:
        sys.exit(code)
    if code in (DONE, PREEMPTED):  # all end here
        with contextlib.suppress(TimeoutError, jax.errors.JaxRuntimeError):
            all_gather_text("end", "")  # the shutdown is less patient, and one draws pictures
        jax.distributed.shutdown()
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    if code != CRASH:
        # What no restart mends is mostly found by all processes at once. The first one to leave
        # would end the others by SIGABRT, which looks as if a restart could help.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.wait_at_barrier("vmae_jax/end", 1000 * _END_TIMEOUT)
            if is_main():  # the service is in it
                time.sleep(1)
    os._exit(code)


def _parse(setting: str) -> Place:
    try:
        address, count, index = setting.split(",")
        place = Place(address, int(count), int(index))
        host, _ = split_address(address)
    except ValueError:
        host = ""
    if not host or not 0 <= place.index < place.num_processes:
        raise SettingError(
            f"distributed={setting!r} is none of: off, auto, host:port,num_processes,process_index "
            "with 0 <= process_index < num_processes."
        )
    return place


def _detect(timeout: float) -> tuple[Place, list[int] | None]:
    """What JAX's own detection finds; it is asked here as the roll call comes before JAX."""
    from jax._src.clusters import ClusterEnv

    local = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    address, count, index, local_devices = ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get("JAX_COORDINATOR_ADDRESS"),
        None,
        None,
        [int(number) for number in local.split(",")] if local else None,
        None,
        round(timeout),
    )
    if address is None or count is None or index is None:
        raise SettingError(
            f"distributed='auto' finds no cluster; looked for {_LOOKED_FOR}. Start it there, or "
            "give host:port,num_processes,process_index, or off for a single process."
        )
    return Place(address, count, index), local_devices


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "vmae_jax": vmae_jax.__version__}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
