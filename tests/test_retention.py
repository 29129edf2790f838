"""Which checkpoints stay; the rules by hand."""

from __future__ import annotations

import pytest

from vmae_jax.checkpoints.retention import Retention


@pytest.mark.parametrize(
    ("rule", "metrics", "gone"),
    [
        ({"keep": 2}, {}, [1, 2, 3, 4]),
        ({"keep": 9}, {}, []),
        ({"keep": 1, "keep_every": 2}, {}, [1, 3, 5]),
        ({"keep": 1, "best_metric": "a"}, {2: 0.5, 3: 0.4, 4: 0.6}, [1, 2, 4, 5]),
        ({"keep": 1, "best_metric": "a", "best_mode": "max"}, {2: 0.5, 3: 0.4}, [1, 3, 4, 5]),
        ({"keep": 1, "best_metric": "a", "keep_best": 2}, {1: 3.0, 2: 1.0, 4: 2.0}, [1, 3, 5]),
        ({"keep": 1, "best_metric": "a"}, {2: 1.0, 4: 1.0}, [1, 2, 3, 5]),
        ({"keep": 1, "best_metric": "a"}, {2: float("nan"), 4: 1.0}, [1, 2, 3, 5]),
        ({"keep": 1, "best_metric": "a"}, {}, [1, 2, 3, 4, 5]),
    ],
)
def test_the_rule_by_hand(rule, metrics, gone):
    """Of steps 1 to 6, those that no part of the rule speaks for."""
    named = {step: {"a": metrics[step]} if step in metrics else {} for step in range(1, 7)}
    assert Retention(**rule).expendable(named) == gone


@pytest.mark.parametrize(
    "wrong", [{"keep": 0}, {"keep": 1, "keep_every": 0}, {"keep": 1, "best_mode": "up"}]
)
def test_a_rule_that_keeps_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=r"below 1|unknown"):
        Retention(**wrong)
