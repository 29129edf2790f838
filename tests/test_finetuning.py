"""The task of fine-tuning in runs: kinds of labels, what is refused, stops, averages, export.

| label of a record | problem_type | outcome |
| --- | --- | --- |
| a class | single | cross-entropy, top-1 and top-5 |
| several classes | multi | binary cross-entropies, mean average precision |
| one or several numbers | regression | squares, R2 and mean absolute error |
| of another kind than problem_type, or none | any | refused before anything is computed |
| out of range; a class without clips | single, multi | refused, or allowed by an option |
| a number of classes that is not the names' | single, multi | refused |
"""

from __future__ import annotations

import json

import jax
import labelled_squares as squares
import numpy as np
import pytest

import vmae_jax
from vmae_jax import loop
from vmae_jax.checkpoints import loading
from vmae_jax.checkpoints.finished_steps import find_step
from vmae_jax.errors import SettingError
from vmae_jax.tasks import make_task
from vmae_jax.tasks.finetuning import FineTuning

pytestmark = pytest.mark.usefixtures("hasty_compiler")
MULTI, REGRESSION = "multi_label_classification", "regression"


def options(**changes):
    return {"augment": {}, "mixup": {}, **changes}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 60 steps with averages, and what it returned."""
    workdir = tmp_path_factory.mktemp("finished")
    config = squares.make_config(**{"optimizer.ema_decay": 0.9})
    config.evals.averages = {"every_steps": -1, "evaluator": "held_out", "weights": "ema"}
    return workdir, loop.train(config, str(workdir)), config


def arrays(workdir, part="params"):
    step = find_step(str(workdir))
    info = json.loads(json.dumps(loading.read_params(step)[1]))
    return {name: value for name, value in info["fingerprint"].items() if name.startswith(part)}


def test_it_learns_and_is_tested(finished):
    workdir, last, _ = finished
    assert last["held_out/top1"] > 0.8  # chance is 1/3
    assert last["test/top1"] == pytest.approx(last["held_out/top1"], abs=0.12)
    assert last["averages/top1"] > 0.5
    assert last["test/records"] == 9
    assert (workdir / "test" / "confusion.png").exists()


def test_class_names_travel_to_the_checkpoint_and_to_an_export(finished, tmp_path):
    workdir, *_ = finished
    model = vmae_jax.VideoMAEForVideoClassification.from_pretrained(workdir)
    assert dict(model.config.id2label) == dict(enumerate(squares.CLASSES))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["id2label"] == {"0": "right", "1": "left", "2": "down"}


class Stop(Exception):
    """Power cut."""


def test_broken_off_and_resumed_it_ends_bit_by_bit_the_same(finished, tmp_path):
    workdir, _, config = finished

    def stop(step, metrics):
        if step == 27:
            raise Stop

    with pytest.raises(Stop):
        loop.train(config, str(tmp_path), on_log=stop)
    loop.train(config, str(tmp_path))
    for part in ("params", "ema", "opt_state"):
        ours = arrays(tmp_path, part)
        assert ours == arrays(workdir, part)
        assert ours


def test_averages_are_those_of_the_parameters(finished):
    workdir, *_ = finished
    assert arrays(workdir, "ema").keys() == {
        name.replace("params", "ema", 1) for name in arrays(workdir, "params")
    }
    assert list(arrays(workdir, "ema").values()) != list(arrays(workdir, "params").values())


@pytest.mark.parametrize(
    ("kind", "problem_type", "num_labels", "metric", "least"),
    [("several", MULTI, None, "test/map", 0.75), ("number", REGRESSION, 2, "test/r2", 0.2)],
)
def test_other_kinds_of_labels(kind, problem_type, num_labels, metric, least, tmp_path):
    config = squares.make_config(
        **{
            "finetuning.problem_type": problem_type, "finetuning.label_smoothing": 0.0,
            "finetuning.mixup.prob": 0.0, "model.num_labels": num_labels,
        }
    )  # fmt: skip
    config.data.options.kind = kind
    last = loop.train(config, str(tmp_path))
    assert last[metric] > least
    rows = json.loads((tmp_path / "test" / "scores.json").read_text())["records"]
    assert len(rows[0]["label"]) == len(rows[0]["scores"])


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model.num_labels": 4}, "class", "names 3 classes"),
        ({"model.num_labels": 2}, "class", "names 3 classes"),
        ({}, "several", "label"),
        ({}, "number", "label"),
        ({"finetuning.problem_type": REGRESSION, "finetuning.label_smoothing": 0.0}, "class",
         "label"),
        ({"finetuning.augment.flip": True}, "class", "mirrored 'right' is another"),
        ({"finetuning.class_weights": (1.0, 2.0)}, "class", "2 numbers, and the model 3"),
        ({"finetuning.mixup.group": 3}, "class", "mixup.group=3"),
        ({"finetuning.mixup.group": None, "data.batch_size": 15, "data.repeat": 1}, "class",
         "even"),
        ({"finetuning.sampling": "sparse"}, "class", "sparse"),
        ({"evals.test.weights": "ema"}, "class", "optimizer.ema_decay"),
        ({"optimizer.ema_decay": 1.0}, "class", r"must be in \[0, 1\)"),
        ({"optimizer.layer_decay": 0.0}, "class", "layer_decay"),
        ({"optimizer.train": ("heads",)}, "class", "names no parameter"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_work_is_told_before_a_step(changes, kind, words, tmp_path):
    config = squares.make_config()
    config.evals.test.weights = "params"
    config.update_from_flattened_dict(changes)
    config.data.options.kind = kind
    with pytest.raises(SettingError, match=words):
        loop.train(config, str(tmp_path))
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problem_type": "classes"}, "problem_type='classes'"),
        ({"problem_type": MULTI, "label_smoothing": 0.1}, "is for single labels"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"problem_type": REGRESSION, "class_weights": (1.0,)}, "class_weights"),
        ({"head_init_scale": 0}, "head_init_scale=0"),
        ({"lora_rank": -1}, "lora_rank=-1"),
        ({"augment": {"flips": True}}, r"augment\.flips is no option"),
        ({"mixup": {"prob": 2}}, "prob=2"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be(changes, words):
    with pytest.raises(SettingError, match=words):
        FineTuning(**options(**changes))


def test_what_is_given_to_a_canvas_is_what_the_host_would_cut(tmp_path):
    """The first losses with crops on the device are those with crops on the host, to rounding."""
    losses = {}
    for canvas in (None, (20, 24)):
        config = squares.make_config(
            **{"data.canvas_size": canvas, "schedule.num_steps": 3, "schedule.warmup_steps": 0,
               "finetuning.mixup.cutmix_alpha": 1.0, "evals.held_out.every_steps": 0,
               "evals.test.every_steps": 0}
        )  # fmt: skip
        found = losses.setdefault(canvas, [])
        loop.train(
            config,
            str(tmp_path / str(canvas)),
            on_log=lambda step, metrics, found=found: found.append(metrics.get("loss")),
        )
    assert losses[None] == pytest.approx(losses[20, 24], rel=5e-3)


def test_a_checkpoint_of_low_rank_updates_is_merged_where_it_is_read(tmp_path):
    start, workdir = tmp_path / "start", tmp_path / "run"
    loop.train(squares.make_config(**{"schedule.num_steps": 6}), str(start))
    config = squares.make_config(
        **{
            "finetuning.lora_rank": 2, "finetuning.lora_alpha": 4.0, "schedule.num_steps": 10,
            "init.checkpoint": str(start), "init.parts": ("encoder", "classifier"),
        }
    )  # fmt: skip
    last = loop.train(config, str(workdir))
    merged = vmae_jax.VideoMAEForVideoClassification.from_pretrained(workdir)
    values, info = loading.read_params(find_step(str(workdir)))
    assert info["lora"] == {"rank": 2, "alpha": 4.0}
    kernel = np.asarray(merged.core.encoder.attention.qkv.kernel[...])
    first = values["encoder/attention/qkv_lora/lora_a"]
    second = values["encoder/attention/qkv_lora/lora_b"]
    assert np.abs(second).max() > 0
    update = np.einsum("lir,lro->lio", first, second).reshape(kernel.shape) * 2.0
    before = values["encoder/attention/qkv/kernel"]
    np.testing.assert_allclose(kernel, before + update, atol=1e-6)
    source = vmae_jax.VideoMAEForVideoClassification.from_pretrained(start)
    np.testing.assert_array_equal(before, source.core.encoder.attention.qkv.kernel[...])

    plain = squares.make_config(
        **{"init.checkpoint": str(workdir), "init.parts": ("encoder", "classifier")}
    )
    again = loop.evaluate(plain, str(tmp_path / "empty"), ["test"])
    assert again["test/top1"] == pytest.approx(last["test/top1"])


def test_prepared_sets_that_lack_frames_are_refused():
    assert make_task(squares.make_config()).uneven_frames


def test_targets_of_evaluation_are_not_smoothed():
    task = FineTuning(**options(label_smoothing=0.1))
    config = vmae_jax.VideoMAEConfig(num_labels=4)
    labels = jax.numpy.array([1])
    assert task._targets(labels, config).tolist() == [[0, 1, 0, 0]]
    np.testing.assert_allclose(
        task._targets(labels, config, 0.1), [[0.025, 0.925, 0.025, 0.025]], rtol=1e-6
    )
