"""What an installation brings: requirements, extras and recipes of the package; make's rules."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import vmae_jax
from configs import demo
from vmae_jax.configs import demo as installed_demo

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vmae_jax"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What these import at once is only imported itself once somebody asks for it.
LATE = {
    "vmae_jax.data.video.decord_reader",
    "vmae_jax.data.tfds.builders",
    "vmae_jax.data.tfds.shard_writing",
}


def normal(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


def named(requirements):
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in requirements}


def distributions(module):
    found = importlib.metadata.packages_distributions().get(module, [module])
    return set(map(normal, found))


def imported_packages():
    """Top-level names of all that the package imports anywhere, but Python's own."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "import_package":
                names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
            yield from (name.split(".")[0] for name in names)


OURS = {"vmae_jax", *sys.stdlib_module_names}
CORE = named(PROJECT["dependencies"])
OPTIONAL = {name for extra in EXTRAS.values() for name in named(extra)} - CORE - {"vmae-jax"}


def test_all_that_is_imported_is_required_or_an_extra():
    imported = set(imported_packages()) - OURS
    assert {"jax", "av", "tensorflow_datasets"} <= imported
    brought = {"jaxlib", "ml-dtypes", "scipy", "fsspec"}  # by jax, and by the hub
    for module in imported:
        assert distributions(module) & (CORE | OPTIONAL | brought), module


def test_modules_load_without_any_extra():
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
    )
    modules = [name for name in modules if name not in LATE and not name.endswith("__main__")]
    blocked = {name.replace("-", "_") for name in OPTIONAL} | {"skvideo"}
    assert {"decord", "tensorflow_datasets", "simplejpeg", "torch"} <= blocked
    script = f"""
        import importlib, sys
        for name in {sorted(blocked - {"array_record"})}:  # which grain brings
            sys.modules[name] = None
        for name in {modules}:
            importlib.import_module(name)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not child.returncode, child.stderr


def test_errors_and_launchers_name_extras_that_exist():
    texts = [*PACKAGE.rglob("*.py"), *(ROOT / "launch").iterdir(), ROOT / "README.md"]
    texts += [*(ROOT / "notebooks").iterdir(), *(ROOT / "docs").iterdir()]
    found = set()
    for path in texts:
        if path.is_file():
            found |= set(re.findall(r"(?:vmae_jax|[` \"']\.)\[([\w,]+)\]", path.read_text()))
    named_extras = {name for group in found for name in group.split(",")}
    assert {"beam", "plan", "tpu", "data"} <= named_extras
    assert named_extras <= set(EXTRAS)


@pytest.mark.parametrize("extra", ["core", "demo", "data", "tfds", "decord"])
def test_what_make_installs_holds_the_extras_that_tests_need(extra):
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = named(line for line in lines if "==" in line)
    assert (CORE if extra == "core" else named(EXTRAS[extra])) <= pinned


def test_recipes_are_part_of_the_package():
    assert vmae_jax.configs.__path__[0].endswith("vmae_jax/configs")
    assert Path(installed_demo.__file__).samefile(demo.__file__)
    assert installed_demo.get_config().to_dict() == demo.get_config().to_dict()


# Environments


@pytest.fixture
def make(tmp_path):
    """make, with Pythons that only say their version."""

    def python(path, version):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {version}\n")
        path.chmod(0o755)

    def run(*arguments, environment="3.12", asked=None):
        if environment:
            python(tmp_path / "venv" / "bin" / "python", environment)
        words = [f"VENV={tmp_path / 'venv'}"]
        if asked:
            python(tmp_path / "python", asked)
            words.append(f"PYTHON={tmp_path / 'python'}")
        command = ["make", "--no-print-directory", *words, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    return run


def test_an_environment_of_another_python_is_noticed(make):
    found = make("same-python", asked="3.13")
    assert found.returncode
    assert "is of Python 3.12" in found.stdout
    assert "is 3.13: remove it with make clean" in found.stdout


def test_an_environment_is_used_by_what_made_it_and_by_default(make):
    assert make("same-python", asked="3.12").returncode == 0
    assert make("same-python").returncode == 0


def test_an_environment_whose_python_has_gone_is_made_anew(make, tmp_path):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    (tmp_path / "venv" / "dev.done").touch()
    found = make("--dry-run", "lint", environment=None, asked="3.12")
    assert f"-m venv --clear {tmp_path / 'venv'}" in found.stdout
    assert "pip install --quiet --disable-pip-version-check -r requirements-dev.txt" in found.stdout
