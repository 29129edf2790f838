import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax import randomness

KEY = jax.random.key(0)


def test_one_key_is_split_into_one_per_clip():
    keys = randomness.clip_keys(KEY, 5)
    assert keys.shape == (5,)
    assert len({bytes(row) for row in np.asarray(jax.random.key_data(keys))}) == 5


def test_keys_per_clip_are_taken_as_they_are():
    keys = jax.random.split(KEY, 5)
    assert jnp.array_equal(randomness.clip_keys(keys, 5), keys)


def test_raw_keys_give_the_numbers_of_typed_ones():
    raw = jax.random.PRNGKey(7)
    typed = jax.random.key(7)
    assert jnp.array_equal(randomness.clip_keys(raw, 3), randomness.clip_keys(typed, 3))
    per_clip = jax.random.split(raw, 3)  # uint32 [3, 2]
    assert jnp.array_equal(randomness.clip_keys(per_clip, 3), jax.random.split(typed, 3))


@pytest.mark.parametrize("shape", [(3,), (2, 2), (4, 1)])
def test_other_shapes_of_keys_are_refused(shape):
    with pytest.raises(ValueError, match=r"key has shape \(.*\), but must be one key or one per"):
        randomness.clip_keys(jax.random.split(KEY, shape), 4)


def test_fold_in_is_that_of_jax_for_each_clip():
    keys = jax.random.split(KEY, 3)
    folded = randomness.fold_in(keys, 4)
    for i in range(3):
        assert jnp.array_equal(folded[i], jax.random.fold_in(keys[i], 4))
    assert not jnp.array_equal(folded, randomness.fold_in(keys, 5))


def test_uniform_draws_each_clip_from_its_own_key():
    keys = jax.random.split(KEY, 3)
    noise = randomness.uniform(keys, (4, 5))
    assert noise.shape == (3, 4, 5)
    assert noise.dtype == jnp.float32
    for i in range(3):
        assert jnp.array_equal(noise[i], jax.random.uniform(keys[i], (4, 5)))


@pytest.mark.parametrize("rate", [0.1, 0.75])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate):
    x = jnp.full((4, 10_000), 3.0)
    y = np.asarray(randomness.dropout(x, rate, jax.random.split(KEY, 4), (10_000,)))
    sigma = math.sqrt(rate * (1 - rate) / x.size)
    assert abs((y == 0).mean() - rate) < 4 * sigma
    np.testing.assert_allclose(y[y != 0], 3 / (1 - rate), rtol=1e-6)


def test_dropout_of_nothing_changes_nothing():
    x = jnp.arange(100.0).reshape(2, 50)
    keys = jax.random.split(KEY, 2)
    assert jnp.array_equal(randomness.dropout(x, 0.0, keys, (50,)), x)
    traced = jax.jit(lambda rate: randomness.dropout(x, rate, keys, (50,)))
    assert jnp.array_equal(traced(0.0), x)
    assert jnp.array_equal(traced(0.5), randomness.dropout(x, 0.5, keys, (50,)))


def test_a_broadcast_draw_drops_whole_clips():
    x = jnp.ones((2000, 3, 2))
    y = np.asarray(randomness.dropout(x, 0.4, jax.random.split(KEY, 2000), (1, 1)))
    clips = y.reshape(2000, -1)
    assert (clips == clips[:, :1]).all()
    assert abs((clips[:, 0] == 0).mean() - 0.4) < 4 * math.sqrt(0.24 / 2000)


def test_a_clip_drops_the_same_in_any_batch():
    keys = jax.random.split(KEY, 4)
    x = jnp.arange(1.0, 201).reshape(4, 50)
    whole = randomness.dropout(x, 0.5, keys, (50,))
    assert jnp.array_equal(randomness.dropout(x[2:], 0.5, keys[2:], (50,)), whole[2:])
    dropped = np.asarray(whole) == 0
    assert not np.array_equal(dropped[0], dropped[1])


def test_dropout_keeps_the_dtype():
    x = jnp.ones((2, 50), jnp.bfloat16)
    assert randomness.dropout(x, 0.5, jax.random.split(KEY, 2), (50,)).dtype == jnp.bfloat16


def test_dropped_infinities_are_zero():
    # 0 * inf would be nan
    x = jnp.full((4, 50), jnp.inf)
    y = np.asarray(randomness.dropout(x, 0.5, jax.random.split(KEY, 4), (50,)))
    assert set(np.unique(y)) == {0, np.inf}
