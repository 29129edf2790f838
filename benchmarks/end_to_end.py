"""How long a device waits for its data: the real loader, in front of a step of a given length.

    PYTHONPATH=. python benchmarks/end_to_end.py

Without a GPU the step is a sleep: it takes a device's time and no processor's. With `--step real`
it is the compiled pre-training step. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import training_step
from side_by_side import DTYPES, RESULTS, command_line, machine, versions, write_json

benchmark_input = importlib.import_module("input")  # beside this file

LOADERS = {
    "mp4_r1": benchmark_input.Variant("", "256"),
    "prepared256_r1": benchmark_input.Variant("", "256_step4"),
    "prepared256_r4": benchmark_input.Variant("", "256_step4", repeat=4),
    "prepared256_r4_canvas": benchmark_input.Variant(
        "", "256_step4", repeat=4, canvas=benchmark_input.CANVAS
    ),
}


def fake_step(seconds: float) -> Callable[[dict], None]:
    """Sleeps."""
    return lambda arrays: time.sleep(seconds)


def real_step(args: argparse.Namespace) -> tuple[Callable[[dict], None], str]:
    """The compiled step on the device, one ahead of the host at most; and the device's name."""
    side = training_step.Ours(training_step.settings_of(args, "pretraining"))
    losses = []

    def step(arrays: dict) -> None:
        side.batch = side.on_device(arrays)
        losses.append(side.step())
        if len(losses) > 1:
            losses.pop(0).block_until_ready()

    return step, side.device.device_kind


def step_seconds(step: Callable[[dict], None], arrays: dict, count: int) -> float:
    """Of one step whose data are there."""
    for _ in range(3):  # compiles
        step(arrays)
    start = time.perf_counter()
    for _ in range(count):
        step(arrays)
    return (time.perf_counter() - start) / count


def measure(folder: Path, name: str, args: argparse.Namespace) -> dict:
    """In a child: steps for args.seconds, three at least."""
    variant = LOADERS[name]
    loader = benchmark_input.OurLoader(folder, variant, args.threads, args.batch)

    def arrays() -> dict[str, np.ndarray]:
        batch = loader.next()
        return {key: batch[key] for key in ("video", "boxes") if key in batch}

    if args.step == "real":
        step, device = real_step(args)
        alone = step_seconds(step, arrays(), 5)
    else:
        alone = args.step_ms / 1e3 * args.batch / 64
        step, device = fake_step(alone), "none"
    for _ in range(3):  # what was made ahead meanwhile
        step(arrays())
    cpu, start, steps = benchmark_input.cpu_seconds(), time.perf_counter(), 0
    while steps < 3 or time.perf_counter() - start < args.seconds:
        step(arrays())
        steps += 1
    wall = time.perf_counter() - start
    clips = steps * args.batch
    cpu_s = (benchmark_input.cpu_seconds() - cpu) / clips
    demand = args.batch / alone
    return {
        "device": device,
        "steps": steps,
        "step_s": alone,
        "clips_per_s": clips / wall,
        "wanted_clips_per_s": demand,
        "wait_share": max(0.0, 1 - steps * alone / wall),
        "cpu_s_per_clip": cpu_s,
        "cores_needed": demand * cpu_s,
    }


def in_child(folder: Path, name: str) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--child", name],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def print_table(sides: dict[str, dict]) -> None:
    print(f"{'':<24}{'clips/s':>10}{'wanted':>10}{'waits':>8}{'ms CPU/clip':>13}{'cores':>8}")
    for name, x in sides.items():
        print(
            f"{name:<24}{x['clips_per_s']:>10.0f}{x['wanted_clips_per_s']:>10.0f}"
            f"{x['wait_share']:>8.0%}{1e3 * x['cpu_s_per_clip']:>13.2f}{x['cores_needed']:>8.1f}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--step", choices=["fake", "real"], default="fake")
    add("--step-ms", type=float, default=25, help="fake: of a step of 64 clips")
    add("--size", default="B", help="real: a row of vmae_jax.config.SIZES")
    add("--model", type=json.loads, default={}, help="real: fields to set otherwise, in JSON")
    add("--dtype", choices=DTYPES, default="bf16", help="real: of matrix products")
    add("--mask-ratio", type=float, default=0.9, help="real")
    add("--batch", type=int, default=64, help="clips per step")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="that make clips")
    add("--seconds", type=float, default=15, help="of each loader")
    add("--videos", type=int, default=6)
    add("--folder", type=Path, help="for videos and prepared sets; default: temporary")
    training_step.add_arguments(parser)
    add("--output", type=Path, help="default: results/end_to_end_<cpu, or real and device>.json")
    add("--child", choices=LOADERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    if args.child:
        print(json.dumps(measure(args.folder, args.child, args)), flush=True)
        os._exit(0)  # threads that make batches ahead are not waited for
    where = machine()
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with benchmark_input.Child(folder) as helper:
            videos = helper.ask("make_videos", count=args.videos, seconds=10)
            helper.ask("prepare_sets")
        sides = {name: in_child(folder, name) for name in LOADERS}
    shown = ("step", "step_ms", "size", "model", "dtype", "batch", "threads", "seconds")
    result = {
        "benchmark": "end_to_end",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": where,
        "versions": versions("av", "simplejpeg", "array_record", "grain", "numpy", "jax"),
        "settings": {name: getattr(args, name) for name in shown},
        "videos": videos,
        "sides": sides,
    }
    print_table(sides)
    device = next(iter(sides.values()))["device"].lower().replace(" ", "-")
    name = f"end_to_end_real_{device}" if args.step == "real" else "end_to_end_cpu"
    write_json(result, args.output or RESULTS / f"{name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
