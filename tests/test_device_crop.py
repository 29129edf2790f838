"""Crops on the device against Pillow's, and inside the objective."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pretraining_task import make_model, pretraining_objective

from vmae_jax import VideoMAEConfig
from vmae_jax.data.video.augment import crop_and_resize as crop_on_host
from vmae_jax.data.video.augment import sample_crop_box
from vmae_jax.device_crop import bilinear_crop, crop_and_resize
from vmae_jax.vit import Compute

crop = jax.jit(crop_and_resize, static_argnums=2)
bilinear = jax.jit(bilinear_crop, static_argnums=2)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def pillow(frame, box, image_size):
    top, left, height, width = box
    part = Image.fromarray(frame).crop((left, top, left + width, top + height))
    return np.asarray(part.resize(image_size[::-1], Image.Resampling.BILINEAR))


def largest_difference(a, b):
    assert a.dtype == b.dtype == np.uint8
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b.astype(int)).max()


@pytest.mark.parametrize("image_size", [(32, 32), (24, 40), (47, 16)])
def test_it_agrees_with_pillow_within_one_grey_level(image_size):
    # Noise, where each pixel counts; boxes that shrink, enlarge, do both, and lie at the borders.
    canvas = noise(2, 3, 72, 100, 3)
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, (73, 101), (17, 2))
    sizes[:5] = [image_size, (72, 100), (1, 1), (1, 100), (72, 2)]
    places = rng.integers(0, (72, 100) - sizes + 1)
    boxes = np.concatenate([places, sizes], -1).astype(np.int32)
    boxes = np.concatenate([boxes, [[72 - 20, 100 - 21, 20, 21]]]).reshape(2, 9, 4)
    crops = np.asarray(crop(canvas, boxes, image_size)).reshape(2, 9, 3, *image_size, 3)
    different = []
    for b, r, t in np.ndindex(2, 9, 3):
        expected = pillow(canvas[b, t], boxes[b, r].tolist(), image_size)
        assert largest_difference(crops[b, r, t], expected) <= 1, (b, r, t)
        different.append((crops[b, r, t] != expected).mean())
    # Pillow's weights are fixed-point numbers: one value in a hundred rounds the other way. Without
    # rounding between columns and rows it would be one in six.
    assert np.mean(different) < 0.05


def test_the_boxes_of_training_agree_with_the_host():
    # 240 x 320 and a target of 210 pixels, to which one of the four sides is equal, one snaps.
    frames = noise(2, 240, 320, 3)
    rng = np.random.default_rng(0)
    boxes = [sample_crop_box(240, 320, (210, 182), rng) for _ in range(12)]
    assert {210, 182} <= {side for box in boxes for side in box[2:]}
    crops = np.asarray(crop(frames[None], np.array([boxes], np.int32), (210, 182)))
    for got, box in zip(crops.reshape(12, 2, 210, 182, 3), boxes, strict=True):
        assert largest_difference(got, crop_on_host(frames, box, (210, 182), "pil")) <= 1


def test_a_crop_of_the_target_size_is_copied_unchanged():
    canvas = noise(1, 2, 40, 50, 3)
    got = crop(canvas, np.array([[[5, 6, 32, 32]]], np.int32), (32, 32))
    np.testing.assert_array_equal(got, canvas[0, None, :, 5:37, 6:38])


def test_nothing_outside_the_box_is_seen():
    canvas = np.full((1, 1, 40, 50, 3), 200, np.uint8)
    canvas[:, :, 10:30, 5:45] = 50
    for size in ((16, 16), (64, 64)):
        got = crop(canvas, np.array([[[10, 5, 20, 40]]], np.int32), size)
        assert (np.asarray(got) == 50).all()


def test_crops_of_one_clip_stand_one_after_another():
    canvas = np.stack([np.full((1, 8, 8, 3), value, np.uint8) for value in (10, 20)])
    boxes = np.tile(np.array([0, 0, 8, 8], np.int32), (2, 3, 1))
    got = np.asarray(crop(canvas, boxes, (4, 4)))
    assert got.shape == (6, 1, 4, 4, 3)
    assert got[:, 0, 0, 0, 0].tolist() == [10, 10, 10, 20, 20, 20]


def by_torch(frames, box, image_size, dtype):
    """torch's interpolation of frames [T, H, W, C] in [0, 1], as the original calls it."""
    torch = pytest.importorskip("torch")
    top, left, height, width = box
    part = (
        torch.from_numpy(frames[:, top : top + height, left : left + width]).to(
            getattr(torch, dtype)
        )
        / 255
    )
    resized = torch.nn.functional.interpolate(
        part.permute(3, 0, 1, 2), size=image_size, mode="bilinear", align_corners=False
    )
    return resized.permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize("image_size", [(32, 32), (24, 40), (47, 16)])
