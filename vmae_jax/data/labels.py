"""Labels on their way into a batch, and what has to hold of a labelled data set before a run.

Nothing here opens a video: records have their labels from lists, folders and indices.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence

import numpy as np

from vmae_jax.data.sources.record_label import (
    MULTI_LABEL,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE_LABEL,
    Label,
    classes_of,
    is_missing,
    problem_type_of,
    targets_of,
)
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.errors import SettingError

logger = logging.getLogger(__name__)

Encoder = Callable[..., np.ndarray]
_NAMED = 5  # clips or classes in a message


def encoder(problem_type: str, num_labels: int) -> Encoder:
    """The function that makes arrays of labels; it can be pickled.

    It is called with (label, clip_id=None) and returns
      "single_label_classification": the class, int32 [];
      "multi_label_classification": 1 for each class of the label and 0 for others, fp32 [K];
      "regression": the numbers, fp32 [K].
    It raises SettingError for a label that is missing, of another kind or out of range, and names
    the clip if it is given one.

    Args:
      problem_type: one of `record_label.PROBLEM_TYPES`.
      num_labels: K, at least 1.
    Raises:
      SettingError: for an unknown problem type, or no labels.
    """
    _check_problem_type(problem_type)
    if num_labels < 1:
        raise SettingError(f"num_labels={num_labels} must be at least 1 to encode labels.")
    return functools.partial(_ENCODERS[problem_type], num_labels=num_labels)


def _one_class(label: Label, clip_id: str | None = None, *, num_labels: int) -> np.ndarray:
    _check_label(label, SINGLE_LABEL, num_labels, clip_id)
    return np.array(label, np.int32)


def _multi_hot(label: Label, clip_id: str | None = None, *, num_labels: int) -> np.ndarray:
    _check_label(label, MULTI_LABEL, num_labels, clip_id)
    row = np.zeros(num_labels, np.float32)
    row[list(classes_of(label))] = 1
    return row


def _numbers(label: Label, clip_id: str | None = None, *, num_labels: int) -> np.ndarray:
    _check_label(label, REGRESSION, num_labels, clip_id)
    return np.array(targets_of(label), np.float32)


_ENCODERS = {SINGLE_LABEL: _one_class, MULTI_LABEL: _multi_hot, REGRESSION: _numbers}


# What may be wrong with a label: by a name, what is said of it, and what mends it.
_FAULTS = {
    "missing": ("no label", "label them, or take them out of the list"),
    "kind": (
        "a label of another kind than {problem_type} needs",
        "choose the data's problem type, or correct the list (a manifest has label_kind='multi' "
        "for several classes, and the column 'target' for numbers to predict)",
    ),
    "range": ("a class outside of [0, num_labels={num_labels})", "correct them, or num_labels"),
    "length": ("not num_labels={num_labels} numbers to predict", "correct them, or num_labels"),
}


def _fault(label: Label, problem_type: str, num_labels: int) -> str | None:
    """Which of _FAULTS a label has."""
    if is_missing(label):
        return "missing"
    if problem_type_of(label) != problem_type:
        return "kind"
    if problem_type == REGRESSION:
        return None if len(targets_of(label)) == num_labels else "length"
    return "range" if any(k >= num_labels for k in classes_of(label)) else None


def _check_label(label: Label, problem_type: str, num_labels: int, clip_id: str | None) -> None:
    if (fault := _fault(label, problem_type, num_labels)) is not None:
        what, remedy = _FAULTS[fault]
        what = what.format(problem_type=problem_type, num_labels=num_labels)
        clip = "a clip" if clip_id is None else f"clip_id={clip_id!r}"
        raise SettingError(f"{clip} has {what} (label={label!r}); {remedy}.")


def check_training(
    source: VideoSource,
    problem_type: str,
    num_labels: int,
    class_names: Sequence[str] = (),
    allow_missing: bool = False,
) -> None:
    """Asks whether a head of num_labels outputs can be trained on the labels of a source.

    Args:
      source: the training clips; each must have a label of the problem's kind and range.
      problem_type: one of `record_label.PROBLEM_TYPES`.
      num_labels: classes, or numbers to predict, of the head.
      class_names: of the classes, in order; () if nobody knows them.
      allow_missing: whether classes may be without a training clip; they are only logged then.
    Raises:
      SettingError: with a line for each thing that is wrong, which names the first few clips or
        classes and what to do.
    """
    _check_problem_type(problem_type)
    faulty: dict[str, list[str]] = {}
    seen: set[int] = set()
    for record in source:
        seen.update(classes_of(record.label))
        if (fault := _fault(record.label, problem_type, num_labels)) is not None:
            faulty.setdefault(fault, []).append(f"{record.clip_id!r} ({record.label!r})")
    lines = []
    for fault, clips in faulty.items():
        what, remedy = _FAULTS[fault]
        what = what.format(problem_type=problem_type, num_labels=num_labels)
        lines.append(
            f"{len(clips)} of {len(source)} training clips have {what}: {_some(clips)}; {remedy}."
        )
    if problem_type != REGRESSION and (seen or not faulty):
        lines += _class_lines(seen, num_labels, class_names, allow_missing)
    if lines:
        raise SettingError("\n".join(lines))


def _class_lines(
    seen: set[int], num_labels: int, class_names: Sequence[str], allow_missing: bool
) -> list[str]:
    if class_names and len(class_names) != num_labels:
        return [
            f"the data set has {len(class_names)} classes by name, and the head num_labels="
            f"{num_labels}: set num_labels={len(class_names)}, or give the names of all classes."
        ]
    absent = [k for k in range(num_labels) if k not in seen]
    if not absent:
        return []
    names = [f"{k} ({class_names[k]!r})" if class_names else str(k) for k in absent]
    text = f"{len(absent)} of num_labels={num_labels} classes have no training clip: {_some(names)}"
    if allow_missing:
        logger.warning("%s; they will not be learnt.", text)
        return []
    above_all = not class_names and seen and absent[0] > max(seen)
    less = f"set num_labels={absent[0]}, " if above_all else ""
    return [f"{text}; {less}add clips of them, or allow classes without clips."]


def _some(items: Sequence[str]) -> str:
    more = len(items) - _NAMED
    return ", ".join(items[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _check_problem_type(problem_type: str) -> None:
    if problem_type not in PROBLEM_TYPES:
        raise SettingError(
            f"problem_type={problem_type!r} is unknown; choose one of {list(PROBLEM_TYPES)}."
        )


def num_labels_of(source: VideoSource, problem_type: str) -> int:
    """How many outputs the labels of a source ask for: as many as it names classes, else its
    largest class and those below; for regression, its numbers to predict. 0 without labels.

    Raises:
      SettingError: for an unknown problem type, or if records have different counts of numbers.
    """
    _check_problem_type(problem_type)
    if problem_type != REGRESSION:
        largest = max((k for record in source for k in classes_of(record.label)), default=-1)
        return len(source.class_names) or largest + 1
    first = {len(targets_of(record.label)): record.clip_id for record in reversed(source)}
    first.pop(0, None)
    if len(first) > 1:
        clips = ", ".join(f"{clip_id!r} has {n}" for n, clip_id in sorted(first.items()))
        raise SettingError(
            f"the records have different counts of numbers to predict ({clips}); give all the same."
        )
    return next(iter(first), 0)


def mirrored_classes(class_names: Sequence[str]) -> list[str]:
    """The classes that a mirrored clip would leave, by their names: those in which "left" or
    "right" is a word ("turn_left", "MoveRight", "pushing from left to right"; not "bright")."""
    return [name for name in class_names if _SIDE.search(_HUMP.sub(" ", name))]


_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # between the words of CamelCase
_SIDE = re.compile(r"(?<![a-z])(left|right)(wards?)?(?![a-z])", re.IGNORECASE)
