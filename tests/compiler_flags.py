"""XLA's flags. One that it does not know ends the process at once, so each is asked for first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

# Tests compile much and compute little. The older of XLA's two ways to CPU code takes half as long.
FASTER_COMPILING = ("--xla_cpu_use_fusion_emitters=false",)


def known(flags: Iterable[str]) -> list[str]:
    """Those of the flags ("--name=value") that the installed compiler takes.

    Each is tried in a child process, which costs a second: the compiler has no list to look at.
    """
    return [flag for flag in flags if not refusal(flag)]


def refusal(flags: str) -> str:
    """What the compiler says to the value of XLA_FLAGS; "" if it takes all of them."""
    child = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    return child.stderr.strip() if child.returncode else ""
