import pytest
from manifest_files import ROWS, opened


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_rows_say_the_same_in_every_kind_of_file(tmp_path, kind):
    a, c, d, e = opened(tmp_path, ROWS, kind, root="/data")
    assert (a.path, a.label, a.start_time, a.stop_time) == ("/data/a, b.mp4", 2, 1.5, 4)
    assert (a.start, a.stop, a.clip_id) == (0, None, "a, b.mp4[1.5s:4s]")
    assert (c.start, c.stop, c.start_time, c.stop_time) == (10, 40, None, None)
    assert c.clip_id == "c.mp4[10:40]"
    assert (d.clip_id, d.label, d.start, d.stop, d.is_timed) == ("mine", -1, 0, None, False)
    assert (e.path, e.start_time, e.stop_time) == ("/abs/e.mp4", 2, None)


def test_labels_may_be_names_of_classes(tmp_path):
    rows = [{"path": "a", "label": "jump"}, {"path": "b", "label": "2"}, {"path": "c", "label": 0}]
    rows.append({"path": "d", "label": "7"})
    classes = ["walk", "jump", "run", "7"]
    (tmp_path / "classes.txt").write_text("walk\njump\nrun\n7\n")
    for option in (classes, tuple(classes), str(tmp_path / "classes.txt")):
        source = opened(tmp_path, rows, classes=option)
        assert [record.label for record in source] == [1, 2, 0, 3]
        assert source.class_names == tuple(classes)


def test_a_class_must_not_be_named_twice(tmp_path):
    with pytest.raises(ValueError, match="names a class twice"):
        opened(tmp_path, ROWS, classes=["a", "b", "a"])


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


def test_all_is_every_row_of_the_manifest(tmp_path):
    rows = [{"path": f"{i}", "split": ("train", "val", "test")[i % 3]} for i in range(9)]
    assert [r.path for r in opened(tmp_path, rows, split="all")] == [f"{i}" for i in range(9)]
    for row in rows:
        del row["split"]
    assert len(opened(tmp_path, rows, split="all", held_out_ratio=0.5)) == 9
    (tmp_path / "val.csv").write_text("path\nz.mp4\n")
    source = opened(tmp_path, rows, split="all", held_out_path=str(tmp_path / "val.csv"))
    assert [r.path for r in source] == [f"{i}" for i in range(9)]
