"""How a run is split over devices changes no number, and the split is what the rule says."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from vmae_jax import sharding

PROGRAM = pathlib.Path(__file__).parent / "mesh_runs.py"
# one of the eight, in which all axes split; the fault campaign runs them all
MESH = "2x2x2/2"


@pytest.fixture(scope="module")
def runs():
    result = subprocess.run(
        [sys.executable, str(PROGRAM), MESH],
        capture_output=True, text=True, timeout=600, env=environment(), check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_eight_devices_fine_tune_as_one():
    """Groups of clips that are mixed lie on several devices, and in several micro-batches."""
    result = subprocess.run(
        [sys.executable, str(PROGRAM), "--finetuning", MESH],
        capture_output=True, text=True, timeout=600, env=environment(), check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    runs = json.loads(result.stdout.splitlines()[-1])
    assert runs[MESH]["losses"] == pytest.approx(runs["one"]["losses"], rel=1e-5)
    assert len(set(runs["one"]["losses"])) == 10


def environment():
    import os

    return {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent)}


def test_eight_devices_give_the_losses_and_masks_of_one(runs):
    eight, one = runs[MESH], runs["one"]
    assert eight["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert len(eight["masks"]) == 16 * 10  # clips of ten steps
    assert eight["masks"] == one["masks"]
    assert one["losses"][-1] < one["losses"][0]


def test_a_layer_does_not_keep_what_it_gathered(runs):
    # 8.8 MB if it did: the matrices of 8 layers, 12 * 128² values each, in bf16 and fp32
    assert runs["memory"] < 4e6


def test_parameters_and_moments_are_split_alike(runs):
    for name, shard in (("one", [2, 32, 64]), (MESH, [2, 16, 32])):
        assert (runs[name]["shard"], runs[name]["moment_shard"]) == (shard, shard)


def mesh_of(data, fsdp, tensor):
    devices = np.array([SimpleNamespace(id=i) for i in range(data * fsdp * tensor)], object)
    return SimpleNamespace(
        shape=dict(zip(sharding.AXES, (data, fsdp, tensor), strict=True)), devices=devices
    )


IN, OUT = "params/encoder/intermediate/kernel", "params/encoder/output/kernel"


@pytest.mark.parametrize(
    ("path", "shape", "mesh", "expected"),
    [
        # ViT-L: the largest free axis, never the layers
        (IN, (24, 1024, 4096), (1, 4, 1), (None, None, "fsdp")),
        (IN, (24, 1024, 4096), (1, 4, 2), (None, "fsdp", "tensor")),
        (OUT, (24, 4096, 1024), (1, 4, 2), (None, "tensor", "fsdp")),
        (f"opt_state/adam/mu/{OUT}", (24, 4096, 1024), (1, 4, 1), (None, "fsdp", None)),
        (
            "params/encoder/attention/qkv/kernel", (24, 1024, 3, 16, 64), (1, 4, 2),
            (None, "fsdp", None, "tensor", None),
        ),
        (
            "params/encoder/attention/output/kernel", (24, 16, 64, 1024), (1, 4, 2),
            (None, "tensor", None, "fsdp"),
        ),
        ("params/encoder/attention/q_bias", (24, 16, 64), (1, 4, 2), (None, "tensor", None)),
        ("params/encoder/intermediate/bias", (24, 4096), (1, 4, 2), (None, "tensor")),
        ("params/encoder/output/bias", (24, 1024), (1, 4, 2), (None, None)),
        # too small to be worth gathering: 64 x 64 x 4 bytes
        ("params/decoder/intermediate/kernel", (4, 64, 64), (1, 4, 1), (None, None, None)),
        # no axis divides by five
        (IN, (24, 1024, 4096), (1, 5, 1), (None, None, None)),
        ("params/embeddings/kernel", (1536, 1024), (1, 4, 2), ("fsdp", None)),
        # ViT-g: 1176 / 8 = 147 is not a multiple of 8 rows; where nothing is, the largest
        ("params/decoder_head/kernel", (512, 1176), (1, 8, 1), ("fsdp", None)),
        ("params/decoder_head/kernel", (516, 1176), (1, 4, 1), (None, "fsdp")),
        ("opt_state/adam/count", (), (1, 4, 2), ()),
    ],
)  # fmt: skip
def test_the_rule(path, shape, mesh, expected):
    assert sharding.parameter_spec(path, shape, mesh_of(*mesh)) == PartitionSpec(*expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"fsdp": 3}, r"mesh\.fsdp=3.* the 8 devices.* data=2, fsdp=4, tensor=1"),
        ({"data": 4}, r"mesh\.data=4.*nearest possible mesh is data=8, fsdp=1, tensor=1"),
        ({"tensor": 8, "heads": (12, 6)}, r"the heads, 12 and 6.*data=4, fsdp=1, tensor=2"),
        ({"data": 0}, "data=8"),
        ({"fsdp": -1}, "data=8, fsdp=1"),
    ],
)  # fmt: skip
def test_an_impossible_mesh_is_refused_with_the_nearest(asked, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**asked, devices=[SimpleNamespace(platform="cpu")] * 8)


class PretendedDevice(SimpleNamespace):
    """What a mesh asks of a device."""

    def __init__(self, number, **attributes):
        super().__init__(**{"id": number, "platform": "cpu", "process_index": 0, **attributes})

    def __hash__(self):
        return self.id


def test_data_spans_the_slices():
    devices = [SimpleNamespace(platform="tpu", slice_index=i // 4) for i in range(8)]
    with pytest.raises(ValueError, match=r"data a multiple of the 2 slices.*data=2, fsdp=4"):
        sharding.make_mesh(data=1, fsdp=8, devices=devices)
    pretended = [PretendedDevice(i) for i in range(8)]  # which say nothing of slices
    with pytest.raises(ValueError, match="data a multiple of the 2 slices"):
        sharding.make_mesh(data=1, fsdp=8, devices=pretended, slices=2)
    assert sharding.make_mesh(fsdp=4, devices=pretended, slices=2).shape["data"] == 2


@pytest.mark.parametrize(
    ("fsdp", "tensor"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (1, 2), (2, 2), (4, 2), (8, 2)]
)
def test_whatever_a_slice_has_room_for_can_be_laid_along_it(fsdp, tensor):
    devices = [
        PretendedDevice(
            16 * s + 4 * y + x, platform="tpu", device_kind="TPU v5 lite", slice_index=s,
            process_index=s, coords=(x, y, 0), core_on_chip=0,
        )
        for s in range(2) for y in range(4) for x in range(4)
    ]  # fmt: skip
    mesh = sharding.make_mesh(fsdp=fsdp, tensor=tensor, devices=devices)
    halves = np.split(mesh.devices, 2)  # along data
    assert [{d.slice_index for d in half.flat} for half in halves] == [{0}, {1}]


@pytest.mark.parametrize(
    ("batch_size", "options", "message"),
    [
        (10, {}, r"data\.batch_size=10 .* 4 ways .* choose e\.g\. 8"),
        (0, {}, r"batch_size=0 .* choose e\.g\. 4"),
        (8, {"repeat": 4}, r"times data\.repeat=4; choose e\.g\. 16"),
        (12, {"accumulation": 2}, r"times optimizer\.accumulation=2; choose e\.g\. 16"),
        (12, {"accumulation": 0}, r"accumulation=0 must be at least 1"),
        (12, {"repeat": 0}, r"data\.repeat=0 must be at least 1"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest(batch_size, options, message):
    with pytest.raises(ValueError, match=message):
        sharding.check_batch(mesh_of(2, 2, 3), batch_size, **options)


def test_without_a_mesh_nothing_moves():
    x = {"kernel": np.ones((512, 1024), np.float32)}
    assert sharding.gathered(x) is x
    assert sharding.split_clips(x) is x


def test_the_table_says_what_lies_where():
    devices = [SimpleNamespace(id=i, platform="cpu", device_kind="cpu") for i in range(8)]
    grid = np.array(devices, object).reshape(2, 2, 2)
    mesh = SimpleNamespace(
        shape=dict(zip(sharding.AXES, (2, 2, 2), strict=True)), devices=grid, size=8
    )
    split = SimpleNamespace(spec=(None, "fsdp", None), shard_shape=lambda shape: (2, 150, 5))
    leaf = SimpleNamespace(shape=(2, 300, 5), dtype=np.dtype(np.float32), sharding=split)
    text = sharding.describe(mesh, {"params": {"encoder": {"kernel": leaf}}})
    assert "mesh: data 2 x fsdp 2 x tensor 2 (8 x cpu)" in text
    assert "encoder/kernel  2 x 300 x 5  -, fsdp, -              6,000" in text
    assert "all of params   0.0 MiB                              6,000" in text


def test_a_host_brings_the_rows_that_its_devices_hold():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert sharding.local_rows(mesh, 6) == (0, 1, 2, 3, 4, 5)
