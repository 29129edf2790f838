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
from typing import Any, NamedTuple

from vmae_jax.plan.chips import Chip


class Product(NamedTuple):
    """Matrix products of a clip: `count` of [rows, inner] x [inner, columns].

    Attributes:
      name: where: "embedding", "qkv", "scores", "mix", "output", "up", "down", ...
      again: which remats compute it a second time.
    """

    name: str
    count: int
    rows: int
    inner: int
    columns: int
    again: tuple[str, ...] = ()

    def flops(self, unit: int = 1) -> int:
        """Multiplications and additions, with inner side and columns padded to the unit."""
        inner, columns = (-(-side // unit) * unit for side in (self.inner, self.columns))
        return 2 * self.count * self.rows * inner * columns


def products(model: Mapping[str, int], tokens: int, num_masked: int) -> list[Product]:
    """The forward products of masked autoencoding, for one clip.

    They add up to `flops.pretraining_flops` without gradient.

    Args:
      model: fields of VideoMAEConfig.
      tokens: N of a clip.
      num_masked: of them hidden.
    """
    visible = tokens - num_masked
    width, narrow = model["hidden_size"], model["decoder_hidden_size"]
    values = model["tubelet_size"] * model["patch_size"] ** 2 * model["num_channels"]
    return [
        Product("embedding", 1, visible, values, width),
        *_blocks(
            model["num_hidden_layers"], visible, width, model["num_attention_heads"],
            model["intermediate_size"],
        ),
        Product("encoder_to_decoder", 1, visible, width, narrow),
        *_blocks(
            model["decoder_num_hidden_layers"], tokens, narrow,
            model["decoder_num_attention_heads"], model["decoder_intermediate_size"],
        ),
        Product("head", 1, num_masked, narrow, values),
    ]  # fmt: skip


def _blocks(depth: int, tokens: int, width: int, heads: int, mlp: int) -> list[Product]:
    # what the backward pass needs of a block's forward: all but its last product, and the mix of
    # the values only if attention's output was not kept
    both = ("attention", "full")
    return [
        Product("qkv", depth, tokens, width, 3 * width, both),
        Product("scores", depth * heads, tokens, width // heads, tokens, both),
        Product("mix", depth * heads, tokens, tokens, width // heads, ("full",)),
        Product("output", depth, tokens, width, width, both),
        Product("up", depth, tokens, width, mlp, both),
        Product("down", depth, tokens, mlp, width),
    ]


def step_flops(
    forward: Iterable[Product], remat: str, unit: int = 1, *, fused: bool = False
) -> int:
    """FLOPs of a clip in a training step: forward, its gradients, and what is computed again.

    A product's gradient is two of its size; the embedding's input needs none. A fused attention
    kernel keeps no scores: its backward pass begins with computing them.
    """
    total = 0
    for x in forward:
        times = 2 if x.name == "embedding" else 3
        if x.name == "scores" and fused:
            times += 1 + (remat == "full")
        else:
            times += remat in x.again
        total += times * x.flops(unit)
    return total


# Numbers of each token that a pass of a block reads and writes in memory, per width: the norms and
# residuals (read x, write; 6), qkv (1 + 3), attention (3 + 1), its output (1 + 1), and the MLP
# (1 + r, r + 1, r = its width over the token's), fused with their biases and activations.
def _numbers_per_token(mlp_ratio: float) -> float:
    return 6 + 4 + 4 + 2 + 2 + 2 * mlp_ratio


def memory_bytes(
    model: Mapping[str, int], facts: Mapping[str, Any], tokens: int, num_masked: int
) -> float:
    """Bytes to and from the memory of a device in a step, roughly.

    The state is read and written once; weights are read in the dtype of the activations in each
    pass, gradients written and read in fp32. Activations pass as `_numbers_per_token` says: once
    forward, twice backward, and once more with remat.
    """
    width_bytes = 2 if facts["dtype"] == "bfloat16" else 4
    state, parameters = sum(facts["state_bytes"].values()), facts["parameters"]
    share = facts["state_bytes"]["params"] / 4  # numbers of the parameters on this device
    passes = 3 + (facts["remat"] != "none")
    micro_batches = facts["accumulation"]
    weights = passes * micro_batches * width_bytes * parameters / facts["mesh"]["tensor"]
    fixed = 2 * state + 2 * 4 * share * micro_batches + weights
    activations = 0.0
    for depth, n, width, mlp in (
        (model["num_hidden_layers"], tokens - num_masked, model["hidden_size"],
         model["intermediate_size"]),
        (model["decoder_num_hidden_layers"], tokens, model["decoder_hidden_size"],
         model["decoder_intermediate_size"]),
    ):  # fmt: skip
        activations += depth * n * width * _numbers_per_token(mlp / width)
    # pixels: uint8 in, normalised as tubelets, targets of the hidden ones
    values = model["tubelet_size"] * model["patch_size"] ** 2 * model["num_channels"]
    pixels = tokens * values * (1 + 2 * 4) + num_masked * values * 4 * 4
    clips = facts["clips_per_device"]
    per_clip = passes * activations * width_bytes / facts["mesh"]["tensor"] + pixels
    return fixed + clips * per_clip


def network_seconds(flows: Iterable[Mapping[str, Any]], chip: Chip) -> dict[str, float | None]:
    """Seconds that a device needs to send what the collectives carry: "slice", and "far" between
    slices; None where the speed is not known.

    A sum goes around twice (scattered, then gathered), everything else once; between slices each
    device sends its share of what its slice has.
    """
    near = far = 0.0
    for flow in flows:
        size, slices = flow["group_size"], flow["slices"]
        amount = flow["num_bytes"] * (1 if flow["times"] is None else flow["times"])
        rounds = 2 if flow["kind"] == "all-reduce" else 1
        if flow["kind"] == "collective-permute":
            near, far = (near, far + amount) if slices > 1 else (near + amount, far)
            continue
        within = max(1, size // slices)
        near += rounds * amount * (within - 1) / within
        far += rounds * amount / within * (slices - 1) / slices
    return {
        "slice": near / chip.link if chip.link else (0.0 if near == 0 else None),
        "far": far / chip.far_link if chip.far_link else (0.0 if far == 0 else None),
    }


def estimate(facts: Mapping[str, Any], chip: Chip, num_chips: int) -> dict[str, Any] | None:
    """Bounds of a compiled step, or None for a chip whose peak is not known.

    Args:
      facts: from `ahead_of_time.facts`.
      chip: the device it was compiled for.
      num_chips: of the machine.
    Returns:
      FLOPs per clip (least, and padded with remat), seconds of each part, `step_s` and `mfu` as
      (all overlapped, networks not overlapped), days and chip-hours of the run at each.
    """
    if chip.flops is None:
        return None
    model = facts["model"]
    tokens, num_masked = token_count(model), facts["num_masked"]
    forward = products(model, tokens, num_masked)
    least = step_flops(forward, "none")
    fused = facts["attention"] in ("splash", "cudnn")
    done = step_flops(forward, facts["remat"], chip.unit, fused=fused)
    clips = facts["clips_per_device"] / facts["mesh"]["tensor"]
    peak = peak_flops(facts, chip) or chip.flops
    arithmetic = clips * done / peak
    memory = memory_bytes(model, facts, tokens, num_masked) / chip.bandwidth
    networks = network_seconds(facts["flows"], chip)
    sending = sum(seconds or 0.0 for seconds in networks.values())
    steps = (max(arithmetic, memory, sending), max(arithmetic, memory) + sending)
    days = [seconds * facts["num_steps"] / 86400 for seconds in steps]
    return {
        "flops_per_clip": least,
        "padded_flops_per_clip": done,
        "seconds": {"arithmetic": arithmetic, "memory": memory, **networks},
        "step_s": list(steps),
        "mfu": [clips * least / peak / seconds for seconds in steps],
        "num_steps": facts["num_steps"],
        "days": days,
        "chip_hours": [24 * day * num_chips for day in days],
    }


def peak_flops(facts: Mapping[str, Any], chip: Chip) -> float | None:
    """FLOP/s in the dtype of the step; None if the chip's are not known."""
    if facts["dtype"] == "bfloat16":
        return chip.flops
    return chip.flops_fp32 if facts["precision"] == "highest" else None


def token_count(model: Mapping[str, Any]) -> int:
    """N of a clip."""
    height, width = model["frame_size"]
    frames = model["num_frames"] // model["tubelet_size"]
    return frames * math.prod(side // model["patch_size"] for side in (height, width))
