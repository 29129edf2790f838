"""Compiles the train step of a configuration for a machine that is not there: does it fit, what do
devices send to each other, how fast can it be. For TPUs this is the real compiler (libtpu).

Values of the configuration are replaced as for train.py: --config.data.batch_size=4096.
"""

from __future__ import annotations

import argparse
import json
import time

from vmae_jax import config_file
from vmae_jax.errors import SettingError
from vmae_jax.plan import chips, plan_text, planning

TAKES_OVERRIDES = True  # of the configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that `run` reads."""
    parser.add_argument("--config", required=True, metavar="FILE", help="as train.py takes it")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help=f"chip and size of a slice: v5e:16x16, v5p:4x4x4, h200:8, cpu:8; chips: "
        f"{', '.join(chips.CHIPS)}",
    )
    parser.add_argument(
        "--slices",
        type=int,
        default=1,
        metavar="N",
        help="slices (nodes of GPUs) that a slower network joins (default: 1)",
    )
    parser.add_argument(
        "--find-batch",
        action="store_true",
        help="look for the most clips that fit on a device, and plan for them; compiles several "
        "times",
    )
    parser.add_argument("--json", metavar="FILE", help="write all that is known there, too")
    parser.add_argument(
        "--program", metavar="FILE", help="write the compiled step there, as the compiler prints it"
    )


def run(args: argparse.Namespace) -> None:
    """Prints the plan.

    Raises:
      SettingError: for a machine that there is not, settings that cannot work, or a step that is
        too large.
      CompilerError: if the compiler fails.
      RuntimeError: with the traceback of any other error in the compiling process, e.g. of a shape
        in the recipe's own objective.
      OSError: if there is no such configuration.
      MissingPackage: without the TPU compiler.
    """
    machine = chips.topology(args.topology, args.slices)
    overrides = list(args.overrides)
    config_file.load(args.config, overrides)  # what is wrong with it shows here, not in a child
    if args.find_batch:
        if args.program:
            raise SettingError(
                "--program is of one compilation, --find-batch makes several: leave one out."
            )
        overrides, result = _largest(args.config, overrides, machine)
    else:
        result = planning.compile_step(args.config, overrides, machine, args.program)
    plan = planning.report(machine, args.config, overrides, result)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(plan, file, indent=2)
            file.write("\n")
    _check(result)
    print(plan_text.text(plan))


def _check(result: planning.Outcome) -> None:
    """That there is a step."""
    if result.status in ("refused", "too large"):
        needs = f" (it needs {result.needed / chips.GiB:.2f} GiB)" if result.needed else ""
        raise SettingError(f"{result.status}{needs}: {result.message}")
    if result.status in ("failed", "crashed"):
        raise planning.CompilerError(f"{result.status}: {result.message}")
    if result.status == "error":
        raise RuntimeError(f"in the process that compiles:\n{result.message}")


def _largest(
    path: str, overrides: list[str], machine: chips.Topology
) -> tuple[list[str], planning.Outcome]:
    """The plan with the most clips on each device."""
    memory = machine.device.memory
    if memory is None:
        raise SettingError(f"--find-batch: {machine.name} has no memory of its own to fill.")
    overrides = [x for x in overrides if not x.startswith("--config.data.batch_size=")]
    unit, override = planning.batches(path, overrides, machine)
    started = time.monotonic()
    units, outcomes = planning.find_batch(
        lambda n: planning.compile_step(path, [*overrides, override(n)], machine),
        lambda facts: planning.usable(machine, facts),
        lambda facts: planning.peak_bytes(machine, facts),
        memory,
        start=max(1, 8 // unit),
        say=lambda line: print(f"[{time.monotonic() - started:.0f} s] {line}", flush=True),
        unit=unit,
    )
    if units is None:
        units = min(outcomes)
    return [*overrides, override(units)], outcomes[units]
