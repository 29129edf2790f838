"""Multi-view testing by way of a run, beside the original's sampling, crops and merging."""

from __future__ import annotations

import csv
import json
import sys

import labelled_videos as original
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from process_group import ENVIRONMENT, ProcessGroup

import vmae_jax
from vmae_jax import loop
from vmae_jax.configs import finetune_default
from vmae_jax.errors import SettingError
from vmae_jax.evaluators import views
from vmae_jax.weights import export, layouts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("hasty_compiler")

SIDE, FRAMES, STRIDE, NUM_LABELS, COUNT = 32, 4, 3, 3, 20


def make_config(folder, **changes):
    config = finetune_default.get_config()
    config.update_from_flattened_dict(
        {
            **tiny.MODEL,
            "model.num_labels": NUM_LABELS,
            "compute.dtype": "float32",
            "init.checkpoint": str(folder / "model"),
            "init.parts": ("encoder", "classifier"),
            "data.name": "list",
            "data.path": str(folder / "list.csv"),
            "data.batch_size": 7,
            "data.repeat": 1,
            "data.frame_stride": STRIDE,
            "data.num_threads": 1,
            "schedule.num_steps": 2,
            "schedule.warmup_epochs": None,
            "schedule.warmup_steps": 0,
            "finetuning.mixup.prob": 0.0,
            "finetuning.allow_shared_videos": True,
            "evals.held_out.every_steps": 0,
            "evals.loss_curve.every_steps": 0,
            **changes,
        }
    )
    config.data.options = ConfigDict({"format": "path_label", "held_out_ratio": 0.0})
    config.evals.test.split = "all"
    config.evals.test.data.segments = 3
    config.evals.test.data.crops = 3
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
    """Videos, a list of them, and a model with random weights."""
    folder = tmp_path_factory.mktemp("views")
    original.write_videos(folder, COUNT, NUM_LABELS)
    settings = {
        name.removeprefix("model."): value
        for name, value in tiny.MODEL.items()
        if not name.startswith("model.decoder")
    }
    config = vmae_jax.VideoMAEConfig.from_size(
        "B", **settings, num_labels=NUM_LABELS, use_mean_pooling=True
    )
    model = vmae_jax.VideoMAEForVideoClassification(config)
    rng = np.random.default_rng(0)
    values = layouts.parameters(model.core)
    layouts.set_parameters(
        model.core,
        {n: np.asarray(x) + 0.3 * rng.standard_normal(x.shape) for n, x in values.items()},
    )
    with pytest.warns(UserWarning, match="fc_norm_eps"):
        export.save_hugging_face(model.core, folder / "model", "VideoMAEForVideoClassification")
    return folder


def originals_scores(folder, sampling):
    """([n, K] mean of softmax, [n, K] mean of logits), and the labels."""
    model = transformers.VideoMAEForVideoClassification.from_pretrained(folder / "model").eval()
    model.fc_norm.eps = 1e-5
    merged, logit_means, labels = [], [], []
    for line in (folder / "list.csv").read_text().splitlines():
        path, label = line.rsplit(" ", 1)
        frames = original.read_frames(path)
        if sampling == "dense":
            starts = original.dense_starts(len(frames), FRAMES, STRIDE, 3)
        else:
            starts = original.tsn_starts(len(frames), FRAMES, 3)
        clips = [
            original.normalised(crop)
            for indices in starts
            for crop in original.crops(frames[indices], SIDE, 3)
        ]
        with torch.no_grad():
            logits = model(pixel_values=torch.from_numpy(np.stack(clips))).logits.numpy()
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        merged.append((exponentials / exponentials.sum(axis=1, keepdims=True)).mean(axis=0))
        logit_means.append(logits.mean(axis=0))
        labels.append(int(label))
    return np.array(merged), np.array(logit_means), np.array(labels)


