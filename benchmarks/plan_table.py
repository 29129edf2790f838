"""What fits on TPU pods, and how fast it can be at best, for every model: by the real compiler.

    PYTHONPATH=. python benchmarks/plan_table.py

No TPU is needed (pip install 'vmae_jax[plan]'). Each cell is compiled in a process of its own, one
at a time; one that fails is reported as such, and the exit status is 1. `--resume` takes over the
cells that the output file has already. The batch follows from the clips per chip: a table of what
machines can hold, where a recipe's batch is another (learning rates then scale with it). What
collectives carry is told by `tests/collective_classes.py`, as in the tests: a row that sends more
than gradients, parameters and scalars makes the status 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # of this process, which compiles nothing

from side_by_side import command_line, machine, versions, write_json

from tests import collective_classes
from vmae_jax.plan import chips, planning
from vmae_jax.plan.plan_text import duration, mesh_text

GiB = chips.GiB
RESULTS = Path(__file__).parent / "results"


class Cell(NamedTuple):
    """A model on a machine.

    Attributes:
      model: row of the table.
      topology, slices: column.
      clips: on each chip.
      remat: as `compute.remat`.
      fsdp: as `mesh.fsdp`.
      recipe: whether it is the recipe's own batch, on a machine for it.
    """

    model: str
    topology: str
    clips: int
    remat: str
    fsdp: int = 1
    slices: int = 1
    recipe: bool = False

    @property
    def key(self) -> str:
        """A name for the file."""
        slices = f"x{self.slices}" if self.slices > 1 else ""
        return f"{self.model} {self.topology}{slices} {self.clips}"


# what to compile; the last column is the least number of clips a chip that a table must show
MODELS = {
    "S": (["--config=configs/pretrain_k400_s.py"], 64),
    "B": (["--config=configs/pretrain_k400_b_800.py"], 64),
    "L": (["--config=configs/pretrain_k400_l.py"], 32),
    "H": (["--config=configs/pretrain_k400_h.py"], 16),
    "B, 0.75 hidden": (["--config=configs/pretrain_ucf101_b.py"], 0),
    # V2's giant without its second mask, on Kinetics-400 for 800 epochs to have a length
    "g": (
        [
            "--config=configs/default.py",
            "--config.model.size=g-v2",
            "--config.data.num_clips=240436",
            "--config.schedule.num_epochs=800",
            "--config.schedule.warmup_epochs=40",
        ],
        4,
    ),
}
CELLS = [
    Cell("S", "v5e:16x16", 64, "none"),
    Cell("B", "v5e:16x16", 64, "attention"),
    Cell("L", "v5e:16x16", 32, "attention"),
    Cell("H", "v5e:16x16", 16, "attention", fsdp=4),
    Cell("g", "v5e:16x16", 4, "attention", fsdp=8),
    Cell("B", "v5e:16x16", 64, "attention", slices=2),
    Cell("S", "v5p:4x4x4", 64, "none"),
    Cell("B", "v5p:4x4x4", 64, "none"),
    Cell("L", "v5p:4x4x4", 32, "none"),
    Cell("H", "v5p:4x4x4", 16, "none"),
    Cell("g", "v5p:4x4x4", 16, "attention"),
    Cell("S", "v6e:16x16", 64, "none"),
    Cell("B", "v6e:16x16", 64, "none"),
    Cell("L", "v6e:16x16", 32, "attention"),
    Cell("H", "v6e:16x16", 16, "attention"),
    Cell("g", "v6e:16x16", 8, "attention", fsdp=4),
    # recipes with their own batch; the others' are rows of above on fewer chips
    Cell("B", "v5e:16x16", 8, "none", recipe=True),
    Cell("B, 0.75 hidden", "v5e:4x4", 12, "none", recipe=True),
    Cell("B, 0.75 hidden", "v6e:2x4", 24, "none", recipe=True),
]


def plan(cell: Cell) -> dict:
    """Compiles a cell."""
    place = chips.topology(cell.topology, cell.slices)
    (config, *overrides), _ = MODELS[cell.model]
    overrides += [
        f"--config.data.batch_size={cell.clips * place.num_devices}",
        f"--config.compute.remat={cell.remat}",
        f"--config.mesh.fsdp={cell.fsdp}",
    ]
    path = config.removeprefix("--config=")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.txt")
        result = planning.compile_step(path, overrides, place, program)
        text = program.read_text("utf-8") if program.exists() else ""
    report = planning.report(place, path, overrides, result)
    facts = report["facts"]
    if facts is not None:
        del facts["collectives"]  # each of them; here are their sums
        shapes = collective_classes.parameter_shapes(path, overrides)
        flows = collective_classes.of_program(text, shapes, facts["mesh"], cell.slices)
        facts["traffic"] = collective_classes.totals(flows)
        facts["not_expected"] = [flow._asdict() for flow in collective_classes.faults(flows)]
    return {**cell._asdict(), **report, "seconds": time.monotonic() - started}


def is_good(row: dict) -> bool:
    """It fits with as many clips as it should, and sends nothing that it should not."""
    enough = row["recipe"] or row["clips"] >= MODELS[row["model"]][1]
    return bool(row["fits"]) and enough and not row["facts"]["not_expected"]


def markdown(rows: list[dict]) -> str:
    """The table."""
    lines = [
        "# What fits on TPU pods, by the real compiler",
        "",
        "Made by `make plan-table`; a row is a compiled step, not a run. Memory: of a chip at the",
        "worst moment, of what the compiler lets programs use. Traffic: MiB that a chip has of",
        "what collectives carry in a step. Step and share of peak: if everything overlaps / if",
        "networks overlap with nothing: bounds from data sheets, `vmae_jax/plan/roofline.py`. Run:",
        "the recipe's epochs with this batch, at those bounds; g: 800 epochs of Kinetics-400.",
        "",
        "| model | machine | mesh | remat | clips a chip (batch) | GiB of | gradients, parameters, "
        "activations, other MiB | step at least, ms | of peak at most | run at least |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        where = row["topology"] + (f" x {row['slices']}" if row["slices"] > 1 else "")
        name = f"{row['model']}, its recipe" if row["recipe"] else row["model"]
        facts, bound = row["facts"], row["roofline"]
        if facts is None:
            needs = f": {row['needed_bytes'] / GiB:.1f} GiB" if row["needed_bytes"] else ""
            lines.append(
                f"| {name} | {where} | fsdp {row['fsdp']} | {row['remat']} | {row['clips']} | "
                f"{row['status']}{needs} | | | | |"
            )
            continue
        carried = [
            facts["traffic"].get(what, {"bytes": 0})["bytes"]
            for what in ("gradients", "parameters", "activations", "other")
        ]
        cells = [
            name,
            where,
            mesh_text(facts["mesh"]),
            facts["remat"],
            f"{facts['clips_per_device']} ({facts['batch_size']:,})",
            f"{row['peak_bytes'] / GiB:.1f} of {row['usable_bytes'] / GiB:.2f}",
            ", ".join("?" if size is None else f"{size / 2**20:,.0f}" for size in carried),
            *_bounds(bound),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _bounds(bound: dict) -> list[str]:
    if bound["step_s"] is None:
        return ["not known"] * 3
    return [
        " / ".join(f"{1e3 * s:,.0f}" for s in bound["step_s"]),
        " / ".join(f"{100 * share:.0f} %" for share in bound["mfu"]),
        " / ".join(map(duration, bound["days"])),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "plan_tpu.json")
    parser.add_argument("--resume", action="store_true", help="take over what the output has")
    parser.add_argument("--only", metavar="TEXT", default="", help="cells whose name has it")
    args = parser.parse_args()

    known = {}
    if args.resume and args.output.exists():
        rows = json.loads(args.output.read_text())["cells"]
        known = {Cell(**{k: row[k] for k in Cell._fields}): row for row in rows}
    rows = []
    for cell in CELLS:
        if args.only not in cell.key:
            continue
        row = known.get(cell) or plan(cell)
        rows.append(row)
        print(f"{cell.key}: {row['status']}, {row['seconds']:.0f} s", flush=True)
        write_json(
            {
                "benchmark": "plan_table",
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "command": command_line(),
                "machine": machine(),
                "versions": versions("jax", "jaxlib", "flax", "optax", "libtpu"),
                "cells": rows,
            },
            args.output,
        )
        args.output.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))
    return 0 if all(map(is_good, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
