"""What a training step needs of a device's memory where no compiler can say it: an estimate.

    state + gradients + what the forward pass keeps for the backward + a block at work + pixels

Sizes of arrays are exact; which of them live at the same time is what a sensible compiler leads to
expect, and what the TPU compiler was seen to do. Without a fused attention kernel the scores of all
pairs of tokens are kept too, in fp32 and as they are multiplied with the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmae_jax.flops import Work

# Of each token, in widths: the block's input, the normed input, q, k, v, attention's output, the
# residual after it, its norm; and twice the MLP's width, before and after the activation.
_KEPT = {"none": (8, 2), "attention": (2, 0), "full": (1, 0)}
# And in fp32, whatever the dtype: what norms and GELU have on their way. Not counted but fitted to
# the TPU compiler's peaks for S, B, L and H in bf16: with it the sum is -2 to +7 % off where 90 %
# are hidden, -16 % where 75 % are (splash pads its tokens, cuDNN does not); with remat "attention"
# -9 to +21 %, without a part of it. benchmarks/results/plan_tpu.json has the peaks.
_KEPT_FP32 = {"none": (6, 1.5), "attention": (0, 0), "full": (0, 0)}


def peak_bytes(facts: Mapping[str, Any]) -> dict[str, float]:
    """Bytes by what they are for; their sum is the peak.

    Args:
      facts: from `ahead_of_time.facts`.
    """
    work = Work.from_dict(facts["work"])
    number = 2 if facts["dtype"] == "bfloat16" else 4
    clips = facts["clips_per_device"] / facts["accumulation"]
    split = facts["mesh"]["tensor"]
    kept = working = 0.0
    for depth, tokens, width, heads, mlp, trained in work.stacks:
        pairs = tokens * tokens * heads / split if facts["attention"] == "xla" else 0.0
        scores = (4 + number) * pairs
        # all of a block; with the gradient of each array beside it
        block = (1 + trained) * number * tokens * (8 * width + 2 * mlp / split)
        if trained:
            for table, size in ((_KEPT, number), (_KEPT_FP32, 4)):
                widths, mlps = table[facts["remat"]]
                # the input of a block, and norms, are whole on every device of the tensor axis
                kept += size * depth * tokens * (widths * width + mlps * mlp / split)
        if trained and facts["remat"] == "none":
            kept += depth * scores
        else:
            block += scores
        working = max(working, block)
    # fp32: pixels as tubelets; predictions, their targets and the loss's gradient
    pixels = 4 * (work.pixels + 3 * work.predicted)
    lasting = sum(facts["state_bytes"].values()) + facts["frozen_bytes"] + facts["batch_bytes"]
    return {
        "state": float(lasting),
        "gradients": facts["state_bytes"]["opt_state"] / 2,  # which holds two moments of each
        "kept": clips * kept,
        "working": clips * working,
        "pixels": clips * pixels,
    }
