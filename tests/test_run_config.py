"""The configuration of a workdir, also where an older version of the code wrote it."""

from __future__ import annotations

import json

import old_runs
import pytest

from vmae_jax.errors import SettingError
from vmae_jax.running import run_config
from vmae_jax.running.run_config import VERSION, flat, nested, read_run_config, write_run_config

CONFIG = {"seed": 0, "data": {"name": "a", "options": {}, "size": [4, 4]}, "run": {"n": None}}


def test_what_is_written_is_read(tmp_path):
    write_run_config(tmp_path / "new", CONFIG)
    written = json.loads((tmp_path / "new" / "run_config.json").read_text())
    assert written == {"version": VERSION, **CONFIG}
    assert read_run_config(tmp_path / "new") == CONFIG
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["run_config.json"]
    assert read_run_config(tmp_path / "absent") is None


def test_options_of_version_1_are_read_under_the_names_of_today(tmp_path):
    old = {
        "seed": 3,
        "objective": {"name": "pretraining", "mask": "tube", "mask_ratio": 0.75, "loss": "l1"},
        "run": {"eval_every_steps": 6, "picture_clips": 0, "log_every_steps": 1},
    }
    (tmp_path / "run_config.json").write_text(json.dumps(old))
    assert read_run_config(tmp_path) == {
        "seed": 3,
        "task": "pretraining",
        "pretraining": {"mask": "tube", "mask_ratio": 0.75, "loss": "l1"},
        "evals": {"held_out": {"every_steps": 6}, "pictures": {"num_clips": 0}},
        "run": {"log_every_steps": 1},
    }


@pytest.mark.parametrize("number", old_runs.FORMATS)
def test_no_option_of_a_real_file_is_lost(number, tmp_path):
    old_runs.unpack(number, tmp_path)
    before = flat(json.loads((tmp_path / "run_config.json").read_text()))
    now = flat(read_run_config(tmp_path))
    assert sorted(map(str, before.values())) == sorted(map(str, now.values()))
    assert len(before.keys() - now.keys()) == 6


def test_versions_are_migrated_one_after_another(tmp_path, monkeypatch):
    def second(config):
        return config | {"pretraining": config["pretraining"]["mask"]}

    monkeypatch.setattr(run_config, "MIGRATIONS", (*run_config.MIGRATIONS, second))
    monkeypatch.setattr(run_config, "VERSION", 3)
    expected = {"pretraining": "tube"}
    for old in (
        {"objective": {"mask": "tube"}},
        {"version": 2, "pretraining": {"mask": "tube"}},
        {"version": 3, "pretraining": "tube"},
    ):
        (tmp_path / "run_config.json").write_text(json.dumps(old))
        assert read_run_config(tmp_path) == expected


@pytest.mark.parametrize("version", [VERSION + 1, 0, "2", None, 1.5])
def test_another_version_is_refused(version, tmp_path):
    (tmp_path / "run_config.json").write_text(json.dumps({"version": version, "seed": 0}))
    with pytest.raises(SettingError, match=rf"version {version!r}, and this code reads 1 to"):
        read_run_config(tmp_path)


def test_flat_and_nested_are_inverse():
    assert flat({"a": {"b": {"c": 1}, "d": 2}, "e": {}}) == {"a.b.c": 1, "a.d": 2}
    assert nested({"a.b.c": 1, "a.d": 2}) == {"a": {"b": {"c": 1}, "d": 2}}
