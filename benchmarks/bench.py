"""Runs the comparisons that this machine can run, one after the other, and renders README.md.

    PYTHONPATH=. python benchmarks/bench.py                  # or: make bench
    PYTHONPATH=. python benchmarks/bench.py --only finetune_step --only "infer.*pipeline"
    PYTHONPATH=. python benchmarks/bench.py --list           # what would be run
    PYTHONPATH=. python benchmarks/bench.py --render         # only the tables

On a CPU: S and B at 16 x 224². On a GPU: B, L and H. The exit status is 1 if a benchmark failed or
a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from side_by_side import RESULTS, better, device_of

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
COMPILE_GOALS = {"ours": 60, "ours_cached": 10}  # seconds, of B on two cores
FLOPS_GOAL = 1.05


# What is run.


def commands(platform: str, cores: int) -> list[str]:
    """The command lines for a platform, "cpu" or "gpu", quick ones first."""
    return _for_gpu() if platform == "gpu" else _for_cpu(cores)


def _for_cpu(cores: int) -> list[str]:
    threads = sorted({1, min(2, cores)})
    most = f"--threads {threads[-1]}"
    # a first call of torch.compile takes a minute or two, a step of B up to half a minute
    few = "--warmup 0 --rounds 3 --steps 6"
    found = ["flops.py"]
    for size in ("S", "B"):
        found += [f"start_up.py --size {size} {most} --source {x}" for x in ("folder", "run")]
    found += [f"compile.py --size {size} {most}" for size in ("S", "B", "L")]
    for size in ("S", "B"):
        for what, batch in (("forward", 1), ("pipeline", 1), ("forward", 16), ("pipeline", 16)):
            about = f"--what {what} --batch {batch} --dtype float32"
            found += [f"infer.py --size {size} {about} {most} {few}"]
    for size in ("S", "B"):
        for script in ("train_step.py", "finetune_step.py"):
            step = f"{script} --size {size} --batch 2 {few}"
            found += [f"{step} --dtype float32 --threads {count}" for count in threads]
            found += [f"{step} --dtype bf16 {most}"]
    return [*found, "end_to_end.py --step real --size S --batch 2 --dtype float32"]


def _for_gpu() -> list[str]:
    found = ["start_up.py --size B", "start_up.py --size B --source run"]
    found += ["compile.py --size B --dtype bf16 --batch 64"]
    for what in ("forward", "pipeline"):
        found += [f"infer.py --size B --what {what} --batch {n}" for n in (1, 16)]
    found += ["train_step.py --size B --batch 64 --peer compiled --group 5 --steps 60"]
    found += ["finetune_step.py --size B --batch 16 --peer compiled --group 5 --steps 60"]
    found += [
        f"train_step.py --size {size} --batch 32 --peer compiled --group 5 --steps 30"
        for size in ("L", "H")
    ]
    return [*found, "end_to_end.py --step real --size B"]


def platform() -> str:
    """ "gpu" or "cpu", as jax finds it in a process of its own, which frees the device again."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return "gpu" if done.stdout.strip() == "gpu" else "cpu"


def run_all(lines: Iterable[str]) -> bool:
    """Whether all went well."""
    well = True
    for line in lines:
        print(f"\n$ {line}", flush=True)
        script, *arguments = shlex.split(line)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, FOLDER / script, *arguments])
        print(f"exit status {done.returncode}, {time.perf_counter() - started:.0f} s", flush=True)
        well &= done.returncode == 0
    return well


# Goals.


