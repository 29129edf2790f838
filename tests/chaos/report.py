"""What a campaign found, as JSON and as a page to read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.campaign import Result

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def as_json(results: Sequence[Result], *, command: str, date: str, seconds: float) -> dict:
    """All of it."""
    return {
        "benchmark": "chaos",
        "command": command,
        "date": date,
        "machine": _machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "seconds": round(seconds),
        "held": all(result.held for result in results),
        "rows": [
            {
                "name": result.row.name,
                "title": result.row.title,
                "holds": result.row.holds,
                "seconds": round(result.seconds),
                "held": result.held,
                "outcomes": [outcome._asdict() for outcome in result.outcomes],
            }
            for result in results
        ],
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The page, from the JSON."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    count = sum(outcome["count"] for row in found["rows"] for outcome in row["outcomes"])
    failed = [row["name"] for row in found["rows"] if not row["held"]]
    lines = [
        "# Fault campaign",
        "",
        f"`{found['command']}`, {found['date']}, {found['seconds'] / 60:.0f} min on "
        f"{found['machine']}. {versions}.",
        "",
        f"{count} faults. "
        + (f"Not all held: {', '.join(failed)}." if failed else "What must hold held for all."),
        "",
        "| row | fault | count | outcome | held |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for row in found["rows"]:
        title = f"**{row['name']}** {row['title']} ({row['seconds']} s)"
        lines.append(f"| {title} | | | *must hold: {row['holds']}* | |")
        for outcome in row["outcomes"]:
            held = "yes" if outcome["held"] else "**no**"
            cells = ["", outcome["kind"], str(outcome["count"]), outcome["outcome"], held]
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _machine() -> str:
    cpu = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpu.read_text().splitlines() if cpu.exists() else ())
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores of {name}, {platform.system()}"
