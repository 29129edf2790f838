"""The evaluator that draws and measures reconstructions, on samples and a model in memory."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from vmae_jax import sharding
from vmae_jax.config import VideoMAEConfig
from vmae_jax.errors import SettingError
from vmae_jax.evaluators.evaluator import Context
from vmae_jax.evaluators.reconstructions import Reconstructions
from vmae_jax.interpolation import interpolate_visible
from vmae_jax.tasks.pretraining import Pretraining
from vmae_jax.videomae import VideoMAE

pytestmark = pytest.mark.usefixtures("hasty_compiler")

CONFIG = VideoMAEConfig(
    image_size=16, patch_size=4, num_frames=4, hidden_size=8, num_hidden_layers=1,
    num_attention_heads=2, intermediate_size=8, use_mean_pooling=False, norm_pix_loss=False,
    decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
    decoder_intermediate_size=8,
)  # fmt: skip
NUM_CLIPS = 5


class Samples:
    """Held-out clips of noise; `bad` ones count for nothing, as the run leaves them out."""

    def __init__(self, bad=()):
        rng = np.random.default_rng(0)
        self.video = rng.integers(0, 256, (NUM_CLIPS, 1, 4, 16, 16, 3), dtype=np.uint8)
        self.weight = np.array([[float(i not in bad)] for i in range(NUM_CLIPS)], np.float32)

    def __len__(self):
        return NUM_CLIPS

    def group(self, i):
        return {
            "video": self.video[i], "weight": self.weight[i], "clip_id": [f"clip {i}"],
        }  # fmt: skip


@pytest.fixture
def grey():
    """A model that predicts the value 0.25 everywhere: graph and parameters."""
    model = VideoMAE(CONFIG, decoder=True, rngs=nnx.Rngs(0))
    head = model.decoder_head
    head.kernel.set_value(head.kernel.get_value() * 0)
    head.bias.set_value(head.bias.get_value() * 0 + 0.25)
    return nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model, nnx.Param))


def evaluate(grey, workdir, samples, **options):
    graphdef, params = grey
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, heads=(2,), devices=jax.devices()[:1])
    context = Context(
        config=types.SimpleNamespace(seed=3, task="pretraining"),
        task=Pretraining(mask_ratio=0.75),
        steps=types.SimpleNamespace(graphdef=graphdef, mesh=mesh),
        samples=samples,
        frozen={},
        workdir=str(workdir),
    )
    with jax.set_mesh(mesh):
        return Reconstructions(context, **options)(params, 10)


def expected_psnr(samples, clips, num_masks):
    """Of the value 0.25, and of interpolation; masks are those of the clip, whatever the seed."""
    errors = []
    for i in clips:
        video = samples.video[i] / np.float32(255)
        for key in jax.random.split(jax.random.fold_in(jax.random.key(0), i), num_masks):
            mask = Pretraining(mask_ratio=0.75).draw_mask(key[None], CONFIG)
            hidden = np.asarray(mask.to_bool()).reshape(1, 2, 4, 4)
            hidden = hidden.repeat(2, 1).repeat(4, 2).repeat(4, 3)
            filled = interpolate_visible(video, mask, CONFIG)
            errors.append([np.mean((x - video)[hidden] ** 2) for x in (0.25, filled)])
    return -10 * np.log10(np.mean(errors, axis=0))


@pytest.mark.parametrize(
    ("options", "clips", "num_masks"),
    [
        ({}, range(5), 1),
        ({"num_clips": 1, "num_measured": 2, "num_masks": 3}, range(2), 3),
        ({"num_clips": 4, "num_measured": 2}, range(4), 1),
    ],
)
def test_the_gain_is_pooled_over_the_measured_clips_and_masks(
    options, clips, num_masks, grey, tmp_path
):
    samples = Samples()
    found = evaluate(grey, tmp_path, samples, **options)
    psnr, interpolated = expected_psnr(samples, clips, num_masks)
    assert found == pytest.approx({
        "psnr": psnr,
        "interpolation_psnr": interpolated,
        "gain_over_interpolation": psnr - interpolated,
    }, abs=1e-4)  # fmt: skip
    drawn = options.get("num_clips", 3)
    names = {f"reconstruction_{i}.{kind}" for i in range(drawn) for kind in ("png", "gif")}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == names
    with Image.open(tmp_path / "pictures" / "reconstruction_0.gif") as animation:
        assert animation.n_frames == 4


def test_bad_clips_are_neither_drawn_nor_measured(grey, tmp_path):
    samples = Samples(bad=[0, 3])
    found = evaluate(grey, tmp_path, samples, num_clips=2)
    assert found["psnr"] == pytest.approx(expected_psnr(samples, [1, 2, 4], 1)[0], abs=1e-4)
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"reconstruction_1.png", "reconstruction_1.gif"}
    assert evaluate(grey, tmp_path, Samples(bad=range(5))) == {}


@pytest.mark.parametrize("name", ["num_clips", "num_measured", "num_masks"])
def test_numbers_below_1_are_refused(name, grey, tmp_path):
    with pytest.raises(SettingError, match=rf"evals\.reconstructions\.{name}=0 must be at least 1"):
        evaluate(grey, tmp_path, Samples(), **{name: 0})
