from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmae_jax.plan import memory_estimate

# 8 tokens of 384 values, 4 hidden; encoder of 2 blocks, decoder of 1
FACTS = {
    "work": {
        "stacks": [
            {"depth": 2, "tokens": 4, "width": 256, "heads": 4, "mlp_width": 1024},
            {"depth": 1, "tokens": 8, "width": 128, "heads": 2, "mlp_width": 512},
        ],
        "products": [],
        "pixels": 8 * 384,
        "predicted": 4 * 384,
    },
    "dtype": "bfloat16", "clips_per_device": 6, "accumulation": 1,
    "mesh": {"data": 4, "fsdp": 1, "tensor": 1},
    "state_bytes": {"params": 4000, "opt_state": 8000}, "frozen_bytes": 0, "batch_bytes": 100,
    "attention": "cudnn",
}  # fmt: skip


@pytest.mark.parametrize(
    ("remat", "per_token", "mlp"),  # in numbers of two bytes; without remat a part is in fp32
    [("none", 8 + 2 * 6, 2 + 2 * 1.5), ("attention", 2, 0), ("full", 1, 0)],
)
def test_bytes_by_hand(remat, per_token, mlp):
    found = memory_estimate.peak_bytes({**FACTS, "remat": remat})
    encoder = 2 * 4 * (per_token * 256 + mlp * 1024)
    decoder = 1 * 8 * (per_token * 128 + mlp * 512)
    assert found == {
        "state": 12100,
        "gradients": 4000,
        "kept": 6 * 2 * (encoder + decoder),
        "working": 6 * 2 * 2 * 4 * (8 * 256 + 2 * 1024),
        "pixels": 6 * 4 * 384 * (8 + 3 * 4),
    }


def test_scores_that_no_kernel_saves():
    def more(remat, **changes):
        facts = {**FACTS, "remat": remat, **changes}
        fused, plain = (
            memory_estimate.peak_bytes({**facts, "attention": name}) for name in ("cudnn", "xla")
        )
        return {name: plain[name] - fused[name] for name in plain if plain[name] != fused[name]}

    # fp32 and bf16, of each pair of tokens and head; remat has those of one block at a time
    assert more("none") == {"kept": 6 * 6 * (2 * 4 * 4 * 4 + 1 * 2 * 8 * 8)}
    assert more("full") == {"working": 6 * 6 * 2 * 8 * 8}  # the decoder's are larger
    assert more("none", dtype="float32") == {"kept": 6 * 8 * (2 * 4 * 4 * 4 + 1 * 2 * 8 * 8)}


def test_micro_batches_and_tensor_share():
    whole = memory_estimate.peak_bytes({**FACTS, "remat": "none"})
    parts = memory_estimate.peak_bytes({**FACTS, "remat": "none", "accumulation": 3})
    assert parts["kept"] == whole["kept"] / 3
    assert parts["state"] == whole["state"]
    split = memory_estimate.peak_bytes(
        {**FACTS, "remat": "none", "mesh": {"data": 2, "fsdp": 1, "tensor": 2}}
    )
    assert whole["kept"] / 2 < split["kept"] < whole["kept"]


def test_a_teacher_keeps_nothing_for_the_backward_pass():
    teacher = {
        "depth": 9,
        "tokens": 8,
        "width": 512,
        "heads": 2,
        "mlp_width": 512,
        "trained": False,
    }
    work = FACTS["work"]
    both = {**work, "stacks": [*work["stacks"], teacher]}
    facts = {**FACTS, "remat": "none"}
    found = memory_estimate.peak_bytes({**facts, "work": both, "frozen_bytes": 700})
    alone = memory_estimate.peak_bytes(facts)
    assert found["state"] == alone["state"] + 700
    assert found["kept"] == alone["kept"]
    assert found["working"] == 6 * 2 * 8 * (8 * 512 + 2 * 512)  # one block of it, no gradients
    plain = memory_estimate.peak_bytes({**facts, "work": both, "attention": "xla"})
    assert plain["working"] == found["working"] + 6 * 6 * 2 * 8 * 8


def test_it_is_near_what_the_tpu_compiler_says():
    results = Path(__file__).parents[1] / "benchmarks/results/plan_tpu.json"
    rows = [row for row in json.loads(results.read_text())["cells"] if row["facts"] is not None]
    assert {row["remat"] for row in rows} == {"none", "attention"}
    for row in rows:
        found = sum(memory_estimate.peak_bytes(row["facts"]).values()) / row["peak_bytes"]
        assert 0.8 < found < 1.25, (row["model"], row["topology"], found)
