"""Plans a run for a machine that is not there: compiles its step, and reads off what it needs.

Each compilation is a process of its own (`ahead_of_time.py`): a compiler that crashes, or is killed
for its own memory, is an outcome like any other.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vmae_jax import config_file
from vmae_jax.errors import SettingError
from vmae_jax.plan import ahead_of_time, chips, memory_estimate, roofline

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


class CompilerError(RuntimeError):
    """The compiler ended with an error of its own, or died; no setting is known to be at fault."""

    exit_code = 70


class Outcome(NamedTuple):
    """Of one compilation.

    Attributes:
      status: "ok"; "too large" for the memory of the chip; "refused", as settings that cannot work;
        "failed", with an error of the compiler; "crashed", by a signal; "error", with another
        exception: a bug of ours, or of what the recipe imports.
      facts: if it is ok.
      message: if it is not; of an error its traceback.
      needed: bytes that it would take, if the compiler says so: of everything, or of one kind.
    """

    status: str
    facts: dict[str, Any] | None
    message: str
    needed: float | None


def compile_step(
    path: str,
    overrides: Sequence[str],
    machine: chips.Topology,
    program: str | os.PathLike | None = None,
) -> Outcome:
    """Compiles a configuration's train step in a child process.

    Args:
      path, overrides: as `config_file.load` takes them.
      machine: that it is for.
      program: a file for the text of the compiled program.
    Raises:
      MissingPackage: without the TPU compiler.
    """
    environment = {
        **os.environ,
        **ahead_of_time.environment(machine),
        # the recipe's own modules are found there as they are here
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "facts.json")
        command = [sys.executable, "-m", "vmae_jax.plan.ahead_of_time", f"--output={output}"]
        command += [f"--topology={machine.name}", f"--slices={machine.num_slices}"]
        command += [f"--program={program}"] if program else []
        child = subprocess.run(
            [*command, f"--config={path}", *overrides],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        result = json.loads(output.read_text("utf-8")) if output.exists() else {}
    return outcome(result, child.returncode, child.stderr)


def outcome(result: dict[str, Any], returncode: int, stderr: str) -> Outcome:
    """What a child has to say, or its end."""
    if "ok" in result:
        return Outcome("ok", result["ok"], "", None)
    if "refused" in result:
        return Outcome("refused", None, result["refused"], None)
    if "failed" in result:
        message = result["failed"]
        if re.search("RESOURCE_EXHAUSTED|Ran out of memory", message):
            return Outcome("too large", None, message, needed_bytes(message))
        return Outcome("failed", None, message, None)
    if "error" in result:
        return Outcome("error", None, result["error"], None)
    tail = stderr.strip()[-1500:]
    if returncode < 0:
        name = signal.Signals(-returncode).name
        hint = " (the machine may have run out of memory)" if name == "SIGKILL" else ""
        return Outcome("crashed", None, f"the compiler ended with {name}{hint}: {tail}", None)
    return Outcome("failed", None, f"the compiler's process ended with {returncode}: {tail}", None)


def needed_bytes(message: str) -> float | None:
    """Of a program that was too large, as the TPU compiler words it; None if it gives no size.

    It names either all that the program takes ("Used 23.9G of 15.7G hbm") or its temporaries alone.
    """
    for pattern in (r"Used ([\d.]+)([KMGTP]?) of", r"required for [^(]*\(([\d.]+)([KMGTP]?)\)"):
        if match := re.search(pattern, message):
            return float(match[1]) * _UNITS[match[2]]
    return None


def usable(machine: chips.Topology, facts: dict[str, Any]) -> bool | None:
    """Whether a compiled step fits. The TPU compiler refuses what does not; for GPUs the estimate
    is held against the memory of the device; None for CPUs."""
    if machine.device.platform == "tpu":
        return True
    memory = machine.device.memory
    return None if memory is None else peak_bytes(machine, facts) <= memory


def peak_bytes(machine: chips.Topology, facts: dict[str, Any]) -> float:
    """Of a device, at the worst moment: program and data as compiled, or for GPUs as estimated."""
    if machine.device.platform == "gpu":
        return sum(memory_estimate.peak_bytes(facts).values())
    return facts["memory"]["peak"] + facts["memory"]["generated_code"]


def find_batch(
    try_batch: Callable[[int], Outcome],
    fits: Callable[[dict[str, Any]], bool | None],
    size_of: Callable[[dict[str, Any]], float],
    memory: float,
    *,
    start: int,
    say: Callable[[str], None],
    unit: int = 1,
) -> tuple[int | None, dict[int, Outcome]]:
    """The most clips on each device with which the step still fits.

    What a step takes grows in proportion to its clips, so two sizes say nearly where the end is; a
    few more find it. Sizes above 16 are tried in steps of a sixteenth of them.

    Args:
      try_batch: units of clips on each device -> outcome.
      fits: facts -> whether they fit.
      size_of: facts -> bytes that the step takes.
      memory: bytes that there are.
      start: units to begin with.
      say: told what is going on, a line at a time.
      unit: clips that must stay together.
    Returns:
      Units, or None if not even one fits; and all outcomes.
    """
    outcomes: dict[int, Outcome] = {}
    low, high = 0, None  # fits; does not
    guess = start
    while high is None or high - low > max(1, low // 16):
        clips_here = f"{guess * unit} clips a device"
        say(f"{clips_here}: compiling ...")
        result = outcomes[guess] = try_batch(guess)
        if result.status == "ok" and fits(result.facts):
            low = guess
            say(f"{clips_here}: fits, {size_of(result.facts) / chips.GiB:.2f} GiB")
        elif result.status in ("ok", "too large"):
            high = guess
            size = size_of(result.facts) if result.status == "ok" else result.needed
            of = f", {size / chips.GiB:.2f} GiB" if size else ""
            say(f"{clips_here}: too large{of}")
        else:
            say(f"{clips_here}: {result.status}: {result.message[:300]}")
            break
        known = [(n, size_of(x.facts)) for n, x in outcomes.items() if x.status == "ok"]
        guess = _next_guess(sorted(known)[-2:], low, high, memory)
    return (low or None), outcomes


def _next_guess(known: list[tuple[int, float]], low: int, high: int | None, memory: float) -> int:
    """On the line through two (units, bytes) that compiled, but always between the ends; or,
    where that was tried, the next size up, to see that it is the end."""
    if len(known) < 2:
        guess = 2 * low if high is None else (low + high) // 2
    else:
        (a, a_bytes), (b, b_bytes) = known
        guess = int(b + (memory - b_bytes) * (b - a) / max(1, b_bytes - a_bytes))
        guess -= guess % max(1, guess // 16)
    guess = max(guess, low + max(1, low // 16))
    return guess if high is None else min(guess, high - 1)


def report(machine: chips.Topology, path: str, overrides: Sequence[str], result: Outcome) -> dict:
    """All that is known of a plan, as JSON values; `plan_text.py` writes it for people."""
    chip = machine.device
    values = {
        "topology": machine.name,
        "slices": machine.num_slices,
        "chip": machine.chip,
        "num_devices": machine.num_devices,
        "num_chips": machine.num_chips,
        "config": path,
        "overrides": list(overrides),
        "status": result.status,
        "message": result.message,
        "needed_bytes": result.needed,
        "usable_bytes": chip.memory,
        "estimated": estimated(machine, result.facts),
        "facts": result.facts,
        "roofline": None,
        "peak_bytes": None,
        "fits": None,
    }
    if result.facts is not None:
        values["roofline"] = roofline.estimate(result.facts, chip, machine.num_chips)
        values["peak_bytes"] = peak_bytes(machine, result.facts)
        values["fits"] = usable(machine, result.facts)
    return values


def estimated(machine: chips.Topology, facts: Mapping[str, Any] | None) -> list[str]:
    """What of a plan is no more than an estimate, in words."""
    notes = []
    if machine.device.flops is not None:
        notes.append(
            "times: bounds from data sheets; the bytes of activations to and from memory are rough"
        )
        if facts is not None and roofline.peak_flops(facts, machine.device) is None:
            notes.append(
                "times: products are counted as fast as bf16's; float32's take several times longer"
            )
    if machine.device.platform == "gpu":
        notes.append(
            "memory: arguments are exact, the peak is an estimate (plan/memory_estimate.py); "
            "temporaries are those of the program for CPUs, with attention spelled out"
        )
    if machine.device.platform == "cpu":
        notes.append("memory: temporaries as XLA plans them for CPUs")
    if machine.device.platform != "tpu":
        notes.append("collectives: those of the program for CPUs, where bf16 sums travel as fp32")
    return notes


def batches(
    path: str, overrides: Sequence[str], machine: chips.Topology
) -> tuple[int, Callable[[int], str]]:
    """How many clips must stay together on a device, and units of so many on each device -> the
    override that gives a global batch of them."""
    config = config_file.load(path, overrides)
    ways = machine.num_devices // max(1, config.mesh.tensor)
    unit = config.data.repeat * config.optimizer.accumulation
    if unit < 1:
        raise SettingError(
            f"data.repeat={config.data.repeat} and "
            f"optimizer.accumulation={config.optimizer.accumulation} must be at least 1."
        )
    return unit, lambda units: f"--config.data.batch_size={units * unit * ways}"
