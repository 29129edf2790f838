"""Every line of the documented surface, asked of transformers 5.23 and of this package.

Both have the same weights, in files of transformers, and the same inputs.
"""

from __future__ import annotations

import ast
import collections
import copy
import importlib
import inspect
import json
import operator
import os
import pickle
import re
import textwrap
import warnings

import documented_surface
import jax
import numpy as np
import pytest
from documented_surface import SIGNATURES, SURFACE, Asked, Raises
from PIL import Image

import vmae_jax

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("hasty_compiler")

FIELDS = {
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
}
LABELS = {0: "run", 1: "sit", 2: "stand"}
PIXELS = np.random.default_rng(0).standard_normal((2, 4, 3, 16, 16)).astype(np.float32)
MASK = np.array([[1, 1, 0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 0, 0, 1]], bool)
VIDEO = np.random.default_rng(1).integers(0, 256, (4, 20, 30, 3)).astype(np.uint8)
SMALL = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


def their_classes():
    modeling = importlib.import_module("transformers.models.videomae.modeling_videomae")
    pil = importlib.import_module("transformers.models.videomae.image_processing_pil_videomae")
    return {
        "Config": transformers.VideoMAEConfig,
        "Processor": pil.VideoMAEImageProcessorPil,
        "BatchFeature": transformers.BatchFeature,
        "Model": transformers.VideoMAEModel,
        "PreTraining": transformers.VideoMAEForPreTraining,
        "Classifier": transformers.VideoMAEForVideoClassification,
        "BaseModelOutput": transformers.modeling_outputs.BaseModelOutput,
        "PreTrainingOutput": modeling.VideoMAEForPreTrainingOutput,
        "ClassifierOutput": transformers.modeling_outputs.ImageClassifierOutput,
    }


def our_classes():
    return {
        "Config": vmae_jax.VideoMAEConfig,
        "Processor": vmae_jax.VideoMAEImageProcessor,
        "FeatureExtractor": vmae_jax.VideoMAEFeatureExtractor,
        "BatchFeature": vmae_jax.BatchFeature,
        "Model": vmae_jax.VideoMAEModel,
        "PreTraining": vmae_jax.VideoMAEForPreTraining,
        "Classifier": vmae_jax.VideoMAEForVideoClassification,
        "BaseModelOutput": vmae_jax.BaseModelOutput,
        "PreTrainingOutput": vmae_jax.VideoMAEForPreTrainingOutput,
        "ClassifierOutput": vmae_jax.ImageClassifierOutput,
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What transformers saves of a model of each class."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    classes = their_classes()
    for name in ("Model", "PreTraining", "Classifier"):
        config = classes["Config"](**FIELDS, **labels(LABELS))
        model = classes[name](config).eval()
        for parameter in model.requires_grad_(False).parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
    classes["Processor"](**SMALL).save_pretrained(root / "Classifier")
    contradicting = root / "contradicting"
    contradicting.mkdir()
    values = json.loads((root / "Classifier" / "config.json").read_text())
    values |= labels({**LABELS, 3: "jump", 4: "eat"}) | {"num_labels": 2}
    (contradicting / "config.json").write_text(json.dumps(values))
    return root


def labels(names):
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}}


def caught(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [warning.category.__name__ for warning in found]


class Library:
    """What the questions may name. Models are loaded once, and whatever can be changed is new."""

    def __init__(self, classes, folders, array, **load_options):
        self.classes, self.folders, self.load_options = classes, folders, load_options
        self.loaded = {}
        modules = (collections, copy, json, operator, os, pickle, np, torch)
        self.names = {
            **classes,
            **{module.__name__.rpartition(".")[2]: module for module in modules},
            "np": np,
            "Image": Image,
            "caught": caught,
            "pixels": array(PIXELS),
            "mask": array(MASK),
            "labels": array(np.array([2, 0])),
            "video": VIDEO,
            "images": [Image.fromarray(frame) for frame in VIDEO],
            "four": np.moveaxis(np.concatenate([VIDEO, VIDEO[..., :1]], axis=-1), -1, 1),
            "six": list(np.concatenate([VIDEO, VIDEO], axis=-1)[:2]),
            "grey": VIDEO[0, ..., 0],
            "size_dict": transformers.image_utils.SizeDict(height=9, width=9),
            "saved": str(folders / "Classifier"),
            "contradicting": str(folders / "contradicting"),
        }
        self.made = {
            "config": lambda: classes["Config"](**FIELDS, **labels(LABELS)),
            "processor": self.processor,
            "batch": lambda: self.processor()(VIDEO, return_tensors="np"),
            "tensors": lambda: self.processor()(VIDEO, return_tensors="pt"),
            "former": lambda: self.processor("FeatureExtractor"),
            "model": lambda: self.load("Model"),
            "pretraining": lambda: self.load("PreTraining"),
            "classifier": lambda: self.load("Classifier"),
            "outputs": self.outputs,
        }

    def processor(self, name="Processor"):
        return self.classes[name](**SMALL)

    def load(self, name):
        if name not in self.loaded:
            folder = self.folders / name
            self.loaded[name] = self.classes[name].from_pretrained(folder, **self.load_options)
        return self.loaded[name]

    def outputs(self):
        inputs = [self.names[name] for name in ("pixels", "labels")]
        return self.load("Classifier")(inputs[0], labels=inputs[1], output_hidden_states=True)

    def answer(self, question, folder):
        names = {**self.names, "new": str(folder / "new"), "path": str(folder / "one.json")}
        folder.mkdir()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for name in {*re.findall(r"\w+", question)} & set(self.made):
                    names[name] = self.made[name]()
                return plain(eval(question, names))
        except Exception as error:
            return Raises(f"{type(error).__name__}: {error}")


@pytest.fixture(scope="module")
def theirs(folders):
    # which can show attentions
    return Library(their_classes(), folders, torch.from_numpy, attn_implementation="eager")


@pytest.fixture(scope="module")
def ours(folders):
    return Library(our_classes(), folders, np.asarray)


def plain(value):
    """Arrays of any library as numpy, mappings as dicts, so that answers can be compared."""
    if isinstance(value, (torch.Tensor, jax.Array)):
        return np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
    if isinstance(value, (list, tuple)) and not isinstance(value, (Raises, torch.Size)):
        return [plain(x) for x in value]
    if isinstance(value, torch.Size):
        return list(value)
    if isinstance(value, collections.abc.Mapping):
        return {name: plain(x) for name, x in value.items()}
    return value


def agree(one, other):
    if isinstance(one, Raises) or isinstance(other, Raises):
        return isinstance(one, Raises) and isinstance(other, Raises)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        one, other = np.asarray(one), np.asarray(other)
        return one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-4)
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(agree(one[k], other[k]) for k in one)
    return one == other


