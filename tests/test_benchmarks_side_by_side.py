"""The comparisons with transformers: what they write, not how fast anything is."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = {
    "image_size": 32,
    "num_frames": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "num_labels": 5,
}
MODEL = ["--size=S", "--threads=1", "--model", *(f"{name}={x}" for name, x in TINY.items())]
ONCE = ["--batch=2", "--dtype=float32", "--warmup=0", "--steps=1", "--rounds=1"]
README = (BENCHMARKS / "README.md").read_text()


@pytest.fixture(scope="module")
def load():
    """Imports one of the scripts, which are no package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(BENCHMARKS))


def run(script, output, *arguments):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments, *MODEL, f"--output={output}"],
        env={
            **os.environ,
            "PYTHONPATH": str(BENCHMARKS.parent),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(output.read_text())
    for keys in (result, *result["sides"].values()):
        assert [x for x in keys if f"`{x.removeprefix('round_')}`" not in README] == []
    return result


def test_finetune_step_writes_a_step_of_the_recipe(tmp_path):
    result = run("finetune_step.py", tmp_path / "x.json", "--peer=none", *ONCE)
    ours = result["sides"]["ours"]
    # random weights: a guess among five classes
    assert ours["first_value"] == pytest.approx(np.log(5), abs=0.3)
    assert result["flops_per_clip"] > 0
    assert 0 < ours["round_peak_memory_bytes"] <= ours["peak_memory_bytes"]
    assert result["product_flop_per_s"] == ours["product_flop_per_s"] > 0


def test_infer_compares_the_same_probabilities(tmp_path):
    result = run("infer.py", tmp_path / "x.json", "--what=pipeline", "--peer=eager", *ONCE)
    ours, eager = result["sides"].values()
    assert ours["last_value"] == pytest.approx(eager["last_value"], abs=1e-5)
    assert eager["threads_found"] == 1
    assert result["ratio"]["of"] == "eager"
    assert result["ratio"]["rounds"] == [eager["round_step_s"][0] / ours["round_step_s"][0]]
    memory = ours["peak_memory_bytes"] / eager["peak_memory_bytes"]
    assert result["memory_ratio"] == pytest.approx(memory)


def test_start_up_loads_a_run_of_ours(tmp_path):
    result = run("start_up.py", tmp_path / "x.json", "--source=run", "--peer=none", "--rounds=1")
    ours = result["sides"]["ours"]
    stages = ("imported_s", "loaded_s", "first_logits_s", "second_logits_s")
    times = [ours[name]["median"] for name in stages]
    assert times == sorted(times)
    assert times[0] > 0
    assert result["ratio"] is None


def test_compile_finds_the_cold_program_in_the_cache(tmp_path):
    result = run("compile.py", tmp_path / "x.json", "--peer=none", "--batch=1", "--rounds=1")
    assert list(result["sides"]) == ["ours", "ours_cached"]
    assert [x["cache_hits"] > 0 for x in result["sides"].values()] == [False, True]


@pytest.mark.parametrize("task", ["pretraining", "finetuning"])
def test_the_peer_trains(load, task):
    training_step = load("training_step")
    config = {**TINY, "use_mean_pooling": task == "finetuning"}
    labels = {str(i): f"class {i}" for i in range(config.pop("num_labels"))}
    settings = {
        "task": task,
        "config": {**config, "id2label": labels, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        "batch": 2,
        "dtype": "float32",
        "grid": (2, 2, 2),
        "num_masked": 4,
    }
    threads = load("torch").get_num_threads()
    side = training_step.make_side("eager", settings)
    load("torch").set_num_threads(threads)
    losses = [side.value(side.step()) for _ in range(3)]
    assert losses[-1] < losses[0]
    if task == "pretraining":
        assert {tuple(mask.sum(1).tolist()) for mask in side.targets} == {(4, 4)}
    else:
        # embeddings lie three steps below the head, and only matrices decay
        groups = {(g["lr"], g["weight_decay"]) for g in side.optimizer.param_groups}
        rates = {5e-4 * 0.75**k for k in range(4)}
        assert groups == {(rate, decay) for rate in rates for decay in (0.0, 0.05)}


def test_flops_counts_fine_tuning(load, hasty_compiler):
    settings = {"batch": 2, "mask_ratio": 0.9, "remat": "none"}
    found = load("flops").count(
        "S fine-tuning", {**settings, "model": {**TINY, "num_hidden_layers": 1}}
    )
    # all products, and in a model so small as much again that is elementwise
    assert 1 <= found["traced_over_least"] < 4
    assert found["compiled"] > 0


def test_a_ratio_is_that_of_the_faster_peer(load):
    side_by_side = load("side_by_side")
    sides = {
        "ours": {"ok": True, "round_s": [2, 2, 4], "peak_memory_bytes": 30},
        "eager": {"ok": True, "round_s": [4, 6, 8], "peak_memory_bytes": 10},
        "compiled": {"ok": True, "round_s": [1, 3, 8], "peak_memory_bytes": 20},
    }
    found = side_by_side.compare_readings(sides, "s")
    # by hand: 0.5, 1.5, 2
    assert found["ratio"]["of"] == "compiled"
    assert found["ratio"]["rounds"] == [0.5, 1.5, 2]
    assert found["ratio"]["median"] == 1.5
    assert found["ratios"]["eager"]["median"] == 2
    assert found["memory_ratio"] == 1.5
    sides["compiled"] = {"ok": False}
    assert side_by_side.compare_readings(sides, "s")["ratio"]["of"] == "eager"


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_make_bench_runs_commands_that_there_are(load, monkeypatch, platform):
    bench = load("bench")
    for line in bench.commands(platform, cores=2):
        script, *arguments = shlex.split(line)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        if script != "flops.py":
            threads = [x for x in arguments if x == "--threads"]
            monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
            args = load(script.removesuffix(".py")).parse_arguments()
            assert args.threads in (1, 2) or not threads


def test_goals_of_a_cpu_are_speed_and_memory(load):
    bench = load("bench")
    result = {
        "benchmark": "train_step",
        "settings": {"size": "B", "threads": 1},
        "sides": {"ours": {"ok": True, "device": "cpu", "mfu": None}},
        "ratio": {"median": 1.1},
        "memory_ratio": 1.2,
    }
    assert bench.goals(result) == {"speed": True, "memory": False}
    result["sides"]["ours"] |= {"device": "NVIDIA H200", "mfu": 0.5}
    assert bench.goals(result) == {"share of peak": True, "speed": False}


def test_tables_of_the_readme_are_made_of_the_results(load):
    # benchmarks/bench.py --render makes them
    assert load("bench").rendered(README) == README
