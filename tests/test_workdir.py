"""A workdir is not trained further with another configuration, unless that changes nothing."""

from __future__ import annotations

import copy
import json
import logging

import old_runs
import pytest
from bucket import mount

from configs import default
from vmae_jax.processes.exit_codes import SETTINGS, exit_code
from vmae_jax.running import run_config, workdir

CONFIG = {
    "seed": 0,
    "task": "pretraining",
    "model": {"size": "B", "image_size": [224, 224], "drop_path_rate": 0.0},
    "compute": {"dtype": "bfloat16", "attention": "auto", "remat": "none"},
    "pretraining": {"mask": "tube", "mask_ratio": 0.9, "loss": "mse"},
    "data": {
        "name": "kinetics400", "path": "", "options": {}, "batch_size": 64, "frame_stride": 4,
        "repeat": 1, "resize": "cv2", "num_threads": 16, "prefetch_batches": 2,
        "max_bad_share": 0.05, "skip_bad_held_out": False, "cache_size": None,
    },
    "schedule": {"base_lr": 1.5e-4, "num_epochs": None},
    "optimizer": {"betas": [0.9, 0.95], "accumulation": 1},
    "run": {"save_every_steps": 1000},
}  # fmt: skip
# A run's rule, as its configuration has it.
RULE = {
    "may_change": (
        "run.",
        "mesh.",
        "optimizer.accumulation",
        "compute.attention",
        "compute.remat",
        "data.path",
        "data.options.root",
        "data.num_threads",
        "data.prefetch_batches",
        "data.decode_timeout",
        "data.max_bad_share",
        "data.skip_bad_held_out",
    ),
    "own_keys": ("data.options.",),
}


def check(folder, config, **options) -> None:
    workdir.check_workdir(folder, config, **RULE, **options)


def a_run(tmp_path, **changes) -> dict:
    """The configuration of a run that has a checkpoint, or is to go on from it."""
    (tmp_path / "checkpoints" / "10").mkdir(parents=True, exist_ok=True)
    options = run_config.flat(CONFIG)
    assert changes.keys() <= options.keys()
    return run_config.nested(options | changes)


def test_a_new_workdir_is_nobodys(tmp_path):
    check(tmp_path / "absent", a_run(tmp_path / "other"))
    assert not (tmp_path / "absent").exists()


def test_tuples_and_lists_are_the_same(tmp_path):
    config = a_run(tmp_path)
    run_config.write_run_config(tmp_path, config)
    config["model"]["image_size"] = tuple(config["model"]["image_size"])
    check(tmp_path, config)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data.batch_size": 128}, "data.batch_size: 64 -> 128"),
        ({"data.name": "ssv2"}, 'data.name: "kinetics400" -> "ssv2"'),
        ({"data.repeat": 4}, "data.repeat: 1 -> 4"),
        ({"data.frame_stride": 2}, "data.frame_stride: 4 -> 2"),
        ({"data.resize": "pil"}, 'data.resize: "cv2" -> "pil"'),
        ({"data.cache_size": [40, 40]}, "data.cache_size: null -> [40, 40]"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"model.size": "L"}, 'model.size: "B" -> "L"'),
        ({"model.drop_path_rate": 0.1}, "model.drop_path_rate: 0.0 -> 0.1"),
        ({"pretraining.mask_ratio": 0.75}, "pretraining.mask_ratio: 0.9 -> 0.75"),
        ({"compute.dtype": "float32"}, 'compute.dtype: "bfloat16" -> "float32"'),
        ({"schedule.base_lr": 1e-3}, "schedule.base_lr: 0.00015 -> 0.001"),
        ({"schedule.num_epochs": 800.0}, "schedule.num_epochs: null -> 800.0"),
        ({"optimizer.betas": [0.9, 0.999]}, "optimizer.betas: [0.9, 0.95] -> [0.9, 0.999]"),
    ],
)
def test_what_changes_the_numbers_is_refused(tmp_path, changes, line, caplog):
    run_config.write_run_config(tmp_path, a_run(tmp_path))
    changed = a_run(tmp_path, **changes)
    with pytest.raises(workdir.WorkdirMismatch) as error:
        check(tmp_path, changed)
    assert f"\n  {line}\n" in str(error.value)
    assert "--force" in str(error.value)
    assert exit_code(error.value) == SETTINGS
    check(tmp_path, changed, force=True)
    assert f"by force: {line}" in caplog.text


