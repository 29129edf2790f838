"""What the fine-tuning demo reaches, and what it reaches if a clip is a single frame.

    PYTHONPATH=. python benchmarks/finetune_demo.py

Runs `train.py` with `configs/finetune_demo.py` from nothing, once for each seed, and with clips of
one frame. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import command_line, machine, versions, write_json

ROOT = Path(__file__).parents[1]
SINGLE_FRAME = ["--config.model.num_frames=1", "--config.model.tubelet_size=1"]
CHANCE = 1 / 6  # six classes of equal size


def run(folder: str, seed: int, overrides: list[str]) -> dict:
    """One run in a folder of its own, its videos rendered there if they are not yet."""
    workdir = os.path.join(folder, f"{seed}_{len(overrides)}")
    fresh_cache = {"XDG_CACHE_HOME": os.path.join(folder, "cache")}
    command = [
        sys.executable,
        "train.py",
        "--config=configs/finetune_demo.py",
        f"--workdir={workdir}",
        f"--config.seed={seed}",
        *overrides,
    ]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=os.environ | fresh_cache, check=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    cpu = sum(getattr(after, x) - getattr(before, x) for x in ("ru_utime", "ru_stime"))
    lines = Path(workdir, "metrics.jsonl").read_text().splitlines()
    measured = {k: v for line in lines for k, v in json.loads(line).items()}  # the last of each
    return {
        "seed": seed,
        "overrides": overrides,
        **{name: measured[name] for name in ("test/top1", "test/records", "held_out/top1")},
        "train_loss": measured["loss"],
        "wall_s": wall,
        "cpu_s": cpu,
    }


def main() -> int:
    """1 if the demo is not 15 points above chance, or single frames are more than 5."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "finetune_demo_cpu.json"
    )
    args = parser.parse_args()
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        clips = [run(folder, seed, []) for seed in args.seeds]
        single_frames = [run(folder, args.seeds[0], SINGLE_FRAME)]
    result = {
        "benchmark": "finetune_demo",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": where,
        "versions": versions("jax", "flax", "numpy", "av", "opencv-python-headless"),
        "chance": CHANCE,
        "clips": clips,
        "single_frames": single_frames,
    }
    for name in ("clips", "single_frames"):
        for row in result[name]:
            print(
                f"{name}, seed {row['seed']}: {100 * row['test/top1']:.1f} % of "
                f"{row['test/records']:.0f} videos right, {row['wall_s']:.0f} s "
                f"({row['cpu_s']:.0f} s of processor time)"
            )
    write_json(result, args.output)
    learnt = all(row["test/top1"] > CHANCE + 0.15 for row in clips)
    blind = all(row["test/top1"] < CHANCE + 0.05 for row in single_frames)
    return 0 if learnt and blind else 1


if __name__ == "__main__":
    sys.exit(main())
