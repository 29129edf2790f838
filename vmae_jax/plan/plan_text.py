"""A plan as text for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from vmae_jax.plan.chips import GiB


def text(plan: Mapping[str, Any]) -> str:
    """The report of `planning.report`, in lines."""
    slices = f" x {plan['slices']} slices" if plan["slices"] > 1 else ""
    lines = [f"{plan['config']} on {plan['topology']}{slices} ({plan['num_devices']} devices)"]
    lines += [f"  {override}" for override in plan["overrides"]]
    facts = plan["facts"]
    if facts is None:
        return "\n".join([*lines, f"{plan['status']}: {plan['message']}"])
    lines += [*_program(facts), *_memory(plan, facts), *_network(facts)]
    if plan["roofline"] is not None:
        lines += _speed(plan["roofline"])
    lines += [f"estimated: {note}" for note in plan["estimated"]]
    return "\n".join(lines)


def mesh_text(mesh: Mapping[str, int]) -> str:
    """E.g. "data 64, fsdp 4"."""
    split = ", ".join(f"{axis} {n}" for axis, n in mesh.items() if n > 1 or axis == "data")
    return split


def duration(days: float) -> str:
    """E.g. "3.2 days" or "5.1 hours"."""
    return f"{days:.1f} days" if days >= 2 else f"{24 * days:.1f} hours"


def _program(facts: Mapping[str, Any]) -> list[str]:
    kernels = f" ({facts['pallas_calls']} kernel calls)" if facts["pallas_calls"] else ""
    accumulation = facts["accumulation"]
    parts = f" in {accumulation} micro-batches" if accumulation > 1 else ""
    seconds = facts["seconds"]
    return [
        f"mesh: {mesh_text(facts['mesh'])}",
        f"step: {facts['batch_size']} clips, {facts['clips_per_device']} on each device{parts}; "
        f"{facts['dtype']}, attention {facts['attention']}{kernels}, remat {facts['remat']}",
        f"compiled in {seconds['compile']:.0f} s, traced in {seconds['trace']:.0f} s",
    ]


def _memory(plan: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    memory, state = facts["memory"], facts["state_bytes"]
    rows = [
        ("parameters", state["params"]),
        ("optimizer", state["opt_state"]),
        *([("averages", state["ema"])] if state.get("ema") else []),
        *([("frozen parameters", facts["frozen_bytes"])] if facts["frozen_bytes"] else []),
        ("batch", facts["batch_bytes"]),
        ("temporaries", memory["temp"]),
        ("results in new memory", memory["output"] - memory["alias"]),
        ("program", memory["generated_code"]),
        ("peak", plan["peak_bytes"]),
    ]
    usable = plan["usable_bytes"]
    lines = ["memory of a device, GiB"]
    for name, size in rows:
        lines.append(f"  {name:<24}{size / GiB:>9.2f}")
    if usable is not None:
        verdict = {True: "fits", False: "does not fit", None: ""}[plan["fits"]]
        lines.append(f"  {'usable':<24}{usable / GiB:>9.2f}  {verdict}")
    return lines


def _network(facts: Mapping[str, Any]) -> list[str]:
    rows = facts["collectives"]
    if rows is None:
        return [f"network: not known, the program could not be read: {facts['unread']}"]
    if not rows:
        return ["network: no collectives"]
    lines = ["network: collectives of a step, MiB that a device has of what they carry"]
    alike = defaultdict(list)
    for row in rows:
        alike[row["kind"], row["group_size"], row["slices"]].append(row)
    for (kind, size, slices), members in alike.items():
        where = f"over {size}" + (f" in {slices} slices" if slices > 1 else "")
        if any(row["times"] is None for row in members):
            amount = f"{'not known':>12}, as they are in loops of unknown length"
        else:
            carried = sum(row["num_bytes"] * row["times"] for row in members) / 2**20
            amount = f"{carried:>12,.1f} in {sum(row['times'] for row in members):,}"
        lines.append(f"  {kind:<20}{where:<22}{amount}")
    return lines


def _speed(bound: Mapping[str, Any]) -> list[str]:
    seconds = bound["seconds"]
    parts = [
        f"{name} {'not known' if value is None else f'{value * 1e3:,.1f} ms'}"
        for name, value in {
            "arithmetic": seconds["arithmetic"],
            "memory": seconds["memory"],
            "network in a slice": seconds["slice"],
            "between slices": seconds["far"],
        }.items()
        if value != 0
    ]
    least, padded = bound["flops_per_clip"] / 1e9, bound["padded_flops_per_clip"] / 1e9
    lines = [
        f"work of a clip: {least:,.1f} GFLOP; with remat, on whole matrix units: {padded:,.1f}",
        f"at least: {', '.join(parts)}",
    ]
    if bound["step_s"] is None:
        return [*lines, "step and run: not known, as a network is not"]
    low, high = bound["step_s"]
    num_steps, (few, many), hours = bound["num_steps"], bound["days"], bound["chip_hours"]
    return [
        *lines,
        f"step: {low * 1e3:,.1f} ms if all overlap, {high * 1e3:,.1f} ms if networks do not; "
        f"{bound['mfu'][0]:.1%} and {bound['mfu'][1]:.1%} of peak at most",
        f"run: {num_steps:,} steps, at least {duration(few)} to {duration(many)}, "
        f"{hours[0]:,.0f} to {hours[1]:,.0f} chip-hours",
    ]
