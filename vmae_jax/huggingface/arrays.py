"""Arrays of other libraries, read as numpy and made of numpy; each library is loaded on demand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from vmae_jax.errors import MissingPackage, SettingError


def to_numpy(array: Any) -> np.ndarray:
    """A jax array or torch tensor (which may require gradients, or lie on a device) as numpy."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    try:
        return np.asarray(array)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"a {type(array).__name__} of dtype {getattr(array, 'dtype', None)} cannot be read as "
            "numpy; convert it first, e.g. to uint8 or float32."
        ) from error


def is_torch(value: Any) -> bool:
    """Whether a value is a tensor of torch, which need not be installed."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _jax(array: np.ndarray) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(array)


def _torch(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)


def _tensorflow(array: np.ndarray) -> Any:
    import tensorflow

    return tensorflow.constant(array)


_MAKERS: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "np": ("numpy", np.asarray),
    "jax": ("jax", _jax),
    "pt": ("torch", _torch),
    "tf": ("tensorflow", _tensorflow),
}


def check_tensor_type(name: str, value: Any) -> None:
    """Checks the name of a kind of tensors; None is one.

    Raises:
      SettingError: if there is no such kind.
    """
    if value is not None and value not in _MAKERS:
        raise SettingError(
            f"{name}={value!r} is not supported; choose 'np' or 'jax', 'pt' (torch), 'tf' "
            "(TensorFlow), or None for lists of numpy arrays."
        )


def make_tensor(array: np.ndarray, tensor_type: str) -> Any:
    """The array as "np", "jax", "pt" or "tf".

    Raises:
      MissingPackage: if the library is not installed.
    """
    package, make = _MAKERS[tensor_type]
    try:
        return make(array)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and lacks something itself
            raise
        raise MissingPackage(
            f"{package} is not installed, so no such tensors can be made; run `pip install "
            f"{package}`, or choose return_tensors='np' or 'jax'."
        ) from error
