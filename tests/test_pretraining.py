"""The pre-training task: its loss against the model's own functions and the official rule."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from pretraining_task import pretraining_objective
from small_clips import CONFIG, make_video, naive_tubelets, official_targets

from vmae_jax import randomness
from vmae_jax.config import VideoMAEConfig
from vmae_jax.errors import SettingError
from vmae_jax.losses import LOSSES
from vmae_jax.masking import MASKS
from vmae_jax.patches import patchify
from vmae_jax.tasks import TASKS, make_task
from vmae_jax.tasks.pretraining import Pretraining
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute

NOISY = CONFIG.replace(
    hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, drop_path_rate=0.5
)
RATIO = 0.5
KEYS = jax.random.split(jax.random.key(0), 4)


pytestmark = pytest.mark.usefixtures("hasty_compiler")


def make_model(config=CONFIG, compute=Compute()):
    """With a random number for every parameter; compiles nothing."""
    model = nnx.eval_shape(
        lambda: VideoMAE(config, decoder=True, compute=compute, rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype),
        nnx.state(model, nnx.Param),
    )
    nnx.update(model, state)
    return model


objective = jax.jit(
    pretraining_objective, static_argnames=("mask", "mask_ratio", "loss", "evaluation")
)


def loss_of(model, batch, key=KEYS, **options):
    value, metrics = objective(model, batch, key, **{"mask_ratio": RATIO, **options})
    assert metrics.keys() == {"loss"}
    assert metrics["loss"] == value
    return value


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_another_dtype_are_refused(dtype):
    video = make_video().astype(dtype)
    with pytest.raises(ValueError, match=f"pixels have dtype {np.dtype(dtype)}, but must be uint8"):
        pretraining_objective(make_model(), {"video": jnp.asarray(video)}, KEYS)


@functools.partial(jax.jit, static_argnames="mask")
def model_outputs(model, video, mask):
    """The mask and predictions of evaluation, by the model's own two functions."""
    hidden = MASKS[mask](randomness.fold_in(KEYS, 0), len(video), model.config.grid, RATIO)
    mean, std = (jnp.array(x) for x in (model.config.image_mean, model.config.image_std))
    normalised = (video / 255 - mean) / std
    tokens = model.encode(patchify(normalised, 2, 4), hidden.visible).tokens
    return hidden, model.decode(tokens, hidden)


NUMPY_LOSSES = {
    "mse": lambda d: d**2,
    "l1": np.abs,
    "smooth_l1": lambda d: np.where(np.abs(d) < 1, d**2 / 2, np.abs(d) - 0.5),
}


@pytest.mark.parametrize(
    ("mask", "loss"), [*((mask, "mse") for mask in MASKS), *(("tube", loss) for loss in LOSSES)]
)
def test_loss_is_the_error_of_the_hidden_tubelets(mask, loss):
    model, video = make_model(), make_video()
    hidden, predictions = model_outputs(model, video, mask)
    pixels = naive_tubelets(video, 2, 4) / 255
    targets = np.stack(
        [clip[rows] for clip, rows in zip(pixels, np.asarray(hidden.masked), strict=True)]
    )
    errors = NUMPY_LOSSES[loss](np.asarray(predictions, np.float64) - official_targets(targets, 3))
    found = loss_of(model, {"video": video}, mask=mask, loss=loss, evaluation=True)
    assert found.shape == ()
    assert float(found) == pytest.approx(errors.mean(), rel=1e-5)


def test_unnormalised_loss_compares_with_the_pixels():
    model, video = make_model(CONFIG.replace(norm_pix_loss=False)), make_video()
    hidden, predictions = model_outputs(model, video, "tube")
    pixels = naive_tubelets(video, 2, 4) / 255
    targets = np.stack(
        [clip[rows] for clip, rows in zip(pixels, np.asarray(hidden.masked), strict=True)]
    )
    expected = ((np.asarray(predictions) - targets) ** 2).mean()
    found = loss_of(model, {"video": video}, evaluation=True)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_clips_of_no_weight_do_not_count():
    model, video = make_model(NOISY), make_video()
    weight = jnp.array([1.0, 1.0, 0.0, 0.0])
    counted = loss_of(model, {"video": video, "weight": weight})
    video[2:] = 0  # what padding holds is of no consequence
    padded = loss_of(model, {"video": video, "weight": weight})
    alone = loss_of(model, {"video": video[:2]}, KEYS[:2])
    everything = loss_of(model, {"video": make_video()})
    assert float(counted) == float(padded)
    assert float(counted) == pytest.approx(float(alone), rel=1e-5)
    assert float(counted) != pytest.approx(float(everything), rel=1e-3)