def test_bilinear_crops_are_those_of_torch(image_size):
    canvas = noise(2, 3, 72, 100, 3)
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, (73, 101), (18, 2))
    sizes[:5] = [image_size, (72, 100), (1, 1), (1, 100), (72, 2)]
    places = rng.integers(0, (72, 100) - sizes + 1)
    boxes = np.concatenate([places, sizes], -1).astype(np.int32).reshape(2, 9, 4)
    crops = bilinear(canvas, boxes, image_size)
    assert crops.dtype == jnp.float32
    crops = np.asarray(crops).reshape(2, 9, 3, *image_size, 3)
    for b, r in np.ndindex(2, 9):
        exact = by_torch(canvas[b], boxes[b, r].tolist(), image_size, "float64")
        np.testing.assert_allclose(crops[b, r] / 255, exact, atol=1e-6)
        single = by_torch(canvas[b], boxes[b, r].tolist(), image_size, "float32")
        np.testing.assert_allclose(crops[b, r] / 255, single, atol=1e-5)


def test_bilinear_crops_of_large_canvases_are_as_exact():
    # far from the corner, where places in fp32 would be off by 1e-4 pixels
    canvas = noise(1, 1, 4, 3000, 1)
    box = (1, 2500, 3, 487)
    got = bilinear(canvas, np.array([[box]], np.int32), (3, 224))
    np.testing.assert_allclose(
        np.asarray(got)[0] / 255, by_torch(canvas[0], box, (3, 224), "float64"), atol=1e-6
    )


def test_bilinear_crops_see_nothing_outside_the_box():
    canvas = np.full((1, 1, 40, 50, 3), 200, np.uint8)
    canvas[:, :, 10:30, 5:45] = 50
    for size in ((16, 16), (64, 64)):
        got = bilinear(canvas, np.array([[[10, 5, 20, 40]]], np.int32), size)
        np.testing.assert_allclose(got, 50, rtol=1e-6)


def test_bilinear_crops_are_not_antialiased():
    # every second pixel of a chequerboard's squares of 4: shrunk to a third of its size, only whole
    # or half pixels of it are seen
    board = (np.indices((24, 24)) // 4).sum(0) % 2 * 255
    canvas = np.repeat(board[None, None, :, :, None], 3, axis=-1).astype(np.uint8)
    got = np.asarray(bilinear(canvas, np.array([[[0, 0, 24, 24]]], np.int32), (8, 8)))
    # centres at 1, 4, 7, ...: pixel 3i + 1 itself
    np.testing.assert_allclose(got[0, 0], canvas[0, 0, 1::3, 1::3], atol=1e-4)


def test_bilinear_crops_of_one_clip_stand_one_after_another():
    canvas = np.stack([np.full((1, 8, 8, 3), value, np.uint8) for value in (10, 20)])
    boxes = np.tile(np.array([0, 0, 8, 8], np.int32), (2, 3, 1))
    got = np.asarray(bilinear(canvas, boxes, (4, 4)))
    assert got.shape == (6, 1, 4, 4, 3)
    np.testing.assert_allclose(got[:, 0, 0, 0, 0], [10, 10, 10, 20, 20, 20], rtol=1e-6)


CONFIG = VideoMAEConfig(
    image_size=16, patch_size=4, num_frames=4, hidden_size=16, num_hidden_layers=1,
    num_attention_heads=2, intermediate_size=32, decoder_hidden_size=8,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16,
    use_mean_pooling=False,
)  # fmt: skip


@pytest.mark.parametrize("weight", [None, [1, 1, 0, 1, 0, 1]])
@pytest.mark.usefixtures("hasty_compiler")
def test_the_objective_on_canvases_equals_that_on_crops_of_the_host(weight):
    model = make_model(CONFIG, Compute(), seed=0)
    canvas = noise(2, 4, 30, 44, 3)
    rng = np.random.default_rng(3)
    boxes = [[sample_crop_box(30, 44, (16, 16), rng) for _ in range(3)] for _ in range(2)]
    on_host = np.concatenate(
        [[crop_on_host(canvas[b], box, (16, 16), "pil") for box in boxes[b]] for b in range(2)]
    )
    rest = {} if weight is None else {"weight": jnp.array(weight, jnp.float32)}
    options = {"key": jax.random.key(0), "mask_ratio": 0.75}
    objective = jax.jit(functools.partial(pretraining_objective, model, **options))
    on_canvas, _ = objective({"video": canvas, "boxes": np.array(boxes, np.int32), **rest})
    expected, _ = objective({"video": on_host, **rest})
    # a grey level here and there: targets have a spread of 1, of some 70 grey levels
    np.testing.assert_allclose(on_canvas, expected, rtol=1e-3)
    swapped = np.array(boxes, np.int32)[::-1]
    other, _ = objective({"video": canvas, "boxes": swapped, **rest})
    assert abs(other - expected) > 1e-3 * expected  # it would show