LINES = [line for lines in SURFACE.values() for line in lines]


@pytest.mark.parametrize("line", LINES, ids=[line.question for line in LINES])
def test_every_line_is_the_same_or_different_as_is_said(line, theirs, ours, tmp_path):
    expected = plain(line.theirs)
    if line.theirs is Asked:
        expected = theirs.answer(line.question, tmp_path / "theirs")
    found = ours.answer(line.question, tmp_path / "ours")
    if not line.why:
        assert agree(found, expected), f"{found} instead of {expected}"[:2000]
        return
    if isinstance(line.ours, Raises):
        assert isinstance(found, Raises), found
        assert re.search(line.ours.message, found.message), found.message
    else:
        assert agree(found, plain(line.ours)), found
    assert not agree(found, expected), "it does not differ"


def parameters_of(signature):
    arguments = ast.parse(f"def f({signature}): pass").body[0].args
    names = [argument.arg for argument in arguments.args]
    defaults = [ast.literal_eval(default) for default in arguments.defaults]
    required = names[: len(names) - len(defaults)]
    optional = dict(zip(names[len(required) :], defaults, strict=True))
    return required, optional, bool(arguments.vararg), bool(arguments.kwarg)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_the_documented_ones(name):
    required, optional, any_positional, any_keyword = parameters_of(
        textwrap.dedent(SIGNATURES[name]).replace("\n", " ")
    )
    owner, _, method = name.partition(".")
    found = getattr(our_classes()[owner], method or "__init__")
    found = dict(inspect.signature(found).parameters)
    if not method:
        del found["self"]
    kinds = [parameter.kind for parameter in found.values()]
    in_order = [
        parameter
        for parameter in found.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    documented = in_order[: len(required) + len(optional)]
    assert [parameter.name for parameter in documented] == [*required, *optional]
    for parameter in documented[: len(required)]:
        assert parameter.default is parameter.empty
    for parameter in documented[len(required) :]:
        assert parameter.default == optional[parameter.name], parameter.name
    if any_positional:
        assert inspect.Parameter.VAR_POSITIONAL in kinds
    # what the page takes as **kwargs we take too, by name or all of it
    assert (
        not any_keyword
        or {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.KEYWORD_ONLY} & {*kinds}
        or len(in_order) > len(documented)
    )
    extra = in_order[len(documented) :]
    assert all(parameter.default is not parameter.empty for parameter in extra)


def public(cls, *without):
    hidden = set().union(*map(dir, without)) if without else set()
    return {name for name in dir(cls) if not name.startswith("_")} - hidden


def their_names():
    classes = their_classes()
    models = [classes[name] for name in ("Model", "PreTraining", "Classifier")]
    outputs = [
        classes[name] for name in ("BaseModelOutput", "PreTrainingOutput", "ClassifierOutput")
    ]
    return dict(
        zip(
            SURFACE,
            [
                public(classes["Config"]()),
                public(classes["Processor"]()),
                public(classes["BatchFeature"]),
                set().union(*map(public, outputs)),
                set().union(*(public(model, torch.nn.Module) for model in models)),
            ],
            strict=True,
        )
    )


@pytest.mark.parametrize("classes", SURFACE)
def test_no_public_name_of_theirs_is_missing(classes):
    named = set()
    for line in SURFACE[classes]:
        named |= {*re.findall(r"\w+", line.question), *line.names.split()}
    named |= set(re.findall(r"\w+", " ".join(SIGNATURES)))
    earlier = set(documented_surface.NAMES_OF_4_27[classes].split())
    assert not (their_names()[classes] | earlier) - named


def test_what_differs_has_a_reason_and_an_answer():
    for line in LINES:
        assert bool(line.why) == (line.ours is not Asked), line.question


def test_the_page_of_differences_is_up_to_date():
    assert documented_surface.PAGE.read_text(encoding="utf-8") == documented_surface.page(), (
        "run: python -m tests.documented_surface"
    )
