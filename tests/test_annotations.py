import csv
import json

import pytest
from tfds_sets import (
    write,
    write_ucf101,
    write_videos,
)

from vmae_jax.data.tfds.annotations import read_annotations


@pytest.fixture
def ucf101(tmp_path):
    return write_ucf101(tmp_path)


def rows(splits):
    """{split: [(clip id, label, path)]} of what a reader returns."""
    return {
        split: [(r.clip_id, r.label, r.path) for r in source.records]
        for split, source in splits.items()
    }


def test_a_folder_without_lists_is_all_for_training(tmp_path):
    write_videos(tmp_path, "b/2.webm", "a.mp4", "notes.md", ".hidden.mp4")
    found = rows(read_annotations("video_folder", str(tmp_path), str(tmp_path)))
    assert found == {
        "train": [
            ("a.mp4", -1, str(tmp_path / "a.mp4")),
            ("b/2.webm", -1, str(tmp_path / "b/2.webm")),
        ]
    }


def test_pretraining_lists_have_a_format_of_their_own(tmp_path):
    write(tmp_path / "train.csv", "a b.mp4 0 -1\n")
    found = read_annotations(
        "video_folder", str(tmp_path), str(tmp_path), list_format="path_start_total"
    )
    assert rows(found) == {"train": [("a b.mp4", -1, str(tmp_path / "a b.mp4"))]}


def test_kinetics_tables(tmp_path):
    header = ["label", "youtube_id", "time_start", "time_end", "split"]
    tables = {
        "train.csv": [["zumba", "-A", "3", "13", "train"], ["abseiling", "B_", "0", "10", "train"]],
        "validate.csv": [["zumba", "C", "100", "110", "validate"]],
        "test.csv": [["", "D", "7", "17", "test"]],
    }
    for name, table in tables.items():
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file).writerows([header, *table])
    videos = tmp_path / "videos"
    write_videos(videos, "zumba/-A_000003_000013.mp4", "val/C_000100_000110.mkv")
    found = read_annotations("kinetics400", str(videos), str(tmp_path))
    assert found["val"].class_names == ("abseiling", "zumba")
    assert rows(found) == {
        "train": [
            ("-A_000003_000013", 1, str(videos / "zumba/-A_000003_000013.mp4")),
            ("B__000000_000010", 0, str(videos / "B__000000_000010")),  # missing
        ],
        "val": [("C_000100_000110", 1, str(videos / "val/C_000100_000110.mkv"))],
        "test": [("D_000007_000017", -1, str(videos / "D_000007_000017"))],
    }


def test_kinetics_lists_of_paths(tmp_path):
    write(tmp_path / "val.csv", "abseiling/x y.mp4 0\n")
    found = read_annotations("kinetics400", str(tmp_path), str(tmp_path))
    assert rows(found) == {"val": [("abseiling/x y.mp4", 0, str(tmp_path / "abseiling/x y.mp4"))]}


def ssv2_entry(number, template):
    return {"id": str(number), "label": "put a cup", "template": template, "placeholders": ["cup"]}


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_ssv2(tmp_path, prefix):
    labels = {"Putting something": "1", "Approaching something with your camera": "0"}
    lists = {
        "labels": labels,
        "train": [ssv2_entry(7, "Putting [something]"), ssv2_entry(70, "Putting [something]")],
        "validation": [ssv2_entry(8, "Approaching [something] with your camera")],
        "test": [{"id": "9"}],
    }
    for name, content in lists.items():
        write(tmp_path / f"{prefix}{name}.json", json.dumps(content))
    write_videos(tmp_path / "videos", "7.webm", "8.mp4", "9.webm")
    found = read_annotations("ssv2", str(tmp_path / "videos"), str(tmp_path))
    assert found["test"].class_names == (
        "Approaching something with your camera",
        "Putting something",
    )
    assert rows(found) == {
        "train": [
            ("7", 1, str(tmp_path / "videos/7.webm")),
            ("70", 1, str(tmp_path / "videos/70")),  # missing
        ],
        "val": [("8", 0, str(tmp_path / "videos/8.mp4"))],
        "test": [("9", -1, str(tmp_path / "videos/9.webm"))],
    }


