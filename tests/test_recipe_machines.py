"""Each recipe's docstring says on which machines it fits, and the arithmetic of that holds.

v5e:16x16: data 256, remat none, 8 clips a chip (2048): 4.0 GiB
"""

from __future__ import annotations

import importlib
import json
import math
import pathlib
import re

import pytest

from vmae_jax import sharding
from vmae_jax.plan import chips

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in ROOT.glob("configs/pretrain_*.py"))
LINE = re.compile(
    r"^(?P<machine>\w+:[\dx]+): (?P<mesh>data \d+(?:, (?:fsdp|tensor) \d+)*), "
    r"remat (?P<remat>\w+), (?P<clips>\d+) clips a (?:chip|GPU) \((?P<batch>\d+)\): "
    r"(?P<size>[\d.]+) GiB(?P<estimated>, estimated)?$",
    re.MULTILINE,
)


def compiled():
    """(size, mask ratio, machine) -> the row of the table that the real compiler made."""
    rows = json.loads((ROOT / "benchmarks/results/plan_tpu.json").read_text())["cells"]
    names = {"S": ("S", 0.9), "B": ("B", 0.9), "L": ("L", 0.9), "H": ("H", 0.9)}
    names["B, 0.75 hidden"] = ("B", 0.75)
    return {(*names[row["model"]], row["topology"]): row for row in rows if row["recipe"]}


def machines(name: str) -> list[re.Match]:
    return list(LINE.finditer(importlib.import_module(f"configs.{name}").__doc__))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_a_machine_of_each_kind(name):
    lines = machines(name)
    kinds = [line["machine"].partition(":")[0] for line in lines]
    assert kinds == ["v5e", "v6e", "h200"]
    # no line that only looks like one
    text = importlib.import_module(f"configs.{name}").__doc__
    assert len(re.findall(r"GiB", text)) == len(lines)


@pytest.mark.parametrize("name", RECIPES)
def test_its_batch_and_mesh_work_out(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    for line in machines(name):
        machine = chips.topology(line["machine"])
        mesh = dict.fromkeys(sharding.AXES, 1)
        mesh |= {axis: int(n) for axis, n in re.findall(r"(\w+) (\d+)", line["mesh"])}
        assert math.prod(mesh.values()) == machine.num_devices, line[0]
        batch = int(line["clips"]) * mesh["data"] * mesh["fsdp"]
        assert batch == int(line["batch"]) == config.data.batch_size, line[0]
        assert float(line["size"]) <= machine.device.memory / chips.GiB, line[0]
        assert bool(line["estimated"]) is (machine.device.platform == "gpu"), line[0]


@pytest.mark.parametrize("name", RECIPES)
def test_for_tpus_it_says_what_the_compiler_said(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    table = compiled()
    for line in machines(name)[:2]:
        row = table[config.model.size, config.objective.mask_ratio, line["machine"]]
        assert row["fits"]
        assert f"{row['peak_bytes'] / chips.GiB:.1f}" == line["size"], line[0]
        assert row["facts"]["batch_size"] == int(line["batch"]), line[0]
        assert row["facts"]["remat"] == line["remat"], line[0]
