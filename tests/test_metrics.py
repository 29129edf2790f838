"""Figures against definitions in plain Python, and values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vmae_jax import metrics


def test_top_k_by_sorting():
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((50, 7)), rng.integers(0, 7, 50)
    for k in (1, 3, 5, 7, 9):
        expected = [
            label in np.argsort(-row)[:k] for row, label in zip(scores, labels, strict=True)
        ]
        np.testing.assert_array_equal(metrics.in_top_k(scores, labels, k), expected)


def test_equal_scores_do_not_count_as_right():
    """A model that says nothing is right for the first class alone."""
    found = metrics.in_top_k(np.zeros((4, 4)), np.arange(4), 1)
    assert found.tolist() == [True, False, False, False]


def test_softmax_of_large_logits():
    found = metrics.softmax(np.float32([[1000, 1000, -1000]]))
    np.testing.assert_allclose(found, [[0.5, 0.5, 0]])


def test_confusion_matrix_by_hand():
    matrix = metrics.confusion_matrix(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([0.1, 0.2, 0.3, 0.4], [1, 0, 0, 1], (1 + 2 / 4) / 2),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 0], 1 / 4),  # all share the last place
        ([0.9, 0.5, 0.5], [0, 1, 0], 1 / 3),
    ],
)
def test_average_precision_by_hand(scores, positive, expected):
    found = metrics.average_precision(np.array(scores), np.array(positive, bool))
    assert found == pytest.approx(expected)


def test_a_class_without_records_does_not_count():
    scores, labels = np.array([[0.9, 0.3], [0.2, 0.4]]), np.array([[1, 0], [0, 0]])
    assert metrics.mean_average_precision(scores, labels) == 1.0
    assert np.isnan(metrics.mean_average_precision(scores, np.zeros((2, 2))))


def test_r2_by_hand():
    targets = np.array([[1.0], [2.0], [3.0]])
    assert metrics.r2(targets, targets) == 1.0
    assert metrics.r2(np.full((3, 1), 2.0), targets) == 0.0
    assert metrics.r2(np.array([[1.0], [2.0], [4.0]]), targets) == pytest.approx(1 - 1 / 2)
    assert np.isnan(metrics.r2(targets, np.ones((3, 1))))
