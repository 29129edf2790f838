"""How fresh parameters are drawn: the published starting distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class Initialization(NamedTuple):
    """How each part starts; biases and LayerNorms start at 0 and (1, 0) unless named here."""

    dense: Callable
    projection: Callable
    projection_bias: Callable
    encoder_to_decoder: Callable
    mask_token: Callable
    classifier: Callable


def _torch_default(fan_in: int) -> Callable:
    """U(±1/sqrt(fan_in)), torch's own start for Linear and Conv layers, weights and biases
    alike."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def make_initialization(config, *, fine_tuning: bool) -> Initialization:
    """The published starting distributions that `config.initialization` names.

    The official code starts a pre-training model with xavier-uniform (over the fused qkv matrix)
    and a classifier with a normal of 0.02, its head scaled by 0.001. Two oddities are kept: the map
    from encoder to decoder has torch's default, and the mask token is cut at one standard
    deviation.
    Source: modeling_pretrain.py, modeling_finetune.py; modeling_videomae.py of transformers.
    """
    normal = nnx.initializers.normal(config.initializer_range)
    zeros = nnx.initializers.zeros
    if config.initialization == "huggingface":
        return Initialization(normal, normal, zeros, normal, zeros, normal)
    # The original's truncation at ±2 (absolute) is 100 standard deviations away: a plain normal.
    dense = nnx.initializers.normal(0.02) if fine_tuning else nnx.initializers.xavier_uniform()
    projection = _torch_default(config.tubelet_values)
    return Initialization(
        dense=dense,
        projection=projection,
        projection_bias=projection,
        encoder_to_decoder=_torch_default(config.hidden_size),
        mask_token=lambda key, shape, dtype: (
            0.02 * jax.random.truncated_normal(key, -1, 1, shape, dtype)
        ),
        classifier=nnx.initializers.normal(0.02 * 0.001),
    )
