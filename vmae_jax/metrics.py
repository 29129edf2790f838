"""Figures of a classifier's or a regression's scores: plain functions of arrays.

On the host they take numpy arrays; `in_top_k` serves both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def in_top_k(scores: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Whether a clip's class is among its k highest scores, bool [B]; with k classes or fewer it
    always is.

    Of equal scores the class with the lower number counts as the higher.

    Args:
      scores: [B, K].
      labels: int [B].
    """
    own = jnp.take_along_axis(scores, labels[:, None], axis=1)
    before = jnp.arange(scores.shape[1]) < labels[:, None]
    better = (scores > own) | ((scores == own) & before)
    return better.sum(axis=1) < k


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """int64 [K, K]: how many records of the class of a row were taken for that of a column."""
    counts = np.bincount(labels * num_labels + predicted, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


def average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float | None:
    """Of one class: the mean, over its records, of the precision at the place of each, ranked by
    score; None if it has no record.

    Records with equal scores share a place, that of the last of them.

    Args:
      scores: [n].
      is_positive: bool [n].
    """
    if not is_positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(is_positive[order])
    # the last record of each run of equal scores
    last = np.searchsorted(-scores, -scores, side="right") - 1
    precision = hits[last] / (last + 1)
    return float(precision[is_positive[order]].mean())


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean of `average_precision` over the classes that have records; NaN if none has.

    Args:
      scores: [n, K].
      labels: [n, K], 1 for the classes of a record.
    """
    found = [average_precision(s, y > 0.5) for s, y in zip(scores.T, labels.T, strict=True)]
    found = [x for x in found if x is not None]
    return float(np.mean(found)) if found else float("nan")


def r2(predictions: np.ndarray, targets: np.ndarray) -> float:
    """1 - squared error / squared deviation from the mean, averaged over outputs; NaN for an output
    that never varies.

    Args:
      predictions, targets: [n, K].
    """
    errors = np.square(targets - predictions, dtype=np.float64).sum(axis=0)
    spread = np.square(targets - targets.mean(axis=0), dtype=np.float64).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean(np.where(spread > 0, 1 - errors / spread, np.nan)))
