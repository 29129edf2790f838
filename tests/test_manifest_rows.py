import pytest
from manifest_files import ROWS, opened, written

from vmae_jax.data.datasets import make_source
from vmae_jax.files import storage


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_byte_order_mark_and_empty_lines_are_passed_over(tmp_path, kind):
    source = opened(tmp_path, "\ufeff" + written(ROWS[:1], kind) + "\n\n", kind)
    assert [record.path for record in source] == ["a, b.mp4"]


def test_labels_that_are_no_class_are_refused(tmp_path):
    rows = [{"path": "a", "label": 1}, {"path": "b", "label": 2}, {"path": "c", "label": "run"}]
    with pytest.raises(ValueError, match=r"line 3: .*'2' is above the last of the 2 .*line 5: .*2"):
        opened(tmp_path, rows, classes=["walk", "jump"])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"label": "jump"}, r"column 'label': 'jump' is not a number; for names, .* classes"),
        ({"label": -3}, r"column 'label': '-3' is not a number"),
        ({"label": 1.5}, r"column 'label': '1.5'"),
        ({"start": "soon"}, r"column 'start': 'soon' is not a number"),
        ({"start": -0.5}, r"column 'start': '-0.5' is not a number from 0 on"),
        ({"end": "nan"}, r"column 'end': 'nan'"),
        ({"end": 1e300}, r"column 'end': '1e\+300'"),
        ({"start_frame": 1.5}, r"column 'start_frame': '1.5' is not a whole number"),
        ({"start": 2, "end": 2}, r"start=2.0 and end=2.0 leave nothing"),
        ({"start_frame": 9, "stop_frame": 4}, r"start_frame=9 and stop_frame=4 leave nothing"),
        ({"end": 0}, r"start=0 and end=0.0 leave nothing"),
        ({"start": 1, "stop_frame": 40}, r"both by seconds and by frames"),
        ({"path": ""}, r"column 'path' is empty"),
        ({"path": "a\x00b"}, r"column 'path': .*control characters"),
        ({"path": "a" * 5000}, r"column 'path': .*too long"),
        ({"caption": "x"}, r"column 'caption' is unknown; known are \['path', .*option ignore"),
    ],
)
def test_rows_that_cannot_be_used_name_line_and_column(tmp_path, kind, row, problem):
    rows = [{"path": "good"}, {"path": "a", **row}]
    with pytest.raises(
        ValueError, match=f"1 lines that .*: line [23]: .*{problem}|line 2: {problem}"
    ):
        opened(tmp_path, rows[1:] if kind == "csv" and "caption" in row else rows, kind)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"path": 3}, "column 'path': '3' is not a text"),
        ({"path": ["a"]}, "column 'path': .* is not a text"),
        ({"label": True}, "column 'label': 'True'"),
        ({"label": [1]}, "column 'label'"),
        ({"start": {}}, "column 'start'"),
        ({"start": True}, "column 'start'"),
        ({"start": float("nan")}, "column 'start': 'nan'"),
        ({"split": 1}, "column 'split'"),
    ],
)
def test_values_of_other_types_are_refused(tmp_path, row, problem):
    with pytest.raises(ValueError, match=f"item 2: {problem}"):
        opened(tmp_path, [{"path": "good"}, {"path": "a", **row}], "json")


def test_all_bad_rows_are_counted_and_the_first_ones_named(tmp_path):
    rows = [{"path": "a", "label": "x"}] * 9 + [{"path": "a"}]
    with pytest.raises(ValueError, match=r"9 lines .*line 1: .*line 5: .*; and 4 more") as error:
        opened(tmp_path, rows)
    assert "line 6" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        ("csv", "", "must begin with a line of different column names"),
        ("csv", "file,label\na,1\n", "one of them 'path'"),
        ("csv", "path,label,label\na,1,1\n", "different column names"),
        ("csv", "path,label\na\n", "line 2: it has 1 fields"),
        ("csv", "path,label\na,1,2\n", "line 2: it has 3 fields"),
        ("csv", 'path,label\n"a,1\n', "no CSV file at line 2"),
        ("csv", f"path,label\n{'a' * 200_000},1\n", "no CSV file at line 2"),
        ("csv", "path,label\n", "lists no video"),
        ("json", "[{", "is no JSON"),
        ("json", "[" * 100_000, "is no JSON"),
        ("json", '{"path": "a"}', "must hold a JSON list"),
        ("json", "[]", "lists no video"),
        ("json", "[3]", "item 1: it .*"),
        ("jsonl", '{"path": "a"}\n{"path"\n', "line 2: it is no JSON"),
        ("jsonl", '"a"\n', "line 1: it is no JSON object"),
        ("jsonl", "7\n", "line 1: it is no JSON object"),
        ("jsonl", "[" * 100_000, "line 1: it is no JSON"),
        ("jsonl", "1" * 10_000, "line 1: it is no JSON"),
        ("jsonl", "", "lists no video"),
    ],
)
def test_files_that_are_no_manifests_are_refused(tmp_path, kind, text, problem):
    with pytest.raises(ValueError, match=problem):
        opened(tmp_path, text, kind)


def test_other_kinds_of_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"list\.yaml' is no manifest; .*\.csv, \.json, \.jsonl"):
        opened(tmp_path, "", "yaml")
    with pytest.raises(ValueError, match="path=None is no manifest"):
        make_source("manifest", None, "train")


def test_files_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("vmae_jax.data.sources.manifest_rows.MAX_LIST_BYTES", 10)
    monkeypatch.setattr(storage, "open", None, raising=False)
    with pytest.raises(ValueError, match="bytes, above 10"):
        opened(tmp_path, ROWS)
