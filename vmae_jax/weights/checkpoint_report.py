"""What a checkpoint holds, and which class it loads into; reads names and shapes only.

Values can still stand against loading: a key bias that is not zero, or more than fp16 can hold. A
run of ours is read whole, to compare its fingerprints.
"""

from __future__ import annotations

import math
from typing import Any

from vmae_jax.huggingface import models as hf
from vmae_jax.weights import layouts
from vmae_jax.weights.pretrained import Stored, has_part, make_plan, must_be_given, outline

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
_CLASSES = (hf.VideoMAEModel, hf.VideoMAEForPreTraining, hf.VideoMAEForVideoClassification)


def describe(stored: Stored, heads: dict[str, int]) -> dict[str, Any]:
    """What `--json` prints: layout, sizes (and which are assumed), classes, loads_into, tensors."""
    config = stored.config.replace(**heads)
    holds_classes = has_part(stored, "classifier")
    unknown = set(stored.unknown) - set(heads)
    fields = [
        name
        for name in _SIZE_FIELDS
        if has_part(stored, "decoder") or not name.startswith("decoder_")
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
        "loads_into": {cls.__name__: _fit(stored, heads, cls) for cls in _CLASSES},
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": tensor.dtype}
            for name, tensor in stored.tensors.items()
        },
    }


def _fit(stored: Stored, heads: dict[str, int], cls) -> dict[str, Any]:
    core = outline(stored, decoder=cls._decoder, classifier=cls._classifier, **heads)
    plan = make_plan(stored, core)
    return {
        "loads": plan.fits,
        "needs": [name for name in must_be_given(stored, cls._decoder) if name not in heads],
        **{field: getattr(plan, field) for field in ("loaded", *_NOTES)},
    }


def as_text(described: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        described["path"],
        f"layout: {described['layout']}, {len(described['tensors'])} tensors, "
        f"{described['parameters']:,} numbers",
    ]
    for name, value in described["sizes"].items():
        if value is None:
            value = f"not told by the file; give it as --{name.replace('_', '-')}"
        elif name in described["assumed"]:
            value = f"{value} (not told by the file; as published)"
        lines.append(f"  {name}: {value}")
    if described["num_labels"] is not None:
        some = described["labels"] or []
        shown = ", ".join(some[:5]) + (", ..." if len(some) > 5 else "")
        lines.append(f"classes: {described['num_labels']}" + (f" ({shown})" if shown else ""))
    for name, fit in described["loads_into"].items():
        parts = [
            f"{field} {', '.join(fit[field][:8])}"
            + (f" and {len(fit[field]) - 8} more" if len(fit[field]) > 8 else "")
            for field in ("needs", *_NOTES)
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
