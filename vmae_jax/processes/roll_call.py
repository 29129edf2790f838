"""Who is there, before JAX connects the processes of a run.

JAX itself waits for all processes and then aborts each of those that came, with a message that
names none of those that did not. So they first meet here, on the port on which JAX's coordinator
will listen: all say who they are and what they run, and all get the same answer. It comes before
any of the libraries speaks to its like on another host, which may be of another version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import select
import socket
import time
from collections.abc import Mapping

from vmae_jax.errors import SettingError

logger = logging.getLogger(__name__)
_RETRY = 0.3  # seconds
_NOTICE = 1.0  # seconds between two notices to those who wait
_SAY = 30.0  # seconds between two lines of the log
_MAX_LINE = 1 << 20


class MissingProcesses(RuntimeError):
    """Not all processes of the run came in time; says which."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one process stands in a run: what JAX's coordinator wants to know."""

    address: str  # "host:port" of process 0
    num_processes: int
    index: int


def call_roll(place: Place, facts: Mapping[str, str], timeout: float) -> list[str]:
    """Waits until all processes have come.

    Args:
      facts: that have to be the same everywhere, as {"jax": "0.10.2"}.
      timeout: seconds.
    Returns:
      The name of each process's host.
    Raises:
      MissingProcesses: in every process that came, if others did not.
      ValueError: in every process, if facts differ or an index is taken twice.
    """
    me = {
        "index": place.index,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "facts": {"num_processes": str(place.num_processes), **facts},
    }
    answer = _Clerk(place, me).answer(timeout) if place.index == 0 else _report(place, me, timeout)
    if answer["missing"]:
        raise MissingProcesses(_missing_text(place, answer["missing"], timeout))
    if answer["error"]:
        raise SettingError(answer["error"])
    return answer["hosts"]


def differences(values: list[Mapping[str, str]], hosts: list[str]) -> str:
    """What differs between processes: "jax is 0.10.2 in process 0 (host a), ..."; "" if nothing."""
    lines = []
    for name in sorted(set().union(*values)):
        holders: dict[str, list[int]] = {}
        for index, value in enumerate(values):
            holders.setdefault(value.get(name, "absent"), []).append(index)
        if len(holders) > 1:
            where = (f"{value} in {_names(indices, hosts)}" for value, indices in holders.items())
            lines.append(f"{name} is {', '.join(where)}")
    return "; ".join(lines)


def _names(indices: list[int], hosts: list[str]) -> str:
    """E.g. "process 0 (host a), process 4 (host b) and 11 more"."""
    named = ", ".join(f"process {index} (host {hosts[index]})" for index in indices[:4])
    return named + (f" and {len(indices) - 4} more" if len(indices) > 4 else "")


def _missing_text(place: Place, missing: list[int], timeout: float) -> str:
    which = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
    return (
        f"of num_processes={place.num_processes}, process {which} did not come to "
        f"{place.address} within {timeout:g} s. See in the log of its host why: not started, ended "
        "with an error, or kept from the port by a firewall; then start the run again."
    )


