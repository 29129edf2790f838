"""Labels from what stands in a manifest to what stands in a batch.

What a manifest says, and what has to come of it (classes: cat, dog, "a;b"; K = 3):

| column, value | label_kind | label of the record | in a batch |
|---|---|---|---|
| label, "1", 1 or "dog" | single | 1 | int32 1 |
| label, "a;b", a name | single | 2 | int32 2 |
| label, absent or empty | either | -1 | refused: no label |
| label, "0;1", "cat;dog", [0, "dog"] or "[0, 1]" | multi | (0, 1) | fp32 [1, 1, 0] |
| label, "1" or "dog" | multi | (1,) | fp32 [0, 1, 0] |
| label, "a;b", a name | multi | (2,) | fp32 [0, 0, 1] |
| label, [] or "[]" | multi | () | fp32 [0, 0, 0] |
| label, "0;1" or [0, 1] | single | refused: label_kind='multi' | |
| label, "cat;bird" or "0;3" | multi | refused: no such class | |
| target, "0.5", 0.5 or [0.5] | either | 0.5 | K = 1: fp32 [0.5] |
| target, "0.5;-1", [0.5, -1] or "[0.5, -1]" | either | (0.5, -1.0) | K = 2: fp32 [0.5, -1] |
| target, "nan", "1;", [], "x", true | either | refused: not a finite number | |
| label and target | either | refused: choose one | |

All of these come back the same from a prepared set.
"""

import json
import logging
import pickle
import re

import numpy as np
import pytest
from manifest_files import opened
from prepared_sets import quietly, six_videos

from vmae_jax.data.labels import check_training, encoder, mirrored_classes, num_labels_of
from vmae_jax.data.prepared.prepared_source import PreparedSource
from vmae_jax.data.prepared.verification import damage
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.errors import SettingError

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
CLASSES = ["cat", "dog", "a;b"]
TAKEN = [
    *[("single", {"label": x}, 1) for x in ("1", 1, "dog")],
    ("single", {"label": "a;b"}, 2),
    *[(kind, {"label": x}, -1) for kind in ("single", "multi") for x in ("", None)],
    *[("multi", {"label": x}, (0, 1)) for x in ("0;1", "cat; dog", [0, "dog"], "[0, 1]")],
    *[("multi", {"label": x}, (1,)) for x in ("1", 1, "dog", ["dog"])],
    ("multi", {"label": "a;b"}, (2,)),
    *[("multi", {"label": x}, ()) for x in ([], "[]")],
    *[("single", {"target": x}, 0.5) for x in ("0.5", 0.5, [0.5])],
    *[("multi", {"target": x}, (0.5, -1.0)) for x in ("0.5;-1", [0.5, -1], "[0.5, -1]")],
    ("single", {"target": 2}, 2.0),  # a whole number is one all the same
]
REFUSED = [
    *[("single", {"label": x}, "nor a number") for x in ("0;1", [0, 1], "bird")],
    *[("multi", {"label": x}, "none of the 3 names") for x in ("cat;bird", "1;", [["cat"]], [-1])],
    ("multi", {"label": "0;3"}, "above the last of the 3 classes"),
    ("multi", {"label": "[0, 1"}, "is no JSON list"),
    *[
        ("single", {"target": x}, "not a finite number")
        for x in ("nan", "1e39", "1;", [], "x", True, [[1]], {}, "[null]")
    ],
    ("single", {"label": 1, "target": 0.5}, "both a label and a target"),
]


@pytest.mark.parametrize(("label_kind", "row", "expected"), TAKEN)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_what_manifests_say_becomes_a_label(tmp_path, kind, label_kind, row, expected):
    if kind == "csv":  # where a list is the text of one
        row = {k: json.dumps(x) if isinstance(x, list) else x for k, x in row.items()}
    rows = [{"path": "a.mp4", **row}]
    (record,) = opened(tmp_path, rows, kind, classes=CLASSES, label_kind=label_kind)
    assert record.label == expected
    assert type(record.label) is type(expected)


