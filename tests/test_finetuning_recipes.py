"""The published fine-tuning recipes resolve to the published numbers.

The table is typed from the scripts of MCG-NJU/VideoMAE and the appendix of the paper (arXiv
2203.12602), as rates stand there, already scaled; the recipes have the quantities that these come
from. What neither says is ours, and said to be in the docstrings.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import jax
import pytest

from vmae_jax import assembly, config_file, optim
from vmae_jax.tasks import make_task
from vmae_jax.tasks.finetuning import FineTuning

ROOT = pathlib.Path(__file__).parents[1]


class Row(NamedTuple):
    width: int
    num_clips: int
    num_labels: int
    epochs: int
    gpu_batch: int
    num_gpus: int
    num_sample: int
    peak_lr: float
    final_lr: float
    layer_decay: float
    drop_path: float
    head_drop: float
    sampling: str
    flips: bool
    views: tuple[int, int]
    frames: int = 16


K400, SSV2 = (240_436, 400), (168_913, 174)
DENSE, TSN = ("dense", True), ("tsn", False)
PUBLISHED = {
    "k400_s": Row(
        384, *K400, 150, 12, 32, 2, 7.5e-4, 1.5e-6, 0.75, 0.1, 0, *DENSE, (5, 3)),
    "k400_b_800": Row(
        768, *K400, 100, 8, 64, 1, 2e-3, 2e-6, 0.75, 0.1, 0, *DENSE, (5, 3)),
    "k400_b_1600": Row(
        768, *K400, 75, 6, 64, 2, 7.5e-4, 1.5e-6, 0.75, 0.1, 0, *DENSE, (5, 3)),
    "k400_l": Row(
        1024, *K400, 35, 2, 64, 2, 1e-3, 5e-7, 0.75, 0.1, 0, *DENSE, (5, 3)),
    "k400_h": Row(
        1280, *K400, 50, 8, 64, 2, 2e-3, 2e-5, 0.75, 0.2, 0.5, *DENSE, (5, 3)),
    "ssv2_s": Row(
        384, *SSV2, 40, 12, 32, 2, 1.5e-3, 1.5e-6, 0.7, 0.1, 0, *TSN, (2, 3)),
    "ssv2_b_800": Row(
        768, *SSV2, 50, 8, 64, 1, 1e-3, 2e-6, 0.75, 0.1, 0, *TSN, (2, 3)),
    "ssv2_b_2400": Row(
        768, *SSV2, 30, 6, 64, 2, 7.5e-4, 1.5e-6, 0.75, 0.1, 0, *TSN, (2, 3)),
    "ssv2_l": Row(
        1024, *SSV2, 30, 8, 64, 2, 1e-3, 2e-6, 0.75, 0.2, 0.5, *TSN, (2, 3)),
    "ssv2_l_32": Row(
        1024, *SSV2, 30, 8, 64, 2, 1e-3, 2e-6, 0.75, 0.2, 0.5, *TSN, (1, 3), 32),
    "ucf101_b": Row(
        768, 9_500, 101, 100, 16, 8, 2, 2.5e-4, 5e-6, 0.7, 0.2, 0.5, *DENSE, (5, 3)),
    "hmdb51_b": Row(
        768, 3_500, 51, 50, 16, 8, 2, 5e-4, 5e-7, 0.7, 0.2, 0, *DENSE, (10, 3)),
}  # fmt: skip
recipes = pytest.mark.parametrize(("name", "row"), PUBLISHED.items(), ids=PUBLISHED)


def load(name: str, *overrides: str):
    return config_file.load(f"finetune_{name}", overrides)


def test_each_row_has_a_recipe_and_each_recipe_a_row():
    files = {path.stem for path in (ROOT / "configs").glob("finetune_*.py")}
    assert files - {"finetune_default", "finetune_demo"} == {f"finetune_{n}" for n in PUBLISHED}


@recipes
def test_rates_and_steps_are_the_published_ones(name, row):
    schedule = assembly.make_schedule(load(name), num_records=1)
    steps_per_epoch = row.num_clips // (row.gpu_batch * row.num_gpus)
    assert schedule.num_steps == row.epochs * steps_per_epoch
    assert schedule.warmup_steps == 5 * steps_per_epoch
    assert schedule.peak_lr == pytest.approx(row.peak_lr)
    assert schedule.final_lr == pytest.approx(row.final_lr)


@recipes
def test_batches_groups_and_views_are_the_published_ones(name, row):
    config = load(name)
    assert config.data.batch_size == row.gpu_batch * row.num_gpus * row.num_sample
    assert config.data.repeat == row.num_sample
    assert config.finetuning.mixup.group == row.gpu_batch * row.num_sample
    assert (config.evals.test.data.segments, config.evals.test.data.crops) == row.views
    assert config.finetuning.sampling == row.sampling
    assert config.finetuning.augment.flip is row.flips


@recipes
def test_the_model_is_the_published_one(name, row):
    config = load(name)
    task = make_task(config)
    model = assembly.make_model_config(config)
    assert isinstance(task, FineTuning)
    assert (model.hidden_size, model.num_frames, model.num_labels) == (
        row.width, row.frames, row.num_labels,
    )  # fmt: skip
    assert model.drop_path_rate == row.drop_path
    assert model.head_dropout_prob == row.head_drop
    assert model.use_mean_pooling


@recipes
def test_layers_have_the_published_rates(name, row):
    """Block k of L has d^(L - k), patches d^(L + 1), the rest 1."""
    config = load(name)
    model = assembly.make_model_config(config)
    depth, decay = model.num_hidden_layers, row.layer_decay
    shape = jax.ShapeDtypeStruct((depth, 3), "float32")
    params = {
        "embeddings": {"kernel": shape}, "encoder": {"output": {"kernel": shape}},
        "fc_norm": {"scale": shape}, "classifier": {"kernel": shape},
    }  # fmt: skip
    scales = optim.layer_scales(params, config.optimizer.layer_decay, depth)
    blocks = scales["encoder"]["output"]["kernel"].ravel()
    assert blocks == pytest.approx([decay ** (depth - k) for k in range(depth)])
    assert scales["embeddings"]["kernel"] == pytest.approx(decay ** (depth + 1))
    assert scales["fc_norm"]["scale"] == scales["classifier"]["kernel"] == 1


def test_the_factors_of_b_as_published():
    """Figures of the official log, for 12 blocks and 0.75."""
    config = load("k400_b_800")
    shape = jax.ShapeDtypeStruct((12, 3), "float32")
    scales = optim.layer_scales(
        {"embeddings": {"kernel": shape}, "encoder": {"kernel": shape}},
        config.optimizer.layer_decay,
        12,
    )
    assert scales["embeddings"]["kernel"] == pytest.approx(0.02376, abs=5e-6)
    assert scales["encoder"]["kernel"][0, 0] == pytest.approx(0.03168, abs=5e-6)
    assert scales["encoder"]["kernel"][11, 0] == pytest.approx(0.75)


def test_what_all_have_in_common():
    config = load("k400_b_800")
    augment, mixup = config.finetuning.augment, config.finetuning.mixup
    assert (augment.rand_augment, augment.erase_prob) == ("rand-m7-n4-mstd0.5-inc1", 0.25)
    assert (tuple(augment.scale), tuple(augment.ratio)) == ((0.08, 1.0), (0.75, 4 / 3))
    assert (mixup.alpha, mixup.cutmix_alpha, mixup.prob) == (0.8, 1.0, 1.0)
    assert (mixup.switch_prob, mixup.mode) == (0.5, "batch")
    assert config.finetuning.label_smoothing == 0.1
    assert config.finetuning.head_init_scale == 0.001
    assert tuple(config.optimizer.betas) == (0.9, 0.999)
    assert (config.optimizer.weight_decay, config.optimizer.clip_norm) == (0.05, None)
    assert config.optimizer.ema_decay is None
