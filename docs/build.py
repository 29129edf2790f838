"""Builds the pages, build/docs/html, with what the notebooks show when a stranger runs them.

    make docs

The wheel is built (from the sdist) and installed into an empty environment in a temporary folder,
far from the checkout; there each notebook runs from top to bottom. Sphinx renders what came out. A
cell that fails or warns, and a warning of Sphinx, end it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "build" / "docs"
EXTRA = "demo"  # the clips that the notebooks look at
KERNEL = "wheel"
TIMEOUT = 600  # seconds, for a cell and for the kernel's start


def main() -> None:
    source = PAGES / "source"
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    with tempfile.TemporaryDirectory() as folder:
        install(build_wheel(folder), Path(folder))
        for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
            say(f"running {path.name}")
            nbformat.write(run(path, Path(folder)), source / path.name)
    say("rendering")
    pages = ["-c", ROOT / "docs", source, PAGES / "html"]
    call(sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", *pages)
    say(f"done: {PAGES / 'html' / 'index.html'}")


def say(text: str, started: float = time.monotonic()) -> None:
    """Prints a line with the seconds since the start."""
    print(f"[{time.monotonic() - started:3.0f} s] {text}", flush=True)


def call(*command: str | os.PathLike, **options) -> None:
    subprocess.run(command, check=True, **options)


def build_wheel(folder: str) -> Path:
    """The wheel, made of the sdist and of nothing that lies beside it."""
    say("building the wheel")
    command = [sys.executable, "-m", "build", "--quiet", "--no-isolation", "--outdir", folder]
    call(*command, ROOT)
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> None:
    """An environment with the wheel, what it asks for, and what any notebook server brings.

    Versions are those that the tests passed with. Jupyter knows its Python as KERNEL.
    """
    say("installing it into an empty environment")
    pins = [(ROOT / f"requirements{part}.txt").read_text() for part in ("", "-docs")]
    constraints = folder / "constraints.txt"
    constraints.write_text(re.sub("^-r.*", "", "\n".join(pins), flags=re.MULTILINE))
    call(sys.executable, "-m", "venv", folder / "environment")
    python = folder / "environment" / "bin" / "python"
    call(
        python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
        "--constraint", constraints, f"{wheel}[{EXTRA}]", "ipykernel",
    )  # fmt: skip
    kernel = folder / "kernels" / KERNEL
    kernel.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    command.append("--log-level=ERROR")  # it warns of its open port
    spec = {"argv": command, "display_name": KERNEL, "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    os.environ["JUPYTER_PATH"] = str(folder)


def run(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in an empty working directory.

    Raises:
      CellExecutionError: if a cell fails.
    """
    workdir = folder / path.stem
    workdir.mkdir()
    client = NotebookClient(
        nbformat.read(path, as_version=4),
        timeout=TIMEOUT,
        startup_timeout=TIMEOUT,
        kernel_name=KERNEL,
        resources={"metadata": {"path": str(workdir)}},
    )
    environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    return client.execute(env=environment)


if __name__ == "__main__":
    main()
