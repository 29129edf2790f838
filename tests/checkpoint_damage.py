"""Ways to damage a checkpoint, each file in each way; for tests, and for campaigns of them all."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable
from typing import NamedTuple


def flip(content: bytes, rng: random.Random) -> bytes:
    """One bit is another."""
    changed = bytearray(content)
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(content: bytes, rng: random.Random) -> bytes:
    """The end is missing, as after a crash of the machine."""
    return content[: rng.randrange(len(content))] if content else content


def zero(content: bytes, rng: random.Random) -> bytes:
    """A block of up to 4 KiB is zeros, as where a disk lost it."""
    start = rng.randrange(len(content)) if len(content) > 4096 else 0
    block = content[start : start + 4096]
    return content[:start] + bytes(len(block)) + content[start + 4096 :]


def delete(content: bytes, rng: random.Random) -> None:
    """The file is gone."""


KINDS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    kind.__name__: kind for kind in (flip, truncate, zero, delete)
}


class Damage(NamedTuple):
    """One fault.

    Attributes:
      file: below the folder of the step, e.g. "state/manifest.ocdbt".
      kind: a name in KINDS.
      seed: of where in the file.
    """

    file: str
    kind: str
    seed: int

    def apply(self, step: pathlib.Path) -> None:
        """Changes the file."""
        path = step / self.file
        content = KINDS[self.kind](path.read_bytes(), random.Random(self.seed))
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)


def all_damages(step: pathlib.Path, per_kind: int = 1) -> list[Damage]:
    """Every file of a step in every way, so many times with other places."""
    files = sorted(str(path.relative_to(step)) for path in step.rglob("*") if path.is_file())
    return [
        Damage(file, kind, seed)
        for file in files
        for kind in KINDS
        for seed in range(1 if kind == "delete" else per_kind)
    ]
