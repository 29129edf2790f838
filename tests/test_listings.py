import numpy as np
import pytest
from PIL import Image

from vmae_jax.data.datasets import make_source
from vmae_jax.data.sources.listings import LIST_FORMATS


def listed(tmp_path, text, split="train", **options):
    """The source of a list with this text; nothing is held out unless asked for."""
    (tmp_path / "list.csv").write_text(text, newline="")
    options = {"held_out_ratio": 0, **options}
    return make_source("list", str(tmp_path / "list.csv"), split, **options)


def summary(source):
    return [(r.path, r.clip_id, r.label) for r in source]


def test_paths_with_labels_as_for_fine_tuning(tmp_path):
    text = "k400/a.mp4 3\nk400/b.mp4  0\n\n/abs/c d.mp4\t12\r\n"
    assert summary(listed(tmp_path, text, format="path_label")) == [
        ("k400/a.mp4", "k400/a.mp4", 3),
        ("k400/b.mp4", "k400/b.mp4", 0),
        ("/abs/c d.mp4", "/abs/c d.mp4", 12),
    ]


def test_paths_alone_are_whole_lines(tmp_path):
    text = "a b 3\nc.mp4 \n"
    assert summary(listed(tmp_path, text, format="path")) == [
        ("a b 3", "a b 3", -1),
        ("c.mp4", "c.mp4", -1),
    ]


def test_paths_that_begin_and_end_in_quotes_lose_them(tmp_path):
    # As pandas, which reads these lists in the original, takes paths with blanks.
    source = listed(tmp_path, '"a b.mp4" 3\n"c.mp4 4\n', format="path_label")
    assert [record.path for record in source] == ["a b.mp4", '"c.mp4']


def test_the_pretraining_list_holds_videos_and_folders_of_frames(tmp_path):
    # The lines are those of the description of V2's format.
    text = (
        "k400/---QUuC4vJs.mp4 0 -1\nAVA/clip/zlVkeKC6Ha8 9601 300\nAVA/clip/zlVkeKC6Ha8 9901 300\n"
    )
    video, first, second = listed(
        tmp_path, text, format="path_start_total", fps=30, template="image_{:06}.jpg"
    )
    assert (video.path, video.clip_id, video.start, video.stop, video.frames) == (
        *("k400/---QUuC4vJs.mp4", "k400/---QUuC4vJs.mp4"),
        *(0, None, None),
    )
    assert first.path == second.path == "AVA/clip/zlVkeKC6Ha8"
    assert first.clip_id == "AVA/clip/zlVkeKC6Ha8[9601:9901]"
    assert first.frames.names("")[0] == "image_009601.jpg"
    assert second.frames.names("")[-1] == "image_010200.jpg"
    assert {len(record.frames.names("")) for record in (first, second)} == {300}


def test_the_fine_tuning_list_of_raw_frames(tmp_path):
    for number in range(1, 6):
        folder = tmp_path / "frames" / "74225"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(folder / f"img_{number:05}.png")
    options = {"fps": 12, "template": "img_{:05}.png", "root": str(tmp_path)}
    source = listed(tmp_path, "frames/74225 4 140\n", format="path_total_label", **options)
    assert source[0].label == 140
    reader = source.open(0)
    # Four of the five pictures, from number 1 on.
    assert reader.num_frames == 4
    assert reader.read([0, 3])[:, 0, 0, 0].tolist() == [20, 80]
    options["first_number"] = 2
    source = listed(tmp_path, "frames/74225 4 140\n", format="path_total_label", **options)
    assert source.open(0).read([0, 3])[:, 0, 0, 0].tolist() == [40, 100]


def test_other_separators_leave_blanks_alone(tmp_path):
    source = listed(tmp_path, "a, b.mp4,3\nc d.mp4 , 4\n", format="path_label", separator=",")
    assert [(r.path, r.label) for r in source] == [("a, b.mp4", 3), ("c d.mp4", 4)]


@pytest.mark.parametrize(
    ("root", "path", "full"),
    [
        ("", "a/b.mp4", "a/b.mp4"),
        ("/data", "a/b.mp4", "/data/a/b.mp4"),
        ("/data/", "/other/b.mp4", "/other/b.mp4"),
        ("gs://bucket/data/", "a/b.mp4", "gs://bucket/data/a/b.mp4"),
        ("/data", "s3://bucket/b.mp4", "s3://bucket/b.mp4"),
    ],
)
def test_relative_paths_belong_to_the_root(tmp_path, root, path, full):
    (record,) = listed(tmp_path, f"{path} 0", format="path_label", root=root)
    assert (record.path, record.clip_id) == (full, path)


def test_every_malformed_line_is_counted_and_the_first_ones_named(tmp_path):
    bad = ["a.mp4", "b.mp4 x", "c.mp4 1.5", "d.mp4 -2", "e.mp4 99999999999", "f.mp4 1_0", "\x01 3"]
    text = "good.mp4 1\n" + "\n".join(bad) + "\n"
    with pytest.raises(ValueError, match="7 lines that cannot be used") as error:
        listed(tmp_path, text, format="path_label")
    message = str(error.value)
    for number in (2, 3, 4, 5, 6):
        assert f"line {number}: " in message
    assert "label='1.5'" in message
    assert "line 1:" not in message
    assert "and 2 more" in message


@pytest.mark.parametrize(
    ("format", "line", "problem"),
    [
        ("path_label", "7", "fewer fields than path label"),
        ("path_label", "\x00 3", "control characters"),
        ("path_start_total", "a.mp4 0", "fewer fields"),
        ("path_start_total", "a 1 0", "start=1 and total=0"),
        ("path_start_total", "a -1 5", "start=-1 and total=5"),
        ("path_start_total", "a one 5", "start='one'"),
        ("path_total_label", "a -1 5", "total=-1"),
        ("path_label", f"{'a' * 5000} 5", "too long"),
    ],
)
def test_lines_that_are_not_in_the_format_are_refused(tmp_path, format, line, problem):
    with pytest.raises(ValueError, match=f"line 1: .*({problem})"):
        listed(tmp_path, line, format=format, fps=12)