class _Clerk:
    """Process 0's side: takes the names, and answers all."""

    def __init__(self, place: Place, me: dict):
        self._place = place
        self._came: dict[int, dict] = {0: me}
        self._lines: dict[int, socket.socket] = {}
        self._error = ""

    def answer(self, timeout: float) -> dict:
        deadline = time.monotonic() + timeout
        notice, say = 0.0, time.monotonic() + _SAY / 3
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(_listen(self._place.address, deadline))
            stack.callback(lambda: [line.close() for line in self._lines.values()])
            while (missing := self._missing()) and not self._error:
                now = time.monotonic()
                if now >= deadline:
                    break
                if now >= notice:  # also finds out who has gone again
                    self._tell({"waiting_for": missing})
                    notice = now + _NOTICE
                say = _say(missing, say)
                listener.settimeout(min(_NOTICE, deadline - now))
                with contextlib.suppress(TimeoutError, OSError):
                    self._take(listener.accept()[0])
            answer = self._verdict()
            self._tell(answer)
        return answer

    def _verdict(self) -> dict:
        if self._error or (missing := self._missing()):
            return {"missing": [] if self._error else missing, "error": self._error, "hosts": []}
        came = [self._came[index] for index in range(self._place.num_processes)]
        hosts = [who["host"] for who in came]
        error = ""
        if different := differences([who["facts"] for who in came], hosts):
            error = (
                f"{different}; install the same on all hosts, give all the same command, and start "
                "the run again."
            )
        return {"missing": [], "error": error, "hosts": hosts}

    def _missing(self) -> list[int]:
        return [index for index in range(self._place.num_processes) if index not in self._came]

    def _take(self, line: socket.socket) -> None:
        try:
            line.settimeout(2)
            who = json.loads(_read_line(line))
            index, host, pid = int(who["index"]), str(who["host"]), int(who["pid"])
            dict(who["facts"])
        except (OSError, ValueError, TypeError, KeyError):  # nobody of ours
            line.close()
            return
        if not 0 < index < self._place.num_processes:
            self._error = (
                f"process_index={index} of host {host} is not in 1 .. "
                f"{self._place.num_processes - 1}; number the processes from 0 without gaps."
            )
        elif index in self._lines and not _has_closed(self._lines[index]):
            other = self._came[index]
            self._error = (
                f"process_index={index} came twice, from host {other['host']} (pid {other['pid']}) "
                f"and host {host} (pid {pid}); give each process a number of its own."
            )
        if self._error:
            _send(line, {"missing": [], "error": self._error, "hosts": []})
            line.close()
            return
        self._came[index], self._lines[index] = who, line

    def _tell(self, message: dict) -> None:
        for index, line in list(self._lines.items()):
            if _has_closed(line) or not _send(line, message):
                line.close()
                del self._lines[index], self._came[index]


def _report(place: Place, me: dict, timeout: float) -> dict:
    """The side of all others: says who it is, again and again until process 0 answers."""
    # a little longer than process 0 waits, which knows more
    deadline = time.monotonic() + timeout + 2 * _NOTICE
    host, port = split_address(place.address)
    missing, say = [0], time.monotonic() + _SAY / 3
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=5) as line:
                _send(line, me)
                while (left := deadline - time.monotonic()) > 0:
                    line.settimeout(min(left, 10 * _NOTICE))
                    # anything else is not our clerk, but JAX's coordinator of an earlier start
                    message = json.loads(_read_line(line))
                    if "missing" in message:
                        return message
                    missing = message["waiting_for"]
                    say = _say(missing, say)
        except (OSError, ValueError, TypeError, KeyError):
            missing = [0]
        say = _say(missing, say)
        time.sleep(_RETRY)
    return {"missing": missing, "error": "", "hosts": []}


def _say(missing: list[int], when: float) -> float:
    """Logs who is missing, if it is time for that; when it will be again."""
    if time.monotonic() < when:
        return when
    logger.info("waiting for process %s", ", ".join(map(str, missing[:20])))
    return time.monotonic() + _SAY


def split_address(address: str) -> tuple[str, int]:
    """Host and port; of "[::1]:80", "::1" and 80."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _listen(address: str, deadline: float) -> socket.socket:
    """Where JAX's coordinator will listen; waits for an earlier one to leave."""
    port = split_address(address)[1]
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
    host, port = split_address(bind) if bind else ("", port)
    host = "" if host == "::" else host
    while True:
        try:
            if not host and socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
                )
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise RuntimeError(
                    f"port {port} of {address} cannot be listened on ({error.strerror}); end what "
                    "uses it, or choose another."
                ) from error
        time.sleep(_RETRY)


def _send(line: socket.socket, message: dict) -> bool:
    try:
        line.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        return False
    return True


def _read_line(line: socket.socket) -> bytes:
    """One byte at a time, as nothing of the next line may be taken with it."""
    found = bytearray()
    while not found.endswith(b"\n"):
        part = line.recv(1)
        if not part or len(found) >= _MAX_LINE:
            raise ConnectionError("the line has no end")
        found += part
    return bytes(found)


def _has_closed(line: socket.socket) -> bool:
    """Whether the other side has gone; it sends nothing once it has said who it is."""
    poll = select.poll()  # `select.select` takes no descriptors above 1023
    poll.register(line, select.POLLIN)
    return bool(poll.poll(0))
