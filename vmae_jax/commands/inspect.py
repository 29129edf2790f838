"""Says what a checkpoint holds, and which class it loads into; reads names and shapes only."""

from __future__ import annotations

import argparse
import json
from typing import Any

from flax import nnx

from vmae_jax import hf
from vmae_jax.pretrained import Stored, has_part, make_plan, open_checkpoint
from vmae_jax.videomae import VideoMAE

_SIZE_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "patch_size",
    "tubelet_size",
    "num_channels",
    "num_frames",
    "image_size",
    "use_mean_pooling",
    "qkv_bias",
    "layer_norm_eps",
)
_CLASSES = (hf.VideoMAEModel, hf.VideoMAEForPreTraining, hf.VideoMAEForVideoClassification)


def add_checkpoint_arguments(parser: argparse.ArgumentParser, metavar: str) -> None:
    """Declares what names a checkpoint: path or hub id, revision, heads."""
    parser.add_argument(
        "path",
        metavar=metavar,
        help="a folder or hub id in Hugging Face's form, a .pth of VideoMAE, VideoMAE V2 or "
        "MMAction2, or a run of ours",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    for name in ("num-attention-heads", "decoder-num-attention-heads"):
        parser.add_argument(
            f"--{name}",
            type=int,
            metavar="N",
            help="where neither the file nor the published sizes tell",
        )


def given_heads(args: argparse.Namespace) -> dict[str, int]:
    """The numbers of heads among the arguments."""
    names = ("num_attention_heads", "decoder_num_attention_heads")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that `run` reads."""
    add_checkpoint_arguments(parser, "PATH")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> None:
    """Prints the description.

    Raises:
      ValueError, OSError: for a checkpoint that cannot be used.
    """
    with open_checkpoint(args.path, args.revision) as stored:
        described = describe(stored, given_heads(args))
    print(json.dumps(described, indent=2) if args.json else _as_text(described))


def describe(stored: Stored, heads: dict[str, int]) -> dict[str, Any]:
    """What `--json` prints: layout, sizes, classes, loads_into, tensors."""
    config = stored.config.replace(**heads)
    holds_classes = has_part(stored, "classifier")
    unknown = set(stored.unknown) - set(heads)
    names = [config.id2label[i] for i in sorted(config.id2label)] if holds_classes else []
    return {
        "path": stored.path,
        "layout": stored.layout.name,
        "sizes": {
            name: None if name in unknown else getattr(config, name)
            for name in _SIZE_FIELDS
            if has_part(stored, "decoder") or not name.startswith("decoder_")
        },
        "parameters": sum(_size(tensor.shape) for tensor in stored.tensors.values()),
        "num_labels": len(names) if holds_classes else None,
        "labels": names if names and not names[0].startswith("LABEL_") else None,
        "loads_into": {cls.__name__: _fit(stored, config, cls) for cls in _CLASSES},
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": tensor.dtype}
            for name, tensor in stored.tensors.items()
        },
    }


def _size(shape) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def _fit(stored: Stored, config, cls) -> dict[str, Any]:
    core = nnx.eval_shape(
        lambda: VideoMAE(config, decoder=cls._decoder, classifier=cls._classifier, rngs=nnx.Rngs(0))
    )
    plan = make_plan(stored, core)
    fields = ("loaded", "dropped", "fresh", "missing", "unexpected", "misshaped")
    return {"loads": plan.fits, **{field: getattr(plan, field) for field in fields}}


def _as_text(described: dict[str, Any]) -> str:
    lines = [
        described["path"],
        f"layout: {described['layout']}, {len(described['tensors'])} tensors, "
        f"{described['parameters']:,} numbers",
    ]
    lines += [
        f"  {name}: {'not told by the file; give it' if value is None else value}"
        for name, value in described["sizes"].items()
    ]
    if described["num_labels"] is not None:
        some = described["labels"] or []
        shown = ", ".join(some[:5]) + (", ..." if len(some) > 5 else "")
        lines.append(f"classes: {described['num_labels']}" + (f" ({shown})" if shown else ""))
    for name, fit in described["loads_into"].items():
        parts = [
            f"{field} {', '.join(fit[field][:8])}"
            + (f" and {len(fit[field]) - 8} more" if len(fit[field]) > 8 else "")
            for field in ("dropped", "fresh", "missing", "unexpected", "misshaped")
            if fit[field]
        ]
        verdict = "loads" if fit["loads"] else "does not load"
        lines.append(f"{name}: {verdict}" + (f"; {'; '.join(parts)}" if parts else ""))
    width = max(map(len, described["tensors"]), default=0)
    lines += [
        f"  {name:{width}}  {tensor['dtype']:9} {tuple(tensor['shape'])}"
        for name, tensor in described["tensors"].items()
    ]
    return "\n".join(lines)
