"""Seconds per classification: our `VideoMAEForVideoClassification`, and transformers'.

    PYTHONPATH=. python benchmarks/infer.py --what forward --size B --batch 16
    PYTHONPATH=. python benchmarks/infer.py --what pipeline --size B --batch 1

`forward`: from normalised pixels to logits. `pipeline`: from the uint8 frames of videos, by each
side's image processor and model, to probabilities on the host. Both sides load the same folder.
README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import saved_models
import side_by_side

FRAMES = (256, 340)  # as Kinetics is often stored


def videos(settings: dict) -> list[list[np.ndarray]]:
    """Of each clip its frames, uint8 [H, W, 3]; the same noise for both sides."""
    shape = (settings["batch"], settings["config"]["num_frames"], *FRAMES, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return [list(video) for video in frames]


def pixels(settings: dict) -> np.ndarray:
    """Normalised, fp32 [B, T, C, H, W]."""
    c = settings["config"]
    shape = (settings["batch"], c["num_frames"], 3, c["image_size"], c["image_size"])
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


class Ours:
    """The documented classes, as a user calls them."""

    def __init__(self, settings: dict):
        import jax

        from vmae_jax import VideoMAEForVideoClassification, VideoMAEImageProcessor

        self.jax = jax
        self.device = jax.devices()[0]
        options = {"attention": settings["attention"]} if settings["attention"] else {}
        self.model = VideoMAEForVideoClassification.from_pretrained(
            settings["path"],
            dtype=settings["dtype"],
            param_dtype=settings["dtype"],
            **options,
        )
        self.processor = VideoMAEImageProcessor.from_pretrained(settings["path"])
        self.from_frames = settings["what"] == "pipeline"
        self.input = videos(settings) if self.from_frames else jax.device_put(pixels(settings))
        self.output = None

    def step(self):
        if self.from_frames:
            inputs = self.processor(self.input, return_tensors="np")
            logits = self.model(**inputs).logits
            self.output = np.asarray(self.jax.nn.softmax(logits))
        else:
            self.output = self.model(self.input).logits
        return self.output

    def value(self, result) -> float:
        return float(result[0, 0])

    def wait(self):
        self.jax.block_until_ready(self.output)

    def product(self, side: int):
        return side_by_side.jax_product(side)

    def facts(self) -> dict:
        stats = self.device.memory_stats()
        facts = {
            "device": self.device.device_kind,
            "platform": self.device.client.platform_version,
            "versions": side_by_side.versions("jax", "jaxlib", "flax", "numpy", "pillow"),
            "attention": self.model.core.compute.attention,
        }
        if stats:
            facts |= {"peak_memory_bytes": stats["peak_bytes_in_use"], "peak_memory_of": "device"}
        return facts


class Transformers:
    """transformers' classes, in inference mode, with SDPA."""

    def __init__(self, settings: dict, compiled: bool):
        self.torch = torch = side_by_side.import_torch()
        import transformers

        self.on_gpu = torch.cuda.is_available()
        self.device = "cuda" if self.on_gpu else "cpu"
        model = transformers.VideoMAEForVideoClassification.from_pretrained(
            settings["path"],
            dtype=getattr(torch, settings["dtype"]),
            attn_implementation="sdpa",
        )
        self.model = model.to(self.device).eval()
        self.compiled = compiled
        self.logits_of = lambda x: self.model(pixel_values=x).logits
        if compiled:
            self.logits_of = torch.compile(self.logits_of)
        try:
            import torchvision  # noqa: F401 (with which its faster processor works)

            processor = transformers.VideoMAEImageProcessor
        except ImportError:
            processor = transformers.VideoMAEImageProcessorPil
        self.processor = processor.from_pretrained(settings["path"])
        self.from_frames = settings["what"] == "pipeline"
        self.input = videos(settings) if self.from_frames else self._on_device(pixels(settings))

    def _on_device(self, array):
        return self.torch.as_tensor(array).to(self.device, self.model.dtype)

    def step(self):
        with self.torch.inference_mode():
            if not self.from_frames:
                return self.logits_of(self.input)
            inputs = self.processor(self.input, return_tensors="pt")
            logits = self.logits_of(self._on_device(inputs["pixel_values"]))
            return logits.float().softmax(dim=-1).cpu()

    def value(self, result) -> float:
        return float(result[0, 0])

    def wait(self):
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def product(self, side: int):
        return side_by_side.torch_product(side, self.device)

    def facts(self) -> dict:
        cuda = self.torch.cuda
        facts = {
            "device": cuda.get_device_name() if self.on_gpu else "cpu",
            "platform": f"cuda {self.torch.version.cuda}" if self.on_gpu else "cpu",
            "threads_found": self.torch.get_num_threads(),
            "versions": side_by_side.versions("torch", "transformers", "numpy", "pillow"),
            "attention": self.model.config._attn_implementation,
            "torch_compile": self.compiled,
            "processor": type(self.processor).__name__,
        }
        if self.on_gpu:
            facts |= {"peak_memory_bytes": cuda.max_memory_allocated(), "peak_memory_of": "device"}
        return facts


def make_side(name: str, settings: dict):
    if name == "ours":
        return Ours(settings)
    return Transformers(settings, compiled=name == "compiled")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    side_by_side.add_step_arguments(parser, batch=1)
    add = parser.add_argument
    add("--what", choices=["forward", "pipeline"], default="forward")
    add("--attention", help="ours; default: that of the class")
    return side_by_side.parse(parser)


def main() -> int:
    if side_by_side.serve(side_by_side.Turns(make_side)):
        return 0
    args = parse_arguments()

    from vmae_jax.config import VideoMAEConfig
    from vmae_jax.flops import classification_flops

    with tempfile.TemporaryDirectory() as folder:
        path = saved_models.write(Path(folder), args, "folder")["folder"]
        config = VideoMAEConfig.from_pretrained(path)
        settings = {
            "what": args.what,
            "size": args.size,
            "model": args.model,
            "config": config.to_dict(),
            "batch": args.batch,
            "dtype": side_by_side.DTYPES[args.dtype],
            "attention": args.attention,
            "path": path,
        }
        flops_per_clip = classification_flops(config, gradient=False)
        return side_by_side.compare("infer", args, settings, flops_per_clip)


if __name__ == "__main__":
    sys.exit(main())
