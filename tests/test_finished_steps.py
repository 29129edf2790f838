"""Which steps of a run are saved."""

from __future__ import annotations

from vmae_jax.checkpoints import restoring
from vmae_jax.checkpoints.finished_steps import find_step, newest_first, saved_steps


def test_only_folders_that_are_named_like_steps_count(tmp_path):
    for name in ("900", "1000", "1100.orbax-checkpoint-tmp", "1200.corrupt-0", "notes", "\u00b2"):
        (tmp_path / name).mkdir()
    assert saved_steps(tmp_path) == [900, 1000]
    assert list(newest_first(tmp_path)) == [1000, 900]
    assert saved_steps(tmp_path / "absent") == []


def test_a_step_is_found_by_itself_and_as_the_newest_of_its_run(tmp_path):
    for step in (5, 40):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").touch()
    newest = tmp_path / "checkpoints" / "40"
    assert find_step(tmp_path) == find_step(tmp_path / "checkpoints") == find_step(newest) == newest
    assert find_step(tmp_path / "checkpoints" / "5").name == "5"
    assert find_step(tmp_path / "checkpoints" / "7") is None


def test_a_folder_of_hugging_faces_is_no_run_whatever_its_folders_are_called(tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "config.json").touch()
    assert find_step(tmp_path) is None


def test_a_file_named_like_a_step_is_no_checkpoint(tmp_path):
    (tmp_path / "7").write_text("somebody's")
    assert saved_steps(tmp_path) == []
    assert restoring.restore_newest(tmp_path, None) is None
