"""Small facts that the processes of a run tell one another, without the devices."""

from __future__ import annotations

import collections
import itertools

import jax
from jax._src import distributed as _distributed

TIMEOUT = 600.0  # seconds
_counters: dict[str, itertools.count] = collections.defaultdict(itertools.count)


def all_gather_text(tag: str, text: str) -> list[str]:
    """What every process says, in the order of their indices; all have to call it.

    Raises: RuntimeError if one of them does not within `TIMEOUT`.
    """
    if jax.process_count() == 1:
        return [text]
    client = _distributed.global_state.client
    key = f"vmae_jax/{tag}/{next(_counters[tag])}"
    client.key_value_set(f"{key}/{jax.process_index()}", text)
    return [
        client.blocking_key_value_get(f"{key}/{i}", int(TIMEOUT * 1000))
        for i in range(jax.process_count())
    ]
