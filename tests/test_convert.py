"""`python -m vmae_jax convert`: from any layout to the three that are written."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.numpy
from published_layouts import (
    SMALL,
    finetuned_forward,
    mmaction2,
    pretraining_forward,
    random_inputs,
    save_mmaction2,
    save_v1,
    v1_finetuned,
    v1_pretraining,
)

import vmae_jax
from vmae_jax.__main__ import main
from vmae_jax.weights import layouts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("hasty_compiler")

HEADS = ["--num-attention-heads", str(SMALL.heads)]
DECODER_HEADS = ["--decoder-num-attention-heads", str(SMALL.decoder_heads)]
INPUT = {"num_frames": SMALL.frames, "image_size": SMALL.image}


def convert(source, destination, target, *options, code=0):
    assert main(["convert", str(source), str(destination), "--to", target, *options]) == code


def tensors_in(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def assert_equal_tensors(ours, theirs):
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)


def one_line_error(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


@pytest.fixture
def pretrained_pth(tmp_path):
    save_v1(tmp_path / "v1.pth", v1_pretraining(SMALL))
    return tmp_path / "v1.pth"


def test_an_official_file_becomes_a_model_of_transformers(pretrained_pth, tmp_path, capsys):
    convert(pretrained_pth, tmp_path / "hf", "hf", *HEADS, *DECODER_HEADS)
    out, err = capsys.readouterr()
    assert "VideoMAEForPreTraining" in out
    assert "official pre-training" in out
    # transformers has 1e-5 there whatever the configuration says
    (warning,) = err.splitlines()
    assert warning.startswith("warning: decoder_norm_eps=1e-06, but transformers")
    assert sorted(os.listdir(tmp_path / "hf")) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    theirs, report = transformers.VideoMAEForPreTraining.from_pretrained(
        tmp_path / "hf", output_loading_info=True, **INPUT
    )
    assert not any(report.values()), report
    assert theirs.config.architectures == ["VideoMAEForPreTraining"]
    theirs.decoder.norm.eps = 1e-6  # what the warning is about; all other epsilons are in the file
    video, mask = random_inputs(SMALL)
    expected = pretraining_forward(v1_pretraining(SMALL), SMALL, video, mask)
    with torch.no_grad():
        found = theirs.eval()(video.transpose(1, 2), mask).logits
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["pre-training", "mean pooling", "first token"])
def test_there_and_back_changes_no_bit(kind, tmp_path, capsys):
    heads = HEADS
    if kind == "pre-training":
        state, heads = v1_pretraining(SMALL), HEADS + DECODER_HEADS
    else:
        state = v1_finetuned(SMALL, use_cls=kind == "first token")
    save_v1(tmp_path / "a.pth", state)
    convert(tmp_path / "a.pth", tmp_path / "hf", "hf", *heads)
    convert(tmp_path / "hf", tmp_path / "new" / "b.pth", "v1")
    assert f"warning: num_attention_heads={SMALL.heads} is not written" in capsys.readouterr().err
    again = torch.load(tmp_path / "new" / "b.pth", weights_only=True)["model"]
    assert_equal_tensors({n: t.numpy() for n, t in again.items()}, state)
    convert(tmp_path / "new" / "b.pth", tmp_path / "hf2", "hf", *heads)
    assert_equal_tensors(tensors_in(tmp_path / "hf2"), tensors_in(tmp_path / "hf"))
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("hf", "hf2")]
    assert configs[0] == configs[1]


def test_an_official_file_becomes_a_run_of_ours(pretrained_pth, tmp_path):
    convert(pretrained_pth, tmp_path / "run", "orbax", *HEADS, *DECODER_HEADS)
    model = vmae_jax.VideoMAEForPreTraining.from_pretrained(tmp_path / "run", **INPUT)
    found = dict(layouts.foreign_tensors(model.core, layouts.OFFICIAL_PRETRAINING))
    assert_equal_tensors(found, v1_pretraining(SMALL))
    convert(tmp_path / "run", tmp_path / "back.pth", "v1")
    again = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert_equal_tensors({n: t.numpy() for n, t in again.items()}, v1_pretraining(SMALL))


def test_a_file_of_mmaction2_becomes_a_classifier_of_transformers(tmp_path):
    state = mmaction2(SMALL)
    save_mmaction2(tmp_path / "mma.pth", state)
    convert(tmp_path / "mma.pth", tmp_path / "hf", "hf", *HEADS)
    theirs, report = transformers.VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True, **INPUT
    )
    assert not any(report.values()), report
    assert theirs.config.num_labels == SMALL.classes
    torch.testing.assert_close(theirs.classifier.weight.data, state["cls_head.fc_cls.weight"])
    first, _, value = state["backbone.blocks.1.attn.qkv.weight"].split(SMALL.width)
    attention = theirs.videomae.encoder.layer[1].attention.attention
    torch.testing.assert_close(attention.query.weight.data, first)
    torch.testing.assert_close(attention.value.weight.data, value)


def test_classes_keep_their_names(tmp_path, random_model):
    config = vmae_jax.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=2, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=8, id2label={0: "eating", 1: "running"},
    )  # fmt: skip
    model = random_model(vmae_jax.VideoMAEForVideoClassification, config)
    model.save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "run", "orbax")
    convert(tmp_path / "run", tmp_path / "b", "hf")
    assert_equal_tensors(tensors_in(tmp_path / "a"), tensors_in(tmp_path / "b"))
    files = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert files[0] == files[1]
    assert files[1]["id2label"] == {"0": "eating", "1": "running"}


def test_what_is_left_out_or_odd_is_noted(tmp_path, capsys):
    save_v1(tmp_path / "x.pth", v1_finetuned(SMALL), dtype=torch.float16)
    convert(tmp_path / "x.pth", tmp_path / "hf", "hf", *HEADS)
    assert "note: stored as float16, held as float32" in capsys.readouterr().err
    assert {t.dtype for t in tensors_in(tmp_path / "hf").values()} == {np.dtype("float32")}


def test_an_encoder_with_fc_norm_and_no_classifier_keeps_it(tmp_path, capsys):
    """As V2's repositories on the hub; transformers' classifier of 0 classes is the identity."""
    state = {n: t for n, t in v1_finetuned(SMALL).items() if not n.startswith("head.")}
    save_v1(tmp_path / "x.pth", state, prefix="model.")
    convert(tmp_path / "x.pth", tmp_path / "hf", "hf", *HEADS)
    assert "note:" not in capsys.readouterr().err
    theirs, report = transformers.VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True, **INPUT
    )
    assert not any(report.values()), report
    theirs.fc_norm.eps = 1e-6  # transformers has 1e-5 there whatever the configuration says
    identity = {"head.weight": torch.eye(SMALL.width), "head.bias": torch.zeros(SMALL.width)}
    video, _ = random_inputs(SMALL)
    with torch.no_grad():
        found = theirs.eval()(video.transpose(1, 2)).logits
    expected = finetuned_forward(state | identity, SMALL, video)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)
    convert(tmp_path / "hf", tmp_path / "back.pth", "v1")
    again = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert_equal_tensors({n: t.numpy() for n, t in again.items()}, state)


# Errors


@pytest.mark.parametrize("target", ["hf", "v1", "orbax"])
@pytest.mark.parametrize("source", ["absent", "damaged", "does not fit", "without heads"])
def test_a_source_that_cannot_be_used_is_one_line_and_nothing_is_written(
    source, target, tmp_path, capsys
):
    path, said = tmp_path / "x.pth", "x.pth"
    state = v1_finetuned(SMALL)
    heads = HEADS
    if source == "does not fit":
        del state["blocks.1.norm1.bias"]
        said = "missing: blocks.1.norm1.bias"
    elif source == "without heads":
        heads, said = [], "give num_attention_heads="
    if source != "absent":
        save_v1(path, state)
    if source == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    before = os.listdir(tmp_path)
    convert(path, tmp_path / "new" / "there", target, *heads, code=1)
    assert said in one_line_error(capsys)
    assert os.listdir(tmp_path) == before


def test_both_numbers_of_heads_are_asked_for(pretrained_pth, tmp_path, capsys):
    convert(pretrained_pth, tmp_path / "hf", "hf", *HEADS, code=1)
    assert "give decoder_num_attention_heads=" in one_line_error(capsys)
    convert(pretrained_pth, tmp_path / "hf", "hf", "--num-attention-heads", "7", code=1)
    error = one_line_error(capsys)
    assert "decoder_num_attention_heads" in error
    convert(
        pretrained_pth, tmp_path / "hf", "hf", "--num-attention-heads", "7", *DECODER_HEADS, code=1
    )
    assert "hidden_size=48 is not a multiple of num_attention_heads=7" in one_line_error(capsys)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("hf", "is a file; a Hugging Face checkpoint is a folder"),
        ("v1", "is a folder or a device, not a file; name the .pth file to write"),
        ("orbax", "there"),
    ],
)
def test_a_destination_of_the_wrong_kind_is_left_as_it_is(target, said, tmp_path, capsys):
    save_v1(tmp_path / "x.pth", v1_finetuned(SMALL))
    there = tmp_path / "there"
    if target == "v1":
        there.mkdir()
    else:
        there.write_bytes(b"mine")
    convert(tmp_path / "x.pth", there, target, *HEADS, code=1)
    error = one_line_error(capsys)
    assert str(there) in error
    assert said in error
    assert os.listdir(there) == [] if target == "v1" else there.read_bytes() == b"mine"


def test_a_device_is_not_replaced_by_a_file(pretrained_pth, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    convert(pretrained_pth, tmp_path / "pipe", "v1", *HEADS, *DECODER_HEADS, code=1)
    assert "a folder or a device, not a file" in one_line_error(capsys)
    assert (tmp_path / "pipe").is_fifo()


def test_a_run_is_not_written_into_another(tmp_path, capsys):
    save_v1(tmp_path / "x.pth", v1_finetuned(SMALL))
    convert(tmp_path / "x.pth", tmp_path / "run", "orbax", *HEADS)
    capsys.readouterr()
    convert(tmp_path / "x.pth", tmp_path / "run", "orbax", *HEADS, code=1)
    assert "holds a checkpoint already; give another folder" in one_line_error(capsys)


@pytest.mark.parametrize(
    "arguments",
    [["a", "b"], ["a", "b", "--to", "v2"], ["a", "--to", "hf"], ["a", "b", "--to", "hf", "--x"]],
)
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", *arguments])
    assert ended.value.code == 2
    assert "usage: python -m vmae_jax convert" in capsys.readouterr().err


def test_the_help_names_the_targets(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", "--help"])
    assert ended.value.code == 0
    assert "{hf,v1,orbax}" in capsys.readouterr().out


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    from vmae_jax.commands import convert as command

    def fail(args):
        raise AssertionError("a bug")

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(AssertionError, match="a bug"):
        main(["convert", "a", "b", "--to", "hf"])
