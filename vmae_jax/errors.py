"""What a user can mend: errors that were raised on purpose, at a door, and say what to do.

The doors are the configuration, the data set and the checkpoint. A run that ends with one of these
prints its text in one line and is not started again; whatever else it ends with is a bug or a
machine's failure, and keeps its traceback. An error class says by its attribute `exit_code` what
the run ends with (`processes.exit_codes` has the codes).
"""

from __future__ import annotations


class SettingError(ValueError):
    """A value that was chosen cannot work. The text names the value, the rule and the remedy."""

    exit_code = 78


class MissingPackage(ModuleNotFoundError):
    """A package that only this option needs is not installed. The text says how to install it."""

    exit_code = 78
