"""What accelerators are: their memory, arithmetic and networks, and the machines made of them.

    topology("v5e:16x16", num_slices=2) -> Topology(chip, 512 devices, 2 slices)

Figures are the makers', per device as JAX counts them (a TPU7x chip is two). They bound what a
program can do; none was measured. Memory is what the TPU compiler says may be used (libtpu 0.0.52:
the sizes in the message of a program that needs too much), for GPUs what the driver lists.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import NamedTuple

from vmae_jax.errors import SettingError


class Chip(NamedTuple):
    """One device.

    Attributes:
      platform: "tpu", "gpu" or "cpu".
      memory: bytes that a program may use; None: as much as the machine has.
      flops: bf16 FLOP/s of its matrix units, dense.
      bandwidth: bytes/s of its memory.
      link: bytes/s that it can send to its neighbours in a slice (a node for GPUs), all links
        together, one way; it can receive as much at the same time.
      far_link: bytes/s that it can send to another slice; None: not known.
      unit: width of a matrix unit: sides of a product are padded to a multiple of it.
      dims: length of a topology's name, e.g. 2 for "16x16".
      accelerator: what `TPU_ACCELERATOR_TYPE` calls n chips, and how many it counts for each.
      devices_per_chip: that JAX counts.
      largest: devices of a slice (a node).
      source: of the figures.
      flops_fp32: FLOP/s of full fp32; None: not told, as of TPUs, which make it of bf16 products.
    """

    platform: str
    memory: float | None
    flops: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    far_link: float | None = None
    unit: int = 1
    dims: int = 1
    accelerator: tuple[str, int] | None = None
    devices_per_chip: int = 1
    largest: int = 2**20
    source: str = ""
    flops_fp32: float | None = None


GiB = 2**30
_TPU = "docs.cloud.google.com/tpu/docs/"
# Networks: the TPU pages give "bidirectional bandwidth", twice what goes one way; the network of
# the data centre per pod (v5e, v6e: 256 chips) or chip.
CHIPS = {
    "v4": Chip(
        "tpu", 30.75 * GiB, 275e12, 1200e9, 300e9, None, 128, 3, ("v4", 2), 1, 4096, _TPU + "v4"
    ),
    "v5e": Chip(
        "tpu", 15.75 * GiB, 197e12, 819e9, 200e9, 3.125e9, 128, 2, ("v5litepod", 1), 1, 256,
        _TPU + "v5e",
    ),
    "v5p": Chip(
        "tpu", 95.73 * GiB, 459e12, 2765e9, 600e9, 6.25e9, 128, 3, ("v5p", 2), 1, 6144, _TPU + "v5p"
    ),
    "v6e": Chip(
        "tpu", 31.24 * GiB, 918e12, 1638e9, 400e9, 12.5e9, 256, 2, ("v6e", 1), 1, 256, _TPU + "v6e"
    ),
    "tpu7x": Chip(
        "tpu", 94.74 * GiB, 2307e12 / 2, 7380e9 / 2, 300e9, 6.25e9, 256, 3, ("tpu7x", 2), 2, 9216,
        _TPU + "tpu7x",
    ),
    "a100": Chip(
        "gpu", 79.1 * GiB, 312e12, 2039e9, 300e9, 25e9, 16, largest=8,
        source="NVIDIA A100 80GB SXM data sheet; 200 Gb/s of InfiniBand for each GPU",
        flops_fp32=19.5e12,
    ),
    "h100": Chip(
        "gpu", 79.1 * GiB, 989e12, 3350e9, 450e9, 50e9, 16, largest=8,
        source="NVIDIA H100 SXM data sheet; 400 Gb/s of InfiniBand for each GPU",
        flops_fp32=67e12,
    ),
    "h200": Chip(
        "gpu", 139.8 * GiB, 989e12, 4800e9, 450e9, 50e9, 16, largest=8,
        source="NVIDIA H200 SXM data sheet; 400 Gb/s of InfiniBand for each GPU",
        flops_fp32=67e12,
    ),
    "cpu": Chip("cpu", None, source="devices that XLA pretends"),
}  # fmt: skip


class Topology(NamedTuple):
    """A machine: equal slices of equal devices.

    Attributes:
      name: of one slice, e.g. "v5e:16x16".
      chip: a name in `CHIPS`.
      num_slices: that only the network of the data centre joins (nodes, for GPUs).
      num_devices: of all slices.
    """

    name: str
    chip: str
    num_slices: int
    num_devices: int

    @property
    def device(self) -> Chip:
        """What it is made of."""
        return CHIPS[self.chip]

    @property
    def num_chips(self) -> int:
        """Chips of all slices."""
        return self.num_devices // self.device.devices_per_chip

    @property
    def accelerator_type(self) -> str:
        """Of one slice of TPUs, as `TPU_ACCELERATOR_TYPE` names it."""
        name, count = self.device.accelerator
        return f"{name}-{self.num_chips // self.num_slices * count}"


def topology(name: str, num_slices: int = 1) -> Topology:
    """The machine of that name.

    Args:
      name: chip and size of a slice: "v5e:16x16", "v5p:4x4x4", "h200:8", "cpu:8".
      num_slices: how many of them.
    Raises:
      SettingError: if there is no such machine; says what there is.
    """
    chip_name, _, size = name.partition(":")
    chip = CHIPS.get(chip_name)
    if chip is None:
        near = difflib.get_close_matches(chip_name, CHIPS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingError(f"topology {name!r}: {hint}known are {', '.join(map(_form, CHIPS))}.")
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{chip.dims - 1}}}", size):
        raise SettingError(
            f"topology {name!r}: write {_form(chip_name)}, e.g. {_example(chip_name)}."
        )
    chips = math.prod(map(int, size.split("x")))
    if chips > chip.largest:
        whole = "slice" if chip.platform == "tpu" else "node"
        raise SettingError(
            f"topology {name!r} has {chips} chips, but a {whole} of {chip_name} has at most "
            f"{chip.largest}; for more of them say --slices."
        )
    if num_slices < 1 or (num_slices > 1 and chip.platform == "cpu"):
        rule = "must be 1" if chip.platform == "cpu" else "must be at least 1"
        raise SettingError(f"--slices {num_slices} {rule} for {name}.")
    return Topology(name, chip_name, num_slices, chips * chip.devices_per_chip * num_slices)


def _form(chip_name: str) -> str:
    return f"{chip_name}:{'x'.join('ABC'[: CHIPS[chip_name].dims]) if _is_tpu(chip_name) else 'N'}"


def _example(chip_name: str) -> str:
    return f"{chip_name}:{'x'.join(['4'] * CHIPS[chip_name].dims) if _is_tpu(chip_name) else '8'}"


def _is_tpu(chip_name: str) -> bool:
    return CHIPS[chip_name].platform == "tpu"
