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
    try:
        return _parse(recipe, overrides)
    except (AttributeError, KeyError, TypeError, flags.Error) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        text += _namesakes(recipe, overrides) if isinstance(error, KeyError) else ""
        raise SettingError(
            f"{path} with {' '.join(overrides) or 'no overrides'}: {text}"
        ) from error


def _parse(recipe: str, overrides: Sequence[str]) -> ConfigDict:
    arguments = ["", f"--config={recipe}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    config = values["config"].value
    config.items()  # a file that is not there shows only when it is looked at
    return config


def _namesakes(recipe: str, overrides: Sequence[str]) -> str:
    """Where options that are overridden in a section that there is not stand instead."""
    known = _option_names(_parse(recipe, ()))
    found = []
    for override in overrides:
        name = override.removeprefix(PREFIX).partition("=")[0]
        if name not in known:
            others = [option for option in known if option.split(".")[-1] == name.split(".")[-1]]
            sections = dict.fromkeys(option.split(".")[0] for option in known)
            hint = f"did you mean {others[0]}?" if others else f"choose from {', '.join(sections)}."
            found.append(f": there is no option {name}; {hint}")
    return "".join(found)


def _option_names(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        inner = isinstance(value, ConfigDict)
        names += _option_names(value, f"{prefix}{name}.") if inner else [prefix + name]
    return names


def recipe_path(path: str) -> str:
    """The path itself, or that of the recipe of this name which is installed with the package."""
    recipe = os.path.join(os.path.dirname(__file__), "configs", f"{path.removesuffix('.py')}.py")
    return path if os.path.exists(path) or not os.path.exists(recipe) else recipe
