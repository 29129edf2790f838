"""What a model can be trained for: one module each, entered in `TASKS`.

A task says what its model has, how samples are made, what a batch holds, and the loss
(`task.Task`). Nothing else in this package knows which task it runs.
"""

from __future__ import annotations

import inspect
from typing import Any

from vmae_jax.choices import choose, name_of
from vmae_jax.errors import SettingError
from vmae_jax.tasks.finetuning import FineTuning
from vmae_jax.tasks.pretraining import Pretraining
from vmae_jax.tasks.task import Task

TASKS = {"pretraining": Pretraining, "finetuning": FineTuning}


def make_task(config: Any) -> Task:
    """The task of a run, with its options.

    Args:
      config: of the run: `task` names an entry of `TASKS`, or is what such an entry is: a function
        that returns a `Task`. The section of that name (of a function: its `__name__`) holds its
        options, as keyword arguments. Sections of other tasks are not looked at.
    Raises:
      SettingError: for an unknown task, an option that it does not have, or one that cannot work.
    """
    make = choose("task", config.task, TASKS)
    name = name_of(config.task)
    options = dict(config[name].items()) if name in config else {}
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise SettingError(f"{name}.{option} is no option of this task; it has {list(known)}.")
    return make(**options)
