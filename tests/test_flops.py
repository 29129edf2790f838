import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from flax import nnx
from pretraining_task import graph_definition, make_model, pretraining_objective

from vmae_jax.config import VideoMAEConfig
from vmae_jax.flops import (
    Product,
    Work,
    classification_flops,
    classification_work,
    peak_flops,
    pretraining_flops,
    pretraining_work,
)
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute

REPOSITORY = Path(__file__).parents[1]
TINY = VideoMAEConfig(
    image_size=(8, 12),
    patch_size=4,
    num_frames=4,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    decoder_hidden_size=6,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=3,
    decoder_intermediate_size=10,
    use_mean_pooling=False,
    num_labels=5,
)  # N = 2 * 2 * 3 = 12, P = 2 * 4 * 4 * 3 = 96


def _hidden(config):
    t, h, w = config.grid
    return t * int(0.9 * h * w)


@pytest.mark.parametrize(
    ("size", "changes", "gflop"),
    [
        # the project's measurements of the prototype, made before this module
        ("B", {}, 202.3),
        ("L", {}, 842.0),
        ("L-v2", {}, 484.4),
        ("H", {}, 1408.4),
        ("H", {"decoder_num_hidden_layers": 4}, 887.4),
        # that prototype's decoder had an mlp of 4 widths; V2's has 48/11 (2234), as SIZES says
        ("g-v2", {"decoder_intermediate_size": 2048}, 1555.4),
        # 186 more rows in 2 products, 4 blocks, 2048 tokens: 12 * 186 * 512 * 4 * 2048 = 9.36e9
        ("g-v2", {}, 1564.8),
    ],
)
def test_pretraining_flops_of_published_sizes(size, changes, gflop):
    config = VideoMAEConfig.from_size(size, **changes)
    assert round(pretraining_flops(config, _hidden(config)) / 1e9, 1) == gflop


@pytest.mark.parametrize(
    ("size", "gflop"), [("S", 339.4), ("B", 1078.4), ("L", 3576), ("H", 7140), ("g-v2", 15250)]
)
def test_classification_flops_of_published_sizes(size, gflop):
    # the same measurements; they are rounded to integers from L on
    digits = 1 if gflop < 2000 else 0
    flops = classification_flops(VideoMAEConfig.from_size(size, num_labels=2))
    assert round(flops / 1e9, digits) == gflop


def test_pretraining_flops_equal_a_hand_count():
    # m * n * k of each product, 4 tokens visible, 8 hidden, 12 in all
    embedding = 4 * 96 * 8
    encoder_block = 3 * (4 * 8 * 8) + 2 * (4 * 4 * 8) + 4 * 8 * 8 + 2 * (4 * 8 * 20)
    to_decoder = 4 * 8 * 6
    decoder_block = 3 * (12 * 6 * 6) + 2 * (12 * 12 * 6) + 12 * 6 * 6 + 2 * (12 * 6 * 10)
    head = 8 * 6 * 96
    rest = 2 * encoder_block + to_decoder + decoder_block + head
    assert pretraining_flops(TINY, 8, gradient=False) == 2 * (embedding + rest)
    assert pretraining_flops(TINY, 8) == 2 * (2 * embedding + 3 * rest)


def _product_flops(jaxpr):
    """2 * m * n * k of all products in a traced program, a scan's body as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            k = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * k * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += times * _product_flops(inner)
    return total


def test_training_multiplies_no_more_than_pretraining_flops():
    # the program itself, traced
    params = jax.eval_shape(
        lambda: nnx.to_pure_dict(nnx.state(make_model(TINY, Compute(), 0), nnx.Param))
    )
    graphdef = graph_definition(TINY, Compute())
    video = jax.ShapeDtypeStruct((3, 4, 8, 12, 3), jnp.uint8)

    def loss_of(params, video):
        model = nnx.merge(graphdef, params)
        key = jax.random.key(0)
        return pretraining_objective(model, {"video": video}, key, mask_ratio=0.67)[0]

    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss_of))(params, video).jaxpr
    assert _product_flops(jaxpr) == 3 * pretraining_flops(TINY, 8)


def test_classifying_multiplies_no_more_than_classification_flops():
    def logits(tubelets):
        model = VideoMAE(TINY, classifier=True, rngs=nnx.Rngs(0))
        return model.classify(model.encode(tubelets).tokens)

    jaxpr = jax.make_jaxpr(logits)(jax.ShapeDtypeStruct((3, 12, 96), jnp.float32)).jaxpr
    assert _product_flops(jaxpr) == 3 * classification_flops(TINY, gradient=False)


def test_a_frozen_encoder_goes_forward_alone():
    # a linear probe: of its head only the gradient by the weights, whose input needs none
    work = classification_work(TINY)
    frozen = work._replace(
        stacks=tuple(stack._replace(trained=False) for stack in work.stacks),
        products=(
            work.products[0]._replace(gradients=0),
            Product("head", 1, 1, 8, 5, gradients=1),
        ),
    )
    assert frozen.flops(gradient=False) == classification_flops(TINY, gradient=False)
    assert frozen.flops() == classification_flops(TINY, gradient=False) + 2 * 8 * 5


def test_work_has_the_sizes_of_pixels_and_predictions():
    work = pretraining_work(TINY, 8)
    assert (work.pixels, work.predicted) == (4 * 8 * 12 * 3, 8 * 96)  # a clip's; 8 tubelets
    assert [stack.tokens for stack in work.stacks] == [4, 12]
    assert classification_work(TINY).predicted == 5


@pytest.mark.parametrize("work", [pretraining_work(TINY, 8), classification_work(TINY)])
def test_work_comes_back_from_json(work):
    assert Work.from_dict(json.loads(json.dumps(work.to_dict()))) == work


@pytest.mark.parametrize("num_masked", [0, 12])
def test_flops_need_something_hidden_and_something_visible(num_masked):
    with pytest.raises(ValueError, match=f"num_masked={num_masked} of 12"):
        pretraining_flops(TINY, num_masked)


def test_peak_is_known_only_for_listed_devices():
    # the maker's data sheet: 989 TFLOP/s in bf16, dense
    assert peak_flops("NVIDIA H200", "bfloat16") == 989e12
    assert peak_flops("TPU v5 lite", "float32") is None
    assert peak_flops("NVIDIA H200 MIG 1g.18gb", "bfloat16") is None


def test_train_step_benchmark_writes_what_its_readme_says(tmp_path):
    output = tmp_path / "result.json"
    tiny = "--model image_size=32 num_frames=2 --mask-ratio 0.5 --batch 1 --dtype float32"
    command = f"--size S --peer none {tiny} --warmup 0 --steps 2 --rounds 2 --output {output}"
    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "train_step.py", *command.split()],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    readme = (REPOSITORY / "benchmarks" / "README.md").read_text()
    for keys in (result, result["sides"]["ours"]):
        assert [name for name in keys if f"`{name}`" not in readme] == []
    # by hand: 2 tokens visible, 2 hidden
    config = VideoMAEConfig.from_size("S", image_size=32, num_frames=2)
    assert result["flops_per_clip"] == pretraining_flops(config, 2)
    assert result["ratio"] is None
    ours = result["sides"]["ours"]
    assert ours["ok"]
    assert ours["timings"] == 2
    assert ours["clips_per_s"] == pytest.approx(1 / ours["step_s"]["median"])
    assert ours["mfu"] is None
    # normalised noise that is predicted as about 0 costs its own variance, 1
    assert ours["last_value"] < ours["first_value"] == pytest.approx(1, abs=0.15)
    assert "ours" in done.stdout
