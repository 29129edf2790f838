"""How fast a step can be at best: arithmetic, memory and networks, each against what a chip can do.

    arithmetic  products of the step, with what remat computes again, padded to whole matrix units
    memory      bytes that must pass between chip and memory: the state exactly, activations roughly
    networks    bytes of the program's collectives over all links that a chip has

A step takes at least as long as the longest of the three, if all overlap, and as long as the larger
of the first two plus the third if networks and arithmetic take turns. Both are estimates of a
bound: no kernel reaches its peak, and launches, transfers and input are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vmae_jax.flops import Product, Work
from vmae_jax.plan.chips import Chip


def step_flops(
    forward: Iterable[Product], remat: str, unit: int = 1, *, fused: bool = False
) -> int:
    """FLOPs of a clip in a training step: forward, its gradients, and what is computed again.

    Attention that keeps no scores computes them again as its backward pass begins.

    Args:
      forward: products, of `Work.all_products`.
      remat: as of `vit.Compute`.
      unit: to which sides are padded.
      fused: whether attention is a fused kernel, or in blocks: all but "xla".
    """
    total = 0
    for x in forward:
        times = 1 + x.gradients + (remat in x.again)
        if fused and x.name == "scores" and x.gradients:
            times = 1 + x.gradients + 1 + (remat == "full")
        total += times * x.flops(unit)
    return total


# Numbers of each token that a pass of a block reads and writes in memory, per width: the norms and
# residuals (read x, write; 6), qkv (1 + 3), attention (3 + 1), its output (1 + 1), and the MLP
# (1 + r, r + 1, r = its width over the token's), fused with their biases and activations.
def _numbers_per_token(mlp_ratio: float) -> float:
    return 6 + 4 + 4 + 2 + 2 + 2 * mlp_ratio


def memory_bytes(facts: Mapping[str, Any]) -> float:
    """Bytes to and from the memory of a device in a step, roughly.

    The state is read and written once; weights are read in the dtype of the activations in each
    pass, gradients written and read in fp32. Activations pass as `_numbers_per_token` says: once
    forward, twice backward, and once more with remat; those of a frozen model forward alone.
    """
    work = Work.from_dict(facts["work"])
    width_bytes = 2 if facts["dtype"] == "bfloat16" else 4
    state, micro_batches = sum(facts["state_bytes"].values()), facts["accumulation"]
    share = facts["state_bytes"]["opt_state"] / 8  # numbers that are trained, on this device
    passes = 3 + (facts["remat"] != "none")
    tensor = facts["mesh"]["tensor"]
    read = passes * facts["parameters"] + facts["frozen_parameters"]
    weights = micro_batches * width_bytes * read / tensor
    fixed = 2 * state + 2 * 4 * share * micro_batches + weights
    activations = 0.0
    for x in work.stacks:
        numbers = x.depth * x.tokens * x.width * _numbers_per_token(x.mlp_width / x.width)
        activations += numbers * (passes if x.trained else 1)
    # pixels: uint8 in, normalised as tubelets; what is predicted: that, targets, their difference
    pixels = work.pixels * (1 + 2 * 4) + work.predicted * 4 * 4
    return fixed + facts["clips_per_device"] * (activations * width_bytes / tensor + pixels)


def network_seconds(
    collectives: Iterable[Mapping[str, Any]] | None, chip: Chip
) -> dict[str, float | None]:
    """Seconds that a device needs to send what the collectives carry: "slice", and "far" between
    slices; None where that is not known, be it the speed, or how often a collective runs.

    A sum goes around twice (scattered, then gathered), everything else once; between slices each
    device sends its share of what its slice has.

    Args:
      collectives: from `collectives.sizes`; None: not known.
      chip: the device.
    """
    if collectives is None:
        return {"slice": None, "far": None}
    near = far = 0.0
    for x in collectives:
        size, slices = x["group_size"], x["slices"]
        amount = math.nan if x["times"] is None else x["num_bytes"] * x["times"]
        rounds = 2 if x["kind"] == "all-reduce" else 1
        if x["kind"] == "collective-permute":
            near, far = (near, far + amount) if slices > 1 else (near + amount, far)
            continue
        within = max(1, size // slices)
        if within > 1:
            near += rounds * amount * (within - 1) / within
        if slices > 1:
            far += rounds * amount / within * (slices - 1) / slices
    return {"slice": _seconds(near, chip.link), "far": _seconds(far, chip.far_link)}


def _seconds(num_bytes: float, speed: float | None) -> float | None:
    if num_bytes == 0:
        return 0.0
    return None if math.isnan(num_bytes) or not speed else num_bytes / speed


def estimate(facts: Mapping[str, Any], chip: Chip, num_chips: int) -> dict[str, Any] | None:
    """Bounds of a compiled step, or None for a chip whose peak is not known.

    Args:
      facts: from `ahead_of_time.facts`.
      chip: the device it was compiled for.
      num_chips: of the machine.
    Returns:
      FLOPs per clip (least, and padded with remat), seconds of each part, `step_s` and `mfu` as
      (all overlapped, networks not overlapped), days and chip-hours of the run at each. Where a
      network is not known, neither is what follows from it: None.
    """
    if chip.flops is None:
        return None
    work = Work.from_dict(facts["work"])
    least = work.flops()
    keeps_scores = facts["attention"] == "xla"
    done = step_flops(work.all_products(), facts["remat"], chip.unit, fused=not keeps_scores)
    clips = facts["clips_per_device"] / facts["mesh"]["tensor"]
    peak = peak_flops(facts, chip) or chip.flops
    arithmetic = clips * done / peak
    memory = memory_bytes(facts) / chip.bandwidth
    networks = network_seconds(facts["collectives"], chip)
    bound = {
        "flops_per_clip": least,
        "padded_flops_per_clip": done,
        "seconds": {"arithmetic": arithmetic, "memory": memory, **networks},
        "num_steps": facts["num_steps"],
        **dict.fromkeys(("step_s", "mfu", "days", "chip_hours")),
    }
    if None in networks.values():
        return bound
    sending = sum(networks.values())
    steps = [max(arithmetic, memory, sending), max(arithmetic, memory) + sending]
    days = [seconds * facts["num_steps"] / 86400 for seconds in steps]
    return bound | {
        "step_s": steps,
        "mfu": [clips * least / peak / seconds for seconds in steps],
        "days": days,
        "chip_hours": [24 * day * num_chips for day in days],
    }


def peak_flops(facts: Mapping[str, Any], chip: Chip) -> float | None:
    """FLOP/s in the dtype of the step; None if the chip's are not known."""
    if facts["dtype"] == "bfloat16":
        return chip.flops
    return chip.flops_fp32 if facts["precision"] == "highest" else None
