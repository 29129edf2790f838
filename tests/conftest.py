"""Settings that have to stand before jax and torch are imported, and models to test with."""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import urllib.request

import compiler_flags
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by transformers and huggingface_hub
os.environ["OMP_NUM_THREADS"] = "1"  # read by torch
if "XLA_FLAGS" not in os.environ:  # processes that pytest starts have it already
    os.environ["XLA_FLAGS"] = " ".join(compiler_flags.known(compiler_flags.FASTER_COMPILING))
# What was compiled once is kept; nothing is written to the user's own caches.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Ctrl-C is ignored in what a shell starts in the background, and in all that this starts
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    if item.get_closest_marker("network") and (reason := why_no_hub()):
        pytest.skip(reason)


@functools.cache
def why_no_hub() -> str:
    """Why tests that are marked `network` cannot run; "" if they can."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set, as by default; to run it: HF_HUB_OFFLINE=0 pytest -m network"
    try:
        with urllib.request.urlopen(
            f"{constants.ENDPOINT}/api/models/MCG-NJU/videomae-base", timeout=5
        ):
            return ""
    except OSError as error:  # HTTP errors and timeouts are such
        return f"the hub at {constants.ENDPOINT} cannot be reached: {error}"


@pytest.fixture(scope="module")
def hasty_compiler():
    """For files whose tests compile for seconds and then compute for milliseconds."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


_SHAPES = {}


@pytest.fixture
def random_model():
    """(class, config, seed, **compute) -> a model with every parameter random.

    Fresh models will not do: their biases and LayerNorms start at 0 and 1, where a mistake in them
    is invisible. Nothing is compiled here.
    """
    import numpy as np
    from flax import nnx

    from vmae_jax.weights import layouts

    def draw(rng, path, shape):
        noise = rng.standard_normal(shape)
        if path.endswith("scale"):
            return 1 + 0.3 * noise
        if path.endswith("kernel"):
            axes = {"encoder/attention/qkv": 1, "decoder/attention/qkv": 1}
            axes |= {"encoder/attention/output": (1, 2), "decoder/attention/output": (1, 2)}
            inputs = axes.get(path.removesuffix("/kernel"), -2)
            return noise / np.sqrt(np.prod(np.take(shape, inputs)))
        return 0.3 * noise

    def make(model_class, config, seed=0, **compute):
        kind = model_class, repr(config), repr(compute)
        if kind not in _SHAPES:  # tracing a model takes as long as many a test
            _SHAPES[kind] = nnx.split(nnx.eval_shape(lambda: model_class(config, **compute)))
        model = nnx.merge(*_SHAPES[kind])
        rng = np.random.default_rng(seed)
        shapes = {path: p.shape for path, p in layouts.parameters(model.core).items()}
        values = {path: draw(rng, path, shape) for path, shape in sorted(shapes.items())}
        layouts.set_parameters(model.core, values)
        return model

    return make
