"""What benchmarks of ours beside others share: sides that take turns, timing, tables, results.

Each side lives in a process of its own, because two frameworks in one would fight over memory and
threads, and they take turns: while one measures, the other waits for its next line. Requests and
answers are lines of JSON on stdin and stdout. A benchmark is a script that says what a side does:

    def main():
        if side_by_side.serve(side_by_side.Turns(make_side)):  # this process is a side
            return 0
        args = ...
        return side_by_side.compare("name", args, settings, flops_per_clip)

README.md says how to read the results.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import queue
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

RESULTS = Path(__file__).parent / "results"
DTYPES = {"bf16": "bfloat16", "float32": "float32"}
PEERS = {
    "none": (),
    "eager": ("eager",),
    "compiled": ("compiled",),
    "both": ("eager", "compiled"),
}

CHILD_ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else jax takes most of the memory at once
    # compilation is timed, so no side may find the last run's
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "HF_HUB_OFFLINE": "1",  # what is loaded is there, and nobody waits for a network
}
# Recorded, because they change the figures.
ENVIRONMENT = (
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "NPROC",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)


class Side(Protocol):
    """What is timed, in its own process; made of the benchmark's settings."""

    def step(self) -> Any:
        """Its result, which may be computed later."""

    def value(self, result: Any) -> float:
        """A number of a step's result that both sides must have alike, to check them."""

    def wait(self) -> None:
        """Returns when all steps are done."""

    def product(self, side: int) -> Callable[[], None]:
        """A product of two fp32 matrices [side, side], which returns when it is done."""

    def facts(self) -> dict:
        """`device`, `versions`, ...; `peak_memory_bytes` if that is a device's."""


# What stands in results.


def versions(*packages: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def machine() -> dict:
    """What this was measured on, besides the accelerator."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),  # those that taskset leaves
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        # of the last minute: well above 0 at the start, other programs shared the cores
        "load_average": round(os.getloadavg()[0], 1),
    }


def command_line() -> str:
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def header(benchmark: str) -> dict:
    """What each result begins with; call it before anything is measured."""
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": machine(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def write_json(result: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}")


def spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


# In a child.


def serve(answer: Callable[[str, dict], dict]) -> bool:
    """Whether this process is a side; then it has answered requests until stdin ended.

    Args:
      answer: (the side's name, request) -> answer.
    """
    if sys.argv[1:2] != ["--child"]:
        return False
    name, threads = sys.argv[2], int(sys.argv[3])
    # before jax and torch start threads: XLA makes as many as there are cores to run on
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    for line in sys.stdin:
        try:
            answered = answer(name, json.loads(line))
        except Exception as error:  # the parent reports it
            traceback.print_exc()
            answered = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(answered), file=answers, flush=True)
    return True


def import_torch():
    """torch, with the threads that this process may have."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch


def torch_product(side: int, device: str) -> Callable[[], None]:
    import torch

    a, b = torch.rand(2, side, side, device=device)

    def multiply() -> None:
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()

    return multiply


def jax_product(side: int) -> Callable[[], None]:
    import jax

    a, b = jax.random.uniform(jax.random.key(0), (2, side, side))
    multiply = jax.jit(lambda a, b: jax.numpy.matmul(a, b, precision="highest"))
    return lambda: multiply(a, b).block_until_ready()


def peak_memory() -> int:
    """Bytes, the largest resident set of this process since it began, or since `forget_peak`."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM"))
    # elsewhere; not on Linux, where it begins at what the parent had
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def forget_peak() -> bool:
    """Whether `peak_memory` starts anew from here on; only Linux can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


class Turns:
    """Answers requests for turns by the steps of a side.

    Args:
      make_side: (name, settings) -> `Side`, at the first request.
    """

    def __init__(self, make_side: Callable[[str, dict], Side]):
        self._make_side = make_side
        self._side: Side | None = None
        self._setup_peak = 0
        self._forgot = False

    def __call__(self, name: str, request: dict) -> dict:
        """The first step and the warmup, or a round."""
        side = self._side = self._side or self._make_side(name, request["settings"])
        first = _measure(side, 1, 1) if request["first"] else None
        product = None if request["first"] else _product_flop_per_s(side)
        # in a round, the step after the other side's turn finds cold caches and clocks: not counted
        warmup = _measure(side, request["warmup"], 1)
        timed = _measure(side, request["steps"], request["group"])
        facts, peak = side.facts(), peak_memory()
        if request["first"]:
            self._setup_peak, self._forgot = peak, forget_peak()
        facts = {
            "peak_memory_bytes": max(peak, self._setup_peak),
            "peak_memory_of": "process",
            "round_peak_memory_bytes": peak if self._forgot else None,
            **facts,
        }
        parts = {"first": first, "warmup": warmup, "timed": timed}
        return {**parts, "product_flop_per_s": product, "facts": facts}


def _measure(side: Side, num_steps: int, group: int) -> dict:
    """Seconds per step, one number per `group` steps, and the result of each step."""
    seconds, values = [], []
    for _ in range(num_steps // group):
        side.wait()
        start = time.perf_counter()
        values += [side.step() for _ in range(group)]
        side.wait()
        seconds.append((time.perf_counter() - start) / group)
    return {"step_s": seconds, "values": [side.value(value) for value in values]}


def _product_flop_per_s(side: Side) -> float:
    size = 2048 if side.facts()["device"] == "cpu" else 8192  # long enough to be timed
    multiply = side.product(size)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


# In the parent.


class ChildError(Exception):
    """A side could not answer."""


class Child:
    """The parent's end of a child process.

    Args:
      name: of the side.
      threads: how many it may have.
      environment: variables to set otherwise than `CHILD_ENVIRONMENT`.
    """

    def __init__(self, name: str, threads: int, environment: Mapping[str, str] = {}):
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 (end() closes it)
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--child", name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            env={
                **os.environ,
                **CHILD_ENVIRONMENT,
                "OMP_NUM_THREADS": str(threads),
                **environment,
            },
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def ask(self, request: dict, timeout_s: float) -> dict:
        """The answer. Raises ChildError if there is none."""
        with contextlib.suppress(BrokenPipeError):  # then stdout has ended too
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=timeout_s)
        except queue.Empty:
            raise ChildError(f"no answer within {timeout_s:g} s") from None
        if line is None:
            raise ChildError(f"the process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def stderr_tail(self, num_bytes: int = 3000) -> str:
        size = self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, size - num_bytes))
        return self.stderr.read().decode(errors="replace")

    def failure(self, stage: str, error: ChildError) -> dict:
        """Of a side that could not answer: what stands in the result instead."""
        tail = self.stderr_tail()
        return {"ok": False, "stage": stage, "error": str(error), "stderr_tail": tail}

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.stderr.close()


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int = 3) -> None:
    """The arguments of all comparisons."""
    cores = len(os.sched_getaffinity(0))
    add = parser.add_argument
    add("--size", default="B", help="a row of vmae_jax.config.SIZES")
    add("--model", nargs="+", default=[], metavar="NAME=VALUE", help="fields to set otherwise")
    add("--peer", choices=PEERS, default="both", help="transformers without or with torch.compile")
    add("--threads", type=int, default=cores, help="of each side, on as many cores")
    add("--rounds", type=int, default=rounds, help="turns of each side")
    add("--timeout", type=float, default=3600, help="seconds that one turn may take")
    add("--output", type=Path, help="default: in results/, by the name of what is measured")


