"""The three documented classes, a tiny configuration, and inputs for each."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import vmae_jax

MODEL, PRETRAINING, CLASSIFIER = (
    vmae_jax.VideoMAEModel,
    vmae_jax.VideoMAEForPreTraining,
    vmae_jax.VideoMAEForVideoClassification,
)
CLASSES = pytest.mark.parametrize("model_class", [MODEL, PRETRAINING, CLASSIFIER])
# 4 x 2 x 2 x 2 tubelets: 8 tokens in a grid of (2, 2, 2), 5 of them hidden
TINY = vmae_jax.VideoMAEConfig(
    image_size=16,
    patch_size=8,
    num_frames=4,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    decoder_hidden_size=24,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=40,
    num_labels=3,
)
PIXELS = np.random.default_rng(0).standard_normal((2, 4, 3, 16, 16)).astype(np.float32)
MASK = np.array([[1, 1, 0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 0, 0, 1]], bool)
LABELS = np.array([2, 0])


def inputs_of(model_class):
    """What a user passes besides pixels, as numpy arrays."""
    return {
        MODEL: {"bool_masked_pos": MASK},
        PRETRAINING: {"bool_masked_pos": MASK},
        CLASSIFIER: {"labels": LABELS},
    }[model_class]


def assert_equal_trees(one, other, rtol=1e-6, atol=0.0):
    one, other = (dict(jax.tree.leaves_with_path(tree)) for tree in (one, other))
    assert set(one) == set(other)
    for path, leaf in one.items():
        np.testing.assert_allclose(leaf, other[path], rtol=rtol, atol=atol, err_msg=str(path))
