"""Packages that only some uses of this one need, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from vmae_jax.errors import MissingPackage


def import_package(
    name: str, purpose: str, *, install: str | None = None, remark: str = ""
) -> ModuleType:
    """The module called `name`.

    Args:
      name: as in an import statement.
      purpose: what needs it; the error begins with it.
      install: what pip is to install; None for the name.
      remark: more about the remedy, the end of the error.
    Raises:
      MissingPackage: if it is not installed, or does not load (a shared library is missing, say).
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MissingPackage(
            f"{purpose} needs the package {name} ({reason}); run "
            f"`pip install {install or name}`{remark}."
        ) from error