def add_step_arguments(parser: argparse.ArgumentParser, *, batch: int) -> None:
    """Those of comparisons step by step, for `compare`."""
    add_arguments(parser)
    add = parser.add_argument
    add("--batch", type=int, default=batch, help="clips per step")
    add("--dtype", choices=DTYPES, default="bf16", help="of matrix products")
    add("--steps", type=int, default=20, help="timed steps of each side, at least, in all rounds")
    add("--warmup", type=int, default=5, help="untimed steps after the first call")
    add("--group", type=int, default=1, help="steps between two waits for the device")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The checked arguments, `model` as a dict."""
    args = parser.parse_args()
    for name in ("batch", "steps", "rounds", "group", "threads"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name}={getattr(args, name)} must be at least 1")
    if args.threads > (cores := len(os.sched_getaffinity(0))):
        parser.error(f"--threads={args.threads}, and there are {cores} cores")
    try:
        pairs = [text.split("=", 1) for text in args.model]
        args.model = {name: json.loads(value) for name, value in pairs}
    except ValueError:
        parser.error(f"--model {' '.join(args.model)} must be NAME=VALUE, with values in JSON")
    return args


def compare(benchmark: str, args: argparse.Namespace, settings: dict, flops_per_clip: int) -> int:
    """Runs the rounds, prints and writes the result; the exit status.

    Args:
      benchmark: its name.
      args: as of `parse`.
      settings: what sides are made of; `config` is left out of the result.
      flops_per_clip: of a step.
    """
    result = header(benchmark)
    answers = run_rounds(settings, args)
    fastest = [
        answer["product_flop_per_s"]
        for side in answers.values()
        for answer in side.get("rounds", [])[1:]
    ]
    product = max(fastest, default=None)
    sides = {
        name: _summary(side, settings, flops_per_clip, product) for name, side in answers.items()
    }
    shown = ("size", "threads", "steps", "warmup", "rounds", "group")
    ratios = _ratios(sides, "round_step_s")
    best = better(ratios)
    result |= {
        "settings": {name: getattr(args, name) for name in shown}
        | {name: value for name, value in settings.items() if name != "config"},
        "flops_per_clip": flops_per_clip,
        "product_flop_per_s": product,
        "sides": sides,
        "ratios": ratios,
        "ratio": ratios.get(best),
        "memory_ratio": best and _memory_ratio(sides, best),
    }
    print_table(result)
    return finish(result, args)


def finish(result: dict, args: argparse.Namespace) -> int:
    """Says what failed, writes the result; the exit status."""
    sides = result["sides"]
    for name, side in sides.items():
        if not side["ok"]:
            print(f"\n{name} failed in {side['stage']}: {side['error']}\n{side['stderr_tail']}")
    for ratio in result.get("ratios", {}).values():
        line = "ours / {of}, speed: {median:.3f} ({lowest:.3f} to {highest:.3f})"
        print(line.format(**ratio))
    write_json(result, args.output or RESULTS / f"{result_name(result)}.json")
    return 0 if all(side["ok"] for side in sides.values()) else 1


def device_of(result: dict) -> str:
    """Where the sides ran: "cpu", or the name of an accelerator."""
    sides = result.get("sides", {}).values()
    return next((x["device"] for x in sides if x.get("device", "none") != "none"), "cpu")


def result_name(result: dict) -> str:
    """Of a file: what was measured, and where."""
    s = result["settings"]
    device = device_of(result)
    where = f"cpu_{s['threads']}" if device == "cpu" else device.lower().replace(" ", "-")
    what = [s.get(name) for name in ("what", "source", "size", "dtype")]
    batch = f"b{s['batch']}" if "batch" in s else None
    return "_".join(x for x in (result["benchmark"], *what, batch, where) if x)


def run_rounds(settings: dict, args: argparse.Namespace) -> dict[str, dict]:
    """Per side: {"rounds": [answer, ...]}, or {"ok": False, ...} and why."""
    names = ["ours", *PEERS[args.peer]]
    groups = math.ceil(args.steps / (args.rounds * args.group))
    sides: dict[str, dict] = {name: {"rounds": []} for name in names}
    children = {name: Child(name, args.threads) for name in names}
    try:
        for number in range(args.rounds + 1):  # the first is the set-up: compile and warm up
            timed = number > 0
            request = {
                "settings": settings,
                "first": not timed,
                "warmup": 1 if timed else args.warmup,
                "steps": groups * args.group if timed else 0,
                "group": args.group,
            }
            for name in reversed(names) if number % 2 else names:
                if name not in children:
                    continue
                stage = f"round {number}" if timed else "set-up"
                print(f"{stage}: {name} ...", file=sys.stderr, flush=True)
                try:
                    answer = children[name].ask(request, args.timeout)
                    sides[name]["rounds"].append(answer)
                except ChildError as error:
                    child = children.pop(name)
                    sides[name] = child.failure(stage, error)
                    child.end()
    finally:
        for one in children.values():
            one.end()
    return sides


def read_in_turns(
    names: list[str],
    args: argparse.Namespace,
    request_of: Callable[[str], dict],
    environment_of: Callable[[str, int], Mapping[str, str]] = lambda name, number: {},
) -> dict[str, dict]:
    """Per side {"readings": [answer, ...]}, each from a fresh process; or {"ok": False, ...}.

    Args:
      names: of the sides.
      args: `rounds`, `threads`, `timeout`.
      request_of: (side) -> request; `started` is added: `time.monotonic()` before the process.
      environment_of: (side, round) -> variables, as `environment` of `Child`.
    """
    sides: dict[str, dict] = {name: {"readings": []} for name in names}
    for number in range(args.rounds):
        for name in reversed(names) if number % 2 else names:
            if "readings" not in sides[name]:
                continue
            print(f"round {number + 1}: {name} ...", file=sys.stderr, flush=True)
            started = time.monotonic()
            child = Child(name, args.threads, environment_of(name, number))
            try:
                answer = child.ask({**request_of(name), "started": started}, args.timeout)
                sides[name]["readings"].append(answer)
            except ChildError as error:
                sides[name] = child.failure(f"round {number + 1}", error)
            finally:
                child.end()
    return sides


def summarize_readings(side: dict, *names: str) -> dict:
    """Of a side of `read_in_turns`: the spread of these numbers, and the facts of the last."""
    if "readings" not in side:
        return side
    readings = side["readings"]
    found = {name: spread(x[name] for x in readings) for name in names}
    return {
        "ok": True,
        **readings[-1]["facts"],
        **found,
        "peak_memory_bytes": statistics.median(x["peak_memory_bytes"] for x in readings),
        **{f"round_{name}": [x[name] for x in readings] for name in names},
    }


def _summary(side: dict, settings: dict, flops_per_clip: int, product: float | None) -> dict:
    """The numbers of a side that are reported."""
    if "rounds" not in side:
        return side
    from vmae_jax.flops import peak_flops

    batch, dtype = settings["batch"], settings["dtype"]
    setup, *rounds = side["rounds"]
    seconds = [s for answer in rounds for s in answer["timed"]["step_s"]]
    values = [x for a in side["rounds"] for part in ("warmup", "timed") for x in a[part]["values"]]
    median = statistics.median(seconds)
    facts = rounds[-1]["facts"]
    peak = peak_flops(facts["device"], dtype)
    flop_per_s = flops_per_clip * batch / median
    return {
        "ok": True,
        **facts,
        "clips_per_s": batch / median,
        "step_s": {
            "median": median,
            "p5": float(np.percentile(seconds, 5)),
            "p95": float(np.percentile(seconds, 95)),
        },
        "round_step_s": [statistics.median(answer["timed"]["step_s"]) for answer in rounds],
        "timings": len(seconds),
        "first_call_s": setup["first"]["step_s"][0],
        "warmup_steps": 1 + len(setup["warmup"]["values"]),
        "model_flop_per_s": flop_per_s,
        "product_flop_per_s": max(answer["product_flop_per_s"] for answer in rounds),
        "share_of_product": flop_per_s / product,
        "mfu": None if peak is None else flop_per_s / peak,
        "mfu_note": None if peak else f"no peak is known for {facts['device']!r} in {dtype}",
        "first_value": setup["first"]["values"][0],
        "last_value": values[-1],
    }


def _ratios(sides: dict[str, dict], key: str) -> dict[str, dict]:
    """Of each peer: how many times as fast ours is, round by round."""
    ours, *peers = sides
    if not sides[ours]["ok"]:
        return {}
    found = {}
    for name in peers:
        if not sides[name]["ok"]:
            continue
        pairs = zip(sides[ours][key], sides[name][key], strict=True)
        rounds = [theirs / mine for mine, theirs in pairs]
        found[name] = {"of": name, **spread(rounds), "rounds": rounds}
    return found


def better(ratios: dict[str, dict]) -> str | None:
    """The fastest peer."""
    return min(ratios, key=lambda name: ratios[name]["median"], default=None)


def compare_readings(sides: dict[str, dict], key: str) -> dict:
    """`ratios`, `ratio` and `memory_ratio` of sides of `summarize_readings`, by this number."""
    ratios = _ratios(sides, f"round_{key}")
    best = better(ratios)
    memory = best and _memory_ratio(sides, best)
    return {"ratios": ratios, "ratio": ratios.get(best), "memory_ratio": memory}


def _memory_ratio(sides: dict[str, dict], peer: str) -> float:
    """Of ours over the peer's: below 1 is less."""
    return sides["ours"]["peak_memory_bytes"] / sides[peer]["peak_memory_bytes"]


