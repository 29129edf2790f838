"""What a checkpoint holds, and which class it loads into; reads names and shapes only.

Values can still stand against loading: a key bias that is not zero, or more than fp16 can hold. A
run of ours is read whole, to compare its fingerprints.
"""

from __future__ import annotations

import math
from typing import Any

from vmae_jax.weights import layouts
from vmae_jax.weights.pretrained import compare, must_be_given, outline
from vmae_jax.weights.stored import Stored

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
# No tensor tells these: without a configuration they are what was published.
_NOT_IN_TENSORS = (
    "num_attention_heads",
    "decoder_num_attention_heads",
    "num_frames",
    "image_size",
    "layer_norm_eps",
)
_NOTES = ("dropped", "fresh", "missing", "unexpected", "misshaped", "mistyped")
_CLASSES = {  # and the parts that they have besides the encoder
    "VideoMAEModel": {"decoder": False, "classifier": False},
    "VideoMAEForPreTraining": {"decoder": True, "classifier": False},
    "VideoMAEForVideoClassification": {"decoder": False, "classifier": True},
}


def checkpoint_report(stored: Stored, heads: dict[str, int]) -> dict[str, Any]:
    """What `inspect --json` prints of a checkpoint.

    Args:
      stored: the open checkpoint.
      heads: fields of the configuration that the user gives, e.g. {"num_attention_heads": 6}.
    Returns:
      path, layout, sizes (None: must be given), assumed (names of sizes that nothing tells),
      parameters (how many numbers), num_labels, labels, loads_into (per class), tensors.
    """
    config = stored.config.replace(**heads)
    holds_classes = stored.has("classifier")
    unknown = set(stored.unknown) - set(heads)
    fields = [
        name for name in _SIZE_FIELDS if stored.has("decoder") or not name.startswith("decoder_")
    ]
    has_config = stored.layout in (layouts.HUGGING_FACE, layouts.OURS)
    assumed = [] if has_config else [n for n in _NOT_IN_TENSORS if n not in unknown | set(heads)]
    names = [config.id2label[i] for i in sorted(config.id2label)] if holds_classes else []
    return {
        "path": stored.path,
        "layout": stored.layout.name,
        "sizes": {name: None if name in unknown else getattr(config, name) for name in fields},
        "assumed": [name for name in assumed if name in fields],
        "parameters": sum(math.prod(tensor.shape) for tensor in stored.tensors.values()),
        "num_labels": len(names) if holds_classes else None,
        "labels": names if names and not names[0].startswith("LABEL_") else None,
        "loads_into": {name: _loading(stored, heads, **parts) for name, parts in _CLASSES.items()},
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": tensor.dtype}
            for name, tensor in stored.tensors.items()
        },
    }


def _loading(
    stored: Stored, heads: dict[str, int], *, decoder: bool, classifier: bool
) -> dict[str, Any]:
    fit = compare(stored, outline(stored, decoder=decoder, classifier=classifier, **heads))
    return {
        "loads": fit.fits,
        "needs": [name for name in must_be_given(stored, decoder) if name not in heads],
        **{field: getattr(fit, field) for field in ("loaded", *_NOTES)},
    }


def as_text(report: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        report["path"],
        f"layout: {report['layout']}, {len(report['tensors'])} tensors, "
        f"{report['parameters']:,} numbers",
    ]
    for name, value in report["sizes"].items():
        if value is None:
            value = f"not told by the file; give it as --{name.replace('_', '-')}"
        elif name in report["assumed"]:
            value = f"{value} (not told by the file; as published)"
        lines.append(f"  {name}: {value}")
    if report["num_labels"] is not None:
        some = report["labels"] or []
        shown = ", ".join(some[:5]) + (", ..." if len(some) > 5 else "")
        lines.append(f"classes: {report['num_labels']}" + (f" ({shown})" if shown else ""))
    for name, fit in report["loads_into"].items():
        parts = [
            f"{field} {', '.join(fit[field][:8])}"
            + (f" and {len(fit[field]) - 8} more" if len(fit[field]) > 8 else "")
            for field in ("needs", *_NOTES)
            if fit[field]
        ]
        verdict = "loads" if fit["loads"] else "does not load"
        lines.append(f"{name}: {verdict}" + (f"; {'; '.join(parts)}" if parts else ""))
    width = max(map(len, report["tensors"]), default=0)
    lines += [
        f"  {name:{width}}  {tensor['dtype']:9} {tuple(tensor['shape'])}"
        for name, tensor in report["tensors"].items()
    ]
    return "\n".join(lines)
