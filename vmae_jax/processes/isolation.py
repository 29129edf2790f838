"""Runs a function in child processes, so that whatever it does to its process costs one call.

    isolated = Isolated(decode, timeout=60)
    frames = isolated("clip.mp4")     # from any thread; each waits for a child of its own

A decoder that hangs, crashes or eats all memory inside the trainer could not be survived. A child
is a fresh interpreter that imports what the function needs and nothing else (no JAX backend, not
the main script). It ignores SIGTERM and SIGINT, which are the trainer's to act on, and ends with
it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from vmae_jax.errors import SettingError

# Of a child's address space; what a decoder may claim before its call fails with MemoryError.
MEMORY_LIMIT = 8 << 30
ATTEMPTS = 2  # a machine may kill a process for no fault of the call

# On Linux a child that is to end with its parent ends with the thread that started it; those that
# call come and go, this one stays.
_STARTER = ThreadPoolExecutor(1, thread_name_prefix="isolation")


class ChildDied(RuntimeError):
    """A call that ended its child, or that was given up, each time that it was tried."""


class Isolated:
    """A function that runs in child processes, started when needed and kept for the next call.

    Args:
      function: can be pickled; is called with what the call is given. It returns a dict; arrays in
        it travel without being copied into a message.
      timeout: seconds for one call, the start of a child left out.
    Raises:
      SettingError: if the timeout is not above 0.
    """

    def __init__(self, function: Callable[..., dict[str, Any]], *, timeout: float):
        if not timeout > 0:
            raise SettingError(f"timeout={timeout} must be above 0; choose seconds, e.g. 60.")
        self._function = pickle.dumps(function)
        self._timeout = timeout
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._all: set[_Child] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __call__(self, *args: Any) -> dict[str, Any]:
        """What the function returns.

        Raises:
          ChildDied: if the child ended, or took too long, `ATTEMPTS` times.
          RuntimeError: if the pool is closed meanwhile.
          Exception: whatever the function raises.
        """
        for _ in range(ATTEMPTS):
            child = self._take()
            try:
                succeeded, result = child.call(args, self._timeout)
            except TimeoutError:
                reason = f"took longer than {self._timeout:g} s"
            except (EOFError, OSError):
                reason = f"ended its process ({child.exit_reason()})"
            else:
                self._idle.put(child)
                if succeeded:
                    return result
                raise result
            self._drop(child)
        self._check_open()
        raise ChildDied(reason)

    def _take(self) -> _Child:
        self._check_open()
        with contextlib.suppress(queue.Empty):
            while True:
                child = self._idle.get_nowait()
                if child.is_alive():
                    return child
                self._drop(child)  # ended while it waited, which is no fault of the next call
        child = _Child(self._function)
        with self._lock:
            self._all.add(child)
        if self._closed:  # and `close` may not have seen this child
            self._drop(child)
            self._check_open()
        return child

    def _drop(self, child: _Child) -> None:
        with self._lock:
            self._all.discard(child)
        child.kill()
        child.disconnect()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed; no further calls are possible.")

    def close(self) -> None:
        """Ends all children; a call that is under way fails."""
        with self._lock:
            self._closed = True
            children = list(self._all)
        for child in children:
            child.kill()  # who is waiting for it notices, and disconnects it
        with contextlib.suppress(queue.Empty):
            while True:
                self._drop(self._idle.get_nowait())


class _Child:
    def __init__(self, function: bytes):
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",  # numpy would start an idle thread for every core
        }
        with theirs:
            self._process = _STARTER.submit(
                subprocess.Popen,
                [sys.executable, "-m", "vmae_jax.processes.isolation", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            ).result()
        try:
            self._connection.send_bytes(function)
            self._connection.recv_bytes()  # its imports are done: they count for no call
        except (EOFError, OSError) as error:
            self.disconnect()
            raise RuntimeError(
                f"a decoding process could not start ({self.exit_reason()}); its own message is "
                "above."
            ) from error

    def call(self, args: tuple, timeout: float) -> tuple[bool, Any]:
        self._connection.send(args)
        if not self._connection.poll(timeout):
            raise TimeoutError
        succeeded, result, arrays = self._connection.recv()
        for name, (shape, dtype) in arrays.items():
            result[name] = np.empty(shape, dtype)
            if result[name].nbytes:
                self._connection.recv_bytes_into(result[name].reshape(-1).view(np.uint8))
        return succeeded, result

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)  # one that waits for a dead file server outlives it

    def disconnect(self) -> None:
        self._connection.close()

    def exit_reason(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=5)
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return "it closed its connection"


def _serve(connection: Connection) -> None:
    """The child's life: calls, one after another, until the parent is gone."""
    function = pickle.loads(connection.recv_bytes())
    connection.send_bytes(b"ready")
    while True:
        try:
            args = connection.recv()
        except EOFError:
            return
        try:
            result = function(*args)
        except Exception as error:
            connection.send((False, _sendable(error), {}))
            continue
        arrays = {
            k: v for k, v in result.items() if isinstance(v, np.ndarray) and not v.dtype.hasobject
        }
        rest = {k: v for k, v in result.items() if k not in arrays}
        connection.send((True, rest, {k: (v.shape, v.dtype) for k, v in arrays.items()}))
        for value in arrays.values():
            if value.nbytes:
                connection.send_bytes(np.ascontiguousarray(value).reshape(-1).view(np.uint8))


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # anything may be wrong with an exception of a library
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _become_child() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    _become_child()
    _serve(Connection(int(sys.argv[1])))
