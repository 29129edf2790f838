import shutil

import numpy as np
import pytest

from vmae_jax.data.datasets import make_source


@pytest.fixture
def video_folder(tmp_path):
    """200 empty files: whoever opens one fails."""
    for i in range(200):
        path = tmp_path / f"class_{i % 3}" / f"clip_{i:03}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_video_folder_splits_all_files_about_in_the_ratio(video_folder):
    parts = [
        {record.clip_id for record in make_source("video_folder", str(video_folder), split)}
        for split in ("train", "held_out")
    ]
    assert len(parts[0] | parts[1]) == len(parts[0]) + len(parts[1]) == 200
    for ratio in (0.2, 0.5, 0.8):
        held_out = make_source("video_folder", str(video_folder), "held_out", held_out_ratio=ratio)
        # Binomial: four standard deviations.
        assert abs(len(held_out) - 200 * ratio) < 4 * np.sqrt(200 * ratio * (1 - ratio))


def test_video_folder_split_does_not_change_with_other_files_or_another_place(video_folder):
    before = make_source("video_folder", str(video_folder), "held_out", held_out_ratio=0.3)
    moved = video_folder / "moved"
    shutil.copytree(video_folder / "class_1", moved / "class_1")
    (moved / "new.mp4").touch()
    after = make_source("video_folder", str(moved), "held_out", held_out_ratio=0.3)
    ids = {record.clip_id for record in after} - {"new.mp4"}
    assert ids == {r.clip_id for r in before if r.clip_id.startswith("class_1/")}


def test_video_folder_split_is_for_ever(video_folder):
    # From coreutils: the names whose sha256sum begins with a byte below 0.05 * 256 = 12.8.
    source = make_source("video_folder", str(video_folder), "held_out", held_out_ratio=0.05)
    assert sorted(int(record.clip_id[-7:-4]) for record in source) == [
        *[4, 16, 38, 53, 73, 114, 120, 126],
        *[127, 155, 156, 160, 175, 181, 187, 188],
    ]


def test_all_is_every_file_whatever_is_held_out(video_folder):
    expected = [f"class_{c}/clip_{i:03}.mp4" for c in range(3) for i in range(c, 200, 3)]
    for ratio in (0, 0.05, 0.8):
        source = make_source("video_folder", str(video_folder), "all", held_out_ratio=ratio)
        assert [record.clip_id for record in source] == expected
    with pytest.raises(ValueError, match=r"held_out_ratio=1\.5 must be"):
        make_source("video_folder", str(video_folder), "all", held_out_ratio=1.5)
