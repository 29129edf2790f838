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
# by their short names: "vit", "data.clips"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/*.py")]
    if path.parent.name not in ("commands", "tfds_builders")
)
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
    file = PACKAGE / f"{module.replace('.', '/')}.py"
    for name, member in imported_names(file.read_text()):
        package, _, rest = name.partition(".")
        if package != "vmae_jax":
            others.add(package)
        elif rest in MODULES:
            ours.add(rest)
        elif f"{rest}.{member}".lstrip(".") in MODULES:
            ours.add(f"{rest}.{member}".lstrip("."))
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


def test_every_form_of_import_is_read():
    source = """
        import os, vmae_jax.vit as v
        from vmae_jax import config
        from .masking import Mask
        from . import hf
        if TYPE_CHECKING:
            import torch
        def later():
            from vmae_jax.weights.layouts import save
    """
    assert set(imported_names(textwrap.dedent(source))) == {
        ("os", None),
        ("vmae_jax.vit", None),
        ("vmae_jax", "config"),
        ("vmae_jax.masking", "Mask"),
        ("vmae_jax", "hf"),
        ("vmae_jax.weights.layouts", "save"),
    }
    assert direct_imports("videomae")[0] == {"vit", "config", "masking", "randomness"}
    assert "jax" not in direct_imports("config")[1]
    assert "jax" in reached_from("config")  # by way of activations


MAY_IMPORT = {
    "activations": set(),
    "randomness": set(),
    "config": {"activations"},
    "sharding": set(),
    "attention": {"sharding"},
    "vit": {"activations", "attention", "randomness", "config", "sharding"},
    "masking": {"randomness"},
    "videomae": {"vit", "config", "masking", "randomness"},
    "device_crop": set(),
    "objectives": {
        "videomae",
        "vit",
        "masking",
        "config",
        "randomness",
        "device_crop",
        "sharding",
    },
    "training": {"objectives", "videomae", "vit", "config", "randomness", "sharding"},
    "assembly": {"training", "objectives", "optim", "vit", "config", "sharding"},
    "running.health": {"running.appended_file", "data.storage"},
    "data.clips": set(),
    "data.decoders": {
        "data.storage",
        "data.pyav_reader",
        "data.decord_reader",
        "data.torchcodec_reader",
    },  # when they are asked for
    "data.packets": {"data.decoders"},
    "data.pyav_reader": {"data.decoders", "data.packets"},
    "data.augment": set(),
    "data.storage": set(),
    "data.frame_reader": {"data.storage", "data.decoders"},
    "data.sources": {"data.decoders", "data.augment", "data.frame_reader"},
    "data.splits": {"data.sources"},
    "data.demo_clips": {"data.sources", "data.splits"},
    "data.folders": {"data.storage", "data.frame_reader", "data.sources", "data.splits"},
    "data.listings": {"data.storage", "data.frame_reader", "data.sources", "data.splits"},
    "data.manifests": {"data.storage", "data.listings", "data.sources", "data.splits"},
    "data.isolation": set(),
    "data.bad_clips": set(),
    "data.samples": {
        "data.sources",
        "data.clips",
        "data.augment",
        "data.decoders",
        "data.isolation",
        "data.bad_clips",
        "data.storage",
    },
    "data.loader": {"data.samples"},
    "running.run_control": set(),
    "running.workdir_lock": {"data.storage"},
    "running.exit_codes": {"running.run_control", "running.workdir_lock", "data.bad_clips"},
    "running.supervisor": {"running.exit_codes", "data.storage"},
    "running.roll_call": set(),
    "running.distributed": {"running.roll_call", "running.exit_codes"},
    "running.appended_file": {"data.storage"},
    "running.profiling": {"data.storage"},
    "running.goodput": {"running.appended_file", "data.storage"},
    "running.writer": {"running.appended_file", "data.storage", "running.goodput"},
    "config_file": set(),
    "plan.chips": set(),
    "plan.hlo": set(),
    "plan.collectives": {"plan.hlo"},
    "plan.traffic": {"plan.collectives", "plan.hlo"},
    "plan.roofline": {"plan.chips"},
    "plan.memory_estimate": {"plan.roofline"},
    "plan.ahead_of_time": {
        "plan.chips",
        "config_file",
        "assembly",
        "vit",
        "plan.collectives",
        "masking",
        "sharding",
        "plan.traffic",
    },
    "plan.planning": {
        "plan.ahead_of_time",
        "plan.chips",
        "config_file",
        "plan.memory_estimate",
        "plan.roofline",
    },
    "plan.plan_text": {"plan.chips", "plan.traffic"},
}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_modules_import_only_those_below_them(module):
    assert direct_imports(module)[0] <= MAY_IMPORT[module]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_imports_what_stands_beside_the_package(path):
    above = {"train", "configs", "tests", "benchmarks"}
    assert not above & {name.split(".")[0] for name, _ in imported_names(path.read_text())}


@pytest.mark.parametrize(
    "module", ["decoders", "clips", "augment", "sources", "datasets", "samples"]
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
        from vmae_jax.objectives import pretraining_objective

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
        objective = jax.jit(pretraining_objective, static_argnames="mask_ratio")
        loss, _ = objective(model.core, {{"video": video}}, jax.random.key(0), mask_ratio=0.5)
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