def goals(result: dict) -> dict[str, bool]:
    """Name of each goal that a result has -> whether it is met."""
    s, sides = result["settings"], result["sides"]
    ours = sides["ours"]
    if not ours["ok"]:
        return {"runs": False}
    if result["benchmark"] == "compile":
        if s["size"] != "B" or device_of(result) != "cpu":
            return {}
        return {
            name: sides[name]["ok"] and sides[name]["compile_s"] <= goal
            for name, goal in COMPILE_GOALS.items()
        }
    found = {}
    on_cpu = device_of(result) == "cpu"
    wanted = 1.0
    if not on_cpu:
        wanted = {"train_step": 1.5, "finetune_step": 1.2}.get(result["benchmark"], 1.0)
        if result["benchmark"] == "train_step" and ours["mfu"] is not None:
            found["share of peak"] = ours["mfu"] >= {"B": 0.45}.get(s["size"], 0.55)
    if result["ratio"] is not None:
        found["speed"] = result["ratio"]["median"] >= wanted
        if on_cpu:
            found["memory"] = result["memory_ratio"] <= 1.0
    return found


def _met(result: dict) -> str:
    found = goals(result)
    missed = [name for name, met in found.items() if not met]
    return ("no: " + ", ".join(missed) if missed else "yes") if found else ""


# Tables.


