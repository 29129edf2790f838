"""Bounds of a step, against arithmetic by hand."""

from __future__ import annotations

import json

import pytest

from vmae_jax.config import VideoMAEConfig
from vmae_jax.flops import Product, Stack, pretraining_work
from vmae_jax.plan import roofline
from vmae_jax.plan.chips import CHIPS, Chip

# one block of each, of 4 and 8 tokens; 128 units
MODEL = {
    "hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 1024,
    "decoder_hidden_size": 128, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 512, "patch_size": 8, "tubelet_size": 2, "num_channels": 3,
    "num_frames": 4, "image_size": (16, 16),
}  # fmt: skip
WORK = pretraining_work(VideoMAEConfig(**MODEL, use_mean_pooling=False), 4)
FACTS = {
    "work": json.loads(json.dumps(WORK.to_dict())),
    "remat": "none", "dtype": "bfloat16", "accumulation": 1,
    "mesh": {"data": 4, "fsdp": 1, "tensor": 1}, "clips_per_device": 8, "num_steps": 1000,
    "state_bytes": {"params": 4000, "opt_state": 8000}, "frozen_bytes": 0, "parameters": 1000,
    "frozen_parameters": 0, "collectives": [], "attention": "xla",
}  # fmt: skip
CHIP = Chip("tpu", 1e9, flops=1e9, bandwidth=1e9, link=1e6, far_link=1e3, unit=128)


def row(kind, num_bytes, group_size=4, slices=1, times=1):
    return {
        "kind": kind, "num_bytes": num_bytes, "group_size": group_size, "slices": slices,
        "times": times,
    }  # fmt: skip


@pytest.mark.parametrize("size", ["S", "B", "L", "H", "g-v2"])
def test_products_add_up_to_the_least_work(size):
    c = VideoMAEConfig.from_size(size, use_mean_pooling=False)
    num_masked = 1408
    if c.patch_size == 14:
        num_masked = 1840

    def blocks(depth, n, width, mlp):  # all heads together, by hand
        return depth * (2 * n * width * 4 * width + 4 * n**2 * width + 4 * n * width * mlp)

    visible, narrow = c.num_tokens - num_masked, c.decoder_hidden_size
    embedding = 2 * visible * c.tubelet_values * c.hidden_size
    rest = (
        blocks(c.num_hidden_layers, visible, c.hidden_size, c.intermediate_size)
        + 2 * visible * c.hidden_size * narrow
        + blocks(c.decoder_num_hidden_layers, c.num_tokens, narrow, c.decoder_intermediate_size)
        + 2 * num_masked * narrow * c.tubelet_values
    )
    forward = pretraining_work(c, num_masked).all_products()
    assert sum(x.flops() for x in forward) == embedding + rest
    assert roofline.step_flops(forward, "none") == 2 * embedding + 3 * rest


def test_remat_does_again_what_the_backward_pass_needs():
    forward = WORK.all_products()
    extra = {
        remat: roofline.step_flops(forward, remat) - roofline.step_flops(forward, "none")
        for remat in ("attention", "full")
    }
    # by hand, both stacks: qkv 2n*3d², scores 2n²d, output 2nd², up 2n*4d²; full: the mix 2n²d too
    by_hand = sum(2 * n * d * (3 * d + n + d + 4 * d) for n, d in ((4, 256), (8, 128)))
    mix = sum(2 * n * n * d for n, d in ((4, 256), (8, 128)))
    assert extra == {"attention": by_hand, "full": by_hand + mix}
    # scores are as large as the mix; a kernel that keeps none computes them in any case
    none, some, all_ = (
        roofline.step_flops(forward, remat, fused=True) - roofline.step_flops(forward, remat)
        for remat in ("none", "attention", "full")
    )
    assert (none, some, all_) == (mix, 0, mix)


def test_a_product_is_padded_to_whole_units():
    product = Product("scores", 3, rows=10, inner=64, columns=1568)
    assert product.flops() == 2 * 3 * 10 * 64 * 1568
    assert product.flops(128) == 2 * 3 * 10 * 128 * 1664
    assert product.flops(256) == 2 * 3 * 10 * 256 * 1792


def test_seconds_on_the_network():
    # a sum goes around twice: 2 * 3/4 of the bytes; a gather once
    near = roofline.network_seconds([row("all-reduce", 1e6, times=2)], CHIP)
    assert near == {"slice": pytest.approx(2 * 2 * 0.75), "far": 0.0}
    near = roofline.network_seconds([row("all-gather", 1e6), row("reduce-scatter", 1e6)], CHIP)
    assert near["slice"] == pytest.approx(1.5)
    # over 2 slices of 2: half of it crosses within, then each device its half of that between
    both = roofline.network_seconds([row("all-reduce", 1e6, slices=2)], CHIP)
    assert both["slice"] == pytest.approx(2 * 0.5)
    assert both["far"] == pytest.approx(2 * 1e6 / 2 * 0.5 / 1e3)
    assert roofline.network_seconds([row("collective-permute", 2e6)], CHIP)["slice"] == 2.0
    unknown = roofline.network_seconds([row("all-reduce", 1e6, slices=2)], CHIPS["v4"])
    assert unknown["far"] is None
    assert roofline.network_seconds([row("all-reduce", 1e6)], CHIPS["v4"])["far"] == 0.0