@pytest.mark.parametrize("sampling", ["dense", "tsn"])
def test_scores_are_the_originals(folder, tmp_path, sampling):
    config = make_config(folder, **{"finetuning.sampling": sampling})
    measured = loop.evaluate(config, str(tmp_path), ["test"])
    scores, logit_means, labels = originals_scores(folder, sampling)

    written = json.loads((tmp_path / "test" / "scores.json").read_text())
    found = np.array([row["scores"] for row in written["records"]])
    np.testing.assert_allclose(found, scores, atol=1e-4)
    assert np.ptp(scores, axis=0).max() > 0.1  # records differ
    assert [row["label"] for row in written["records"]] == labels.tolist()
    right = scores.argmax(1) == labels
    assert [c["accuracy"] for c in written["classes"]] == pytest.approx(
        [right[labels == k].mean() for k in range(NUM_LABELS)]
    )
    assert measured["test/top1"] == pytest.approx((scores.argmax(1) == labels).mean())
    assert measured["test/top1_logit_mean"] == pytest.approx(
        (logit_means.argmax(1) == labels).mean()
    )
    assert measured["test/top5"] == 1.0  # of three classes
    assert measured["test/records"] == COUNT
    assert (tmp_path / "test" / "confusion.png").stat().st_size > 5000
    with open(tmp_path / "test" / "scores.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0][:3] == ["clip_id", "path", "label"]
    np.testing.assert_allclose(np.array([row[3:] for row in table[1:]], float), found)
    assert len({row[0] for row in table[1:]}) == COUNT


SCRIPT = """
import sys
from vmae_jax import loop
from vmae_jax.processes import distributed
import pathlib, test_multi_view
distributed.start(sys.argv[3])
config = test_multi_view.make_config(pathlib.Path(sys.argv[1]), **{"data.batch_size": 8})
loop.evaluate(config, sys.argv[2], ["test"])
"""


@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 1), (4, 2)])
def test_the_same_on_more_processes_and_devices(folder, tmp_path, processes, devices):
    flags = f"{ENVIRONMENT.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path)]
    command.append("off" if processes == 1 else "{address},{count},{index}")
    env = {**ENVIRONMENT, "XLA_FLAGS": flags}
    with ProcessGroup(command, processes, tmp_path, env=env) as group:
        codes = group.wait(deadline=300)
    assert codes == [0] * processes, group.output(0)
    written = json.loads((tmp_path / "test" / "scores.json").read_text())
    found = np.array([row["scores"] for row in written["records"]])
    np.testing.assert_allclose(found, originals_scores(folder, "dense")[0], atol=1e-4)


def test_views_of_a_record_are_merged_whatever_their_order():
    logits = np.float32([[5, 0], [0, 1], [0, 1], [2, 0]])
    found = {"logits": logits, "label": np.array([1, 0, 1, 0]), "index": np.array([7, 3, 7, 3])}
    merged = views.merge_views(found, "single_label_classification")
    assert merged["index"].tolist() == [3, 7]
    assert merged["label"].tolist() == [0, 1]

    def share(x):  # of the first of two classes
        return 1 / (1 + np.exp(-x))

    expected = [(share(-1) + share(2)) / 2, (share(5) + share(-1)) / 2]
    np.testing.assert_allclose(merged["scores"][:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(merged["logit_mean"], [[1, 0.5], [2.5, 0.5]])


def test_merging_before_the_softmax_is_another_figure():
    """One sure view outvotes two that lean the other way; of probabilities it does not."""
    logits = np.float32([[30, 0], [0, 4], [0, 4]])
    found = {"logits": logits, "label": np.array([1, 1, 1]), "index": np.array([0, 0, 0])}
    measured = views.measure(
        views.merge_views(found, "single_label_classification"),
        found,
        "single_label_classification",
    )
    assert (measured["top1"], measured["top1_logit_mean"]) == (1.0, 0.0)
    assert measured["top1_single_view"] == pytest.approx(2 / 3)


def test_several_labels_and_numbers():
    logits = np.float32([[2, -2], [2, -2], [-1, 3], [-1, 3]])
    found = {"logits": logits, "label": np.float32([[1, 0], [1, 0], [0, 1], [0, 1]]),
             "index": np.array([0, 0, 1, 1])}  # fmt: skip
    multi = views.merge_views(found, "multi_label_classification")
    np.testing.assert_allclose(multi["scores"], 1 / (1 + np.exp(-logits[::2])), rtol=1e-6)
    assert views.measure(multi, found, "multi_label_classification")["map"] == 1.0
    numbers = views.measure(views.merge_views(found, "regression"), found, "regression")
    assert numbers["mae"] == pytest.approx(np.abs(logits[::2] - found["label"][::2]).mean())


def test_a_set_that_cannot_be_opened_is_told_before_anything_is_computed(folder, tmp_path):
    config = make_config(folder)
    config.evals.test.data.path = str(folder / "absent.csv")
    with pytest.raises(SettingError, match=r"absent\.csv"):
        loop.train(config, str(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


def test_a_test_on_training_videos_is_refused_unless_allowed(folder, tmp_path):
    config = make_config(folder, **{"finetuning.allow_shared_videos": False})
    with pytest.raises(SettingError, match="20 of 20 test clips are among the training clips"):
        loop.evaluate(config, str(tmp_path), ["test"])


def test_an_unreadable_video_stops_the_test_and_is_named_or_is_counted(folder, tmp_path):
    listed = (folder / "list.csv").read_text()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    (tmp_path / "list.csv").write_text(f"{listed}{broken} 0\n")
    config = make_config(folder)
    config.evals.test.data.path = str(tmp_path / "list.csv")
    with pytest.raises(SettingError, match=r"broken\.mp4"):
        loop.evaluate(config, str(tmp_path / "a"), ["test"])
    config.evals.test.data.skip_bad_held_out = True
    config.evals.test.data.max_bad_share = 0.5
    measured = loop.evaluate(config, str(tmp_path / "b"), ["test"])
    assert (measured["test/records"], measured["test/skipped"]) == (COUNT, 1)
