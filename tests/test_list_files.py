import pytest

from vmae_jax.data.sources.list_files import Problems, check_path, distinct
from vmae_jax.errors import SettingError


def test_very_many_repetitions_are_told_apart_quickly():
    ids = distinct(["a"] * 100_000)
    assert len(set(ids)) == 100_000
    assert ids[:3] == ["a", "a#2", "a#3"]


def test_only_lists_with_problems_are_refused_with_the_first_and_the_number_of_all():
    problems = Problems("a.csv", "line")
    problems.raise_any()
    for number in range(1, 8):
        problems.add(number, f"reason {number}")
    message = (
        "path='a.csv' has 7 lines that cannot be used: line 1: reason 1; .*line 5: reason 5; and"
    )
    with pytest.raises(SettingError, match=message) as info:
        problems.raise_any()
    assert "reason 6" not in str(info.value)


@pytest.mark.parametrize("path", ["", "a" * 4097, "a\0b", "a\nb", "\x1b[2J"])
def test_paths_that_no_file_has_are_refused(path):
    with pytest.raises(ValueError, match="is empty, too long, or has control characters"):
        check_path(path)


def test_paths_of_any_other_characters_are_taken():
    for path in (" a b", "ü/видео.mp4", "a" * 4096, "caf\udce9.mp4", "gs://bucket/a"):
        check_path(path)
