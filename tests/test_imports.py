"""Who may import whom: a rule for each folder, no circles, and what is loaded by what."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import vmae_jax

PACKAGE = Path(vmae_jax.__file__).parent
# by their short names: "vit", "data.loader"; a folder's own file is called as the folder
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] != "configs"  # recipes, not modules
}
# What neither jax, flax, optax nor numpy needs, so the model must not either.
BLOCKED = [
    "cv2",
    "datasets",
    "decord",
    "grain",
    "huggingface_hub",
    "imageio",
    "matplotlib",
    "ml_collections",
    "orbax",
    "pandas",
    "PIL",
    "safetensors",
    "sklearn",
    "skvideo",
    "tensorboard",
    "tensorboardX",
    "tensorflow",
    "tensorstore",
    "timm",
    "torch",
    "torchvision",
    "transformers",
]


def run_python(script):
    """What a fresh interpreter prints, which has imported nothing yet."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(PACKAGE.parent)}
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def modules_loaded_by(statement):
    return set(run_python(f"import sys\n{statement}\nprint(*sys.modules)").split())


# Import statements, read without running them


def imported_names(source):
    """(module, name) of every import statement, those inside functions too; name may be None."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []  # never run
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "vmae_jax" if node.level else None
            module = ".".join(filter(None, [module, node.module]))
            yield from ((module, alias.name) for alias in node.names)


@functools.cache
def direct_imports(module):
    """Our modules, by their short names, and the top-level names of all others."""
    ours, others = set(), set()
    for name, member in imported_names(FILES[module].read_text()):
        package, _, rest = name.partition(".")
        if package != "vmae_jax":
            others.add(package)
        elif f"{rest}.{member}".lstrip(".") in FILES:
            ours.add(f"{rest}.{member}".lstrip("."))
        elif rest in FILES:
            ours.add(rest)
    return ours, others


def reached_from(module):
    """The top-level names of what a module imports, also by way of our other modules."""
    seen, waiting, reached = set(), [module], set()
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            ours, others = direct_imports(current)
            waiting += ours
            reached |= others
    return reached


def room(module):
    """The folder of a module; a module of the package itself is a room of its own."""
    if FILES[module].name == "__init__.py":
        return module
    return module.rpartition(".")[0] or module


def test_every_form_of_import_is_read():
    source = """
        import os, vmae_jax.vit as v
        from vmae_jax import config
        from .masking import Mask
        from . import hf
        if TYPE_CHECKING:
            import torch
        def later():
            from vmae_jax.layouts import save
    """
    assert set(imported_names(textwrap.dedent(source))) == {
        ("os", None),
        ("vmae_jax.vit", None),
        ("vmae_jax", "config"),
        ("vmae_jax.masking", "Mask"),
        ("vmae_jax", "hf"),
        ("vmae_jax.layouts", "save"),
    }
    assert direct_imports("videomae")[0] == {
        "vit", "config", "initialization", "masking", "randomness"
    }  # fmt: skip
    assert "jax" not in direct_imports("config")[1]
    assert "jax" in reached_from("config")  # by way of activations
    assert room("data.video.decoders") == "data.video"
    assert room("vit") == "vit"


# The model and the step: modules of the package itself that know neither files nor runs.
CORE = (
    "activations attention blockwise_attention choices config config_checks device_augment "
    "device_crop flops host_memory initialization losses masking metrics mixup optim patches "
    "randomness sharding sizes trainable training videomae vit"
)
# room: what it may import besides itself, by rooms; the bottom first
MAY_IMPORT = {
    "errors": "",
    "packages": "errors",
    "files": "errors packages",
    "processes": "errors files",
    **dict.fromkeys(CORE.split(), f"errors files {CORE}"),
    "checkpoints": "errors files processes sharding",
    "weights": f"errors files packages processes checkpoints {CORE}",
    "huggingface": f"errors files packages weights {CORE}",
    "data.video": "errors files packages",
    "data.sources": "errors files packages data.video",
    "data.prepared": "errors files packages processes data.video data.sources",
    "data.tfds": "errors files packages data.video data.sources",
    "data.motion": "errors files data.video data.sources data.prepared",
    "data": "errors files packages processes data.video data.sources data.prepared data.tfds "
    "data.motion",
    "tasks": f"errors data data.video data.sources {CORE}",
    "assembly": f"errors tasks {CORE}",
    "inputs": "errors config assembly data data.sources tasks",
    "interpolation": f"errors {CORE}",
    "reconstruction": f"errors interpolation {CORE}",
    "pictures": "errors reconstruction",
    "confusion_picture": "",
    "evaluators": "errors files processes data assembly tasks pictures confusion_picture "
    f"reconstruction {CORE}",
    "running": "errors files processes checkpoints host_memory",
    "loop": "errors processes checkpoints weights data data.sources running assembly inputs tasks "
    f"evaluators {CORE}",
    "config_file": "errors",
    "plan": f"errors assembly tasks config_file {CORE}",
}


@pytest.mark.parametrize("module", [m for m in FILES if room(m) in MAY_IMPORT])
def test_a_module_imports_only_what_its_room_may(module):
    rooms = {room(other) for other in direct_imports(module)[0]} - {room(module), "__init__"}
    assert rooms <= set(MAY_IMPORT[room(module)].split())


def test_only_commands_and_the_package_itself_have_no_rule():
    free = {room(module) for module in FILES} - MAY_IMPORT.keys()
    assert free == {"__init__", "__main__", "commands"}


def circles(graph):
    """A list of circles, each as the names along it."""
    found, done = [], set()

    def visit(name, path):
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]


def test_no_modules_import_each_other_in_a_circle():
    assert not circles({module: direct_imports(module)[0] for module in FILES})


def test_no_rooms_import_each_other_in_a_circle():
    graph = {}
    for module in FILES:
        others = {room(other) for other in direct_imports(module)[0]} - {room(module)}
        graph.setdefault(room(module), set()).update(others)
    assert not circles(graph)


@pytest.mark.parametrize("module", FILES)
def test_no_module_imports_what_stands_beside_the_package(module):
    above = {"train", "configs", "tests", "benchmarks"}
    assert not above & direct_imports(module)[1]


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda p: p.name)
def test_tests_import_helpers_not_other_tests(path):
    names = {name.rpartition(".")[2] for name, _ in imported_names(path.read_text())}
    assert not [name for name in names if name.startswith("test_")]


@pytest.mark.parametrize(
    "module", ["video.decoders", "clip_maker", "sources.video_source", "datasets", "samples"]
)
def test_the_data_side_does_not_import_jax(module):
    # processes that decode video import it; jax would cost each a second and 150 MiB
    assert not {"jax", "jaxlib", "flax", "optax"} & reached_from(f"data.{module}")


# Imports, run


def test_importing_the_package_does_not_load_jax():
    loaded = modules_loaded_by("import vmae_jax")
    assert "vmae_jax" in loaded
    assert not {"jax", "flax", "numpy", "vmae_jax.config", *BLOCKED} & loaded


def test_importing_the_sources_does_not_load_jax():
    loaded = modules_loaded_by(
        "import vmae_jax.data.sources.video_source, vmae_jax.data.video.clips"
    )
    assert not {"jax", "flax", "grain", "torch"} & loaded


def test_models_work_with_nothing_but_jax_flax_and_optax():
    run_python(f"""
        import sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {BLOCKED}:
                    raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

        sys.meta_path.insert(0, Refuse())
        import jax, numpy as np
        from flax import nnx
        import vmae_jax
        from vmae_jax.tasks.pretraining import Pretraining
        from vmae_jax import assembly

        jax.config.update("jax_disable_most_optimizations", True)
        config = vmae_jax.VideoMAEConfig(
            image_size=8, patch_size=4, num_frames=4, hidden_size=8, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=8, decoder_hidden_size=8,
            decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
            decoder_intermediate_size=8, num_labels=3,
        )
        pixels = np.zeros((2, 4, 3, 8, 8), np.float32)
        mask = vmae_jax.tube_mask(jax.random.key(0), 2, config.grid, 0.5)
        features = vmae_jax.VideoMAEModel(config)(pixels)
        assert features.last_hidden_state.shape == (2, 8, 8)
        model = vmae_jax.VideoMAEForPreTraining(config)
        assert model(pixels, mask.to_bool()).logits.shape == (2, 4, 96)
        classifier = vmae_jax.VideoMAEForVideoClassification(config)
        assert classifier(pixels, labels=np.array([0, 2])).logits.shape == (2, 3)
        video = np.zeros((2, 4, 8, 8, 3), np.uint8)
        objective = jax.jit(Pretraining(mask_ratio=0.5).objective)
        keys = jax.random.split(jax.random.key(0), 2)
        loss, _ = objective(model.core, {{"video": video}}, keys, {{}})
        assert np.isfinite(loss)
        assert not set({BLOCKED}) & set(sys.modules)
    """)


# The package's names


def test_public_names_all_resolve():
    for name in vmae_jax.__all__:
        assert getattr(vmae_jax, name).__name__ == name
        assert name in dir(vmae_jax)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'VideoMAE'; it has .*VideoMAEModel"):
        vmae_jax.VideoMAE  # noqa: B018
    assert not hasattr(vmae_jax, "videomea")


def test_planning_leaves_jax_to_its_child():
    # which chooses JAX's backends by the environment, before importing it
    assert "jax" not in modules_loaded_by("import vmae_jax.commands.plan")
