"""A workdir is not trained further with another configuration, unless that changes nothing."""

from __future__ import annotations

import copy
import json
import logging

import pytest
from ml_collections import ConfigDict
from test_storage import bucket  # noqa: F401

from configs import default
from vmae_jax.processes.exit_codes import SETTINGS, exit_code
from vmae_jax.running import workdir


def as_json(config: ConfigDict) -> dict:
    return json.loads(config.to_json_best_effort())


def a_run(tmp_path, **changes) -> dict:
    """The configuration of a run that has a checkpoint, or is to go on from it."""
    (tmp_path / "checkpoints" / "10").mkdir(parents=True, exist_ok=True)
    config = default.get_config()
    config.data.name, config.data.batch_size = "kinetics400", 64
    config.update_from_flattened_dict(changes)
    return as_json(config)


def test_a_new_workdir_is_nobodys(tmp_path):
    workdir.check_workdir(tmp_path / "absent", a_run(tmp_path / "other"))
    assert not (tmp_path / "absent").exists()


def test_what_is_written_is_read(tmp_path):
    config = a_run(tmp_path)
    workdir.write_run_config(tmp_path / "new", config)
    assert json.loads((tmp_path / "new" / "run_config.json").read_text()) == config
    assert workdir.read_run_config(tmp_path / "new") == config
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["run_config.json"]


def test_tuples_and_lists_are_the_same(tmp_path):
    config = a_run(tmp_path)
    workdir.write_run_config(tmp_path, config)
    config["model"]["image_size"] = tuple(config["model"]["image_size"])
    workdir.check_workdir(tmp_path, config)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data.batch_size": 128}, "data.batch_size: 64 -> 128"),
        ({"data.name": "ssv2"}, 'data.name: "kinetics400" -> "ssv2"'),
        ({"data.repeat": 4}, "data.repeat: 1 -> 4"),
        ({"data.frame_stride": 2}, "data.frame_stride: 4 -> 2"),
        ({"data.resize": "pil"}, 'data.resize: "cv2" -> "pil"'),
        ({"data.cache_size": (40, 40)}, "data.cache_size: null -> [40, 40]"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"model.size": "L"}, 'model.size: "B" -> "L"'),
        ({"model.drop_path_rate": 0.1}, "model.drop_path_rate: 0.0 -> 0.1"),
        ({"pretraining.mask_ratio": 0.75}, "objective.mask_ratio: 0.9 -> 0.75"),
        ({"compute.dtype": "float32"}, 'compute.dtype: "bfloat16" -> "float32"'),
        ({"schedule.base_lr": 1e-3}, "schedule.base_lr: 0.00015 -> 0.001"),
        ({"schedule.num_epochs": 800.0}, "schedule.num_epochs: null -> 800.0"),
        ({"optimizer.betas": (0.9, 0.999)}, "optimizer.betas: [0.9, 0.95] -> [0.9, 0.999]"),
    ],
)
def test_what_changes_the_numbers_is_refused(tmp_path, changes, line, caplog):
    workdir.write_run_config(tmp_path, a_run(tmp_path))
    changed = a_run(tmp_path, **changes)
    with pytest.raises(workdir.WorkdirMismatch) as error:
        workdir.check_workdir(tmp_path, changed)
    assert f"\n  {line}\n" in str(error.value)
    assert "--force" in str(error.value)
    assert exit_code(error.value) == SETTINGS
    workdir.check_workdir(tmp_path, changed, force=True)
    assert f"by force: {line}" in caplog.text


def test_every_line_of_a_difference_is_listed(tmp_path):
    workdir.write_run_config(tmp_path, a_run(tmp_path))
    changes = {"data.batch_size": 128, "seed": 3, "run.save_every_steps": 7}
    with pytest.raises(workdir.WorkdirMismatch) as error:
        workdir.check_workdir(tmp_path, a_run(tmp_path, **changes))
    assert str(error.value).splitlines()[1:-1] == ["  data.batch_size: 64 -> 128", "  seed: 0 -> 3"]


def test_what_does_not_is_only_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    workdir.write_run_config(tmp_path, a_run(tmp_path))
    changes = {
        "run.save_every_steps": 7,
        "data.path": "/elsewhere",
        "data.num_threads": 3,
        "data.prefetch_batches": 9,
        "data.max_bad_share": 0.5,
        "data.skip_bad_held_out": True,
        "compute.remat": "full",
        "compute.attention": "cudnn",
    }
    workdir.check_workdir(tmp_path, a_run(tmp_path, **changes))
    for name in changes:
        assert f"changed since the last start: {name}: " in caplog.text


def test_all_harmless_keys_exist():
    """A key that is renamed must not become a silent difference; `mesh` is optional."""
    flat = workdir._flat(as_json(default.get_config()))
    for key in set(workdir.HARMLESS) - {"mesh.", "data.options.root"}:
        assert any(name == key or name.startswith(key) for name in flat), key


def test_options_that_came_with_a_version_are_logged_and_options_of_the_data_refused(tmp_path):
    old = a_run(tmp_path)
    del old["model"]["drop_path_rate"]
    workdir.write_run_config(tmp_path, old)
    workdir.check_workdir(tmp_path, a_run(tmp_path))
    now = copy.deepcopy(a_run(tmp_path))
    now["data"]["options"] = {"labels": "folders"}
    with pytest.raises(workdir.WorkdirMismatch, match=r'data\.options\.labels: unset -> "folders"'):
        workdir.check_workdir(tmp_path, now)


def test_before_the_first_checkpoint_anything_may_change(tmp_path):
    workdir.write_run_config(tmp_path, a_run(tmp_path))
    (tmp_path / "checkpoints" / "10").rmdir()
    workdir.check_workdir(tmp_path, {"seed": 5})


@pytest.mark.parametrize("text", ['{"seed": 0', "[]", ""])
def test_a_file_that_is_none_is_named(tmp_path, text):
    (tmp_path / "run_config.json").write_text(text)
    with pytest.raises(workdir.WorkdirMismatch, match=r"run_config.json.*--force"):
        workdir.check_workdir(tmp_path, a_run(tmp_path))
    workdir.check_workdir(tmp_path, a_run(tmp_path), force=True)


def test_a_workdir_where_no_checkpoint_can_be_written_is_refused(tmp_path):
    for good in (tmp_path, "runs/a", "gs://bucket/run"):
        workdir.check_address(good)
    for store in ("s3", "az", "hf"):
        with pytest.raises(ValueError, match=rf"workdir='{store}://b/run' .* gs://"):
            workdir.check_address(f"{store}://b/run")


def test_a_workdir_in_a_bucket(bucket):  # noqa: F811
    root = "gs://bucket/run"
    workdir.check_workdir(root, {"seed": 0})
    workdir.write_run_config(root, {"seed": 0})
    workdir.check_workdir(root, {"seed": 1})  # no checkpoint yet
    bucket("run/checkpoints/10/state/data", b"being written")
    workdir.check_workdir(root, {"seed": 1})
    bucket("run/checkpoints/10/commit_success.txt", b"")
    with pytest.raises(workdir.WorkdirMismatch, match="seed: 0 -> 1"):
        workdir.check_workdir(root, {"seed": 1})
