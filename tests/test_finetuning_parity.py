"""Thirty steps of fine-tuning beside the official arithmetic on torch: the same losses and weights.

What is drawn (mixing weights, boxes) is taken from our draws and given to the other side; the
augmentations of single clips have tests of their own. Each mistake that is easily made is made on
the other side as well, and has to show.
"""

from __future__ import annotations

import tempfile

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

import vmae_jax
from vmae_jax import assembly, randomness, sharding
from vmae_jax.configs import finetune_default
from vmae_jax.tasks import make_task
from vmae_jax.tasks.finetuning import _MIX
from vmae_jax.weights import export, layouts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
original = pytest.importorskip("original_finetuning")
pytestmark = pytest.mark.usefixtures("hasty_compiler")

NUM_STEPS, NUM_LABELS, BATCH, GROUP = 30, 5, 8, 4
CLASS = "VideoMAEForVideoClassification"
LOSSES, WEIGHTS = 5e-6, 5e-5  # relative deviations that are allowed


def make_config(**changes):
    config = finetune_default.get_config()
    config.update_from_flattened_dict(
        {
            **tiny.MODEL,
            "model.num_hidden_layers": 3,
            "model.num_labels": NUM_LABELS,
            "model.drop_path_rate": 0.0,
            "compute.dtype": "float32",
            "finetuning.augment.rand_augment": "",
            "finetuning.augment.flip": False,
            "finetuning.augment.erase_prob": 0.0,
            "finetuning.mixup.group": GROUP,
            "finetuning.head_init_scale": 1.0,
            "data.batch_size": BATCH,
            "data.repeat": 1,
            "schedule.base_lr": 2e-3 * 256 / BATCH,
            "schedule.base_final_lr": 1e-5 * 256 / BATCH,
            "schedule.num_steps": NUM_STEPS,
            "schedule.warmup_epochs": None,
            "schedule.warmup_steps": 6,
            "optimizer.ema_decay": 0.9,
            **changes,
        }
    )
    return config


def make_batch(step, config):
    rng = np.random.default_rng(step)
    shape = (BATCH, config.model.num_frames, *config.model.image_size, 3)
    return {
        "video": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, NUM_LABELS, BATCH).astype(np.int32),
    }


def drawn(task, config, step):
    """(weights, boxes) that our step draws."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    keys = randomness.fold_in(task._mixup.drawing_keys(randomness.clip_keys(key, BATCH)), _MIX)
    mix = task._mixup.mix(task._mixup.draw(keys), tuple(config.model.image_size))
    return jax.tree.map(np.asarray, mix)


def run_ours(config):
    """Losses, weights and averages at the end, the initial model, and what was drawn."""
    task = make_task(config)
    steps = assembly.make_steps(config, task, num_records=None, devices=jax.devices()[:1])
    with jax.set_mesh(steps.mesh):
        state, frozen = steps.init()
        start = nnx.merge(steps.graphdef, jax.tree.map(np.asarray, state.params))
        losses, draws = [], []
        for step in range(NUM_STEPS):
            batch = sharding.to_devices(make_batch(step, config), steps.batch, steps.mesh)
            state, metrics = steps.train(state, batch, frozen)
            losses.append(float(metrics["loss"]))
            draws.append(drawn(task, config, step))
    ends = [
        nnx.merge(steps.graphdef, jax.tree.map(np.asarray, tree))
        for tree in (state.params, state.ema)
    ]
    return losses, ends, start, draws


def torch_model(core):
    with tempfile.TemporaryDirectory() as folder:
        with pytest.warns(UserWarning, match="fc_norm_eps"):
            export.save_hugging_face(core, folder, CLASS)
        model = transformers.VideoMAEForVideoClassification.from_pretrained(folder)
    model.fc_norm.eps = core.config.fc_norm_eps  # transformers has another
    return model.eval()


def as_ours(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return vmae_jax.VideoMAEForVideoClassification.from_pretrained(folder).core


def run_original(config, start, draws, **mistakes):
    optimizer = config.optimizer
    recipe = original.Recipe(
        num_labels=NUM_LABELS, peak_lr=2e-3, final_lr=1e-5, warmup_steps=6, num_steps=NUM_STEPS,
        weight_decay=optimizer.weight_decay, layer_decay=optimizer.layer_decay,
        smoothing=config.finetuning.label_smoothing, group=GROUP,
        accumulation=optimizer.accumulation, clip_norm=optimizer.clip_norm,
        ema_decay=optimizer.ema_decay, **mistakes,
    )  # fmt: skip
    trainer = original.Trainer(torch_model(start), config.model.num_hidden_layers, recipe)
    losses = []
    for step, mix in enumerate(draws):
        batch = make_batch(step, config)
        losses.append(trainer.step(*original.mixed(batch["video"], batch["label"], *mix, recipe)))
    return losses, (trainer.model, trainer.average)


def deviations(ours, theirs):
    """(largest of the losses, of all weights, of all averages), relative."""
    losses = np.abs(np.subtract(ours[0], theirs[0])) / np.abs(theirs[0])
    found = [losses.max()]
    for core, model in zip(ours[1], theirs[1], strict=True):
        values = layouts.parameters(core)
        theirs_as_ours = layouts.parameters(as_ours(model))
        pairs = [(np.asarray(x), np.asarray(theirs_as_ours[name])) for name, x in values.items()]
        difference = sum(np.square(a - b, dtype=np.float64).sum() for a, b in pairs)
        size = sum(np.square(b, dtype=np.float64).sum() for _, b in pairs)
        found.append(np.sqrt(difference / size))
    return found


VARIANTS = {
    "plain": {},
    "accumulation": {"optimizer.accumulation": 2},
    "clipping": {"optimizer.clip_norm": 0.5},
    "accumulation, clipping": {"optimizer.accumulation": 2, "optimizer.clip_norm": 0.5},
}


@pytest.fixture(scope="module", params=VARIANTS)
def runs(request):
    config = make_config(**VARIANTS[request.param])
    return config, run_ours(config)


def test_losses_weights_and_averages_are_the_originals(runs):
    config, ours = runs
    losses, weights, averages = deviations(ours, run_original(config, *ours[2:]))
    assert losses < LOSSES
    assert weights < WEIGHTS
    assert averages < WEIGHTS


def test_both_kinds_of_mixing_and_clipping_took_place(runs):
    _, (losses, _, _, draws) = runs
    cuts = [mix.box[0].any() for mix in draws]
    assert 5 < sum(cuts) < 25
    assert losses[0] != losses[-1]


@pytest.mark.parametrize(
    "mistake",
    [
        {"layers_off": 1}, {"layers_off": -1}, {"biases_decay": True}, {"partner_shift": 1},
        {"schedule_shift": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_would_show(runs, mistake):
    config, ours = runs
    losses, weights, averages = deviations(ours, run_original(config, *ours[2:], **mistake))
    assert losses > 2 * LOSSES or weights > 2 * WEIGHTS
    assert weights > 2 * WEIGHTS or averages > 2 * WEIGHTS
