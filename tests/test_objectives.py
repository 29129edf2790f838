import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vmae_jax import randomness
from vmae_jax.config import VideoMAEConfig
from vmae_jax.losses import LOSSES, classification_loss, mean_loss
from vmae_jax.masking import MASKS
from vmae_jax.objectives import OBJECTIVES, make_objective, pretraining_objective
from vmae_jax.patches import (
    denormalize,
    normalize,
    patch_statistics,
    patchify,
    pixel_targets,
    scale_pixels,
    unpatchify,
)
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute

CONFIG = VideoMAEConfig(
    image_size=(8, 12),
    patch_size=4,
    num_frames=4,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    decoder_hidden_size=12,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=3,
    decoder_intermediate_size=20,
    use_mean_pooling=False,
)
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


def make_video(batch_size=4, config=CONFIG, seed=0):
    shape = (batch_size, config.num_frames, *config.frame_size, config.num_channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


objective = jax.jit(
    pretraining_objective, static_argnames=("mask", "mask_ratio", "loss", "evaluation")
)


def loss_of(model, batch, key=KEYS, **options):
    value, metrics = objective(model, batch, key, **{"mask_ratio": RATIO, **options})
    assert metrics.keys() == {"loss"}
    assert metrics["loss"] == value
    return value


# Pixels and tubelets


def naive_tubelets(video, tubelet_size, patch_size):
    """Token by token, in the order (t, h, w); values in the order (time, row, column, channel)."""
    B, T, H, W, _ = video.shape
    clips = []
    for b in range(B):
        tokens = []
        for t in range(0, T, tubelet_size):
            for y in range(0, H, patch_size):
                for x in range(0, W, patch_size):
                    values = []
                    for dt in range(tubelet_size):
                        for dy in range(patch_size):
                            for dx in range(patch_size):
                                values.extend(video[b, t + dt, y + dy, x + dx])
                    tokens.append(values)
        clips.append(tokens)
    return np.array(clips, video.dtype)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("tubelet_size", "patch_size"), [(2, 4), (1, 2), (4, 2)])
def test_patchify_equals_a_naive_loop(tubelet_size, patch_size, channels):
    video = make_video(2, CONFIG.replace(num_channels=channels))
    tubelets = patchify(jnp.asarray(video), tubelet_size, patch_size)
    np.testing.assert_array_equal(tubelets, naive_tubelets(video, tubelet_size, patch_size))
    assert tubelets.dtype == jnp.uint8


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_unpatchify_undoes_patchify(dtype, channels):
    video = jnp.asarray(make_video(2, CONFIG.replace(num_channels=channels)), dtype)
    again = unpatchify(patchify(video, 2, 4), CONFIG.grid, 2, 4)
    assert again.dtype == dtype
    assert jnp.array_equal(again, video)


def test_pixels_become_floats_up_to_one():
    scaled = scale_pixels(jnp.array([0, 51, 255], jnp.uint8))
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, [0, 0.2, 1], rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_another_dtype_are_refused(dtype):
    video = make_video().astype(dtype)
    with pytest.raises(ValueError, match=f"pixels have dtype {np.dtype(dtype)}, but must be uint8"):
        pretraining_objective(make_model(), {"video": jnp.asarray(video)}, KEYS)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalize_goes_by_channel_and_denormalize_undoes_it(channels):
    statistics = {"image_mean": (0.1, 0.4, 0.7, 0.2), "image_std": (0.2, 0.3, 0.4, 0.5)}
    config = CONFIG.replace(
        num_channels=channels, **{k: v[:channels] for k, v in statistics.items()}
    )
    video = np.random.default_rng(0).uniform(size=(2, 4, 8, 12, channels)).astype(np.float32)
    normalised = (video - config.image_mean) / config.image_std  # channels last: plain broadcasting
    tubelets = normalize(patchify(jnp.asarray(video), 2, 4), config)
    np.testing.assert_allclose(unpatchify(tubelets, config.grid, 2, 4), normalised, atol=1e-6)
    again = denormalize(tubelets, config)
    np.testing.assert_allclose(unpatchify(again, config.grid, 2, 4), video, atol=1e-6)
    assert denormalize(tubelets.astype(jnp.bfloat16), config).dtype == jnp.float32


# Targets


