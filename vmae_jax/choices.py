"""Values that are chosen by name from a table, or given as what the table would hold.

So whatever a recipe may choose, it may also bring along: a function of its own, imported by it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from vmae_jax.errors import SettingError


def choose(option: str, value: Any, table: Mapping[str, Any]) -> Any:
    """The entry of that name; the value itself, if it can be called.

    Args:
      option: what messages call it, e.g. "pretraining.mask".
      value: a key of the table, or a function.
      table: name -> entry.
    Raises:
      SettingError: if it is neither; names the nearest key.
    """
    if callable(value):
        return value
    if value in table:
        return table[value]
    near = difflib.get_close_matches(str(value), table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise SettingError(
        f"{option}={value!r} is unknown; {hint}choose from {tuple(table)}, or give a function."
    )


def name_of(value: Any) -> str:
    """What a choice is called: the name, or that of the function itself."""
    return value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


def qualified_name(function: Any) -> str:
    """E.g. "my_masks.checkerboard": how a function of a recipe is written down."""
    return f"{function.__module__}.{name_of(function)}"
