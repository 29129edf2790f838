"""Multi-view testing: every record from several places and times, the scores of its views merged.

Source: the test of the official code (engine_for_finetuning.py, final_test and merge).
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vmae_jax import confusion_picture, metrics
from vmae_jax.data.samples import HeldOutSamples
from vmae_jax.errors import SettingError
from vmae_jax.evaluators.evaluator import Context, Evaluator, predictions
from vmae_jax.files.storage import local_folder
from vmae_jax.processes.distributed import is_main

logger = logging.getLogger(__name__)


class MultiView(Evaluator):
    """Measures single labels, several labels or numbers, over all records of a data set.

    Scores of a record are the mean of its views' softmax (of sigmoids for several labels, of the
    numbers themselves in regression); "logit_mean" merges before the softmax, as the original did
    before August 2022. What is measured on single views says so in its name.

    Under <workdir>/<name of the section>: scores.csv and scores.json, a row for each record, and
    for classes confusion.png.

    Args:
      data: what differs from the section `data` of the run: views (`segments`, `crops`), another
        list (`path`, `options`), ...
      split: of that data set.
    Raises:
      SettingError: if the task predicts no logits, or the data set cannot be opened.
    """

    visits = False  # those of the run: it opens its own

    def __init__(self, context: Context, *, data: Mapping[str, Any], split: str = "held_out"):
        super().__init__(context)
        if not hasattr(context.task, "problem_type"):
            raise SettingError(
                f"evaluator 'test' is for tasks with labels, and task={context.config.task!r} has "
                "none; set its every_steps to 0."
            )
        self._data, self._split = dict(data), split
        with self._open():  # whether it can be
            pass

    def _open(self):
        return self.context.open_samples(self._data, self._split)

    def __call__(self, params: dict[str, Any], step: int) -> dict[str, float]:
        """All processes call it; one writes."""
        with self._open() as samples:
            found = predictions(self.context, params, samples)
            result = merge_views(found, self.context.task.problem_type)
            skipped = len(samples) - len(result["index"])
            if is_main() and self.context.workdir is not None:
                self._write(samples, result, step)
        measured = measure(result, found, self.context.task.problem_type)
        return {**measured, "records": len(result["index"]), "skipped": skipped}

    def _write(self, samples: HeldOutSamples, result: Mapping[str, np.ndarray], step: int) -> None:
        names = list(self.context.steps.model_config.id2label.values())
        records = [samples.source[i] for i in result["index"]]
        folder = os.path.join(self.context.workdir, self.context.name)
        with local_folder(folder) as local:
            write_scores(local, records, names, result)
            if result["label"].ndim == 1:
                matrix = metrics.confusion_matrix(
                    result["scores"].argmax(axis=1), result["label"], len(names)
                )
                confusion_picture.draw(
                    matrix, names, os.path.join(local, "confusion.png"), title=f"step {step}"
                )
        logger.info("scores of %d records: %s", len(records), folder)


def merge_views(found: Mapping[str, np.ndarray], problem_type: str) -> dict[str, np.ndarray]:
    """The scores of each record, from those of its views.

    Args:
      found: "logits" [V, K], "label" [V, ...] and "index" int [V], the record of each view.
      problem_type: of the labels.
    Returns:
      "index" int [n], ascending; "label" [n, ...]; "scores" [n, K], the merged; "logit_mean"
      [n, K].
    """
    index, first, inverse = np.unique(found["index"], return_index=True, return_inverse=True)

    def mean(views: np.ndarray) -> np.ndarray:
        total = np.zeros((len(index), views.shape[1]))
        np.add.at(total, inverse, views)
        return total / np.bincount(inverse)[:, None]

    return {
        "index": index,
        "label": found["label"][first],
        "scores": mean(view_scores(found["logits"], problem_type)),
        "logit_mean": mean(found["logits"].astype(np.float64)),
    }


def view_scores(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Probabilities [V, K] of classes, or the numbers themselves; float64."""
    if problem_type == "single_label_classification":
        return metrics.softmax(logits)
    logits = logits.astype(np.float64)
    return logits if problem_type == "regression" else 1 / (1 + np.exp(-logits))


def measure(
    merged: Mapping[str, np.ndarray], views: Mapping[str, np.ndarray], problem_type: str
) -> dict[str, float]:
    """Figures by name.

    Single labels: `top1`, `top5`, `class_mean` (the mean of the classes' accuracies) of the merged
    scores; `top1_logit_mean`, `top5_logit_mean`; `top1_single_view`. Several: `map`. Numbers: `r2`,
    `mae`.
    """
    scores, labels = merged["scores"], merged["label"]
    if problem_type == "multi_label_classification":
        return {
            "map": metrics.mean_average_precision(scores, labels),
            "map_logit_mean": metrics.mean_average_precision(merged["logit_mean"], labels),
        }
    if problem_type == "regression":
        return {
            "r2": metrics.r2(scores, labels),
            "mae": float(np.abs(scores - labels).mean()),
        }

    def accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
        return float(np.mean(metrics.in_top_k(scores, labels, k)))

    right = np.asarray(metrics.in_top_k(scores, labels, 1))
    by_class = [right[labels == label].mean() for label in np.unique(labels)]
    return {
        "top1": accuracy(scores, labels, 1),
        "top5": accuracy(scores, labels, 5),
        "class_mean": float(np.mean(by_class)),
        "top1_logit_mean": accuracy(merged["logit_mean"], labels, 1),
        "top5_logit_mean": accuracy(merged["logit_mean"], labels, 5),
        "top1_single_view": accuracy(views["logits"], views["label"], 1),
    }


def _of_class(k: int, merged: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How many records a class has and, of single labels, the share of them that is right."""
    labels = merged["label"]
    if labels.ndim > 1:
        return {}
    own = merged["scores"][labels == k]
    right = float(np.mean(own.argmax(axis=1) == k)) if len(own) else None
    return {"records": len(own), "accuracy": right}


def write_scores(
    folder: str, records: list[Any], names: list[str], merged: Mapping[str, np.ndarray]
) -> None:
    """`scores.csv` and `scores.json`: of each record its id, path, label, and merged scores; in the
    latter also the accuracy of each class, None where it has no records."""
    classes = [{"name": name, **_of_class(k, merged)} for k, name in enumerate(names)]
    rows = [
        {
            "clip_id": record.clip_id,
            "path": record.path,
            "label": label.tolist(),
            "scores": [float(f"{score:.6g}") for score in scores],
        }
        for record, label, scores in zip(records, merged["label"], merged["scores"], strict=True)
    ]
    with open(os.path.join(folder, "scores.json"), "w", encoding="utf-8") as file:
        json.dump({"classes": classes, "records": rows}, file, ensure_ascii=False)
    with open(os.path.join(folder, "scores.csv"), "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["clip_id", "path", "label", *names])
        for row in rows:
            table.writerow([row["clip_id"], row["path"], json.dumps(row["label"]), *row["scores"]])