@pytest.mark.parametrize(("label_kind", "row", "problem"), REFUSED)
def test_what_is_no_label_names_its_line(tmp_path, label_kind, row, problem):
    rows = [{"path": "a.mp4"}, {"path": "b.mp4", **row}]
    with pytest.raises(SettingError, match=f"line 3: .*{problem}"):
        opened(tmp_path, rows, classes=CLASSES, label_kind=label_kind)


def test_the_way_to_several_classes_is_shown(tmp_path):
    with pytest.raises(SettingError, match="for several, label_kind='multi'"):
        opened(tmp_path, [{"path": "a.mp4", "label": "0;1"}])
    with pytest.raises(SettingError, match=r"label_kind='many' is unknown; .*'single', 'multi'"):
        opened(tmp_path, [{"path": "a.mp4"}], label_kind="many")


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("label", ["cat;dog", [], 2, None, "a;b", [1, 0]], [(0, 1), (), (2,), -1, (2,), (1, 0)]),
        ("target", [0.5, -1, "1;2", [0, 3], None, "7"], [0.5, -1.0, (1.0, 2.0), (0, 3.0), -1, 7.0]),
    ],
)  # fmt: skip
def test_prepared_sets_give_the_labels_back(tmp_path, column, values, expected):
    rows = [
        {"path": record.path, column: value}
        for record, value in zip(six_videos(), values, strict=True)
    ]
    source = opened(tmp_path, rows, classes=CLASSES, label_kind="multi")
    assert [record.label for record in source] == expected
    quietly(source, tmp_path / "set")
    again = PreparedSource(tmp_path / "set")
    assert [record.label for record in again] == expected
    assert [type(record.label) for record in again] == [type(x) for x in expected]
    assert again.class_names == tuple(CLASSES)
    for i in range(6):
        again.open(i).close()  # compares the record with the index
    assert damage(tmp_path / "set", workers=1) == []


def labelled(*labels, class_names=()):
    records = [VideoRecord(f"{i}.mp4", f"clip {i}", label=x) for i, x in enumerate(labels)]
    return VideoSource(records, class_names=class_names)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "label", "expected"),
    [
        (SINGLE, 3, 2, np.int32(2)),
        (MULTI, 3, (0, 2), np.float32([1, 0, 1])),
        (MULTI, 3, (1, 1), np.float32([0, 1, 0])),
        (MULTI, 2, (), np.float32([0, 0])),
        ("regression", 1, 0.1, np.float32([0.1])),
        ("regression", 2, (0.5, -3.0), np.float32([0.5, -3])),
    ],
)
def test_labels_become_arrays(problem_type, num_labels, label, expected):
    encode = pickle.loads(pickle.dumps(encoder(problem_type, num_labels)))
    found = encode(label)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "label", "problem"),
    [
        (SINGLE, 3, -1, "no label"),
        (SINGLE, 3, 3, r"a class outside of \[0, num_labels=3\)"),
        (SINGLE, 3, (1,), "a label of another kind than single_label_classification needs"),
        (SINGLE, 3, 1.0, "a label of another kind"),
        (MULTI, 3, -1, "no label"),
        (MULTI, 3, 1, "a label of another kind than multi_label_classification needs"),
        (MULTI, 3, (0, 3), "a class outside of"),
        (MULTI, 3, (0.5,), "a label of another kind"),
        ("regression", 2, -1, "no label"),
        ("regression", 2, 0.5, "not num_labels=2 numbers"),
        ("regression", 1, 1, "a label of another kind than regression needs"),
        ("regression", 2, (), "a label of another kind"),
    ],
)
def test_labels_that_do_not_fit_are_refused(problem_type, num_labels, label, problem):
    encode = encoder(problem_type, num_labels)
    with pytest.raises(SettingError, match=f"a clip has {problem}"):
        encode(label)
    with pytest.raises(SettingError, match=rf"clip_id='x' has {problem}.*\(label="):
        encode(label, "x")


