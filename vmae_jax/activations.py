"""The activations that `hidden_act` may name, under the names of the Hugging Face configuration.

"gelu" is the exact one (with erf); its tanh approximation has names of its own.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_gelu = functools.partial(jax.nn.gelu, approximate=False)
_gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _clipped_gelu(x: jax.Array) -> jax.Array:
    return jnp.clip(_gelu(x), -10, 10)


def _relu_squared(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))


def _linear(x: jax.Array) -> jax.Array:
    return x


ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_10": _clipped_gelu,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "hardswish": jax.nn.hard_swish,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": _linear,
    "mish": jax.nn.mish,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "relu2": _relu_squared,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