def print_table(result: dict) -> None:
    sides = result["sides"]

    def row(label, value_of):
        cells = [value_of(side) if side["ok"] else "failed" for side in sides.values()]
        print(f"{label:<24}" + "".join(f"{cell:>20}" for cell in cells))

    s = result["settings"]
    gflop = result["flops_per_clip"] / 1e9
    print(f"{s['size']}, batch {s['batch']}, {s['dtype']}, {s['threads']} threads")
    print(f"{gflop:.4g} GFLOP per clip")
    print(" " * 24 + "".join(f"{name:>20}" for name in sides))
    row("device", lambda x: x["device"])
    row("clips/s", lambda x: f"{x['clips_per_s']:.4g}")
    row("ms per step, median", lambda x: f"{x['step_s']['median'] * 1e3:.4g}")
    row("  5 % and 95 %", lambda x: f"{x['step_s']['p5'] * 1e3:.4g} {x['step_s']['p95'] * 1e3:.4g}")
    row("first call, s", lambda x: f"{x['first_call_s']:.3g}")
    row("peak memory, GiB", lambda x: f"{x['peak_memory_bytes'] / 2**30:.3g}")
    row("share of data sheet", lambda x: "unknown" if x["mfu"] is None else f"{x['mfu']:.1%}")
    row("share of fp32 product", lambda x: f"{x['share_of_product']:.1%}")
    row("value, first and last", lambda x: f"{x['first_value']:.4f} {x['last_value']:.4f}")


def print_readings(result: dict, names: Iterable[str]) -> None:
    """Medians of these numbers of each side, and its peak memory."""
    columns = [*names, "peak, GiB"]
    print(" " * 18 + "".join(f"{column:>18}" for column in columns))
    for side, x in result["sides"].items():
        if not x["ok"]:
            continue
        numbers = [x[name]["median"] for name in names] + [x["peak_memory_bytes"] / 2**30]
        print(f"{side:<18}" + "".join(f"{number:>18.3g}" for number in numbers))
