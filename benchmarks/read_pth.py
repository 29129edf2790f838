"""Seconds and memory for the weights of a training checkpoint: our reader, and `torch.load`.

    PYTHONPATH=. python benchmarks/read_pth.py

The file is what the official script saves for ViT-B: the weights of pre-training, AdamW's state of
twice their size, the arguments. Each reading happens in a new process, the sides taking turns, with
the file in the page cache. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from side_by_side import command_line, machine, versions, write_json

MARGIN = 150 * 2**20  # bytes that reading may take beside the weights


def weight_shapes(width: int = 768, depth: int = 12, decoder: int = 384, layers: int = 4) -> dict:
    """The official names and shapes of ViT-B with its decoder."""

    def norm(name, d):
        return {f"{name}.weight": (d,), f"{name}.bias": (d,)}

    def dense(name, inputs, outputs):
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def blocks(name, d, count):
        for i in range(count):
            at = f"{name}.blocks.{i}"
            yield from norm(f"{at}.norm1", d).items()
            yield from {f"{at}.attn.{x}_bias": (d,) for x in "qv"}.items()
            yield f"{at}.attn.qkv.weight", (3 * d, d)
            yield from dense(f"{at}.attn.proj", d, d).items()
            yield from norm(f"{at}.norm2", d).items()
            yield from dense(f"{at}.mlp.fc1", d, 4 * d).items()
            yield from dense(f"{at}.mlp.fc2", 4 * d, d).items()

    patches = {
        "encoder.patch_embed.proj.weight": (width, 3, 2, 16, 16),
        "encoder.patch_embed.proj.bias": (width,),
    }
    return {
        "mask_token": (1, 1, decoder),
        **patches,
        **dict(blocks("encoder", width, depth)),
        **norm("encoder.norm", width),
        **dict(blocks("decoder", decoder, layers)),
        **norm("decoder.norm", decoder),
        **dense("decoder.head", decoder, 1536),
        "encoder_to_decoder.weight": (decoder, width),
    }


def write_checkpoint(path: str) -> dict:
    """In a child: the parent stays small."""
    import torch

    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in weight_shapes().items()}
    state = {
        i: {
            "step": torch.tensor(1000.0),
            "exp_avg": torch.randn_like(x),
            "exp_avg_sq": torch.rand_like(x),
        }
        for i, x in enumerate(weights.values())
    }
    groups = [{"lr": 1e-3, "betas": (0.9, 0.95), "params": list(range(len(weights)))}]
    checkpoint = {
        "model": weights,
        "optimizer": {"state": state, "param_groups": groups},
        "epoch": 799,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": argparse.Namespace(model="pretrain_videomae_base_patch16_224", batch_size=64),
    }
    torch.save(checkpoint, path)
    size = sum(x.nbytes for x in weights.values())
    return {"tensors": len(weights), "weight_bytes": size, "file_bytes": os.path.getsize(path)}


def our_reader(path: str):
    from vmae_jax.weights.torch_file import open_torch_file

    def read():
        with open_torch_file(path) as file:
            return {name: tensor.read() for name, tensor in file.tree["model"].items()}

    return read


def torch_reader(path: str, mmap: bool, copy: bool = False):
    import torch

    def read():
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        weights = {name: x.numpy() for name, x in checkpoint["model"].items()}
        if copy:
            return {name: x.copy() for name, x in weights.items()}
        if mmap:  # nothing has been read yet: touch every page
            for x in weights.values():
                x.reshape(-1)[::1024].sum()
        return weights

    return read


SIDES = {
    "ours": our_reader,
    "torch": lambda path: torch_reader(path, mmap=False),
    "torch_mmap": lambda path: torch_reader(path, mmap=True),
    "torch_mmap_copied": lambda path: torch_reader(path, mmap=True, copy=True),
}


def status_bytes(field: str) -> int:
    """Of this process. Not `ru_maxrss`, which begins at what the parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def measure(side: str, path: str) -> dict:
    """In a child: imports, then one reading."""
    read = SIDES[side](path)
    before = status_bytes("VmRSS")
    start = time.perf_counter()
    weights = read()
    seconds = time.perf_counter() - start
    peak = status_bytes("VmHWM")
    check = 0
    for name in sorted(weights):
        check = zlib.crc32(weights[name], check)
    return {"s": seconds, "peak": peak, "before": before, "check": check, "tensors": len(weights)}


def in_child(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed readings of each side")
    parser.add_argument("--folder", type=Path, help="for the file of 1.1 GB; default: temporary")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "read_pth_cpu.json"
    )
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        print(json.dumps(write_checkpoint(args.write)))
        return 0
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return 0

    where = machine()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if shutil.disk_usage(folder).free < 3 * 2**30:
            parser.error(f"--folder={folder} has less than 3 GiB free; choose another")
        path = str(Path(folder) / "checkpoint-799.pth")
        facts = in_child("--write", path)
        rounds: dict[str, list[dict]] = {side: [] for side in SIDES}
        for number in range(args.rounds + 1):  # the first fills the page cache
            for side in reversed(SIDES) if number % 2 else SIDES:
                answer = in_child("--measure", side, path)
                if number:
                    rounds[side].append(answer)
    answers = [answer for side in rounds.values() for answer in side]
    if len({answer["check"] for answer in answers}) != 1:
        raise SystemExit("the sides read different weights")

    sides = {}
    for side, found in rounds.items():
        peaks = [answer["peak"] for answer in found]
        sides[side] = {
            "s": spread([answer["s"] for answer in found]),
            "peak_memory_bytes": spread(peaks),
            "before_reading_bytes": statistics.median(answer["before"] for answer in found),
            "peak_over_weights_bytes": max(peaks) - facts["weight_bytes"],
        }
    within = sides["ours"]["peak_over_weights_bytes"] <= MARGIN
    result = {
        "benchmark": "read_pth",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": where,
        "versions": versions("numpy", "ml_dtypes", "torch"),
        "settings": {"rounds": args.rounds, "page_cache": "warm", **facts},
        "sides": sides,
        "margin_bytes": MARGIN,
        "ours_within_margin": within,
    }
    print(f"{'':<20}{'s, median':>12}{'peak, MiB':>12}{'over weights':>14}")
    for side, x in sides.items():
        peak, over = x["peak_memory_bytes"]["median"] / 2**20, x["peak_over_weights_bytes"] / 2**20
        print(f"{side:<20}{x['s']['median']:>12.3f}{peak:>12.0f}{over:>14.0f}")
    write_json(result, args.output)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
