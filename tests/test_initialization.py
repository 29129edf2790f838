"""Starting distributions against the bounds of the official code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.config import VideoMAEConfig
from vmae_jax.initialization import make_initialization


def test_base_starts_within_the_bounds_of_the_original():
    # bounds of the official ViT-B: qkv, projection and its bias, encoder to decoder
    init = make_initialization(VideoMAEConfig(), fine_tuning=False)
    key = jax.random.key(0)
    for draw, shape, bound in (
        (init.dense, (768, 3 * 768), 0.04419),
        (init.projection, (1536, 64), 0.02552),
        (init.projection_bias, (100_000,), 0.02552),
        (init.encoder_to_decoder, (768, 384), 0.03608),
    ):
        largest = float(jnp.abs(draw(key, shape, jnp.float32)).max())
        assert largest == pytest.approx(bound, rel=1e-3)


def test_mask_token_is_cut_at_one_standard_deviation():
    # the original's has a standard deviation of 0.0108 for that
    init = make_initialization(VideoMAEConfig(), fine_tuning=False)
    values = np.asarray(init.mask_token(jax.random.key(0), (100_000,), jnp.float32))
    assert 0.01999 < np.abs(values).max() <= 0.02
    assert values.std() == pytest.approx(0.0108, abs=0.0001)
