"""What the label of a record may be: a class, several classes, or the numbers of a regression.

Its type says which, so that labels pass through JSON and come back as they were: 3 is a class,
[0, 2] are classes, 0.5 and [0.5, 1.0] are numbers to predict. Problem types have the names that
Hugging Face's configurations give them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Label = int | tuple[int, ...] | float | tuple[float, ...]

NO_LABEL = -1
SINGLE_LABEL, MULTI_LABEL = "single_label_classification", "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
_LARGEST_TARGET = float(np.finfo(np.float32).max)  # what a model predicts is fp32


def checked_label(label: Any) -> Label:
    """A label as records keep it: a list as a tuple, numpy's numbers as Python's.

    A tuple with one float in it is one of floats.

    Raises:
      ValueError: if it is no label; the text is to follow the label.
    """
    if type(label) is int and label >= NO_LABEL:
        return label
    several = isinstance(label, list | tuple)
    numbers = [_number(x) for x in (label if several else [label])]
    if any(isinstance(x, float) for x in numbers):
        numbers = [float(x) for x in numbers]
        if not all(abs(x) <= _LARGEST_TARGET for x in numbers):  # so written, it refuses nan
            raise ValueError("whose numbers are not all finite in fp32")
    elif min(numbers, default=0) < (0 if several else NO_LABEL):
        raise ValueError("but classes are counted from 0, and only -1 alone means no label")
    return tuple(numbers) if several else numbers[0]


def _number(value: Any) -> int | float:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    raise ValueError("but must be a class number, several of them, or floats to predict")


def is_missing(label: Label) -> bool:
    """Whether there is no label; -1.0 is a number to predict."""
    return isinstance(label, int) and label == NO_LABEL


def problem_type_of(label: Label) -> str:
    """Which of PROBLEM_TYPES a label is for; NO_LABEL counts as a class, () as no classes."""
    if isinstance(label, tuple):
        return REGRESSION if label and isinstance(label[0], float) else MULTI_LABEL
    return REGRESSION if isinstance(label, float) else SINGLE_LABEL


def classes_of(label: Label) -> tuple[int, ...]:
    """The class numbers in a label; () if it holds none."""
    if problem_type_of(label) == REGRESSION or is_missing(label):
        return ()
    return label if isinstance(label, tuple) else (label,)


def targets_of(label: Label) -> tuple[float, ...]:
    """The numbers to predict in a label; () if it holds none."""
    if problem_type_of(label) != REGRESSION:
        return ()
    return label if isinstance(label, tuple) else (label,)


def single_class(label: Label) -> int:
    """The class of a label that is a single one, else NO_LABEL: where there is room for an int."""
    return label if isinstance(label, int) else NO_LABEL


def as_text(label: Label) -> str:
    """A label for people; "" if there is none."""
    if is_missing(label):
        return ""
    if targets := targets_of(label):
        return f"target {', '.join(f'{x:g}' for x in targets)}"
    if isinstance(label, int):
        return f"class {label}"
    return f"classes {', '.join(map(str, label))}" if label else "no class"
