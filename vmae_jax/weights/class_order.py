"""Whether a classifier that is taken from a checkpoint means the classes of the data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from vmae_jax.errors import SettingError

_NAMED = 3  # classes in a message


def check_class_order(
    path: str | os.PathLike, theirs: Mapping[int, str], ours: Sequence[str]
) -> None:
    """Compares the names of a checkpoint's classes with those of the data, number by number.

    Nothing is said where either side has no names: ours are absent, or theirs LABEL_0, LABEL_1, ...

    Args:
      path: of the checkpoint, for the message.
      theirs: its `id2label`.
      ours: the data's class names, in the order of their numbers.
    Raises:
      SettingError: if they are other names, or the same in another order.
    """
    names = [theirs[i] for i in sorted(theirs)]
    if not ours or list(ours) == names or names == [f"LABEL_{i}" for i in range(len(names))]:
        return
    both = list(zip(names, ours, strict=False))
    pairs = [(i, a, b) for i, (a, b) in enumerate(both) if a != b]
    told = [f"class {i} is {a!r} there and {b!r} in the data" for i, a, b in pairs[:_NAMED]]
    some = ", ".join(told) + (", ..." if len(pairs) > _NAMED else "")
    if sorted(names) == sorted(ours):
        raise SettingError(
            f"the classifier of {os.fspath(path)!r} has the data's classes in another order: "
            f"{some}. Number the data's classes as there (a list or manifest takes the order "
            "from the option classes), or start with a fresh classifier."
        )
    counts = f"it has {len(names)} classes, the data {len(ours)}" if len(names) != len(ours) else ""
    raise SettingError(
        f"the classifier of {os.fspath(path)!r} is for other classes: "
        f"{'; '.join(filter(None, (counts, some)))}. Start with a fresh classifier, or give "
        "the data set the checkpoint's class names in their order."
    )
