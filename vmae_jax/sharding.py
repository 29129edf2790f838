"""Where arrays lie: clips are split over the mesh, parameters are copied to every device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(
    batch_size: int, devices: Sequence[jax.Device] | None = None, *, repeat: int = 1
) -> Mesh:
    """A mesh of all devices along one axis, `data`.

    Raises: ValueError if the global batch, in groups of `repeat` clips, cannot be split evenly over
      them.
    """
    devices = jax.devices() if devices is None else devices
    unit = len(devices) * repeat
    if batch_size < 1 or batch_size % unit:
        times = f" times data.repeat={repeat}" if repeat > 1 else ""
        raise ValueError(
            f"data.batch_size={batch_size} is not a positive multiple of the {len(devices)} "
            f"devices{times}; choose e.g. {max(1, round(batch_size / unit)) * unit}."
        )
    return Mesh(np.asarray(devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis (clips) split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from each process's own part of the batch; copying goes on in the
    background."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
