"""`python -m vmae_jax inspect`: what it says of each layout, against what loading then does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from published_layouts import (
    SMALL,
    S,
    mmaction2,
    save_mmaction2,
    save_v1,
    v1_finetuned,
    v1_pretraining,
)

import vmae_jax
from vmae_jax.__main__ import main
from vmae_jax.weights import export
from vmae_jax.weights.torch_file import Storage

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("hasty_compiler")

CLASSES = ("VideoMAEModel", "VideoMAEForPreTraining", "VideoMAEForVideoClassification")
HEADS = {
    "num_attention_heads": SMALL.heads,
    "decoder_num_attention_heads": SMALL.decoder_heads,
}
CONFIG = vmae_jax.VideoMAEConfig(
    image_size=(16, 24),
    patch_size=8,
    num_frames=4,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    decoder_hidden_size=12,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=20,
    use_mean_pooling=False,
    id2label={0: "eating", 1: "running", 2: "sleeping"},
)


@pytest.fixture
def make(random_model, tmp_path):
    """kind -> the path of a checkpoint of that kind."""

    def random(name, **changes):
        return random_model(getattr(vmae_jax, name), CONFIG.replace(**changes))

    def save(kind):
        path = tmp_path / "x.pth"
        if kind == "V1 pre-trained":
            save_v1(path, v1_pretraining(SMALL), training=True)
        elif kind == "V1 encoder":
            state = v1_pretraining(SMALL)
            save_v1(path, {n: t for n, t in state.items() if n.startswith("encoder.")})
        elif kind == "V1 mean pooling":
            save_v1(path, v1_finetuned(SMALL))
        elif kind == "V1 first token":
            save_v1(path, v1_finetuned(SMALL, use_cls=True), "bare")
        elif kind == "V1 broken":
            state = v1_finetuned(SMALL)
            del state["blocks.1.norm1.bias"]
            save_v1(path, state)
        elif kind == "V1 of integers":
            state = v1_finetuned(SMALL) | {"head.bias": torch.arange(SMALL.classes)}
            torch.save({"model": state}, path)
        elif kind == "MMAction2":
            save_mmaction2(path, mmaction2(SMALL))
        elif kind == "run of ours":
            path = tmp_path / "run"
            export.save_run(random("VideoMAEForPreTraining").core, path)
        else:
            name, _, pooling = kind.partition(", ")
            path = tmp_path / "hf"
            random(name, use_mean_pooling=pooling == "mean pooling").save_pretrained(path)
        return path

    return save


def inspect(path, capsys, *options, code=0):
    capsys.readouterr()
    assert main(["inspect", str(path), *options]) == code
    out, err = capsys.readouterr()
    return err if code else out


def inspect_json(path, capsys, **heads):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in heads.items()]
    return json.loads(inspect(path, capsys, "--json", *options))


KINDS = {
    "V1 pre-trained": "official pre-training",
    "V1 encoder": "official pre-training",
    "V1 mean pooling": "official fine-tuned",
    "V1 first token": "official fine-tuned",
    "V1 broken": "official fine-tuned",
    "V1 of integers": "official fine-tuned",
    "MMAction2": "MMAction2",
    "VideoMAEModel": "Hugging Face",
    "VideoMAEModel, mean pooling": "Hugging Face",
    "VideoMAEForPreTraining": "Hugging Face",
    "VideoMAEForVideoClassification": "Hugging Face",
    "VideoMAEForVideoClassification, mean pooling": "Hugging Face",
    "run of ours": "vmae_jax",
}


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_are_what_loading_does(kind, make, capsys, caplog):
    path = make(kind)
    heads = HEADS if KINDS[kind] not in ("Hugging Face", "vmae_jax") else {}
    found = inspect_json(path, capsys, **heads)
    assert found["layout"] == KINDS[kind]
    assert list(found["loads_into"]) == list(CLASSES)
    loaded = []
    for name, verdict in found["loads_into"].items():
        caplog.clear()
        assert verdict["needs"] == []
        troubles = verdict["missing"] + verdict["unexpected"] + verdict["misshaped"]
        troubles += verdict["mistyped"]
        assert verdict["loads"] == (not troubles)
        refused = None
        try:
            getattr(vmae_jax, name).from_pretrained(path, **heads)
        except ValueError as error:
            refused = str(error)
        assert verdict["loads"] == (refused is None), (name, refused)
        if refused:
            assert all(trouble in refused for trouble in troubles[:3])
            continue
        loaded.append(name)
        # the log says the same: loaded A, B; dropped C, which ...; started D fresh, ...
        for word, parts in (("dropped", verdict["dropped"]), ("started", verdict["fresh"])):
            said = re.search(rf"{word} ([a-z_, ]+?)( fresh)?(, which|, to be|;)", caplog.text)
            assert (said[1].split(", ") if said else []) == parts
    # and all of them but one kind serve a classifier; a decoder cannot start fresh
    expected = set(CLASSES)
    if kind not in ("V1 pre-trained", "VideoMAEForPreTraining", "run of ours"):
        expected -= {"VideoMAEForPreTraining"}
    if kind == "V1 broken":
        expected = set()
    if kind == "V1 of integers":  # in the classifier
        expected = {"VideoMAEModel"}
    assert set(loaded) == expected


def test_an_official_file_is_described(make, capsys):
    found = inspect_json(make("V1 pre-trained"), capsys)
    assert found["path"].endswith("x.pth")
    assert found["sizes"] == {
        "hidden_size": SMALL.width,
        "num_hidden_layers": SMALL.depth,
        "num_attention_heads": None,  # of a width that nobody published
        "intermediate_size": SMALL.mlp,
        "decoder_hidden_size": SMALL.decoder_width,
        "decoder_num_hidden_layers": SMALL.decoder_depth,
        "decoder_num_attention_heads": None,
        "decoder_intermediate_size": SMALL.decoder_mlp,
        "patch_size": SMALL.patch,
        "tubelet_size": 2,
        "num_channels": 3,
        "num_frames": 16,
        "image_size": 224,
        "use_mean_pooling": False,
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
    }
    assert found["num_labels"] is None
    assert found["labels"] is None
    classifier = found["loads_into"]["VideoMAEForVideoClassification"]
    assert classifier["fresh"] == ["classifier", "fc_norm"]  # it pools, as the official one does
    assert "layernorm" in classifier["dropped"]
    state = v1_pretraining(SMALL)
    assert found["tensors"] == {
        name: {"shape": list(tensor.shape), "dtype": "float32"} for name, tensor in state.items()
    }
    assert found["parameters"] == sum(tensor.numel() for tensor in state.values())


def test_heads_that_are_not_told_are_asked_for(make, capsys):
    path = make("V1 pre-trained")
    needs = {name: v["needs"] for name, v in inspect_json(path, capsys)["loads_into"].items()}
    assert needs == {
        "VideoMAEModel": ["num_attention_heads"],
        "VideoMAEForPreTraining": ["num_attention_heads", "decoder_num_attention_heads"],
        "VideoMAEForVideoClassification": ["num_attention_heads"],
    }
    text = inspect(path, capsys)
    assert "  num_attention_heads: not told by the file; give it as --num-attention-heads\n" in text
    assert "  num_frames: 16 (not told by the file; as published)\n" in text
    assert "VideoMAEModel: loads; needs num_attention_heads; dropped decoder," in text
    found = inspect_json(path, capsys, num_attention_heads=6)
    assert found["sizes"]["num_attention_heads"] == 6
    assert found["sizes"]["decoder_num_attention_heads"] is None
    assert found["assumed"] == ["num_frames", "image_size", "layer_norm_eps"]
    assert found["loads_into"]["VideoMAEModel"]["needs"] == []
    error = inspect(path, capsys, "--num-attention-heads", "7", code=1)
    assert error.startswith("error: hidden_size=48 is not a multiple of num_attention_heads=7")


def test_heads_of_published_widths_are_told(tmp_path, capsys):
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in v1_finetuned(S).items()}
    save_v1(tmp_path / "x.pth", {n: torch.zeros(1).expand(s) for n, s in shapes.items()})
    found = inspect_json(tmp_path / "x.pth", capsys)
    assert found["sizes"]["num_attention_heads"] == S.heads
    assert "num_attention_heads" in found["assumed"]
    assert "hidden_size" not in found["assumed"]
    assert found["num_labels"] == 400


@pytest.mark.parametrize("kind", ["V1 mean pooling", "MMAction2"])
def test_a_classifier_tells_the_number_of_its_classes(kind, make, capsys):
    path = make(kind)
    found = inspect_json(path, capsys)
    assert found["num_labels"] == SMALL.classes
    assert found["labels"] is None
    assert found["sizes"]["use_mean_pooling"] is True
    assert not any(name.startswith("decoder") for name in found["sizes"])
    assert "pos_embed" not in found["tensors"]
    assert f"classes: {SMALL.classes}\n" in inspect(path, capsys)


def test_class_names_of_a_configuration_are_shown(make, capsys):
    path = make("VideoMAEForVideoClassification")
    found = inspect_json(path, capsys)
    assert found["num_labels"] == 3
    assert found["labels"] == ["eating", "running", "sleeping"]
    assert found["sizes"]["image_size"] == [16, 24]
    assert found["sizes"]["num_attention_heads"] == 2
    assert found["sizes"]["layer_norm_eps"] == 1e-12
    assert found["assumed"] == []
    assert "classes: 3 (eating, running, sleeping)" in inspect(path, capsys)


def test_a_run_of_ours_is_described(make, capsys):
    found = inspect_json(make("run of ours"), capsys)
    assert found["sizes"]["decoder_hidden_size"] == 12
    assert found["sizes"]["num_attention_heads"] == 2
    assert found["tensors"]["encoder/output/kernel"] == {"shape": [2, 24, 16], "dtype": "float32"}


def test_the_text_has_a_line_for_each_class_and_tensor(make, capsys):
    lines = inspect(make("V1 mean pooling"), capsys).splitlines()
    assert lines[0].endswith("x.pth")
    state = v1_finetuned(SMALL)
    count = sum(tensor.numel() for tensor in state.values())
    assert lines[1] == f"layout: official fine-tuned, {len(state)} tensors, {count:,} numbers"
    assert f"  hidden_size: {SMALL.width}" in lines
    verdicts = {line.split(":")[0]: line for line in lines if line.startswith("VideoMAE")}
    assert list(verdicts) == list(CLASSES)
    assert "does not load" in verdicts["VideoMAEForPreTraining"]
    assert "missing decoder, decoder_head, decoder_norm" in verdicts["VideoMAEForPreTraining"]
    assert (
        "loads; needs num_attention_heads; dropped classifier, fc_norm"
        in (verdicts["VideoMAEModel"])
    )
    tensors = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines[-len(state) :]}
    assert tensors == {n: ["float32", str(tuple(t.shape))] for n, t in state.items()}


def test_long_lists_are_counted(make, capsys):
    """Of the 13 tensors of a layer that is absent, 8 are named."""
    path = make("V1 broken")
    state = {n: t for n, t in v1_finetuned(SMALL).items() if not n.startswith("blocks.1.")}
    save_v1(path, state)
    text = inspect(path, capsys)
    assert re.search(r"missing blocks\.1\.attn\.proj\.bias, ([^,;]+, ){6}[^,;]+ and 5 more;", text)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_of_the_file_are_shown(dtype, tmp_path, capsys):
    save_v1(tmp_path / "x.pth", v1_finetuned(SMALL), dtype=getattr(torch, dtype))
    found = inspect_json(tmp_path / "x.pth", capsys)
    assert {tensor["dtype"] for tensor in found["tensors"].values()} == {dtype}


@pytest.mark.parametrize("kind", ["V1 pre-trained", "VideoMAEForPreTraining"])
def test_no_value_is_read(kind, make, capsys, monkeypatch):
    path = make(kind)

    def fail(*args):
        raise AssertionError("a value was read")

    monkeypatch.setattr(Storage, "_read_view", fail)
    from safetensors import safe_open

    class Shy:
        """A safetensors file that tells its names and no values."""

        def __init__(self, *args, **kwargs):
            self.file = safe_open(*args, **kwargs)

        get_tensor = fail

    monkeypatch.setattr("safetensors.safe_open", Shy)
    inspect_json(path, capsys)
    with pytest.raises(AssertionError, match="a value was read"):
        vmae_jax.VideoMAEModel.from_pretrained(path, num_attention_heads=1)


def test_torch_is_not_needed(make, capsys, monkeypatch):
    path = make("V1 pre-trained")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert inspect_json(path, capsys)["layout"] == "official pre-training"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist"), (b"", "is empty"), (b"text\n", "is text")]
)
def test_what_cannot_be_inspected_is_one_line(content, said, tmp_path, capsys):
    if content is not None:
        (tmp_path / "x.pth").write_bytes(content)
    error = inspect(tmp_path / "x.pth", capsys, "--json", code=1)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert "x.pth" in error


def test_key_biases_and_foreign_parts_are_shown(tmp_path, capsys):
    state = v1_finetuned(SMALL)
    state["blocks.0.gamma_1"] = state["blocks.0.attn.k_bias"] = torch.zeros(SMALL.width)
    save_v1(tmp_path / "x.pth", state)
    found = inspect_json(tmp_path / "x.pth", capsys, **HEADS)
    verdict = found["loads_into"]["VideoMAEForVideoClassification"]
    assert verdict["unexpected"] == ["blocks.0.gamma_1"]
    assert not verdict["loads"]


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    save_v1(tmp_path / "x.pth", v1_pretraining(SMALL))
    command = f"{sys.executable} -m vmae_jax inspect {tmp_path / 'x.pth'} | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(Path(vmae_jax.__file__).parent.parent)}
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    assert result.stdout.strip().endswith("x.pth")
    assert result.stderr == ""
