"""Reads a run's configuration: a recipe, and overrides of its values by name.

    load("configs/demo.py", ["--config.data.batch_size=64", "--config.mesh.fsdp=4"])

`train.py` and the commands that take a configuration all read it here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from vmae_jax.errors import SettingError

PREFIX = "--config."


def load(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The configuration of a file, with values replaced.

    Args:
      path: of a Python file with `get_config()`; or the name of a recipe in `vmae_jax.configs`, as
        "demo".
      overrides: "--config.section.name=value"; the value is read as the option's type says.
    Raises:
      ValueError: for an option that there is not (names the nearest), or a value of another type.
      OSError: if there is no such file, nor a recipe of that name.
    """
    for override in overrides:
        if not override.startswith(PREFIX) or "=" not in override:
            raise SettingError(f"{override!r} is no override; write {PREFIX}section.name=value.")
    recipe = recipe_path(path)
    folder = os.path.dirname(os.path.abspath(recipe))
    if folder not in sys.path:
        sys.path.append(folder)  # what a recipe imports of its own stands beside it
    arguments = ["", f"--config={recipe}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        config = values["config"].value
        config.items()  # a file that is not there shows only when it is looked at
    except (AttributeError, KeyError, TypeError, flags.Error) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        raise SettingError(
            f"{path} with {' '.join(overrides) or 'no overrides'}: {text}"
        ) from error
    return config


def recipe_path(path: str) -> str:
    """The path itself, or that of the recipe of this name which is installed with the package."""
    recipe = os.path.join(os.path.dirname(__file__), "configs", f"{path.removesuffix('.py')}.py")
    return path if os.path.exists(path) or not os.path.exists(recipe) else recipe
