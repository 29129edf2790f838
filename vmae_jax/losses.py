"""Losses as pure functions, in fp32 whatever the model computes in."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vmae_jax.config_checks import PROBLEM_TYPES


def _same_shape(predictions: jax.Array, targets: jax.Array) -> None:
    if predictions.shape != targets.shape:  # broadcasting would hide it
        raise ValueError(
            f"predictions {predictions.shape} and targets {targets.shape} differ in shape."
        )


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """(p - t)², without a factor 1/2."""
    return jnp.square(predictions - targets)


def absolute_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """|p - t|."""
    return jnp.abs(predictions - targets)


def smooth_absolute_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """(p - t)² / 2 below a difference of 1, |p - t| - 1/2 above."""
    return optax.huber_loss(predictions, targets, delta=1.0)


def mean_loss(
    predictions: jax.Array, targets: jax.Array, loss: Callable = squared_error, axis=None
) -> jax.Array:
    """The mean of an elementwise loss, in fp32; a scalar, or over `axis` only.

    Raises:
      ValueError: if the shapes differ.
    """
    _same_shape(predictions, targets)
    return loss(predictions.astype(jnp.float32), targets.astype(jnp.float32)).mean(axis=axis)


def classification_loss(logits: jax.Array, labels: jax.Array, problem_type: str) -> jax.Array:
    """The mean loss of a classifier, fp32 scalar.

    Args:
      logits: [B, K].
      labels: int [B] for "single_label_classification" (-100: not counted); [B, K] in [0, 1] for
        "multi_label_classification"; numbers of as many entries as the logits for "regression".
    Raises:
      ValueError: if shapes or dtypes don't fit the problem type, or that is unknown.
    Source: the loss functions of transformers, which are those of torch.
    """
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type={problem_type!r} is unknown; choose from {PROBLEM_TYPES}.")
    logits = logits.astype(jnp.float32)
    if problem_type == "regression":
        if labels.size != logits.size:
            raise ValueError(
                f"labels {labels.shape} must have as many entries as the logits {logits.shape}."
            )
        return mean_loss(logits.reshape(-1), labels.reshape(-1))
    if problem_type == "multi_label_classification":
        _same_shape(logits, labels)
        return optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32)).mean()
    labels = labels.reshape(-1)
    if len(labels) != len(logits) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}, but must be one integer "
            f"class for each of the {len(logits)} clips."
        )
    counted = labels != -100
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels, 0))
    return jnp.sum(losses * counted) / jnp.sum(counted)


def smoothed_targets(labels: jax.Array, num_labels: int, smoothing: float) -> jax.Array:
    """One-hot targets fp32 [B, K] of classes int [B], `smoothing` of each spread over all K.

    Source: mixup.py of the official code, one_hot.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, num_labels), smoothing)


def target_losses(
    logits: jax.Array,
    targets: jax.Array,
    problem_type: str,
    class_weights: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """The loss of each clip, fp32 [B]: cross-entropy, the mean of K binary ones, or of K squares.

    Args:
      logits: [B, K].
      targets: fp32 [B, K]: a distribution over classes, shares in [0, 1], or numbers.
      problem_type: one of PROBLEM_TYPES.
      class_weights: [K], factors of the terms; they are not divided by their sum.
    Raises:
      ValueError: if the shapes differ.
    Source: torch's cross_entropy with probabilities as targets, binary_cross_entropy_with_logits,
    mse_loss, before the mean over clips.
    """
    _same_shape(logits, targets)
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    weights = 1.0 if class_weights is None else jnp.asarray(class_weights, jnp.float32)
    if problem_type == "single_label_classification":
        return -jnp.sum(weights * targets * jax.nn.log_softmax(logits), axis=-1)
    if problem_type == "multi_label_classification":
        terms = optax.sigmoid_binary_cross_entropy(logits, targets)
    else:
        terms = jnp.square(logits - targets)
    return jnp.mean(weights * terms, axis=-1)


LOSSES = {"mse": squared_error, "l1": absolute_error, "smooth_l1": smooth_absolute_error}