def test_every_line_of_a_difference_is_listed(tmp_path):
    run_config.write_run_config(tmp_path, a_run(tmp_path))
    changes = {"data.batch_size": 128, "seed": 3, "run.save_every_steps": 7}
    with pytest.raises(workdir.WorkdirMismatch) as error:
        check(tmp_path, a_run(tmp_path, **changes))
    assert str(error.value).splitlines()[1:-1] == ["  data.batch_size: 64 -> 128", "  seed: 0 -> 3"]


def test_what_does_not_is_only_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_config.write_run_config(tmp_path, a_run(tmp_path))
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
    check(tmp_path, a_run(tmp_path, **changes))
    for name in changes:
        assert f"changed since the last start: {name}: " in caplog.text


def test_all_that_may_change_exists():
    """A name that has moved must not become a silent difference; `root` is not of all data sets."""
    config = default.get_config()
    names = run_config.flat(json.loads(config.to_json_best_effort()))
    for key in set(config.may_change) - {"data.options.root"}:
        assert any(name == key or name.startswith(key) for name in names), key


def test_options_that_came_with_a_version_are_logged_and_options_of_the_data_refused(tmp_path):
    old = a_run(tmp_path)
    del old["model"]["drop_path_rate"]
    run_config.write_run_config(tmp_path, old)
    check(tmp_path, a_run(tmp_path))
    now = copy.deepcopy(a_run(tmp_path))
    now["data"]["options"] = {"labels": "folders"}
    with pytest.raises(workdir.WorkdirMismatch, match=r'data\.options\.labels: unset -> "folders"'):
        check(tmp_path, now)


def test_before_the_first_checkpoint_anything_may_change(tmp_path):
    run_config.write_run_config(tmp_path, a_run(tmp_path))
    (tmp_path / "checkpoints" / "10").rmdir()
    check(tmp_path, {"seed": 5})


@pytest.mark.parametrize("text", ['{"seed": 0', "[]", ""])
def test_a_file_that_is_none_is_named(tmp_path, text):
    (tmp_path / "run_config.json").write_text(text)
    with pytest.raises(workdir.WorkdirMismatch, match=r"run_config.json.*--force"):
        check(tmp_path, a_run(tmp_path))
    check(tmp_path, a_run(tmp_path), force=True)


def test_a_workdir_where_no_checkpoint_can_be_written_is_refused(tmp_path):
    for good in (tmp_path, "runs/a", "gs://bucket/run"):
        workdir.check_address(good)
    for store in ("s3", "az", "hf"):
        with pytest.raises(ValueError, match=rf"workdir='{store}://b/run' .* gs://"):
            workdir.check_address(f"{store}://b/run")


def test_a_workdir_in_a_bucket(monkeypatch):
    files, root = mount(monkeypatch), "gs://bucket/run"
    check(root, {"seed": 0})
    run_config.write_run_config(root, {"seed": 0})
    check(root, {"seed": 1})  # no checkpoint yet
    files.pipe("gs://bucket/run/checkpoints/10/state/data", b"being written")
    check(root, {"seed": 1})
    files.pipe("gs://bucket/run/checkpoints/10/commit_success.txt", b"")
    with pytest.raises(workdir.WorkdirMismatch, match="seed: 0 -> 1"):
        check(root, {"seed": 1})


@pytest.mark.parametrize("number", old_runs.FORMATS)
def test_a_workdir_of_older_code_goes_on_with_the_same_options_under_other_names(
    number, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    old_runs.unpack(number, tmp_path)
    old = json.loads((tmp_path / "run_config.json").read_text())
    objective, run = old.pop("objective"), old["run"]
    evals = {
        "held_out": {"every_steps": run.pop("eval_every_steps")},
        "reconstructions": {"num_clips": run.pop("picture_clips")},
    }
    now = old | {"task": objective.pop("name"), "pretraining": objective, "evals": evals}
    check(tmp_path, now)
    assert "changed since" not in caplog.text
    other = copy.deepcopy(now)
    other["pretraining"]["mask_ratio"] = 0.9
    with pytest.raises(
        workdir.WorkdirMismatch, match=r"\n  pretraining\.mask_ratio: 0\.75 -> 0\.9\n"
    ):
        check(tmp_path, other)
    other = copy.deepcopy(now) | {"task": "finetuning"}
    with pytest.raises(workdir.WorkdirMismatch, match=r'\n  task: "pretraining" -> "finetuning"\n'):
        check(tmp_path, other)
