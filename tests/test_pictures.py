from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from vmae_jax import pictures, reconstruction
from vmae_jax.config import VideoMAEConfig
from vmae_jax.interpolation import interpolate_visible
from vmae_jax.masking import MASKS, Mask
from vmae_jax.patches import patchify
from vmae_jax.videomae import VideoMAE

pytestmark = pytest.mark.usefixtures("hasty_compiler")


def make_config(channels=3, norm_pix_loss=True, frame_size=(32, 48)):
    return VideoMAEConfig(
        image_size=frame_size,
        patch_size=8,
        num_channels=channels,
        num_frames=8,
        norm_pix_loss=norm_pix_loss,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )


def make_video(config, num_clips=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = (num_clips, config.num_frames, *config.frame_size, config.num_channels)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def make_mask(config, num_clips=2, name="tube", ratio=0.75):
    return MASKS[name](jax.random.key(3), num_clips, config.grid, ratio)


def cut(video, config):
    """Tubelets fp64 [B, N, pixels, C] in [0, 1] of a uint8 video."""
    return cut_pixels(video.astype(np.float64) / 255, config)


def cut_pixels(video, config):
    """Tubelets [B, N, pixels, C], by plain loops."""
    s, p = config.tubelet_size, config.patch_size
    t, h, w = config.grid
    tubelets = [
        video[:, i * s : (i + 1) * s, j * p : (j + 1) * p, k * p : (k + 1) * p]
        for i in range(t)
        for j in range(h)
        for k in range(w)
    ]
    x = np.stack(tubelets, axis=1)
    return x.reshape(*x.shape[:2], -1, config.num_channels)


def true_targets(video, mask, config):
    """Normalised targets fp32 [B, N_mask, P] of the hidden tubelets, by plain loops."""
    x = cut(video, config)
    rows = []
    for clip, masked in zip(x, np.asarray(mask.masked), strict=True):
        hidden = clip[masked]
        std = hidden.std(axis=1, ddof=1, keepdims=True)
        rows.append((hidden - hidden.mean(axis=1, keepdims=True)) / (std + 1e-6))
    return np.stack(rows).reshape(len(rows), mask.masked.shape[1], -1).astype(np.float32)


def test_true_targets_rendered_with_the_leak_give_the_original_back():
    config = make_config()
    video, mask = make_video(config), make_mask(config)
    result = reconstruction.render(true_targets(video, mask, config), video, mask, config)
    leaky = result.renderings[1]
    assert leaky.leaks
    np.testing.assert_allclose(leaky.video, video / 255, atol=1e-6)
    assert reconstruction.psnr(leaky.error) > 120


def test_what_is_neither_seen_nor_predicted_is_grey_and_not_measured():
    config = make_config()
    video, whole = make_video(config), make_mask(config)
    part = Mask(whole.visible, whole.masked[:, ::2], whole.num_tokens)
    targets = true_targets(video, whole, config)
    result, expected = (
        reconstruction.render(predictions, video, mask, config)
        for predictions, mask in ((targets[:, ::2], part), (targets, whole))
    )
    np.testing.assert_array_equal(result.hidden, expected.hidden)
    np.testing.assert_array_equal(result.masked, expected.masked)
    leaky = cut_pixels(result.renderings[1].video, config)
    clips = np.arange(2)[:, None]
    left_out = np.asarray(whole.masked[:, 1::2])
    assert np.all(leaky[clips, left_out] == reconstruction.GREY)
    others = np.setdiff1d(np.arange(config.num_tokens), left_out[0])
    np.testing.assert_allclose(
        leaky[0, others], cut_pixels(video / 255, config)[0, others], atol=1e-6
    )
    assert reconstruction.psnr(result.renderings[1].error) > 120  # of the predicted alone


def place_of(token, config):
    t, h, w = np.unravel_index(token, config.grid)
    return 0.7 * t, h, w


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_leak_free_error_agrees_with_loops(channels):
    config = make_config(channels)
    video, mask = make_video(config), make_mask(config, name="random", ratio=0.6)
    rng = np.random.default_rng(1)
    predictions = rng.standard_normal((2, mask.masked.shape[1], config.tubelet_values))
    predictions = predictions.astype(np.float32)
    result = reconstruction.render(predictions, video, mask, config)

    x = cut(video, config)
    expected, expected_zero = [], []
    for clip in range(2):
        visible = [place_of(n, config) for n in np.asarray(mask.visible[clip])]
        seen = x[clip][np.asarray(mask.visible[clip])]
        errors, zero_errors = [], []
        for row, n in enumerate(np.asarray(mask.masked[clip])):
            distance = np.array([math.dist(place_of(n, config), other) for other in visible])
            weights = np.exp(-0.5 * (distance / (0.6 * distance.min())) ** 2)
            weights /= weights.sum()
            mean = np.einsum("v,vc->c", weights, seen.mean(axis=1))
            std = np.einsum("v,vc->c", weights, seen.std(axis=1, ddof=1))
            predicted = predictions[clip, row].reshape(-1, channels) * (std + 1e-6) + mean
            errors.append((np.clip(predicted, 0, 1) - x[clip, n]) ** 2)
            zero_errors.append((mean - x[clip, n]) ** 2)
        expected.append(np.mean(errors))
        expected_zero.append(np.mean(zero_errors))

    leak_free = result.renderings[0]
    assert not leak_free.leaks
    np.testing.assert_allclose(leak_free.error, expected, rtol=1e-5)
    np.testing.assert_allclose(leak_free.zero_error, expected_zero, rtol=1e-5)
    # pooled: one mean over the clips, then the logarithm
    gain = 10 * math.log10(np.mean(expected_zero) / np.mean(expected))
    assert reconstruction.gain(leak_free) == pytest.approx(gain, abs=1e-4)


@pytest.mark.parametrize("mask_name", list(MASKS))
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_hidden_pixels_have_no_influence_on_a_leak_free_rendering(mask_name, norm_pix_loss):
    config = make_config(norm_pix_loss=norm_pix_loss)
    mask = make_mask(config, name=mask_name)
    rng = np.random.default_rng(1)
    shape = (2, mask.masked.shape[1], config.tubelet_values)
    predictions = rng.standard_normal(shape).astype(np.float32)
    video, other = make_video(config, seed=0), make_video(config, seed=9)
    hidden = reconstruction.render(predictions, video, mask, config).hidden[..., None]
    changed = np.where(hidden, other, video)
    assert (changed != video).any()

    before = reconstruction.render(predictions, video, mask, config)
    after = reconstruction.render(predictions, changed, mask, config)
    for old, new in zip(before.renderings, after.renderings, strict=True):
        same = np.array_equal(old.video, new.video) and np.array_equal(
            old.zero_video, new.zero_video
        )
        assert same != old.leaks  # the one that says so does leak
    np.testing.assert_array_equal(before.interpolated, after.interpolated)
    np.testing.assert_array_equal(before.masked, after.masked)


def test_hidden_marks_the_tubelets_of_the_mask_and_they_are_grey():
    config = make_config()
    video, mask = make_video(config), make_mask(config, name="random")
    zeros = np.zeros((2, mask.masked.shape[1], config.tubelet_values), np.float32)
    result = reconstruction.render(zeros, video, mask, config)
    expected = np.zeros(video.shape[:-1], bool)
    _, h, w = config.grid
    for clip in range(2):
        for n in np.asarray(mask.masked[clip]):
            t, row, column = n // (h * w) * 2, n // w % h * 8, n % w * 8
            expected[clip, t : t + 2, row : row + 8, column : column + 8] = True
    np.testing.assert_array_equal(result.hidden, expected)
    assert (result.masked[expected] == 0.5).all()
    for shown in (result.masked, *(x.video for x in result.renderings), result.interpolated):
        np.testing.assert_allclose(shown[~expected], (video / 255)[~expected], atol=1e-7)


def test_the_gain_over_interpolation_is_that_of_the_leak_free_rendering():
    config = make_config()
    video, mask = make_video(config), make_mask(config)
    result = reconstruction.render(true_targets(video, mask, config), video, mask, config)
    pixels = interpolate_visible(video / 255, mask, config)
    errors = [
        np.mean((filled - video / 255)[result.hidden] ** 2)
        for filled in (result.renderings[0].video, pixels)
    ]
    expected = 10 * math.log10(errors[1] / errors[0])
    assert reconstruction.gain_over_interpolation(result) == pytest.approx(expected, abs=1e-4)
    np.testing.assert_allclose(result.interpolated, pixels, atol=1e-6)


def test_the_difference_of_two_perfect_predictions_is_none():
    assert reconstruction.difference(math.inf, math.inf) == 0
    assert reconstruction.difference(20.0, 18.5) == 1.5


@pytest.mark.parametrize("mask_name", list(MASKS))
def test_interpolation_of_a_constant_clip_is_the_constant(mask_name):
    config = make_config()
    mask = make_mask(config, name=mask_name)
    video = np.full((2, 8, 32, 48, 3), 77, np.uint8)
    zeros = np.zeros((2, mask.masked.shape[1], config.tubelet_values), np.float32)
    result = reconstruction.render(zeros, video, mask, config)
    np.testing.assert_allclose(result.interpolated, 77 / 255, atol=1e-6)
    for rendering in result.renderings:
        np.testing.assert_allclose(rendering.video, 77 / 255, atol=1e-6)
        assert reconstruction.gain(rendering) == 0


def test_interpolated_means_of_a_ramp_are_nearly_the_ramp():
    # The clip rises from 0 to 1 by 1/12 with each patch to the right; noise of a tenth of the range
    # would have an error of 0.01.
    config = make_config(channels=1, frame_size=(96, 96))
    mask = make_mask(config, name="random", ratio=0.5)
    ramp = np.linspace(0, 255, 96).astype(np.uint8)
    video = np.broadcast_to(ramp[:, None], (2, 8, 96, 96, 1)).copy()
    zeros = np.zeros((2, mask.masked.shape[1], config.tubelet_values), np.float32)
    result = reconstruction.render(zeros, video, mask, config)
    inside = ((1 / 12) ** 2) / 12  # variance of the ramp inside a patch, which no mean can show
    assert (result.renderings[0].zero_error < inside + 0.001).all()


def test_pixel_targets_have_one_rendering_and_a_black_zero():
    config = make_config(norm_pix_loss=False)
    video, mask = make_video(config), make_mask(config)
    truth = np.stack(
        [x[m] for x, m in zip(cut(video, config), np.asarray(mask.masked), strict=True)]
    )
    predictions = truth.reshape(2, -1, config.tubelet_values).astype(np.float32) + 2
    result = reconstruction.render(predictions, video, mask, config)
    (rendering,) = result.renderings
    assert not rendering.leaks
    np.testing.assert_array_equal(rendering.video[result.hidden], 1)  # clipped
    np.testing.assert_allclose(rendering.error, ((1 - truth) ** 2).mean(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(rendering.zero_video[result.hidden], 0)
    np.testing.assert_allclose(rendering.zero_error, (truth**2).mean(axis=(1, 2, 3)), rtol=1e-5)
    assert (result.interpolated_error < rendering.zero_error).all()  # of noise around 1/2


def test_psnr_values():
    assert reconstruction.psnr(0.01) == pytest.approx(20)
    assert reconstruction.psnr(np.array([0.015, 0.005])) == pytest.approx(
        20
    )  # pooled, not averaged dB
    assert reconstruction.psnr(0.0) == math.inf


def test_reconstruct_renders_what_the_model_predicts():
    config = make_config(channels=4)
    model = VideoMAE(config, decoder=True, rngs=nnx.Rngs(0))
    video, mask = make_video(config), make_mask(config)
    tubelets = patchify(video, 2, 8) / np.float32(255)  # 4 channels: mean 0 and std 1

    @jax.jit
    def predict(model, tubelets, mask):
        return model.decode(model.encode(tubelets, mask.visible).tokens, mask)

    predictions = predict(model, tubelets, mask)
    expected = reconstruction.render(np.asarray(predictions), video, mask, config)
    found = reconstruction.reconstruct(model, video, mask)
    for x, y in zip(found.renderings, expected.renderings, strict=True):
        np.testing.assert_allclose(x.video, y.video, atol=1e-5)
        assert reconstruction.gain(x) != 0

    model.decoder_head.kernel.set_value(model.decoder_head.kernel.get_value() * 0)
    for rendering in reconstruction.reconstruct(model, video, mask).renderings:
        np.testing.assert_array_equal(rendering.video, rendering.zero_video)
        assert reconstruction.gain(rendering) == 0


def test_reconstruct_refuses_what_does_not_fit():
    config = make_config()
    video, mask = make_video(config), make_mask(config)
    with pytest.raises(ValueError, match="no decoder"):
        reconstruction.reconstruct(VideoMAE(config, rngs=nnx.Rngs(0)), video, mask)
    model = VideoMAE(config, decoder=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="uint8"):
        reconstruction.reconstruct(model, video / 255, mask)
    with pytest.raises(ValueError, match="8, 32, 48, 3"):
        reconstruction.reconstruct(model, video[:, :4], mask)
    with pytest.raises(ValueError, match=r"1 clips of 96 tokens, but there are 2 clips"):
        reconstruction.reconstruct(model, video, make_mask(config, num_clips=1))
    model.decoder_head.bias.set_value(model.decoder_head.bias.get_value() + np.nan)
    with pytest.raises(ValueError, match="not finite"):
        reconstruction.reconstruct(model, video, mask)


def rendered(channels=3, norm_pix_loss=True):
    config = make_config(channels, norm_pix_loss)
    video, mask = make_video(config), make_mask(config)
    zeros = np.zeros((2, mask.masked.shape[1], config.tubelet_values), np.float32)
    return reconstruction.render(zeros, video, mask, config), video


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_picture_shows_the_frames(tmp_path, channels):
    result, video = rendered(channels)
    path = tmp_path / "picture.png"
    pictures.draw_reconstruction(result, path, clip=1, frames_shown=4)
    image = np.asarray(Image.open(path))
    # 32 x 48 pixels enlarged four times, seven rows of four columns beside the captions
    assert image.shape[0] > 7 * 4 * 32
    assert image.shape[1] == 260 + 4 * (4 * 48 + 6) + 6
    shown = video[1] if channels == 3 else np.repeat(video[1, ..., :3], 3 // min(channels, 3), -1)
    for column, frame in enumerate(shown[::2]):
        left = 260 + column * (4 * 48 + 6)
        strip = image[:, left : left + 4 * 48]
        wanted = frame.repeat(4, axis=0).repeat(4, axis=1)
        (top,) = [y for y in range(100) if np.array_equal(strip[y : y + len(wanted)], wanted)]
        assert top > 0


def test_the_picture_has_a_row_for_each_baseline(tmp_path):
    names = {}
    for kind, norm_pix_loss in (("normalised", True), ("pixels", False)):
        panels = pictures._panels(rendered(norm_pix_loss=norm_pix_loss)[0], 0, "tube mask")
        names[kind] = [panel.paragraphs[0][1] for panel in panels]
        assert all("PSNR" in str(panel.paragraphs) for panel in panels[2:])
    assert names["normalised"] == [
        "Original",
        "Masked input",
        "Prediction, leak-free",
        "Interpolation",
        "Zero prediction, leak-free",
        "Prediction, true patch mean and std (leaks)",
        "Zero prediction, true patch mean and std (leaks)",
    ]
    assert names["pixels"][2:] == [
        "Prediction, pixels as predicted",
        "Interpolation",
    ]


@pytest.mark.parametrize(("norm_pix_loss", "num_panels"), [(True, 4), (False, 3)])
def test_the_animation_has_every_frame_in_real_time(tmp_path, norm_pix_loss, num_panels):
    path = tmp_path / "moving.gif"
    pictures.animate_reconstruction(
        rendered(norm_pix_loss=norm_pix_loss)[0], path, frames_per_second=5.0
    )
    with Image.open(path) as animation:
        assert animation.n_frames == 8
        assert animation.info["duration"] == 200
        assert animation.width == num_panels * (7 * 48 + 8) + 8


def test_two_channels_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="num_channels=2"):
        pictures.draw_reconstruction(rendered(channels=2)[0], tmp_path / "picture.png")


def write_metrics(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_curve_is_drawn(tmp_path):
    lines = [{"step": s, "loss": 1 - s / 100, "learning_rate": s * 1e-6} for s in range(50)]
    lines += [{"step": 20, "held_out/loss": 0.9}, {"step": 40, "held_out/loss": 0.8}]
    write_metrics(tmp_path / "metrics.jsonl", lines)
    pictures.draw_curve(
        tmp_path / "metrics.jsonl", tmp_path / "curve.png", baseline=("predicting zero", 511 / 512)
    )
    image = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB"))
    assert image.shape == (715, 1170, 3)
    for name, colour in (("training", (0x1F, 0x5F, 0xA8)), ("held-out", (0xD1, 0x69, 0x0E))):
        assert (image == colour).all(axis=-1).sum() > 100, name


def test_the_later_line_of_a_step_counts_and_an_unfinished_line_does_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, [{"step": s, "loss": s} for s in (1, 2, 3)] + [{"step": 2, "loss": 7}])
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    steps, losses = pictures._columns(pictures._read_series(path)["loss"])
    assert steps.tolist() == [1, 2, 3]
    assert losses.tolist() == [1, 7, 3]


def test_running_mean_uses_fewer_points_at_the_ends():
    found = pictures._running_mean(np.array([1.0, 2.0, 3.0, 10.0]), 3)
    np.testing.assert_allclose(found, [1.5, 2, 5, 6.5])  # by hand


@pytest.mark.parametrize(
    ("text", "message"),
    [("nonsense\n", "line 1"), ("[1]\n", "line 1"), ('{"a": 1}\n', "line 1"), ("", "no line")],
)
def test_a_file_that_is_no_metrics_is_named(tmp_path, text, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        pictures.draw_curve(path, tmp_path / "curve.png")
    assert str(path) in str(raised.value)
