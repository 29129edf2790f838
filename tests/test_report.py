"""`inspect` on data: numbers against those that the videos were made with, and the picture."""

import json

import jax
import numpy as np
import pytest
import video_corpus
from PIL import Image

from vmae_jax.__main__ import main
from vmae_jax.data.contact_sheet import Look, draw_contact_sheet
from vmae_jax.data.report import Facts, spread, statistics, visit
from vmae_jax.data.sources.folders import video_folder
from vmae_jax.masking import tube_mask


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


def test_the_sheet_shows_what_the_mask_leaves_and_greys_the_rest(folder, tmp_path):
    source = all_of(folder)
    path = tmp_path / "sheet.png"
    draw_contact_sheet(source, [0, 3], path, frame_stride=1, repeat=2, columns=4)
    sheet = np.asarray(Image.open(path)).astype(int)
    # one good record: 34 pixels of text, the frames (96 x 64 at 150 wide), the crops at 150 x 150
    assert sheet.shape == (34 + 100 + 150 + 12, 4 * 156 + 6, 3)
    (_, look), *_ = visit(source, Look(source, 16, 1, (224, 224), 2), [0], 0)
    hidden = np.asarray(tube_mask(jax.random.key(0), 1, (8, 14, 14), 0.9).to_bool())
    hidden = hidden.reshape(8, 14, 14)[0]
    shown = sheet[34 + 100 + 6 :, 6:156][:150]
    crop = np.asarray(Image.fromarray(look["crop"][0]).resize((150, 150))).astype(int)
    for row, column in np.ndindex(14, 14):
        middle = [slice(int((n + 0.4) * 150 / 14), int((n + 0.6) * 150 / 14) + 1)
                  for n in (row, column)]  # fmt: skip
        centre = tuple(middle)
        unchanged = np.abs(shown[centre] - crop[centre]).max() < 12
        grey = np.abs(shown[centre] - (crop[centre] * 0.3 + 110)).max() < 12
        assert grey if hidden[row, column] else unchanged