def test_loss_of_a_batch_is_the_mean_of_its_micro_batches():
    # with dropout, drop path and masks: all of them belong to the clip
    model, video = make_model(NOISY), make_video()
    whole = loss_of(model, {"video": video})
    parts = [loss_of(model, {"video": video[i : i + 2]}, KEYS[i : i + 2]) for i in (0, 2)]
    assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)
    one_key = loss_of(model, {"video": video}, jax.random.key(0))  # KEYS is this one, split
    assert float(one_key) == pytest.approx(float(whole), rel=1e-6)


def test_evaluation_has_no_dropout_but_masks():
    video = make_video()
    evaluated = loss_of(make_model(NOISY), {"video": video}, evaluation=True)
    quiet = loss_of(make_model(), {"video": video}, evaluation=True)
    assert float(evaluated) == pytest.approx(float(quiet), rel=1e-6)
    assert float(loss_of(make_model(NOISY), {"video": video})) != pytest.approx(
        float(quiet), rel=1e-3
    )
    other_masks = loss_of(
        make_model(), {"video": video}, jax.random.split(jax.random.key(1), 4), evaluation=True
    )
    assert float(other_masks) != pytest.approx(float(quiet), rel=1e-4)


def test_bf16_models_have_fp32_losses():
    model = make_model(compute=Compute(dtype=jnp.bfloat16))
    found = loss_of(model, {"video": make_video()}, evaluation=True)
    expected = loss_of(make_model(), {"video": make_video()}, evaluation=True)
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(float(expected), rel=0.02)


def test_clips_of_another_size_are_refused():
    video = make_video(config=CONFIG.replace(num_frames=8))
    with pytest.raises(ValueError, match=r"tubelets have shape \(4, 24, 96\)"):
        pretraining_objective(make_model(), {"video": jnp.asarray(video)}, KEYS, mask_ratio=RATIO)


def make_config(task="pretraining", **options):
    return ConfigDict({"task": task, "pretraining": options})


def test_make_task_binds_its_options():
    task = make_task(make_config(mask="frame", mask_ratio=RATIO, loss="l1"))
    assert type(task) is TASKS["pretraining"] is Pretraining
    batch = {"video": make_video()}
    found, _ = jax.jit(task.objective, static_argnames="evaluation")(
        make_model(), batch, KEYS, {}, evaluation=True
    )
    expected = loss_of(make_model(), batch, mask="frame", loss="l1", evaluation=True)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_function_of_the_users_own_may_stand_for_a_name():
    mask, loss = jax.tree_util.Partial(MASKS["frame"]), LOSSES["l1"]
    batch = {"video": make_video()}
    task = Pretraining(mask=mask, mask_ratio=RATIO, loss=lambda p, t: 2 * loss(p, t))
    found, _ = jax.jit(task.objective)(make_model(), batch, KEYS, {})
    expected = loss_of(make_model(), batch, mask="frame", loss="l1")
    assert float(found) == pytest.approx(2 * float(expected), rel=1e-6)


def test_the_baseline_is_that_of_normalised_targets_and_squares():
    config = VideoMAEConfig()
    assert Pretraining().baseline(config).loss == 511 / 512
    assert Pretraining().baseline(config.replace(norm_pix_loss=False)) is None
    assert Pretraining(loss="l1").baseline(config) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pretrain", {}, "task='pretrain' is unknown; did you mean 'pretraining'?"),
        (
            "pretraining",
            {"mask": "tubes"},
            "pretraining.mask='tubes' .*'tube'.* choose from .*'frame'",
        ),
        ("pretraining", {"loss": "huber"}, "pretraining.loss='huber' is unknown; .*'smooth_l1'"),
        ("pretraining", {"masc": "tube"}, r"pretraining\.masc is no option .*'mask_ratio'"),
    ],
)
def test_unknown_tasks_masks_and_losses_are_named(name, options, message):
    with pytest.raises(SettingError, match=message):
        make_task(make_config(name, **options))
