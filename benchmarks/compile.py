"""Seconds to the first training step: compiled cold, and found in a cache; ours and torch.compile.

    PYTHONPATH=. python benchmarks/compile.py --size B

Each reading is a fresh process that makes model and optimizer and takes two steps. All rounds are
first run with empty caches on disk, then again with what they left. README.md says how to read the
result.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import side_by_side
import training_step

STAGES = ("ready_s", "first_step_s", "second_step_s", "to_first_step_s")


def answer(name: str, request: dict) -> dict:
    """In a child: the seconds of two steps, and since it was started."""
    cache_hits = count_cache_hits() if name == "ours" else None
    side = training_step.make_side(name, request["settings"])
    stamps = [time.monotonic()]
    for _ in range(2):
        side.value(side.step())
        side.wait()
        stamps.append(time.monotonic())
    ready, first, second = stamps
    return {
        "ready_s": ready - request["started"],
        "first_step_s": first - ready,
        "second_step_s": second - first,
        "to_first_step_s": first - request["started"],
        "peak_memory_bytes": side_by_side.peak_memory(),
        "facts": {**side.facts(), "cache_hits": None if cache_hits is None else len(cache_hits)},
    }


def count_cache_hits() -> list[str]:
    """A list that grows with each program that jax finds in its cache."""
    import jax

    hits: list[str] = []

    def listen(event: str, **_) -> None:
        if event.endswith("/compilation_cache/cache_hits"):
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    return hits


def cache_in(folder: str, name: str, number: int) -> dict[str, str]:
    """Of one round of a side."""
    place = str(Path(folder, f"{name}_{number}"))
    return {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": place,
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "0",
        "TORCHINDUCTOR_CACHE_DIR": place,
    }


def summarize(side: dict) -> dict:
    """With `compile_s`: what the first step takes beyond the second."""
    found = side_by_side.summarize_readings(side, *STAGES)
    if found["ok"]:
        pairs = zip(found["round_first_step_s"], found["round_second_step_s"], strict=True)
        found["compile_s"] = statistics.median(first - second for first, second in pairs)
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    side_by_side.add_arguments(parser, rounds=1)
    parser.set_defaults(peer="compiled")
    training_step.add_arguments(parser)
    add = parser.add_argument
    add("--task", choices=training_step.RATES, default="pretraining")
    add("--batch", type=int, default=2, help="clips per step")
    add("--dtype", choices=side_by_side.DTYPES, default="float32", help="of matrix products")
    add("--mask-ratio", type=float, default=0.9)
    return side_by_side.parse(parser)


def main() -> int:
    if side_by_side.serve(answer):
        return 0
    args = parse_arguments()
    result = side_by_side.header("compile")
    settings = training_step.settings_of(args, args.task)
    names = ["ours", *side_by_side.PEERS[args.peer]]
    sides: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("cold", "cached"):
            print(f"{cache} ...", file=sys.stderr)
            found = side_by_side.read_in_turns(
                names,
                args,
                lambda name: {"settings": settings},
                lambda name, number: cache_in(folder, name, number),
            )
            suffix = "" if cache == "cold" else "_cached"
            sides |= {name + suffix: summarize(side) for name, side in found.items()}
    del settings["config"]
    result |= {
        "settings": {"threads": args.threads, "rounds": args.rounds, **settings},
        "sides": sides,
    }
    side_by_side.print_readings(result, STAGES)
    return side_by_side.finish(result, args)


if __name__ == "__main__":
    sys.exit(main())