def test_there_is_no_encoder_without_labels_or_of_another_type():
    with pytest.raises(SettingError, match="num_labels=0 must be at least 1"):
        encoder(SINGLE, 0)
    with pytest.raises(SettingError, match="problem_type='ranking' is unknown"):
        encoder("ranking", 3)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "class_names"),
    [
        (SINGLE, 2, [0, 1, 1], ()),
        (SINGLE, 2, [0, 1, 1], ("a", "b")),
        (MULTI, 3, [(0, 1), (), (2,)], ()),
        ("regression", 2, [(0.5, 1.0), (0.0, 0.0)], ()),
    ],
)
def test_labels_that_can_be_trained_on_pass(problem_type, num_labels, labels, class_names):
    check_training(labelled(*labels), problem_type, num_labels, class_names)


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "class_names", "lines"),
    [
        (SINGLE, 2, [0, 1, -1, -1], (),
         [r"2 of 4 training clips have no label: 'clip 2' \(-1\), 'clip 3' \(-1\); label them"]),
        (SINGLE, 2, [0, 1, 2], (),
         [r"1 of 3 training clips have a class outside of \[0, num_labels=2\): 'clip 2' \(2\);"]),
        (SINGLE, 2, [0, 1, *[(0, 1)] * 7], (),
         [r"7 of 9 .* another kind than single_label.* needs: 'clip 2' \(\(0, 1\)\).* 2 more;"]),
        (SINGLE, 4, [0, 1], (),
         [r"2 of num_labels=4 classes have no training clip: 2, 3; set num_labels=2, add clips"]),
        (SINGLE, 3, [0, 2], ("a", "b", "c"),
         [r"1 of num_labels=3 classes have no training clip: 1 \('b'\); add clips of them,"]),
        (SINGLE, 3, [0, 1], ("a", "b"),
         [r"2 classes by name, and the head num_labels=3: set num_labels=2"]),
        (MULTI, 2, [(0,), (), -1], (),
         [r"1 of 3 .*no label: 'clip 2'", r"1 of num_labels=2 .*: 1; set num_labels=1"]),
        ("regression", 2, [(0.5, 1.0), 0.5, -1, 3], (),
         [r"not num_labels=2 numbers to predict: 'clip 1' \(0.5\); correct", r"no label: 'clip 2'",
          r"a label of another kind than regression needs: 'clip 3' \(3\); .*'target'"]),
        ("regression", 1, [-1, -1], (), ["2 of 2 training clips have no label"]),
    ],
)  # fmt: skip
def test_each_thing_that_is_wrong_has_a_line(problem_type, num_labels, labels, class_names, lines):
    with pytest.raises(SettingError) as error:
        check_training(labelled(*labels), problem_type, num_labels, class_names)
    found = str(error.value).splitlines()
    assert len(found) == len(lines)
    for line, expected in zip(found, lines, strict=True):
        assert re.search(expected, line), line


def test_classes_without_a_clip_may_be_allowed(caplog):
    with caplog.at_level(logging.WARNING):
        check_training(labelled(0, 3), SINGLE, 4, ("a", "b", "c", "d"), allow_missing=True)
    assert "2 of num_labels=4 classes have no training clip: 1 ('b'), 2 ('c')" in caplog.text
    with pytest.raises(SettingError, match="outside of"):
        check_training(labelled(0, 4), SINGLE, 4, allow_missing=True)


def test_labels_tell_how_many_outputs_they_ask_for():
    assert num_labels_of(labelled(0, 4, -1), SINGLE) == 5
    assert num_labels_of(labelled(0, class_names="abc"), SINGLE) == 3
    assert num_labels_of(labelled((0, 6), (), -1), MULTI) == 7
    assert num_labels_of(labelled((0.5, 1.0), -1), "regression") == 2
    assert num_labels_of(labelled(0.5), "regression") == 1
    for problem_type in (SINGLE, MULTI, "regression"):
        assert num_labels_of(labelled(-1), problem_type) == 0
    with pytest.raises(SettingError, match="'clip 1' has 1, 'clip 0' has 2"):
        num_labels_of(labelled((0.5, 1.0), 0.5), "regression")


def test_names_with_a_side_are_found():
    sided = ["turn_left", "MoveRight", "Pushing something from left to right", "RIGHT-hand"]
    sided += ["moving leftwards", "turnLeft", "right"]
    plain = ["bright", "leftover", "copyright", "ApplyLipstick", "cleft", "righteous", "up"]
    assert mirrored_classes([*plain, *sided]) == sided
