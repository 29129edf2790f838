"""The activations that `hidden_act` may name, under the names of the Hugging Face configuration.

"gelu" is the exact one (with erf); its tanh approximation has names of its own.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x), Φ of the normal distribution by erf, in fp32 or wider and rounded once, as in torch.

    Its derivative is written down, so that the backward pass keeps one array for it: left to JAX,
    `jax.nn.gelu` keeps three.
    """
    wide = _widened(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    wide = _widened(x)
    cdf = _normal_cdf(wide)
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    slope = (cdf + wide * density).astype(x.dtype)
    return (wide * cdf).astype(x.dtype), slope * tangent


def _widened(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


_gelu_tanh = functools.partial(jax.nn.gelu, approximate=True)


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _clipped_gelu(x: jax.Array) -> jax.Array:
    return jnp.clip(gelu(x), -10, 10)


def _relu_squared(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))


def _linear(x: jax.Array) -> jax.Array:
    return x


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_10": _clipped_gelu,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": gelu,
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
