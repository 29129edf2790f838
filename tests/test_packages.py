import sys

import pytest

from vmae_jax.errors import MissingPackage
from vmae_jax.packages import import_package


def test_a_package_that_is_there_is_given():
    assert import_package("json", "nothing") is sys.modules["json"]


def test_a_missing_package_is_named_with_what_needs_it_and_how_to_install_it():
    with pytest.raises(MissingPackage) as info:
        import_package("no_such_package", "backend='x'", install="vmae_jax[x]", remark=", or not")
    assert str(info.value) == (
        "backend='x' needs the package no_such_package (No module named 'no_such_package'); run "
        "`pip install vmae_jax[x]`, or not."
    )


@pytest.mark.parametrize("error", ["OSError('libx.so.1: no such file\\nand more')", "RuntimeError"])
def test_a_package_that_does_not_load_is_missing_too(error, tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    reason = r"libx\.so\.1: no such file" if "libx" in error else "RuntimeError"
    with pytest.raises(MissingPackage, match=rf"half_installed \({reason}\); run"):
        import_package("half_installed", "this")
