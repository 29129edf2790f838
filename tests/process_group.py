"""Several processes of one program on this machine, as a cluster would start them, and faults.

    with ProcessGroup([sys.executable, "toy.py", "{address},{count},{index}"], 2, folder) as g:
        g.wait_for_text("step 3")
        g.send(signal.SIGKILL, 1)
        codes = g.wait(deadline=20)

Each has a session and an output file of its own. Whatever a test does, none outlives it, nor does
what they started themselves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

REPOSITORY = str(Path(__file__).parents[1])
# of a script that imports the package, and helpers of the tests
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{Path(__file__).parent}",
    "JAX_PLATFORMS": "cpu",
}


@contextlib.contextmanager
def scripts() -> Iterator[Callable[..., subprocess.Popen]]:
    """(script, **Popen's) -> a Python process that runs it; killed at the end if it is not over."""
    with contextlib.ExitStack() as stack:

        def start(script: str, **options) -> subprocess.Popen:
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(script)],
                text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": REPOSITORY},
                **options,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class ProcessGroup:
    """n processes; starts them when the context is entered.

    Args:
      command: program and arguments; "{index}", "{count}" and "{address}" (a free one, on this
        machine) are filled in, in each process as it needs them.
      count: of processes.
      folder: for the outputs, "output_0.txt" and so on, stdout and stderr together.
      absent: indices that are not started.
      env: added to this process's environment.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        folder: Path,
        *,
        absent: Iterable[int] = (),
        env: Mapping[str, str] | None = None,
    ):
        self.address = f"127.0.0.1:{free_port()}"
        self._command, self._count, self._folder = list(command), count, Path(folder)
        self._indices = [index for index in range(count) if index not in set(absent)]
        self._env = {
            **os.environ,
            "PYTHONPATH": REPOSITORY,
            "PYTHONUNBUFFERED": "1",
            "JAX_PLATFORMS": "cpu",
            **(env or {}),
        }
        self._processes: dict[int, subprocess.Popen] = {}
        self._ended: dict[int, float] = {}
        self._fault = 0.0

    def __enter__(self) -> ProcessGroup:
        for index in self._indices:
            self.start(index)
        return self

    def __exit__(self, *_) -> None:
        for process in self._processes.values():
            for pid in [*_session(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    def start(self, index: int) -> None:
        """Starts one process, at first or again; its output goes on where it was."""
        values = {"{index}": index, "{count}": self._count, "{address}": self.address}
        command = []
        for part in self._command:
            for name, value in values.items():
                part = part.replace(name, str(value))
            command.append(part)
        with open(self._path(index), "ab") as output:
            self._processes[index] = subprocess.Popen(
                command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._ended.pop(index, None)

    def output(self, index: int) -> str:
        """What a process has written so far."""
        return self._path(index).read_text(errors="replace")

    def pid(self, index: int) -> int:
        """Of a process itself."""
        return self._processes[index].pid

    def send(self, number: signal.Signals, *indices: int, whole_session: bool = False) -> None:
        """Sends a signal to some processes (none named: all), or also to all they have started."""
        self._fault = time.monotonic()
        for index in indices or self._indices:
            pid = self.pid(index)
            for receiver in _session(pid) if whole_session else [pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(receiver, number)

    def children(self, index: int) -> list[int]:
        """Pids of all that a process has started and that still run."""
        pid = self.pid(index)
        return [other for other in _session(pid) if other != pid]

    def send_to_child(self, number: signal.Signals, index: int) -> None:
        """Sends a signal to the trainer below a supervisor."""
        self._fault = time.monotonic()
        for pid in self.children(index)[:1]:
            os.kill(pid, number)

    def wait_for_text(self, text: str, *indices: int, times: int = 1, deadline: float = 60) -> None:
        """Until some processes (none named: all) have written a text so often."""

        def written() -> bool:
            return all(self.output(i).count(text) >= times for i in indices or self._indices)

        self._poll(written, deadline, f"{text!r} was not written {times} times")

    def wait(self, *indices: int, deadline: float = 60) -> list[int]:
        """Exit codes of some processes (none named: all), -n after death by signal n."""
        indices = indices or tuple(self._indices)
        self._poll(lambda: self.ended(*indices), deadline, "not all have ended")
        return [self._processes[index].returncode for index in indices]

    def ended(self, *indices: int) -> bool:
        """Whether some processes (none named: all) have ended."""
        for index, process in self._processes.items():
            if process.poll() is not None:
                self._ended.setdefault(index, time.monotonic())
        return all(index in self._ended for index in indices or self._indices)

    def seconds_to_end(self, index: int) -> float:
        """From the last signal sent here to the end of a process, which `wait` has seen."""
        return self._ended[index] - self._fault

    def _poll(self, reached, deadline: float, complaint: str) -> None:
        end = time.monotonic() + deadline
        while not reached():
            if time.monotonic() > end:
                outputs = "\n".join(f"--- {i}:\n{self.output(i)[-6000:]}" for i in self._indices)
                raise AssertionError(f"{complaint} within {deadline:g} s\n{outputs}")
            time.sleep(0.05)

    def _path(self, index: int) -> Path:
        return self._folder / f"output_{index}.txt"


def _session(session: int) -> list[int]:
    """All processes of a session, of /proc; elsewhere its first alone."""
    found = []
    for entry in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError, IndexError, ValueError):
            # pid (name) state parent group session
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found or [session]
