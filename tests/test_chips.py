from __future__ import annotations

import pytest

from vmae_jax.flops import PEAKS
from vmae_jax.plan import chips


@pytest.mark.parametrize(
    ("name", "slices", "devices", "chips_", "accelerator"),
    [
        ("v5e:16x16", 1, 256, 256, "v5litepod-256"),
        ("v5e:16x16", 2, 512, 512, "v5litepod-256"),
        ("v5p:4x4x4", 1, 64, 64, "v5p-128"),
        ("v6e:4x4", 1, 16, 16, "v6e-16"),
        ("v4:2x2x1", 1, 4, 4, "v4-8"),
        ("tpu7x:2x2x1", 1, 8, 4, "tpu7x-8"),
    ],
)
def test_a_topology_has_its_devices(name, slices, devices, chips_, accelerator):
    machine = chips.topology(name, slices)
    assert (machine.num_devices, machine.num_chips) == (devices, chips_)
    assert machine.accelerator_type == accelerator


def test_gpus_come_in_nodes():
    assert chips.topology("h200:8", 4).num_devices == 32
    with pytest.raises(ValueError, match=r"a node of h200 has at most 8; .* --slices"):
        chips.topology("h200:16")


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        (
            "v5:4x4",
            1,
            r"did you mean v5\w\? known are v4:AxBxC, v5e:AxB, v5p:AxBxC, .* h200:N, cpu",
        ),
        ("b300:8", 1, "known are"),
        ("v5e", 1, "write v5e:AxB, e.g. v5e:4x4"),
        ("v5e:4x4x4", 1, "write v5e:AxB"),
        ("v5p:4x4", 1, "write v5p:AxBxC"),
        ("v5e:0x4", 1, "write v5e:AxB"),
        ("v5e:32x32", 1, "has 1024 chips, but a slice of v5e has at most 256"),
        ("v5e:4x4", 0, "--slices 0 must be at least 1"),
        ("cpu:8", 2, "--slices 2 must be 1 for cpu:8"),
    ],
)
def test_a_machine_that_there_is_not_is_refused(name, slices, message):
    with pytest.raises(ValueError, match=message):
        chips.topology(name, slices)


def test_peaks_agree_with_those_that_runs_are_measured_against():
    for chip, device in (
        ("v5e", "TPU v5e"), ("v5p", "TPU v5p"), ("v6e", "TPU v6e"), ("h200", "NVIDIA H200"),
        ("h100", "NVIDIA H100 80GB HBM3"), ("a100", "NVIDIA A100-SXM4-80GB"),
    ):  # fmt: skip
        known = chips.CHIPS[chip]
        assert (known.flops, known.flops_fp32) == PEAKS[device]


def test_every_figure_has_a_source():
    assert all(chip.source for chip in chips.CHIPS.values())
    # the makers' round numbers, from which something is kept for the system
    assert 0.98 * 16 < chips.CHIPS["v5e"].memory / chips.GiB < 16
    assert 95 < chips.CHIPS["v5p"].memory / chips.GiB < 96
