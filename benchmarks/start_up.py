"""Seconds from the start of a process to the second logits of a loaded model: ours, transformers'.

    PYTHONPATH=. python benchmarks/start_up.py --size B --source folder
    PYTHONPATH=. python benchmarks/start_up.py --size B --source run

Each reading is a fresh process: imports, `from_pretrained`, two calls for one clip. `folder` is in
Hugging Face's form; `run` is a checkpoint of ours, with the optimizer's state beside the weights,
against transformers from a folder of the same size. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import saved_models
import side_by_side

STAGES = ("imported_s", "loaded_s", "first_logits_s", "second_logits_s")


def _pixels(config) -> np.ndarray:
    shape = (1, config.num_frames, 3, config.image_size, config.image_size)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def ours(path: str, since) -> tuple[list[float], str]:
    """The time at each of `STAGES`, and the device."""
    from vmae_jax import VideoMAEForVideoClassification

    stamps = [since()]
    model = VideoMAEForVideoClassification.from_pretrained(path)
    stamps.append(since())
    pixels = _pixels(model.config)
    for _ in range(2):
        np.asarray(model(pixels).logits)
        stamps.append(since())
    import jax

    return stamps, jax.devices()[0].device_kind


def transformers(path: str, since, compiled: bool) -> tuple[list[float], str]:
    """The same."""
    torch = side_by_side.import_torch()
    from transformers import VideoMAEForVideoClassification

    stamps = [since()]
    model = VideoMAEForVideoClassification.from_pretrained(path, attn_implementation="sdpa").eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    if compiled:
        model.compile()
    stamps.append(since())
    pixels = torch.from_numpy(_pixels(model.config))
    with torch.inference_mode():
        for _ in range(2):
            model(pixel_values=pixels.to(device)).logits.cpu()
            stamps.append(since())
    return stamps, "cpu" if device == "cpu" else torch.cuda.get_device_name()


def answer(name: str, request: dict) -> dict:
    """In a child that has imported numpy alone: the seconds since it was started."""

    def since() -> float:
        return time.monotonic() - request["started"]

    path = request["path"]
    if name == "ours":
        stamps, device = ours(path, since)
        packages = ("jax", "jaxlib", "flax")
    else:
        stamps, device = transformers(path, since, compiled=name == "compiled")
        packages = ("torch", "transformers")
    return {
        **dict(zip(STAGES, stamps, strict=True)),
        "peak_memory_bytes": side_by_side.peak_memory(),
        "facts": {"device": device, "versions": side_by_side.versions(*packages)},
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    side_by_side.add_arguments(parser, rounds=5)
    parser.set_defaults(peer="eager")
    parser.add_argument("--source", choices=["folder", "run"], default="folder", help="of ours")
    return side_by_side.parse(parser)


def main() -> int:
    if side_by_side.serve(answer):
        return 0
    args = parse_arguments()
    result = side_by_side.header("start_up")
    with tempfile.TemporaryDirectory() as folder:
        peers = side_by_side.PEERS[args.peer]
        kinds = {args.source, "folder"} if peers else {args.source}
        paths = saved_models.write(Path(folder), args, *kinds)
        sides = side_by_side.read_in_turns(
            ["ours", *peers],
            args,
            lambda name: {"path": paths[args.source if name == "ours" else "folder"]},
        )
    sides = {name: side_by_side.summarize_readings(x, *STAGES) for name, x in sides.items()}
    shown = ("source", "size", "model", "threads", "rounds")
    result |= {
        "settings": {name: getattr(args, name) for name in shown},
        "sides": sides,
        **side_by_side.compare_readings(sides, STAGES[-1]),
    }
    side_by_side.print_readings(result, STAGES)
    return side_by_side.finish(result, args)


if __name__ == "__main__":
    sys.exit(main())
