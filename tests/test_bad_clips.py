"""The list of bad records and the limit to how many there may be."""

from __future__ import annotations

import json
import logging
import threading

import numpy as np
import pytest

from vmae_jax.data.bad_clips import BadClips, TooManyBadClips


def listed(path):
    return [json.loads(line)["clip_id"] for line in path.read_text().splitlines()]


def visit(bad_clips, order, bad):
    """Visits records in an order; how many were visited when the limit was hit, or None."""
    for count, i in enumerate(order, 1):
        try:
            if i in bad:
                bad_clips.bad(i, f"clip {i}", "torn.")
            else:
                bad_clips.good(i)
        except TooManyBadClips:
            return count
    return None


def test_each_bad_record_is_named_once_in_the_file_and_the_log(tmp_path, caplog):
    path = tmp_path / "bad_clips.jsonl"
    bad_clips = BadClips(path, 100, 0.1)
    for i in (3, 7, 3, 3, 7):
        bad_clips.bad(i, f"clip {i}", f"reason {i}")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"clip_id": "clip 3", "reason": "reason 3"},
        {"clip_id": "clip 7", "reason": "reason 7"},
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "bad clip clip 3: reason 3",
        "bad clip clip 7: reason 7",
    ]
    assert bad_clips.count == 2
    assert bad_clips.reason(3) == "reason 3"
    assert bad_clips.reason(4) is None


def test_what_a_former_start_named_is_not_named_again(tmp_path, caplog):
    path = tmp_path / "bad_clips.jsonl"
    BadClips(path, 100, 0.1).bad(3, "clip 3", "torn.")
    with open(path, "ab") as file:
        file.write(b'not json\n[1]\n{"reason": "x"}\n\xff\xfe\n')  # a damaged file is no obstacle
    caplog.clear()
    second = BadClips(path, 100, 0.1)
    assert second.count == 0
    second.bad(3, "clip 3", "torn.")
    second.bad(4, "clip 4", "torn.")
    assert second.count == 2
    assert len(caplog.records) == 1
    text = path.read_text(errors="replace")
    assert text.count('"clip 3"') == 1
    assert text.count('"clip 4"') == 1


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad_clips = BadClips(None, 10, 1.0)
    bad_clips.bad(0, "clip 0", "torn.")
    assert bad_clips.count == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    bad_clips = BadClips(tmp_path / "no such folder" / "bad_clips.jsonl", 100, 0.1)
    bad_clips.bad(0, "clip 0", "torn.")
    assert bad_clips.count == 1
    assert "could not be written" in caplog.text
    bad_clips._path = "/dev/full"  # where every write fails as on a full disk
    bad_clips.bad(1, "clip 1", "torn.")
    assert bad_clips.count == 2
    assert "No space left" in caplog.text


def test_the_share_is_exact_once_all_records_were_visited(tmp_path):
    # 10 of 100 are allowed at 0.1, the eleventh is not.
    assert visit(BadClips(None, 100, 0.1), range(100), range(0, 100, 10)) is None
    assert visit(BadClips(None, 100, 0.1), range(100), {*range(0, 100, 10), 99}) == 100
    # It also shows where the last one is good.
    assert visit(BadClips(None, 100, 0.1), range(100), {*range(0, 100, 10), 98}) == 100


@pytest.mark.parametrize("max_share", [0.01, 0.05, 0.2])
def test_a_share_just_allowed_does_not_end_a_run_by_chance(max_share, caplog):
    caplog.set_level(logging.ERROR)
    rng = np.random.default_rng(0)
    bad = range(int(1000 * max_share))
    ends = [visit(BadClips(None, 1000, max_share), rng.permutation(1000), bad) for _ in range(60)]
    assert sum(end is not None for end in ends) <= 2


@pytest.mark.parametrize("max_share", [0.05, 0.2])
def test_thirty_percent_end_the_run_within_an_epoch(max_share):
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(200)
        assert visit(BadClips(None, 200, max_share), order, range(60)) is not None


@pytest.mark.parametrize(("max_share", "most"), [(0.0, 1), (0.01, 3), (0.05, 4), (0.2, 7)])
def test_where_all_are_bad_a_run_ends_after_a_few(max_share, most):
    # 2 + 3 sqrt(n * share) + n * share < n, solved by trying
    assert visit(BadClips(None, 10**6, max_share), range(1000), range(1000)) <= most


def test_records_that_become_bad_later_count_too():
    # A disk that is lost in the second epoch.
    bad_clips = BadClips(None, 100, 0.05)
    assert visit(bad_clips, range(100), ()) is None
    assert visit(bad_clips, range(100), range(100)) == 6


def test_the_error_says_how_many_where_and_what_to_do(tmp_path):
    path = tmp_path / "bad_clips.jsonl"
    bad_clips = BadClips(path, 4, 0.0)
    with pytest.raises(TooManyBadClips) as info:
        bad_clips.bad(2, "clip 2", "torn.")
    assert str(info.value) == (
        "1 of 1 records could not be used, and max_bad_share=0.0; the last was 'clip 2': torn. "
        f"All are listed in {path}. Repair the data set, or raise data.max_bad_share."
    )
    assert listed(path) == ["clip 2"]


@pytest.mark.parametrize("max_share", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(max_share):
    with pytest.raises(ValueError, match=rf"max_bad_share={max_share}"):
        BadClips(None, 10, max_share)


def test_threads_name_each_record_once(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    path = tmp_path / "bad_clips.jsonl"
    bad_clips = BadClips(path, 1000, 1.0)

    def report():
        for i in range(200):
            bad_clips.bad(i, f"clip {i}", "torn.")

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(listed(path)) == sorted(f"clip {i}" for i in range(200))
