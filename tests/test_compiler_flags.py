"""No flag is set, anywhere in this repository, that the installed compiler does not know."""

import re
from pathlib import Path

import compiler_flags
import pytest

ROOT = Path(__file__).parent.parent
KINDS = {".py", ".sh", ".yaml", ".toml", ".md", ".ipynb", ""}
SKIPPED = {".git", ".venv", "results", "runs", "build", "dist"}


def flags_in(text: str) -> set[str]:
    """Every name of a flag, with its value where one is written out, else with one that fits."""
    options = re.findall(r"--(xla_[a-z0-9_]+)(=[\w.,:/-]+)?", text)
    keys = re.findall(r"""["'](xla_[a-z0-9_]+)["'](?=\]?\s*[:=])()""", text)
    arguments = re.findall(r"(?<=[(,\s])(xla_[a-z0-9_]+)(?==)()", text)
    return {f"--{name}{value or '=1'}" for name, value in options + keys + arguments}


def flags_in_the_tree() -> set[str]:
    found = set()
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT).parts
        hidden = any(part in SKIPPED or part.startswith(".venv") for part in inside)
        if not hidden and path.is_file() and path.suffix in KINDS and path != Path(__file__):
            found |= flags_in(path.read_text("utf-8", errors="ignore"))
    asked_for_first = {flag.partition("=")[0] for flag in compiler_flags.FASTER_COMPILING}
    return {flag for flag in found if flag.partition("=")[0] not in asked_for_first}


def test_flags_are_found_however_they_are_written():
    text = """
        env={"XLA_FLAGS": "--xla_a=8"}; flags = f"--xla_b={count} --xla_c=true"
        options = {"xla_d_2": 0}; dict(xla_e=1); options["xla_f"] = 1
        _xla_not_a_flag="x"; ="xla_neither"; test_xla_neither
    """
    found = {"--xla_a=8", "--xla_b=1", "--xla_c=true", "--xla_d_2=1", "--xla_e=1", "--xla_f=1"}
    assert flags_in(text) == found


def test_the_compiler_knows_every_flag_that_is_set():
    flags = flags_in_the_tree()
    assert any("device_count" in flag for flag in flags)
    assert not compiler_flags.refusal(" ".join(sorted(flags)))


def test_flags_that_the_compiler_does_not_know_are_left_out():
    flags = ["--xla_force_host_platform_device_count=2", "--xla_of_another_year=false"]
    assert compiler_flags.known(flags) == flags[:1]
    assert "xla_of_another_year" in compiler_flags.refusal(flags[1])


@pytest.mark.parametrize("name", ["LIBTPU_INIT_ARGS", "TF_XLA_FLAGS"])
def test_no_variable_hands_flags_to_a_compiler_that_these_tests_do_not_ask(name):
    setting = re.compile(rf"""{name}["']?\]?\s*[:=]""")
    for path in [*ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py"), *ROOT.glob("launch/*")]:
        assert not setting.search(path.read_text("utf-8", errors="ignore")), path