def results(benchmark: str) -> list[dict]:
    """By size, threads and so on, as the names of their files say."""
    found = [json.loads(p.read_text("utf-8")) for p in RESULTS.glob(f"{benchmark}_*.json")]

    def place(result: dict):
        s = result["settings"]
        where = device_of(result)
        order = ("what", "source", "dtype", "batch", "threads")
        return where, "SBLHg".index(s.get("size", "S")[0]), [str(s.get(name, "")) for name in order]

    return sorted(found, key=place)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Nothing without rows."""
    lines = [header, ["---"] * len(header), *rows] if rows else []
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _where(result: dict) -> str:
    """ "2 threads", or the name of a device."""
    device = device_of(result)
    threads = result["settings"]["threads"]
    return (f"{threads} thread" + "s" * (threads > 1)) if device == "cpu" else device


def _of_sides(result: dict, names: Iterable[str], number: Callable[[dict], float | None]) -> list:
    """A cell for each side: three digits, "failed", or nothing for one that did not run."""
    cells = []
    for name in names:
        side = result["sides"].get(name)
        value = number(side) if side and side["ok"] else None
        cells.append("failed" if side and not side["ok"] else _digits(value))
    return cells


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _ratio(result: dict) -> str:
    ratio = result["ratio"]
    return (ratio and "{median:.2f} [{lowest:.2f} to {highest:.2f}]".format(**ratio)) or ""


def _ours_and_peer(result: dict, number: Callable[[dict], str]) -> str:
    """Of ours and of the better peer, "a / b"."""
    peer = better(result["ratios"])
    sides = [result["sides"][name] for name in ("ours", peer) if name]
    return " / ".join(number(side) for side in sides if side["ok"])


def _gib(side: dict) -> str:
    return f"{side['peak_memory_bytes'] / 2**30:.2f}"


def _share(side: dict) -> str:
    share = side["mfu"] if side["mfu"] is not None else side["share_of_product"]
    return f"{share:.0%}"


SIDES = ("ours", "eager", "compiled")
COMPARED = ["x [range]", "GiB", "share of peak", "met"]


def step_table(benchmark: str) -> str:
    rows = []
    for result in results(benchmark):
        s = result["settings"]
        what = [s["what"]] if "what" in s else []
        rows.append(
            [
                *what,
                s["size"],
                s["dtype"],
                str(s["batch"]),
                _where(result),
                *_of_sides(result, SIDES, lambda x: x["step_s"]["median"]),
                _ratio(result),
                _ours_and_peer(result, _gib),
                _ours_and_peer(result, _share),
                _met(result),
            ]
        )
    what = ["what"] if benchmark == "infer" else []
    names = ["ours, s", "eager, s", "compiled, s"]
    return table([*what, "size", "dtype", "batch", "on", *names, *COMPARED], rows)


def start_up_table() -> str:
    rows = []
    for result in results("start_up"):
        s = result["settings"]
        numbers = _of_sides(result, SIDES[:2], lambda x: x["second_logits_s"]["median"])
        about = [s["size"], s["source"], _where(result)]
        memory = _ours_and_peer(result, _gib)
        rows.append([*about, *numbers, _ratio(result), memory, _met(result)])
    columns = ["size", "ours from", "on", "ours, s", "eager, s", "x [range]", "GiB", "met"]
    return table(columns, rows)


def compile_table() -> str:
    rows = []
    sides = ("ours", "ours_cached", "compiled", "compiled_cached")
    for result in results("compile"):
        s = result["settings"]
        compiling = _of_sides(result, sides, lambda x: x["compile_s"])
        starting = _of_sides(result, sides[:2], lambda x: x["to_first_step_s"]["median"])
        about = [s["task"], s["size"], s["dtype"], _where(result)]
        rows.append([*about, *compiling, *starting, _met(result)])
    cells = ["ours, s", "cached", "torch.compile, s", "cached", "ours to step 1, s", "cached"]
    return table(["task", "size", "dtype", "on", *cells, "met"], rows)


def flops_table() -> str:
    rows = []
    for result in results("flops"):
        for name, x in result["sizes"].items():
            over = [f"{x[f'{which}_over_least']:.3f}" for which in ("traced", "compiled")]
            met = "yes" if x["compiled_over_least"] <= FLOPS_GOAL else "no"
            rows.append([name, f"{x['least'] / 1e9:.1f}", *over, met])
    return table(["program", "least, GFLOP", "traced", "compiled", "met"], rows)


def end_to_end_table() -> str:
    rows = []
    for result in results("end_to_end"):
        s = result["settings"]
        step = f"{s['size']}, batch {s['batch']}" if s["step"] == "real" else "sleep"
        where = "{cores} cores, load {load_average}".format(**result["machine"])
        for name, x in result["sides"].items():
            rows.append(
                [
                    step,
                    where,
                    name,
                    f"{x['clips_per_s']:.3g}",
                    f"{x['wanted_clips_per_s']:.4g}",
                    f"{x['wait_share']:.0%}",
                    f"{1e3 * x['cpu_s_per_clip']:.2f}",
                    f"{x['cores_needed']:.3g}",
                ]
            )
    columns = ["loader", "clips/s", "wanted", "device waits", "CPU ms/clip", "cores needed"]
    return table(["step", "on", *columns], rows)


TABLES = {
    "train_step": lambda: step_table("train_step"),
    "finetune_step": lambda: step_table("finetune_step"),
    "infer": lambda: step_table("infer"),
    "compile": compile_table,
    "start_up": start_up_table,
    "flops": flops_table,
    "end_to_end": end_to_end_table,
}


def rendered(text: str) -> str:
    """README.md with each table of `TABLES` between its markers."""
    for name, make in TABLES.items():
        start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        pattern = f"{re.escape(start)}.*?{re.escape(end)}"
        if not re.search(pattern, text, re.DOTALL):
            raise ValueError(f"{README} has no markers of the table {name}")
        made = make()
        # Markdown wants an empty line around a table
        new = f"{start}\n{made}\n{end}" if made else f"{start}{end}"
        text = re.sub(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", action="append", metavar="REGEX", help="commands that it is found in")
    add("--list", action="store_true", help="say what would be run")
    add("--render", action="store_true", help="run nothing, make the tables")
    args = parser.parse_args()
    lines = [] if args.render else commands(platform(), len(os.sched_getaffinity(0)))
    if args.only:
        lines = [x for x in lines if any(re.search(pattern, x) for pattern in args.only)]
    if args.list:
        print("\n".join(lines))
        return 0
    well = run_all(lines)
    README.write_text(rendered(README.read_text("utf-8")), "utf-8")
    compared = [x for name in ("train_step", "finetune_step", "infer") for x in results(name)]
    for result in [*compared, *results("compile"), *results("start_up")]:
        for name, met in goals(result).items():
            if not met:
                print(f"goal missed: {name}: {result['command']}")
                well = well and args.render
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