def official_targets(tubelets, channels):
    """engine_for_pretraining.py in fp64: per token and channel, unbiased, 1e-6 outside the root."""
    x = np.asarray(tubelets, np.float64).reshape(*tubelets.shape[:-1], -1, channels)
    mean = x.mean(axis=-2, keepdims=True)
    variance = ((x - mean) ** 2).sum(axis=-2, keepdims=True) / (x.shape[-2] - 1)
    return ((x - mean) / (np.sqrt(variance) + 1e-6)).reshape(tubelets.shape)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_targets_are_those_of_the_official_rule(channels):
    config = CONFIG.replace(num_channels=channels)
    pixels = np.random.default_rng(0).uniform(size=(2, 12, 32 * channels)).astype(np.float32)
    pixels[0, 0] = 0.5 + 1e-5 * (pixels[0, 0] - 0.5)  # where the 1e-6 counts
    targets = pixel_targets(jnp.asarray(pixels), config)
    assert targets.dtype == jnp.float32
    expected = official_targets(pixels, channels)
    np.testing.assert_allclose(targets[:, 1:], expected[:, 1:], atol=2e-5)
    np.testing.assert_allclose(targets[0, 0], expected[0, 0], atol=2e-2)
    by_channel = np.asarray(targets[:, 1:]).reshape(2, 11, 32, channels)  # the channel is fastest
    np.testing.assert_allclose(by_channel.mean(axis=2), 0, atol=1e-5)
    np.testing.assert_allclose(by_channel.std(axis=2, ddof=1), 1, atol=1e-4)


def test_small_standard_deviations_are_not_blown_up():
    # two values a and -a have the unbiased deviation a * sqrt(2)
    config = CONFIG.replace(num_channels=1)
    a = 1e-6
    targets = pixel_targets(jnp.array([[[a, -a]]]), config)
    np.testing.assert_allclose(targets[0, 0, 0], a / (a * np.sqrt(2) + 1e-6), rtol=1e-5)


def test_a_constant_tubelet_gives_zeros():
    targets = pixel_targets(jnp.full((1, 2, 96), 0.25), CONFIG)
    np.testing.assert_array_equal(targets, np.zeros((1, 2, 96)))


def test_targets_without_normalisation_are_the_pixels():
    pixels = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 2, 96)), jnp.float32)
    assert jnp.array_equal(pixel_targets(pixels, CONFIG.replace(norm_pix_loss=False)), pixels)


def test_patch_statistics_undo_the_targets():
    pixels = np.random.default_rng(0).uniform(size=(2, 5, 96)).astype(np.float32)
    mean, std = patch_statistics(jnp.asarray(pixels), 3)
    assert mean.shape == std.shape == (2, 5, 1, 3)
    x = pixels.reshape(2, 5, 32, 3)
    np.testing.assert_allclose(mean[..., 0, :], x.mean(axis=2), atol=1e-6)
    np.testing.assert_allclose(std[..., 0, :], x.std(axis=2, ddof=1), atol=1e-6)
    targets = np.asarray(pixel_targets(jnp.asarray(pixels), CONFIG)).reshape(x.shape)
    np.testing.assert_allclose(targets * (std + 1e-6) + mean, x, atol=1e-5)


def test_predicting_zero_for_noise_costs_what_it_must():
    # n pixels with unbiased variance 1 have a mean square of (n - 1) / n; n = 2 * 16 * 16 here
    config = VideoMAEConfig()
    pixels = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 4, 1536)), jnp.float32)
    targets = pixel_targets(pixels, config)
    loss = mean_loss(jnp.zeros_like(targets), targets)
    assert float(loss) == pytest.approx(511 / 512, abs=1e-5)


# Losses

TORCH_LOSSES = {"mse": "mse_loss", "l1": "l1_loss", "smooth_l1": "smooth_l1_loss"}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_torch(name):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0, 1.5, (3, 4, 5)).astype(np.float32) for _ in range(2))
    reference = getattr(torch.nn.functional, TORCH_LOSSES[name])
    expected = reference(torch.tensor(a), torch.tensor(b), reduction="none").numpy()
    ours = [jnp.asarray(a), jnp.asarray(b), LOSSES[name]]
    np.testing.assert_allclose(mean_loss(*ours), expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(mean_loss(*ours, axis=(1, 2)), expected.mean(axis=(1, 2)), rtol=1e-6)


def test_mean_loss_is_fp32_for_bf16_predictions():
    a = jnp.full((1000,), 0.1, jnp.bfloat16)
    loss = mean_loss(a, jnp.zeros(1000))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, float(a[0]) ** 2, rtol=1e-6)  # not rounded to bf16