def test_what_is_not_known_of_a_network_is_not_called_small():
    loop = row("all-reduce", 1e6, times=None)
    assert roofline.network_seconds([loop], CHIP) == {"slice": None, "far": 0.0}
    alone = row("all-reduce", 1e6, group_size=2, slices=2, times=None)  # one device of each slice
    assert roofline.network_seconds([alone], CHIP) == {"slice": 0.0, "far": None}
    assert roofline.network_seconds([{**loop, "slices": 2}], CHIP) == {"slice": None, "far": None}
    assert roofline.network_seconds(None, CHIP) == {"slice": None, "far": None}
    for collectives in ([loop], None):
        bound = roofline.estimate({**FACTS, "collectives": collectives}, CHIP, num_chips=4)
        assert bound["seconds"]["arithmetic"] > 0
        assert [bound[name] for name in ("step_s", "mfu", "days", "chip_hours")] == [None] * 4


def test_the_longest_part_bounds_the_step():
    facts = {**FACTS, "collectives": [row("all-reduce", 1e6)]}
    bound = roofline.estimate(facts, CHIP, num_chips=4)
    forward = WORK.all_products()
    least = roofline.step_flops(forward, "none")
    arithmetic = 8 * roofline.step_flops(forward, "none", 128) / 1e9
    assert bound["flops_per_clip"] == least
    assert bound["seconds"]["arithmetic"] == pytest.approx(arithmetic)
    assert bound["seconds"]["slice"] == pytest.approx(1.5)
    assert bound["step_s"][0] == max(bound["seconds"].values())
    assert bound["step_s"][1] == pytest.approx(max(arithmetic, bound["seconds"]["memory"]) + 1.5)
    for step, mfu, days, hours in zip(
        bound["step_s"], bound["mfu"], bound["days"], bound["chip_hours"], strict=True
    ):
        assert mfu == pytest.approx(8 * least / 1e9 / step)
        assert days == pytest.approx(1000 * step / 86400)
        assert hours == pytest.approx(days * 24 * 4)
    assert bound["mfu"][0] < 1


def test_float32_has_its_own_peak():
    h100 = CHIPS["h100"]
    exact = {**FACTS, "dtype": "float32", "precision": "highest"}
    bound, bf16 = (roofline.estimate(facts, h100, 8) for facts in (exact, FACTS))
    slower = bound["seconds"]["arithmetic"] / bf16["seconds"]["arithmetic"]
    assert slower == pytest.approx(989 / 67)
    assert roofline.peak_flops({**exact, "precision": "default"}, h100) is None  # TF32: not told
    assert roofline.peak_flops(exact, CHIPS["v5e"]) is None


def test_bytes_of_memory_by_hand():
    # state in and out; gradients of 1000 numbers out and in, fp32; weights in bf16, three times
    fixed = 2 * 12000 + 2 * 4 * 1000 + 3 * 2 * 1000
    # 26 numbers of a token and width, three passes of bf16, both stacks
    activations = 3 * 2 * 26 * (4 * 256 + 8 * 128)
    values = 2 * 8 * 8 * 3
    pixels = 8 * values * 9 + 4 * values * 16
    assert roofline.memory_bytes(FACTS) == fixed + 8 * (activations + pixels)
    again = roofline.memory_bytes({**FACTS, "remat": "full"})
    assert again == fixed + 2000 + 8 * (activations * 4 / 3 + pixels)


def test_a_teacher_goes_forward_alone():
    teacher = Stack(depth=3, tokens=8, width=64, heads=2, mlp_width=128, trained=False)
    both = WORK._replace(stacks=(*WORK.stacks, teacher))
    by_hand = (
        3 * 2 * 8 * (4 * 64 * 64 + 2 * 8 * 64 + 2 * 64 * 128)
    )  # once, whatever is computed again
    for remat in ("none", "attention", "full"):
        for fused in (False, True):
            alone, more = (
                roofline.step_flops(x.all_products(), remat, fused=fused) for x in (WORK, both)
            )
            assert more - alone == by_hand
    facts = {**FACTS, "work": both.to_dict(), "frozen_parameters": 500, "remat": "full"}
    extra = roofline.memory_bytes(facts) - roofline.memory_bytes({**FACTS, "remat": "full"})
    # its weights once in bf16; 22 numbers of a token and width (18 and twice the ratio, 2), once
    assert extra == 500 * 2 + 8 * 2 * 22 * 3 * 8 * 64


def test_tensor_shares_the_work_of_a_clip():
    whole = roofline.estimate(FACTS, CHIP, 4)
    half = roofline.estimate({**FACTS, "mesh": {"data": 2, "fsdp": 1, "tensor": 2}}, CHIP, 4)
    assert half["seconds"]["arithmetic"] == whole["seconds"]["arithmetic"] / 2


def test_a_chip_without_a_peak_has_no_bound():
    assert roofline.estimate(FACTS, CHIPS["cpu"], 8) is None
