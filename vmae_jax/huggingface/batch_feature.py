"""What the image processor returns."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from vmae_jax.huggingface import arrays
from vmae_jax.huggingface.image_transforms import stack_videos


class BatchFeature(collections.UserDict):
    """A mapping whose entries are attributes too: `inputs["pixel_values"]`, `inputs.pixel_values`.

    Args:
      data: the entries; `data` is the dict of them.
      tensor_type: "np", "jax", "pt" (torch) or "tf" (TensorFlow) turns lists of lists of frames
        into one array each; None leaves them.
    """

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None):
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type)

    def __getitem__(self, name: str) -> Any:
        if not isinstance(name, str):
            raise KeyError(f"entries have names, of which {name!r} is none: {list(self.data)}")
        return self.data[name]

    def __getattr__(self, name: str) -> Any:
        entries = self.__dict__.get("data", {})  # empty while it is unpickled
        if name not in entries:
            raise AttributeError(f"there is no {name!r} here, only {list(entries)}")
        return entries[name]

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchFeature:
        """The batch itself, its entries now arrays of that kind.

        Raises:
          ValueError: for a kind that there is not, or frames that do not fit into one array.
          MissingPackage: if torch or TensorFlow is asked for and not installed.
        """
        arrays.check_tensor_type("return_tensors", tensor_type)
        if tensor_type is not None:
            for name, value in self.data.items():
                array = stack_videos(value) if isinstance(value, list) else arrays.to_numpy(value)
                self.data[name] = arrays.make_tensor(array, tensor_type)
        return self

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """The batch itself, its torch tensors moved to a device or cast (floats only).

        Args: as those of `torch.Tensor.to`.
        Raises:
          TypeError: if an entry is no torch tensor: jax needs no `.to`, for a model takes arrays
            wherever they lie.
        """
        import torch

        others = [name for name, value in self.data.items() if not arrays.is_torch(value)]
        if others:
            kinds = ", ".join(f"{name} ({type(self.data[name]).__name__})" for name in others)
            raise TypeError(
                f".to moves torch tensors, and {kinds} is none; ask for return_tensors='pt', or "
                "use jax.device_put (models take arrays wherever they lie)."
            )
        device = kwargs.get("device")
        if device is None and args and not isinstance(args[0], torch.dtype):
            device = args[0]
        for name, tensor in self.data.items():
            if tensor.is_floating_point():
                self.data[name] = tensor.to(*args, **kwargs)
            elif device is not None:
                self.data[name] = tensor.to(device)
        return self