@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 3, 4), (3, 4), (2, 4, 3)])
def test_mean_loss_refuses_what_would_broadcast(shape):
    with pytest.raises(ValueError, match=r"predictions \(2, 3, 4\) and targets .* differ in shape"):
        mean_loss(jnp.zeros((2, 3, 4)), jnp.zeros(shape))


# The pre-training objective


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


def test_make_objective_binds_its_options():
    bound = make_objective("pretraining", mask="frame", mask_ratio=RATIO, loss="l1")
    assert bound.func is OBJECTIVES["pretraining"] is pretraining_objective
    batch = {"video": make_video()}
    found, _ = jax.jit(bound, static_argnames="evaluation")(
        make_model(), batch, KEYS, evaluation=True
    )
    expected = loss_of(make_model(), batch, mask="frame", loss="l1", evaluation=True)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pretrain", {}, "objective.name='pretrain' .* did you mean 'pretraining'?"),
        (
            "pretraining",
            {"mask": "tubes"},
            "objective.mask='tubes' .*'tube'.* choose from .*'frame'",
        ),
        ("pretraining", {"loss": "huber"}, "objective.loss='huber' is unknown; .*'smooth_l1'"),
    ],
)
def test_unknown_objectives_masks_and_losses_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_objective(name, **options)


# The classification loss, against torch as transformers calls it


def classification_cases():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (5, 4)).astype(np.float32)
    classes = np.array([0, 3, 1, 2, 3])
    some = np.array([0, -100, 1, -100, 3])
    many = rng.integers(0, 2, (5, 4))
    numbers = rng.normal(size=5).astype(np.float32)
    return {
        "single": ("single_label_classification", logits, classes),
        "single, some not counted": ("single_label_classification", logits, some),
        "multi": ("multi_label_classification", logits, many.astype(np.float32)),
        "multi, integers": ("multi_label_classification", logits, many),
        "regression": ("regression", logits[:, :1], numbers),
        "regression of many": ("regression", logits, logits[::-1].copy()),
    }


@pytest.mark.parametrize("case", classification_cases())
def test_classification_losses_are_those_of_torch(case):
    torch = pytest.importorskip("torch")
    problem_type, logits, labels = classification_cases()[case]
    theirs, answers = torch.tensor(logits), torch.tensor(labels)
    expected = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": lambda x, y: (
            torch.nn.functional.binary_cross_entropy_with_logits(x, y.float())
        ),
        "regression": lambda x, y: torch.nn.functional.mse_loss(x.squeeze(), y.squeeze()),
    }[problem_type](theirs, answers)
    found = classification_loss(jnp.asarray(logits), jnp.asarray(labels), problem_type)
    assert found.shape == ()
    assert float(found) == pytest.approx(expected.item(), rel=1e-6)
    half = classification_loss(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels), problem_type)
    assert half.dtype == jnp.float32


@pytest.mark.parametrize(
    ("problem_type", "shape", "dtype", "message"),
    [
        ("single_label_classification", (4,), int, r"labels have shape \(4,\) .* each of the 5"),
        ("single_label_classification", (5, 4), int, "labels have shape"),
        ("single_label_classification", (5,), float, "dtype float32, but must be one integer"),
        ("multi_label_classification", (5,), float, r"\(5, 4\) and targets \(5,\) differ"),
        ("multi_label_classification", (5, 1), float, r"\(5, 4\) and targets \(5, 1\) differ"),
        ("regression", (5,), float, r"labels \(5,\) must have as many entries .*\(5, 4\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(problem_type, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        classification_loss(jnp.zeros((5, 4)), jnp.zeros(shape, dtype), problem_type)


def test_unknown_problem_types_are_refused():
    with pytest.raises(ValueError, match="problem_type='ranking'"):
        classification_loss(jnp.zeros((5, 4)), jnp.zeros(5, int), "ranking")
