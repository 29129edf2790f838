"""What a checkpoint of an older format, or of a run with fewer parts, would hold today.

Names stand for arrays here and nothing is read: a migration says under which name each array of the
next format is stored, or what fills it. So it serves any mesh, and a part of the state as well as
the whole, and the fingerprints still guard what was stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Origin(NamedTuple):
    """Where an array comes from.

    Attributes:
      shape, dtype: of the array.
      stored: its name in the checkpoint; None if it is made.
      fill: its value everywhere, if it is made.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stored: str | None
    fill: float = 0


Tree = dict[str, Origin]  # by name: "params/encoder/output/kernel"


def _count_skipped_steps(tree: Tree) -> Tree:
    """Format 1 had no counters of steps that change nothing; it ended at the first of them."""
    zero = Origin((), np.dtype(np.int32), None, 0)
    return tree | {"skipped": zero, "streak": zero}


# The first makes format 2 of format 1, and so on.
MIGRATIONS: tuple[Callable[[Tree], Tree], ...] = (_count_skipped_steps,)
FORMAT = 1 + len(MIGRATIONS)

# Parts of a state that a run may have and its checkpoint not: the part that each starts as a copy
# of, or the number that fills it.
OPTIONAL: Mapping[str, str | float] = {"ema": "params"}


def migrated(tree: Tree, version: int) -> Tree:
    """What the arrays of a checkpoint are in today's format.

    Args:
      tree: by their names in the checkpoint.
      version: the format of the checkpoint, in 1 .. FORMAT.
    """
    for migration in MIGRATIONS[version - 1 :]:
        tree = migration(tree)
    return tree


def with_optional(
    tree: Tree, wanted: Mapping[str, np.ndarray], optional: Mapping[str, str | float]
) -> Tree:
    """The tree, with those optional parts that are wanted and of which it has nothing.

    Args:
      tree: in today's format.
      wanted: name -> what has the shape and dtype that is wanted.
      optional: as `OPTIONAL`.
    """
    there = {name.partition("/")[0] for name in tree}
    added = {}
    for name, leaf in wanted.items():
        part, _, rest = name.partition("/")
        if part in there or part not in optional:
            continue
        start = optional[part]
        if not isinstance(start, str):
            added[name] = Origin(tuple(leaf.shape), np.dtype(leaf.dtype), None, start)
        elif (source := tree.get(f"{start}/{rest}".rstrip("/"))) is not None:
            added[name] = source
    return tree | added