def test_ucf101(ucf101):
    videos = ucf101 / "videos"
    write_videos(videos, "Archery/v_Archery_g02_c01.avi", "v_Archery_g22_c01.avi")  # one is flat
    found = read_annotations("ucf101", str(videos), str(ucf101), split_number=2)
    assert found["train"].class_names == ("ApplyEyeMakeup", "Archery")
    in_class = "Archery/v_Archery_g02_c01.avi"
    assert rows(found) == {
        "train": [
            (in_class, 1, str(videos / in_class)),
            ("ApplyEyeMakeup/v_x_g02.avi", 0, str(videos / "ApplyEyeMakeup/v_x_g02.avi")),
        ],
        "test": [("Archery/v_Archery_g22_c01.avi", 1, str(videos / "v_Archery_g22_c01.avi"))],
    }


def test_a_number_that_is_not_its_class_s_is_refused(ucf101):
    write(ucf101 / "trainlist01.txt", "Archery/v_Archery_g01_c01.avi 1\n")
    with pytest.raises(ValueError, match=r"trainlist01.txt:1.*classInd"):
        read_annotations("ucf101", str(ucf101), str(ucf101))


def test_hmdb51(tmp_path):
    for number in (1, 2, 3):
        write(tmp_path / f"wave_test_split{number}.txt", "w[1]&.avi 1 \nw2.avi 2 \nw3.avi 0 \n")
        write(tmp_path / f"brush_hair_test_split{number}.txt", f"b{number}.avi 2 \n")
    videos = tmp_path / "videos"
    write_videos(videos, "wave/w[1]&.avi", "w2.avi")
    found = read_annotations("hmdb51", str(videos), str(tmp_path), split_number=3)
    assert found["train"].class_names == ("brush_hair", "wave")
    assert rows(found) == {
        "train": [("wave/w[1]&.avi", 1, str(videos / "wave/w[1]&.avi"))],
        "test": [
            ("brush_hair/b3.avi", 0, str(videos / "brush_hair/b3.avi")),
            ("wave/w2.avi", 1, str(videos / "w2.avi")),
        ],
    }


def test_a_name_that_two_videos_have_is_not_guessed(ucf101):
    videos = ucf101 / "videos"
    write_videos(videos, "a/v_Archery_g01_c01.avi", "b/v_Archery_g01_c01.avi")
    found = read_annotations("ucf101", str(videos), str(ucf101))
    assert found["train"][0].path == str(videos / "Archery/v_Archery_g01_c01.avi")


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("video_folder", {"train.csv": "a b.mp4\n"}, "label='b.mp4'"),
        ("video_folder", {}, "no video files"),
        ("kinetics400", {"train.csv": "youtube_id,label\nA,x\n"}, "train.csv:2"),
        (
            "kinetics400",
            {
                "train.csv": "label,youtube_id,time_start,time_end\nx,A,0,10\n",
                "val.csv": "a.mp4 0\n",
            },
            "mixes",
        ),
        (
            "kinetics400",
            {"train.csv": "label,youtube_id,time_start,time_end,split\nx,A,0,1,holdout\n"},
            "holdout",
        ),
        ("ssv2", {"labels.json": "{}"}, "train.json"),
        ("ssv2", {"labels.json": "{"}, "no JSON"),
        (
            "ssv2",
            {"labels.json": "{}", "train.json": json.dumps([ssv2_entry(1, "Eating [food]")])},
            "no class",
        ),
        ("ucf101", {}, "classInd.txt"),
        ("ucf101", {"classInd.txt": "Archery\n"}, "number class"),
        ("hmdb51", {}, "_test_split1.txt"),
        ("hmdb51", {"wave_test_split1.txt": "a.avi 3\n"}, "use='3'"),
        ("k400", {}, "choose one of"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path, name, files, message):
    for file, content in files.items():
        write(tmp_path / file, content)
    with pytest.raises(ValueError, match=message):
        read_annotations(name, str(tmp_path), str(tmp_path))


def test_a_missing_folder_of_lists_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"annotations='.*none' is not a folder"):
        read_annotations("video_folder", str(tmp_path), str(tmp_path / "none"))
