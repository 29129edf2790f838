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
from vmae_jax.device_crop import crop_and_resize
from vmae_jax.vit import Compute

crop = jax.jit(crop_and_resize, static_argnums=2)


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
