"""What labels of records may be, by hand."""

import json

import numpy as np
import pytest

from vmae_jax.data.sources.record_label import (
    as_text,
    checked_label,
    classes_of,
    problem_type_of,
    single_class,
    targets_of,
)
from vmae_jax.data.sources.video_source import VideoRecord
from vmae_jax.errors import SettingError

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LABELS = pytest.mark.parametrize(
    ("label", "problem_type", "classes", "targets", "single", "text"),
    [
        (-1, SINGLE, (), (), -1, ""),
        (3, SINGLE, (3,), (), 3, "class 3"),
        ((), MULTI, (), (), -1, "no class"),
        ((0,), MULTI, (0,), (), -1, "classes 0"),
        ((0, 2), MULTI, (0, 2), (), -1, "classes 0, 2"),
        (0.5, "regression", (), (0.5,), -1, "target 0.5"),
        (-1.0, "regression", (), (-1.0,), -1, "target -1"),
        ((0.5, 1.0), "regression", (), (0.5, 1.0), -1, "target 0.5, 1"),
    ],
)


@LABELS
def test_what_a_label_is(label, problem_type, classes, targets, single, text):
    assert problem_type_of(label) == problem_type
    assert classes_of(label) == classes
    assert targets_of(label) == targets
    assert single_class(label) == single
    assert as_text(label) == text


@LABELS
def test_labels_pass_through_json(label, problem_type, classes, targets, single, text):
    again = VideoRecord("a", "a", label=json.loads(json.dumps(label))).label
    assert again == label
    assert type(again) is type(label)
    assert problem_type_of(again) == problem_type


def test_lists_become_tuples_and_numbers_those_of_python():
    assert checked_label([np.int32(2), 1]) == (2, 1)
    assert type(checked_label(np.int64(7))) is int
    assert type(checked_label(np.float32(0.5))) is float
    assert checked_label([1, 0.5]) == (1.0, 0.5)
    assert problem_type_of(checked_label([1, 0.5])) == "regression"


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (-2, "only -1 alone means no label"),
        ((0, -1), "only -1 alone means no label"),
        (float("nan"), "not all finite"),
        ((0.5, float("inf")), "not all finite"),
        (1e39, "not all finite in fp32"),
        ("3", "must be a class number"),
        (None, "must be a class number"),
        (True, "must be a class number"),
        (((1,),), "must be a class number"),
    ],
)
def test_what_is_no_label_is_refused_with_its_clip(label, reason):
    with pytest.raises(SettingError, match=f"clip_id='the clip' has label=.*{reason}"):
        VideoRecord("a.mp4", "the clip", label=label)
