"""`inspect` on data: numbers against those that the videos were made with."""

import json

import pytest
import video_corpus
from PIL import Image

from vmae_jax.__main__ import main
from vmae_jax.data.report import Facts, as_text, spread, statistics, visit
from vmae_jax.data.sources.folders import video_folder
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource


@pytest.fixture
def folder(tmp_path):
    """Classes a (two videos) and b (one, and one bad)."""
    for name, frames, size in (
        ("a/1.mp4", 40, (64, 96)),
        ("a/2.mp4", 20, (64, 96)),
        ("b/3.mp4", 60, (48, 48)),
    ):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        video_corpus.encode(str(tmp_path / "videos" / name), frames=frames, size=size)
    (tmp_path / "videos/b/4.mp4").write_text("no video")
    return tmp_path / "videos"


def all_of(folder):
    return video_folder(str(folder), "train", held_out_ratio=0, labels="folders")


def test_statistics_are_those_of_the_files(folder):
    source = all_of(folder)
    found = list(visit(source, Facts(source), range(len(source))))
    s = statistics(source, found)
    assert (s["records"], s["looked_at"], s["bad_share"]) == (4, 4, 0.25)
    assert [bad["clip_id"] for bad in s["bad"]] == ["b/4.mp4"]
    assert s["frames"] == {"min": 20, "median": 40, "max": 60, "mean": 40}
    assert s["sizes"] == {"96x64": 2, "48x48": 1}
    assert s["codecs"] == {"h264": 3}
    assert s["classes"] == 2
    assert s["records_per_class"] == {"min": 2, "median": 2, "max": 2}
    fps = s["fps"]["median"]
    assert s["seconds"]["max"] == pytest.approx(60 / fps)


def test_records_are_spread_evenly_and_never_asked_for_twice():
    assert spread(10, 5) == [0, 2, 4, 6, 8]
    assert spread(3, 200) == [0, 1, 2]
    assert spread(0, 5) == []


def test_the_command_prints_json_and_writes_it_with_the_sheet(folder, tmp_path, capsys):
    arguments = ["inspect", str(folder), "--json", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--frame-stride", "1", "--option", "labels=folders"]) == 0
    printed = capsys.readouterr().out
    described = json.loads(printed[: printed.rindex("}") + 1])
    assert described["classes"] == 2
    assert json.loads((tmp_path / "out/statistics.json").read_text()) == described
    assert Image.open(tmp_path / "out/contact_sheet.png").width > 1000


def test_a_folder_is_seen_to_be_a_data_set_and_shown_whole(folder, capsys):
    assert main(["inspect", str(folder)]) == 0
    seen = capsys.readouterr().out
    assert "4 records" in seen
    assert "frames: 20 to 60" in seen
    everything = ["--dataset", "video_folder", "--option", "held_out_ratio=0"]
    assert main(["inspect", str(folder), *everything]) == 0
    assert capsys.readouterr().out == seen
    # unless one split is asked for, which the names decide
    ratio = ["--split", "held_out", "--option", "held_out_ratio=0.5"]
    held_out = len(video_folder(str(folder), "held_out", held_out_ratio=0.5))
    assert main(["inspect", str(folder), *ratio]) == 0
    assert 0 < held_out < 4
    assert f"{held_out} records" in capsys.readouterr().out


def test_prepared_sets_are_seen_by_either_folder(folder, tmp_path, capsys):
    assert main(["prepare", str(folder), str(tmp_path / "set/held_out"), "--workers", "1",
                 "--option", "held_out_ratio=0"]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "set/held_out")]) == 0
    seen = capsys.readouterr().out
    assert "3 records" in seen
    assert main(["inspect", str(tmp_path / "set"), "--split", "held_out"]) == 0
    assert capsys.readouterr().out == seen


def test_counts_below_one_are_refused(folder, capsys):
    for option in ("--records", "--clips", "--repeat", "--frame-stride"):
        with pytest.raises(SystemExit):
            main(["inspect", str(folder), option, "0"])
        assert "is not a whole number from 1 on" in capsys.readouterr().err


def test_classes_and_targets_are_counted_in_labels_of_any_kind():
    records = [
        VideoRecord(f"{i}", f"{i}", label=x)
        for i, x in enumerate([(0, 2), (2,), (), -1, 0.5, (-1.0, 3.0)])
    ]
    s = statistics(VideoSource(records), [])
    assert (s["classes"], s["records_per_class"]["max"]) == (2, 2)
    assert s["targets"] == {"min": -1.0, "max": 3.0}
    assert "targets: -1 to 3" in as_text(s)
    assert statistics(VideoSource(records[:4]), [])["targets"] is None
