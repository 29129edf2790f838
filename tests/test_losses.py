"""Losses, against torch's."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.losses import (
    LOSSES,
    classification_loss,
    mean_loss,
    smoothed_targets,
    target_losses,
)

pytestmark = pytest.mark.usefixtures("hasty_compiler")

TORCH_LOSSES = {"mse": "mse_loss", "l1": "l1_loss", "smooth_l1": "smooth_l1_loss"}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_torch(name):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0, 1.5, (3, 4, 5)).astype(np.float32) for _ in range(2))
    reference = getattr(torch.nn.functional, TORCH_LOSSES[name])
    expected = reference(torch.tensor(a), torch.tensor(b), reduction="none").numpy()
    ours = [jnp.asarray(a), jnp.asarray(b), LOSSES[name]]
    np.testing.assert_allclose(mean_loss(*ours), expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(mean_loss(*ours, axis=(1, 2)), expected.mean(axis=(1, 2)), rtol=1e-6)


def test_mean_loss_is_fp32_for_bf16_predictions():
    a = jnp.full((1000,), 0.1, jnp.bfloat16)
    loss = mean_loss(a, jnp.zeros(1000))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, float(a[0]) ** 2, rtol=1e-6)  # not rounded to bf16


@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 3, 4), (3, 4), (2, 4, 3)])
def test_mean_loss_refuses_what_would_broadcast(shape):
    with pytest.raises(ValueError, match=r"predictions \(2, 3, 4\) and targets .* differ in shape"):
        mean_loss(jnp.zeros((2, 3, 4)), jnp.zeros(shape))


# The classification loss, against torch as transformers calls it


def classification_cases():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (5, 4)).astype(np.float32)
    classes = np.array([0, 3, 1, 2, 3])
    some = np.array([0, -100, 1, -100, 3])
    many = rng.integers(0, 2, (5, 4))
    numbers = rng.normal(size=5).astype(np.float32)
    return {
        "single": ("single_label_classification", logits, classes),
        "single, some not counted": ("single_label_classification", logits, some),
        "multi": ("multi_label_classification", logits, many.astype(np.float32)),
        "multi, integers": ("multi_label_classification", logits, many),
        "regression": ("regression", logits[:, :1], numbers),
        "regression of many": ("regression", logits, logits[::-1].copy()),
    }


@pytest.mark.parametrize("case", classification_cases())
def test_classification_losses_are_those_of_torch(case):
    torch = pytest.importorskip("torch")
    problem_type, logits, labels = classification_cases()[case]
    theirs, answers = torch.tensor(logits), torch.tensor(labels)
    expected = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": lambda x, y: (
            torch.nn.functional.binary_cross_entropy_with_logits(x, y.float())
        ),
        "regression": lambda x, y: torch.nn.functional.mse_loss(x.squeeze(), y.squeeze()),
    }[problem_type](theirs, answers)
    found = classification_loss(jnp.asarray(logits), jnp.asarray(labels), problem_type)
    assert found.shape == ()
    assert float(found) == pytest.approx(expected.item(), rel=1e-6)
    half = classification_loss(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels), problem_type)
    assert half.dtype == jnp.float32


@pytest.mark.parametrize(
    ("problem_type", "shape", "dtype", "message"),
    [
        ("single_label_classification", (4,), int, r"labels have shape \(4,\) .* each of the 5"),
        ("single_label_classification", (5, 4), int, "labels have shape"),
        ("single_label_classification", (5,), float, "dtype float32, but must be one integer"),
        ("multi_label_classification", (5,), float, r"\(5, 4\) and targets \(5,\) differ"),
        ("multi_label_classification", (5, 1), float, r"\(5, 4\) and targets \(5, 1\) differ"),
        ("regression", (5,), float, r"labels \(5,\) must have as many entries .*\(5, 4\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(problem_type, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        classification_loss(jnp.zeros((5, 4)), jnp.zeros(shape, dtype), problem_type)


def test_unknown_problem_types_are_refused():
    with pytest.raises(ValueError, match="problem_type='ranking'"):
        classification_loss(jnp.zeros((5, 4)), jnp.zeros(5, int), "ranking")


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.0, 1.0)])
def test_losses_of_clips_are_those_of_torch(weights):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 4)).astype(np.float32)
    shares = rng.dirichlet(np.ones(4), 6).astype(np.float32)
    hot = rng.integers(0, 2, (6, 4)).astype(np.float32)
    x, w = torch.tensor(logits), None if weights is None else torch.tensor(weights)
    functional = torch.nn.functional
    expected = {
        "single_label_classification": (
            shares, functional.cross_entropy(x, torch.tensor(shares), w, reduction="none")
        ),
        "multi_label_classification": (
            hot,
            functional.binary_cross_entropy_with_logits(
                x, torch.tensor(hot), w, reduction="none"
            ).mean(1),
        ),
    }  # fmt: skip
    if weights is None:
        squares = functional.mse_loss(x, torch.tensor(shares), reduction="none").mean(1)
        expected["regression"] = (shares, squares)
    for problem_type, (targets, losses) in expected.items():
        found = target_losses(logits, targets, problem_type, weights)
        np.testing.assert_allclose(found, losses.numpy(), rtol=1e-6, atol=1e-7)


def test_smoothed_targets_are_the_originals():
    found = smoothed_targets(np.array([2, 0]), 4, 0.2)
    np.testing.assert_allclose(found, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        target_losses(np.zeros((2, 3)), np.zeros((2, 1)), "regression")
