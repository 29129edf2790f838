import csv
import io
import json

import pytest

from vmae_jax.data.datasets import make_source
from vmae_jax.files import storage

ROWS = [
    {"path": "a, b.mp4", "label": 2, "start": 1.5, "end": 4},
    {"path": "c.mp4", "label": 0, "start_frame": 10, "stop_frame": 40},
    {"path": "d.mp4", "clip_id": "mine"},
    {"path": "/abs/e.mp4", "label": 1, "start": 2},
]


def written(rows, kind):
    if kind == "json":
        return json.dumps(rows)
    if kind == "jsonl":
        return "\n\n".join(json.dumps(row) for row in rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def opened(tmp_path, rows, kind="jsonl", split="train", **options):
    """The source of a manifest; nothing is held out unless asked for."""
    file = tmp_path / f"list.{kind}"
    file.write_text(rows if isinstance(rows, str) else written(rows, kind), newline="")
    return make_source("manifest", str(file), split, **{"held_out_ratio": 0, **options})


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_rows_say_the_same_in_every_kind_of_file(tmp_path, kind):
    a, c, d, e = opened(tmp_path, ROWS, kind, root="/data")
    assert (a.path, a.label, a.start_time, a.stop_time) == ("/data/a, b.mp4", 2, 1.5, 4)
    assert (a.start, a.stop, a.clip_id) == (0, None, "a, b.mp4[1.5s:4s]")
    assert (c.start, c.stop, c.start_time, c.stop_time) == (10, 40, None, None)
    assert c.clip_id == "c.mp4[10:40]"
    assert (d.clip_id, d.label, d.start, d.stop, d.is_timed) == ("mine", -1, 0, None, False)
    assert (e.path, e.start_time, e.stop_time) == ("/abs/e.mp4", 2, None)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_byte_order_mark_and_empty_lines_are_passed_over(tmp_path, kind):
    source = opened(tmp_path, "\ufeff" + written(ROWS[:1], kind) + "\n\n", kind)
    assert [record.path for record in source] == ["a, b.mp4"]


def test_labels_may_be_names_of_classes(tmp_path):
    rows = [{"path": "a", "label": "jump"}, {"path": "b", "label": "2"}, {"path": "c", "label": 0}]
    rows.append({"path": "d", "label": "7"})
    classes = ["walk", "jump", "run", "7"]
    (tmp_path / "classes.txt").write_text("walk\njump\nrun\n7\n")
    for option in (classes, tuple(classes), str(tmp_path / "classes.txt")):
        source = opened(tmp_path, rows, classes=option)
        assert [record.label for record in source] == [1, 2, 0, 3]
        assert source.class_names == tuple(classes)


def test_labels_that_are_no_class_are_refused(tmp_path):
    rows = [{"path": "a", "label": 1}, {"path": "b", "label": 2}, {"path": "c", "label": "run"}]
    with pytest.raises(ValueError, match=r"line 3: .*'2' is above the last of the 2 .*line 5: .*2"):
        opened(tmp_path, rows, classes=["walk", "jump"])


def test_a_class_must_not_be_named_twice(tmp_path):
    with pytest.raises(ValueError, match="names a class twice"):
        opened(tmp_path, ROWS, classes=["a", "b", "a"])


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
    monkeypatch.setattr("vmae_jax.data.sources.manifests.MAX_LIST_BYTES", 10)
    monkeypatch.setattr(storage, "open", None, raising=False)
    with pytest.raises(ValueError, match="bytes, above 10"):
        opened(tmp_path, ROWS)


def test_other_columns_can_be_ignored(tmp_path):
    rows = [{"path": "a", "caption": ["a man"], "seconds": 3}]
    assert len(opened(tmp_path, rows, ignore=["caption", "seconds"])) == 1
    with pytest.raises(ValueError, match="ignore='caption' is one name"):
        opened(tmp_path, rows, ignore="caption")


def test_parts_that_come_again_get_ids_of_their_own(tmp_path):
    rows = [{"path": "a"}, {"path": "a"}, {"path": "b", "clip_id": "a#2"}, {"path": "a", "end": 1}]
    assert [r.clip_id for r in opened(tmp_path, rows)] == ["a", "a#3", "a#2", "a[0s:1s]"]


def test_ids_that_are_given_have_to_be_unique(tmp_path):
    rows = [{"path": "a", "clip_id": "x"}, {"path": "b", "clip_id": "x"}]
    with pytest.raises(ValueError, match="clip_id='x' more than once"):
        opened(tmp_path, rows)


def test_the_column_split_decides(tmp_path):
    rows = [{"path": f"{i}", "split": ("train", "val", "test")[i % 3]} for i in range(9)]
    assert [r.path for r in opened(tmp_path, rows)] == ["0", "3", "6"]
    assert [r.path for r in opened(tmp_path, rows, split="held_out")] == ["1", "4", "7"]
    source = opened(tmp_path, rows, split="held_out", held_out_split="test")
    assert [r.path for r in source] == ["2", "5", "8"]
    with pytest.raises(ValueError, match=r"says 'dev', they say \['test', 'train', 'val'\]"):
        opened(tmp_path, rows, split="held_out", held_out_split="dev")
    with pytest.raises(ValueError, match=r"held_out_path='x.csv', but .* column 'split'"):
        opened(tmp_path, rows, held_out_path="x.csv")
    with pytest.raises(ValueError, match="empty in 1 rows"):
        opened(tmp_path, [*rows, {"path": "9"}])


def test_without_that_column_a_share_or_another_manifest_is_held_out(tmp_path):
    rows = [{"path": f"{i % 100}.mp4", "start": i, "end": i + 1} for i in range(300)]
    parts = [opened(tmp_path, rows, split=s, held_out_ratio=0.3) for s in ("train", "held_out")]
    assert sum(map(len, parts)) == 300
    assert not {r.path for r in parts[0]} & {r.path for r in parts[1]}
    (tmp_path / "val.csv").write_text("path\nz.mp4\n")
    options = {"split": "held_out", "held_out_path": str(tmp_path / "val.csv")}
    assert [r.path for r in opened(tmp_path, rows, **options)] == ["z.mp4"]
