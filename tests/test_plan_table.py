"""The committed table of pods holds what it is there to show."""

from __future__ import annotations

import json
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks/results"
LEAST = {"S": 64, "B": 64, "L": 32, "H": 16, "g": 4}  # clips a chip
USABLE = {"v5e:16x16": 15.75, "v5p:4x4x4": 95.74, "v6e:16x16": 31.25}  # GiB


@pytest.fixture(scope="module")
def rows():
    return json.loads((FOLDER / "plan_tpu.json").read_text())["cells"]


@pytest.mark.parametrize("machine", USABLE)
@pytest.mark.parametrize("model", LEAST)
def test_every_model_fits_on_every_pod(rows, model, machine):
    (row,) = (
        x for x in rows
        if (x["model"], x["topology"], x["slices"], x["recipe"]) == (model, machine, 1, False)
    )  # fmt: skip
    assert (row["status"], row["fits"]) == ("ok", True)
    assert row["facts"]["clips_per_device"] >= LEAST[model]
    assert row["peak_bytes"] <= USABLE[machine] * 2**30
    assert row["facts"]["attention"] == "splash"


def test_two_slices_are_in_it(rows):
    (row,) = (x for x in rows if x["slices"] == 2)
    assert (row["model"], row["topology"], row["num_devices"]) == ("B", "v5e:16x16", 512)
    assert row["facts"]["mesh"]["data"] == 512
    assert row["fits"]
    assert row["roofline"]["seconds"]["far"] > 0


def test_nothing_travels_that_should_not(rows):
    for row in rows:
        assert row["facts"]["mesh"]["tensor"] == 1
        assert row["facts"]["not_expected"] == []
        assert set(row["facts"]["traffic"]) <= {"gradients", "parameters", "scalars"}
        # each gradient travels, in bf16 at least
        fsdp = row["facts"]["mesh"]["fsdp"]
        assert row["facts"]["traffic"]["gradients"]["bytes"] >= 2 * row["facts"]["parameters"]
        assert ("parameters" in row["facts"]["traffic"]) is (fsdp > 1)


def test_the_text_has_every_row(rows):
    text = (FOLDER / "plan_tpu.md").read_text()
    assert sum(line.startswith("| ") for line in text.splitlines()) == len(rows) + 1
