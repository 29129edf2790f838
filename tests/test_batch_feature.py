from __future__ import annotations

import copy
import pickle
import sys
import types

import numpy as np
import pytest

from vmae_jax import BatchFeature, VideoMAEImageProcessor
from vmae_jax.errors import MissingPackage

VIDEO = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3)).astype(np.uint8)


def processor(video, **options):
    return VideoMAEImageProcessor(size=16, crop_size=16)(video, **options)


def test_a_batch_is_a_mapping_with_attributes():
    """As transformers' own, which test_documented_surface.py asks the same."""
    batch = BatchFeature({"x": np.ones((2, 3)), "labels": np.array([1, 2])})
    assert list(batch) == ["x", "labels"]
    assert batch.x is batch["x"] is batch.data["x"]
    with pytest.raises(KeyError, match=r"entries have names, of which 0 is none"):
        batch[0]
    with pytest.raises(AttributeError, match="no 'y' here, only"):
        batch.y  # noqa: B018
    for again in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert type(again) is BatchFeature
        np.testing.assert_array_equal(again.x, batch.x)
    assert len(BatchFeature()) == 0


def test_a_batch_of_torch_tensors_moves_and_is_cast():
    torch = pytest.importorskip("torch")
    inputs = processor(VIDEO, return_tensors="pt")
    inputs["labels"] = torch.tensor([3])
    before = inputs.pixel_values
    assert inputs.to("cpu") is inputs
    assert torch.equal(inputs.pixel_values, before)
    inputs.to(torch.float16)
    assert (inputs.pixel_values.dtype, inputs.labels.dtype) == (torch.float16, torch.int64)
    inputs.to("meta", dtype=torch.float64)
    assert {value.device.type for value in inputs.values()} == {"meta"}
    assert (inputs.pixel_values.dtype, inputs.labels.dtype) == (torch.float64, torch.int64)
    inputs.to(device="meta")


@pytest.mark.parametrize("tensors", [None, "np", "jax"])
def test_only_torch_tensors_are_moved(tensors):
    inputs = processor(VIDEO, return_tensors=tensors)
    with pytest.raises(TypeError, match=r"pixel_values \(.*return_tensors='pt', or use jax.device"):
        inputs.to("cpu")


def test_tensorflow_makes_its_tensors_where_it_is_installed(monkeypatch):
    """Which it is not here: a module of that name stands in for it."""
    stand_in = types.ModuleType("tensorflow")
    stand_in.constant = lambda array: ("a tensor of", array)
    monkeypatch.setitem(sys.modules, "tensorflow", stand_in)
    name, array = processor(VIDEO, return_tensors="tf").pixel_values
    assert name == "a tensor of"
    expected = processor(VIDEO, return_tensors="np").pixel_values
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(("name", "package"), [("pt", "torch"), ("tf", "tensorflow")])
def test_a_package_that_is_not_installed_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # so that importing it fails
    with pytest.raises(ModuleNotFoundError, match=f"{package} is not.*pip install {package}") as e:
        processor(VIDEO, return_tensors=name)
    assert isinstance(e.value, MissingPackage)
