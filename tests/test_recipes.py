"""The published recipes resolve to the published numbers.

The table is typed from the scripts of MCG-NJU/VideoMAE and the appendix of the paper (arXiv
2203.12602), as rates and epochs stand there; the recipes have the quantities that these come from.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import pytest

from vmae_jax import assembly


class Row(NamedTuple):
    num_clips: int
    width: int
    decoder_depth: int
    epochs: int
    batch: int
    peak_lr: float
    final_lr: float
    mask_ratio: float
    stride: int
    recomputes: bool


K400, SSV2 = 240_436, 168_913  # training videos, docs/DATASET.md of VideoMAE V2
UCF101, HMDB51 = 9_500, 3_500  # rounded in the paper

PUBLISHED = {
    "k400_s": Row(K400, 384, 4, 1601, 1024, 6e-4, 4e-5, 0.9, 4, False),
    "k400_b_800": Row(K400, 768, 4, 801, 2048, 1.2e-3, 8e-5, 0.9, 4, False),
    "k400_b_1600": Row(K400, 768, 4, 1601, 2048, 1.2e-3, 8e-5, 0.9, 4, False),
    "k400_l": Row(K400, 1024, 12, 1601, 512, 3e-4, 2e-5, 0.9, 4, False),
    "k400_h": Row(K400, 1280, 12, 1601, 1024, 6e-4, 4e-5, 0.9, 4, True),
    "ssv2_s": Row(SSV2, 384, 4, 2401, 1024, 6e-4, 4e-5, 0.9, 2, False),
    "ssv2_b_800": Row(SSV2, 768, 4, 801, 2048, 1.2e-3, 8e-5, 0.9, 2, False),
    "ssv2_b_2400": Row(SSV2, 768, 4, 2401, 2048, 1.2e-3, 8e-5, 0.9, 2, False),
    "ucf101_b": Row(UCF101, 768, 4, 3201, 192, 2.25e-4, 7.5e-6, 0.75, 4, False),
    "hmdb51_b": Row(HMDB51, 768, 4, 4800, 192, 2.25e-4, 7.5e-6, 0.75, 2, False),
}
recipes = pytest.mark.parametrize(("name", "row"), PUBLISHED.items(), ids=PUBLISHED)


def load(name: str):
    return importlib.import_module(f"configs.pretrain_{name}").get_config()


@recipes
def test_the_schedule_is_the_published_one(name, row):
    # one video on disk must not shorten the run
    schedule = assembly.make_schedule(load(name), num_records=1)
    steps_per_epoch = row.num_clips // row.batch
    assert schedule.num_steps == row.epochs * steps_per_epoch
    assert schedule.warmup_steps == 40 * steps_per_epoch
    assert schedule.peak_lr == pytest.approx(row.peak_lr)
    assert schedule.final_lr == pytest.approx(row.final_lr)


def test_the_schedule_of_the_best_known_run_in_steps():
    # by hand: 240436 // 2048 = 117
    schedule = assembly.make_schedule(load("k400_b_800"), num_records=1)
    assert (schedule.num_steps, schedule.warmup_steps) == (93_717, 4_680)


@recipes
def test_the_optimizer_is_the_published_one(name, row):
    assert load(name).optimizer.to_dict() == {
        "weight_decay": 0.05, "betas": (0.9, 0.95), "eps": 1e-8, "clip_norm": None,
        "accumulation": 1, "layer_decay": None, "train": None, "ema_decay": None,
    }  # fmt: skip


@recipes
def test_the_model_is_the_published_one(name, row):
    config = load(name)
    model = assembly.make_model_config(config)
    assert (model.hidden_size, model.decoder_num_hidden_layers) == (row.width, row.decoder_depth)
    assert (model.num_frames, model.frame_size, model.grid) == (16, (224, 224), (8, 14, 14))
    assert not model.use_mean_pooling
    assert model.norm_pix_loss
    assert model.drop_path_rate == model.hidden_dropout_prob == 0
    assert (config.compute.remat != "none") is row.recomputes


@recipes
def test_the_objective_is_the_published_one(name, row):
    config = load(name)
    assert config.task == "pretraining"
    assert config.pretraining.to_dict() == {
        "mask": "tube", "mask_ratio": row.mask_ratio, "loss": "mse"
    }  # fmt: skip


@recipes
def test_the_data_are_the_published_ones(name, row):
    data = load(name).data
    assert data.name == {"k400": "kinetics400"}.get(name.split("_")[0], name.split("_")[0])
    assert (data.batch_size, data.frame_stride, data.repeat) == (row.batch, row.stride, 1)


@recipes
def test_prepared_data_leave_the_schedule_as_it_is(name, row):
    before = assembly.make_schedule(load(name), num_records=1)
    config = load(name)
    config.update_from_flattened_dict({"data.name": "prepared", "data.path": "/prepared"})
    assert assembly.make_schedule(config, num_records=row.num_clips // 2) == before


def test_without_a_number_of_clips_an_epoch_is_what_there_is():
    config = load("k400_b_800")
    config.data.num_clips = None
    assert assembly.make_schedule(config, num_records=10 * 2048 + 1).num_steps == 801 * 10


def test_an_epoch_counts_videos_and_not_the_crops_made_of_each():
    config = load("k400_b_800")
    config.data.repeat = 4  # VideoMAE V2: neither rates nor steps count the crops
    config.data.batch_size = 4 * 2048
    assert assembly.make_schedule(config, num_records=1) == assembly.make_schedule(
        load("k400_b_800"), num_records=1
    )
