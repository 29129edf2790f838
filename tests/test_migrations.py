"""Where the arrays of today's format come from; the trees by hand."""

from __future__ import annotations

import numpy as np

from vmae_jax.checkpoints import migrations
from vmae_jax.checkpoints.migrations import FORMAT, Origin, migrated, with_optional

FLOAT, INT = np.dtype("float32"), np.dtype("int32")


def stored(name: str, *shape: int) -> Origin:
    return Origin(shape, FLOAT, name)


TREE = {"params/a": stored("params/a", 2), "params/b/c": stored("params/b/c", 3)}


def test_format_1_gets_counters_and_today_nothing():
    counter = Origin((), INT, None, 0)
    assert migrated(TREE, 1) == TREE | {"skipped": counter, "streak": counter}
    assert migrated(TREE, FORMAT) == TREE


def test_migrations_are_applied_one_after_another_from_the_format_on(monkeypatch):
    def rename(tree):
        return {name.replace("params", "weights"): origin for name, origin in tree.items()}

    def copy(tree):
        return tree | {"ema/a": tree["weights/a"]}

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, rename, copy))
    expected = {"weights/a": TREE["params/a"], "weights/b/c": TREE["params/b/c"]}
    expected["ema/a"] = TREE["params/a"]  # the same array of the checkpoint
    assert migrated(TREE, 2) == expected
    assert migrated(TREE, 1).keys() == expected.keys() | {"skipped", "streak"}
    assert migrated(expected, 4) == expected


def test_optional_parts_are_added_if_they_are_wanted_and_not_there():
    wanted = {name: np.zeros(3) for name in ("params/a", "ema/a", "ema/b/c", "ema/new", "queue")}
    tree = with_optional(TREE, wanted, {"ema": "params", "queue": 1, "other": 0})
    assert tree == TREE | {
        "ema/a": TREE["params/a"],
        "ema/b/c": TREE["params/b/c"],
        "queue": Origin((3,), np.dtype(float), None, 1),
    }
    there = TREE | {"ema/a": stored("ema/a", 2)}
    assert with_optional(there, wanted, {"ema": "params"}) == there
    assert with_optional(TREE, {"params/a": np.zeros(2)}, {"ema": "params"}) == TREE