def test_folders_of_frames_need_a_rate(tmp_path):
    with pytest.raises(ValueError, match=r"line 2: .* option fps is needed"):
        listed(tmp_path, "a.mp4 0 -1\nb 1 50\n", format="path_start_total")


def test_the_format_is_never_guessed(tmp_path):
    with pytest.raises(ValueError, match=r"data\.options\.format is missing"):
        listed(tmp_path, "a.mp4 3")
    with pytest.raises(ValueError, match=r"format='csv' is unknown.*path_label"):
        listed(tmp_path, "a.mp4 3", format="csv")


def test_paths_that_come_again_get_ids_of_their_own(tmp_path):
    text = "a.mp4 0 -1\nb.mp4 0 -1\na.mp4 0 -1\na.mp4#2 0 -1\na.mp4 0 -1\n"
    source = listed(tmp_path, text, format="path_start_total")
    assert [r.clip_id for r in source] == ["a.mp4", "b.mp4", "a.mp4#3", "a.mp4#2", "a.mp4#4"]


def test_a_share_of_the_videos_is_held_out_with_all_their_parts(tmp_path):
    text = "".join(f"v{i % 100} {i} 50\n" for i in range(300))
    options = {"format": "path_start_total", "fps": 30, "held_out_ratio": 0.3}
    train, held_out = (listed(tmp_path, text, split, **options) for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 300
    assert not {r.path for r in train} & {r.path for r in held_out}
    # 100 videos, standard deviation 4.6.
    assert abs(len({r.path for r in held_out}) - 30) < 4 * 4.6


def test_held_out_videos_may_have_a_list_of_their_own(tmp_path):
    (tmp_path / "val.csv").write_text("c.mp4 2\n")
    options = {"format": "path_label", "held_out_path": str(tmp_path / "val.csv")}
    text = "a.mp4 0\nb.mp4 1\n"
    assert [r.path for r in listed(tmp_path, text, "train", **options)] == ["a.mp4", "b.mp4"]
    assert [r.path for r in listed(tmp_path, text, "held_out", **options)] == ["c.mp4"]


@pytest.mark.parametrize(
    ("contents", "problem"),
    [(b"", "lists no video"), (b"\n \n", "lists no video"), (b"a\xff 3", "not UTF-8 at byte 1")],
)
def test_lists_that_say_nothing_are_refused(tmp_path, contents, problem):
    (tmp_path / "list.csv").write_bytes(contents)
    with pytest.raises(ValueError, match=rf"list\.csv.*{problem}"):
        make_source("list", str(tmp_path / "list.csv"), "train", format="path_label")


@pytest.mark.parametrize("path", [None, "", "missing.csv", "."])
def test_lists_that_are_not_there_are_refused(tmp_path, path):
    path = path and str(tmp_path / path)
    with pytest.raises(ValueError, match="give the file that lists your videos"):
        make_source("list", path, "train", format="path_label")


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("separator", "", "separator=''"),
        ("template", "img.jpg", "template='img.jpg'"),
        ("template", "img_{}_{}.jpg", "one place for a number"),
        ("template", "../{}.jpg", "one place for a number"),
        ("held_out_ratio", 1.0, "held_out_ratio=1.0"),
    ],
)
def test_impossible_options_are_refused(tmp_path, option, value, problem):
    with pytest.raises(ValueError, match=problem):
        listed(tmp_path, "a.mp4 3", format="path_label", **{option: value})


@pytest.mark.parametrize("format", LIST_FORMATS)
def test_no_bytes_make_a_list_fail_otherwise_than_with_a_value_error(tmp_path, format):
    rng = np.random.default_rng(0)
    pieces = [b" ", b"\n", b"0", b"-1", b"9" * 20, b"a.mp4", b'"', b"\t", b"\x00", b"\xff", b"#"]
    for _ in range(200):
        data = b"".join(rng.choice(pieces, rng.integers(1, 12)).tolist())
        (tmp_path / "list.csv").write_bytes(data)
        try:
            source = make_source("list", str(tmp_path / "list.csv"), "train", format=format, fps=1)
        except ValueError:
            continue
        assert len(source) >= 1


def test_names_of_classes_go_with_a_list(tmp_path):
    (tmp_path / "classes.txt").write_text("walk\njump\n")
    for classes in (["walk", "jump"], str(tmp_path / "classes.txt")):
        source = listed(tmp_path, "a.mp4 1\nb.mp4 -1\n", format="path_label", classes=classes)
        assert source.class_names == ("walk", "jump")
        with pytest.raises(ValueError, match=r"line 2: label=2 is above the last of the 2 classes"):
            listed(tmp_path, "a.mp4 1\nb.mp4 2\n", format="path_label", classes=classes)
    with pytest.raises(ValueError, match="names a class twice"):
        listed(tmp_path, "a.mp4 1\n", format="path_label", classes=["walk", "walk"])


def test_all_is_every_line_of_the_list(tmp_path):
    (tmp_path / "val.csv").write_text("z.mp4 0\n")
    text = "".join(f"{i}.mp4 0\n" for i in range(20))
    for options in ({"held_out_ratio": 0.5}, {"held_out_path": str(tmp_path / "val.csv")}):
        source = listed(tmp_path, text, "all", format="path_label", **options)
        assert [r.path for r in source] == [f"{i}.mp4" for i in range(20)]
