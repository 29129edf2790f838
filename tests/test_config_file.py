"""Commands read configurations as train.py does."""

from __future__ import annotations

import sys

import pytest

from vmae_jax import __main__, config_file

OVERRIDES = {
    "--config.data.batch_size=64": 64,
    "--config.mesh.fsdp=4": 4,
    "--config.mesh.data=2": 2,  # a placeholder
    "--config.compute.remat=full": "full",
    "--config.run.deterministic=true": True,
    "--config.model.image_size=(64, 96)": (64, 96),
    "--config.optimizer.betas=(0.9, 0.99)": (0.9, 0.99),
    "--config.schedule.base_lr=3e-4": 3e-4,
}


def test_overrides_have_the_types_of_the_options():
    config = config_file.load("configs/demo.py", list(OVERRIDES))
    for override, value in OVERRIDES.items():
        section, name = override.partition("=")[0].removeprefix("--config.").split(".")
        assert config[section][name] == value, override
        assert type(config[section][name]) is type(value), override


def test_a_recipe_is_found_by_its_name_from_anywhere(monkeypatch, tmp_path):
    expected = config_file.load("configs/demo.py")
    monkeypatch.chdir(tmp_path)
    assert config_file.load("demo").to_dict() == expected.to_dict()


def test_what_a_recipe_imports_may_stand_beside_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "masks_of_mine.py").write_text("def checkerboard(): pass")
    (tmp_path / "mine.py").write_text(
        "from masks_of_mine import checkerboard\nfrom vmae_jax.configs import demo\n\n\n"
        "def get_config():\n    config = demo.get_config()\n"
        "    config.pretraining.mask = checkerboard\n    return config\n"
    )
    config = config_file.load(str(tmp_path / "mine.py"), ["--config.data.batch_size=4"])
    assert config.pretraining.mask.__name__ == "checkerboard"
    named = config_file.load(str(tmp_path / "mine.py"), ["--config.pretraining.mask=random"])
    assert named.pretraining.mask == "random"


def test_the_command_line_of_another_program_is_not_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prog", "--config.data.batch_size=7"])
    assert config_file.load("configs/demo.py").data.batch_size != 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.data.bach_size=3", 'Did you mean "batch_size"'),
        ("--config.dat.batch_size=3", 'Did you mean "data"'),
        ("--config.objective.mask_ratio=0.5", "did you mean pretraining.mask_ratio?"),
        (
            "--config.tune.rate=0.5",
            "no option tune.rate; choose from .*optimizer, pretraining",
        ),
        ("--config.data.batch_size=many", "invalid literal for int"),
        ("--config.data.batch_size=1.5", "invalid literal for int"),
        ("--batch_size=3", "is no override; write --config.section.name=value"),
        ("--config.data.batch_size", "is no override"),
    ],
)
def test_what_is_no_option_or_no_value_of_it_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        config_file.load("configs/demo.py", [override])


def test_a_file_that_is_not_there_is_an_error_of_its_own():
    with pytest.raises(OSError, match=r"configs/dem\.py"):
        config_file.load("configs/dem.py")


@pytest.mark.parametrize("words", [["--topolgy=v5e:2x2"], ["--cfg.data.batch_size=3"], ["more"]])
def test_only_overrides_are_let_through(words, capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main(["plan", "--config=configs/demo.py", "--topology=v5e:2x2", *words])
    assert end.value.code == 2
    assert f"unrecognized arguments: {words[0]}" in capsys.readouterr().err


def test_commands_without_a_configuration_take_no_overrides(capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main(["inspect", "x", "--config.data.batch_size=3"])
    assert end.value.code == 2
