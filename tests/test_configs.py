"""Every recipe loads, builds its model and schedule, and its real train step can be traced."""

from __future__ import annotations

import ast
import importlib
import operator
import pathlib

import jax
import pytest
from ml_collections import config_dict

from configs import default as defaults
from vmae_jax import assembly
from vmae_jax.tasks import make_task

CONFIGS = sorted(p.stem for p in pathlib.Path(defaults.__file__).parent.glob("[a-z]*.py"))
BASES = ("default", "finetune_default")
RECIPES = [name for name in CONFIGS if name not in BASES]


def base_of(name: str) -> str:
    return "finetune_default" if name in RECIPES and name.startswith("finetune_") else "default"


def load(name: str) -> config_dict.ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", [*RECIPES, "finetune_default"])
def test_a_recipe_adds_no_option_of_its_own(name):
    default, recipe = load("default"), load(name)
    data_set_options = ("data", "options")

    def names(config, prefix=()):
        for key, value in config.items():
            if isinstance(value, config_dict.ConfigDict) and (*prefix, key) != data_set_options:
                yield from names(value, (*prefix, key))
            else:
                yield (*prefix, key)

    assert set(names(recipe)) == set(names(default))


@pytest.mark.parametrize("name", [*RECIPES, "finetune_default"])
def test_a_recipe_assigns_only_what_differs(name):
    default, recipe = load(base_of(name)), load(name)
    source = (pathlib.Path(defaults.__file__).parent / f"{name}.py").read_text()
    targets = [
        ast.unparse(target)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]
    options = [target.removeprefix("config.") for target in targets if "." in target]
    assert options
    for option in options:
        value = operator.attrgetter(option)
        assert value(recipe) != value(default), option


@pytest.mark.parametrize("name", RECIPES)
def test_the_train_step_of_a_recipe_traces(name):
    config = load(name)
    steps = assembly.make_steps(config, make_task(config), num_records=10**6)
    state = steps.state
    after, metrics = jax.eval_shape(steps.train, *steps.arguments)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {name: value.shape for name, value in metrics.items()} == {
        "loss": (), "grad_norm": (), "learning_rate": (), "skipped": (), "streak": ()
    }  # fmt: skip
