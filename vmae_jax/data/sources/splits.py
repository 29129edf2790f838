"""Which videos of a list are for training, and which are held out.

A video's side depends on its own name and the share asked for, on nothing else: adding, removing
or reordering others never moves it, and all parts of one video are on one side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from vmae_jax.data.sources.video_source import VideoRecord
from vmae_jax.errors import SettingError

SPLITS = TRAIN, HELD_OUT, ALL = "train", "held_out", "all"  # all: of either side


def check_split(split: str) -> None:
    """Compares the name of a split with those there are.

    Raises:
      SettingError: if it is none of SPLITS.
    """
    if split not in SPLITS:
        raise SettingError(f"split={split!r} is unknown; choose one of {list(SPLITS)}.")


def in_split(
    records: Iterable[tuple[str, VideoRecord]],
    split: str,
    held_out_ratio: float,
    path: str | None,
) -> list[VideoRecord]:
    """The records of one split, in their order; of "all" those of both.

    Args:
      records: (name, record) of all videos; the hash of the name decides the split.
      split: one of SPLITS.
      held_out_ratio: share of the names that is held out, on average, in [0, 1).
      path: of the data set, for the error.
    Raises:
      SettingError: if the ratio is not in [0, 1), or no record is left.
    """
    if not 0 <= held_out_ratio < 1:
        raise SettingError(f"held_out_ratio={held_out_ratio} must be in [0, 1); choose e.g. 0.05.")
    records = list(records)
    chosen = [
        record
        for name, record in records
        if split == ALL or (_hash_share(name) < held_out_ratio) == (split == HELD_OUT)
    ]
    if not chosen:
        raise SettingError(
            f"split={split!r} of path={path!r} is empty: {len(records)} videos with held_out_ratio="
            f"{held_out_ratio}; choose another ratio or add videos."
        )
    return chosen


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends on the name only (hash() differs between processes)."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
