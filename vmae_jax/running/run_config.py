"""`run_config.json`: the configuration that a workdir was trained with, whatever its age.

Options move and change their form from version to version of the code. The file says of which
version it is, and one of an older version is read as if it had been written today: so an option
that has another value is found also where its name has moved.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from vmae_jax.checkpoints.finished_steps import absolute
from vmae_jax.errors import SettingError
from vmae_jax.files.atomic import write_file
from vmae_jax.files.storage import is_remote

NAME = "run_config.json"
_VERSION = "version"  # the key of the file; one without it is of version 1

# Where the options of version 1 stand in version 2: what only some runs have, in sections of its
# own.
_MOVED_IN_2 = {
    "objective.name": "task",
    "objective.mask": "pretraining.mask",
    "objective.mask_ratio": "pretraining.mask_ratio",
    "objective.loss": "pretraining.loss",
    "run.eval_every_steps": "evals.held_out.every_steps",
    "run.picture_clips": "evals.reconstructions.num_clips",
}


def _move(config: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The configuration with options under other names; sections that end up empty go."""
    options = flat(config)
    for old, new in names.items():
        if old in options:
            options[new] = options.pop(old)
    return nested(options)


# The first makes version 2 of version 1, and so on.
MIGRATIONS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (
    functools.partial(_move, names=_MOVED_IN_2),
)
VERSION = 1 + len(MIGRATIONS)


def read_run_config(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """The configuration that `write_run_config` wrote, as of today; None if there is none.

    Raises:
      SettingError: if the file is no JSON object, or of a newer version.
      OSError: if it cannot be read.
    """
    path = absolute(workdir) / NAME
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise SettingError(f"{path} is no JSON ({error}).") from error
    if not isinstance(config, dict):
        raise SettingError(f"{path} holds no configuration, but {text[:40]!r}.")
    version = config.pop(_VERSION, 1)
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise SettingError(
            f"{path} is of version {version!r}, and this code reads 1 to {VERSION}; use the code "
            "that wrote it."
        )
    for migration in MIGRATIONS[version - 1 :]:
        config = migration(config)
    return config


def write_run_config(workdir: str | os.PathLike, run_config: Mapping[str, Any]) -> None:
    """Writes the file, whole or not at all; once the run is sure to start.

    Raises:
      OSError: if nothing can be written there.
    """
    content = json.dumps({_VERSION: VERSION, **run_config}, indent=2).encode()
    path = absolute(workdir) / NAME
    if is_remote(os.fspath(path)):  # an object appears whole
        path.write_bytes(content)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: file.write(content))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their whole names: {"data.batch_size": 64, ...}."""
    options = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            options |= flat(value, f"{prefix}{name}.")
        else:
            options[prefix + name] = value
    return options


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`, but for sections without options."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        *sections, last = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree
