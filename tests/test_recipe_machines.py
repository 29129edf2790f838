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
FINE_TUNING = ["finetune_k400_b_1600", "finetune_k400_l"]
LINE = re.compile(
    r"^(?P<machine>\w+:[\dx]+): (?P<mesh>data \d+(?:, (?:fsdp|tensor) \d+)*), "
    r"remat (?P<remat>\w+), (?P<clips>\d+) clips a (?:chip|GPU) \((?P<batch>\d+)\): "
    r"(?P<size>[\d.]+) GiB(?P<estimated>, estimated)?$",
    re.MULTILINE,
)


def compiled():
    """(model, chip, clips, remat, fsdp) -> the row of the table that the real compiler made.

    What a chip holds does not depend on how many others split the batch with it.
    """
    rows = json.loads((ROOT / "benchmarks/results/plan_tpu.json").read_text())["cells"]
    return {
        (row["model"], row["chip"], row["clips"], row["remat"], row["fsdp"]): row
        for row in rows
        if row["slices"] == 1
    }


def machines(name: str) -> list[re.Match]:
    return list(LINE.finditer(importlib.import_module(f"configs.{name}").__doc__))


@pytest.mark.parametrize("name", [*RECIPES, *FINE_TUNING])
def test_a_recipe_names_a_machine_of_each_kind(name):
    lines = machines(name)
    kinds = [line["machine"].partition(":")[0] for line in lines]
    assert kinds == ["v5e", "v5p" if name in FINE_TUNING else "v6e", "h200"]
    # no line that only looks like one
    text = importlib.import_module(f"configs.{name}").__doc__
    assert len(re.findall(r"GiB", text)) == len(lines)


@pytest.mark.parametrize("name", [*RECIPES, *FINE_TUNING])
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
    model = config.model.size
    if config.pretraining.mask_ratio != 0.9:
        model += f", {config.pretraining.mask_ratio} hidden"
    table = compiled()
    for line in machines(name)[:2]:
        fsdp = re.search(r"fsdp (\d+)", line["mesh"])
        chip = line["machine"].partition(":")[0]
        clips = int(line["clips"])
        row = table[model, chip, clips, line["remat"], int(fsdp[1]) if fsdp else 1]
        assert row["fits"]
        assert f"{row['peak_bytes'] / chips.GiB:.1f}" == line["size"], line[0]
