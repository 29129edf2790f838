"""Checkpoints that cannot be used, or only with a word: one error, and never half a model.

Each message is to name the file, the tensor where there is one, what is wrong, and what to do.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from published_layouts import (
    SMALL,
    mmaction2,
    save_mmaction2,
    save_v1,
    v1_finetuned,
    v1_pretraining,
)

import vmae_jax
from vmae_jax.weights import hub, layouts
from vmae_jax.weights.torch_file import Storage

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("hasty_compiler")

MODEL = vmae_jax.VideoMAEModel
PRETRAINING = vmae_jax.VideoMAEForPreTraining
CLASSIFIER = vmae_jax.VideoMAEForVideoClassification
INPUT = {"num_frames": SMALL.frames, "image_size": SMALL.image, "num_attention_heads": SMALL.heads}
DECODER = {"decoder_num_attention_heads": SMALL.decoder_heads}


@pytest.fixture(autouse=True)
def filled_models(monkeypatch):
    """Of which parameters were set: none where a checkpoint is refused."""
    filled = []
    set_parameters = layouts.set_parameters

    def record(core, values):
        filled.append(core)
        set_parameters(core, values)

    monkeypatch.setattr(layouts, "set_parameters", record)
    return filled


def refusal(cls, path, error=ValueError, **options):
    """The message of the one error that loading a file is."""
    with pytest.raises(error) as caught:
        cls.from_pretrained(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refuse_state(cls, tmp_path, state, **options):
    """The same for a .pth with that state, and that the file is named."""
    torch.save({"model": state}, tmp_path / "x.pth")  # each tensor in its dtype
    message = refusal(cls, tmp_path / "x.pth", **{**INPUT, **options})
    assert "x.pth" in message
    return message


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("notes.txt", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (zipped("some text"), "zip"),
        (b"<!DOCTYPE html><html>404</html>", "HTML.*get the file again"),
        (b"this is a note\n", "is text that begins with 'this is a note.*get the checkpoint"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "git-lfs pointer.*git lfs pull",
        ),
        (b"\x00" * 64, "."),
    ],
    ids=["empty", "zipped text", "HTML", "text", "LFS pointer", "zeros"],
)
def test_what_is_no_pth_is_said_to_be_what_it_is(content, message, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.pth'.*{message}"):
        MODEL.from_pretrained(tmp_path / "x.pth")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_truncated_pth_is_damaged(share, tmp_path):
    save_v1(tmp_path / "x.pth", v1_finetuned(SMALL))
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: int(share * len(content))])
    assert "x.pth" in refusal(CLASSIFIER, tmp_path / "x.pth", **INPUT)


def test_a_flipped_bit_in_a_pth_is_noticed_and_its_tensor_named(tmp_path, filled_models):
    state = v1_finetuned(SMALL)
    save_v1(tmp_path / "x.pth", state)
    content = bytearray((tmp_path / "x.pth").read_bytes())
    at = content.index(state["blocks.2.mlp.fc2.weight"].numpy().tobytes())
    content[at + 5] ^= 1
    (tmp_path / "x.pth").write_bytes(content)
    message = refusal(CLASSIFIER, tmp_path / "x.pth", **INPUT)
    assert "x.pth" in message
    assert "checksum" in message
    assert not filled_models


@pytest.mark.parametrize("saved", [[1, 2], {"epoch": 3}, {"model": {}}, {"model": {"a": 1}}])
def test_a_pth_without_a_state_dict_is_refused(saved, tmp_path):
    torch.save(saved, tmp_path / "x.pth")
    message = refusal(MODEL, tmp_path / "x.pth")
    assert "x.pth" in message
    assert "no state dict" in message
    assert "model.state_dict()" in message


def test_another_model_is_of_no_known_layout(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, tmp_path / "x.pth")
    message = refusal(MODEL, tmp_path / "x.pth")
    assert "conv1.weight, fc.bias" in message
    for layout in layouts.LAYOUTS:
        assert layout.name in message


# Paths


def test_a_path_that_is_not_there_is_not_found(tmp_path):
    assert "nowhere" in refusal(MODEL, tmp_path / "nowhere", FileNotFoundError)


@pytest.mark.parametrize("name", ["x.pth", "runs/x.safetensors"])
def test_a_missing_weight_file_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download_checkpoint", None)
    assert "does not exist here" in refusal(MODEL, name, FileNotFoundError)


def test_a_revision_of_a_local_path_is_refused(tmp_path):
    save_v1(tmp_path / "x.pth", v1_finetuned(SMALL))
    message = refusal(MODEL, tmp_path / "x.pth", revision="main", **INPUT)
    assert "revision='main'" in message
    assert "leave it out" in message


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "folder"])
def test_a_link_that_leads_nowhere_is_named(name, tmp_path):
    os.symlink(tmp_path / "gone", tmp_path / name)
    message = refusal(MODEL, tmp_path / name)
    assert name in message
    assert "link" in message


def test_an_empty_folder_holds_no_weights(tmp_path):
    (tmp_path / "empty").mkdir()
    message = refusal(MODEL, tmp_path / "empty", FileNotFoundError)
    assert "empty" in message
    assert "model.safetensors" in message


# Folders of Hugging Face

CONFIG = vmae_jax.VideoMAEConfig(
    image_size=SMALL.image,
    patch_size=SMALL.patch,
    num_frames=SMALL.frames,
    hidden_size=SMALL.width,
    num_hidden_layers=SMALL.depth,
    num_attention_heads=SMALL.heads,
    intermediate_size=SMALL.mlp,
    decoder_hidden_size=SMALL.decoder_width,
    decoder_num_hidden_layers=SMALL.decoder_depth,
    decoder_num_attention_heads=SMALL.decoder_heads,
    decoder_intermediate_size=SMALL.decoder_mlp,
    num_labels=SMALL.classes,
)


@pytest.fixture
def folder(random_model, tmp_path, filled_models):
    """(class, **options of save_pretrained) -> a folder of Hugging Face's."""

    def make(cls=CLASSIFIER, **options):
        config = CONFIG.replace(use_mean_pooling=cls is CLASSIFIER)
        random_model(cls, config).save_pretrained(tmp_path / "hf", **options)
        filled_models.clear()
        return tmp_path / "hf"

    return make


def change_config(folder, **changes):
    """Changes values; ... takes a key away."""
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in values.items() if v is not ...})
    )


def change_tensors(folder, change):
    """change: tensors by name -> the same, changed."""
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(path)), path)


def test_a_folder_without_config_json_is_refused(folder):
    path = folder()
    (path / "config.json").unlink()
    message = refusal(CLASSIFIER, path, FileNotFoundError)
    assert "config.json': does not exist" in message
    assert "number of heads" in message


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-1], "bytes|outside"),
        (lambda content: content + b"\0", "byte"),
        (lambda content: b"\xff" * 8 + content[8:], "header"),
        (lambda content: content.replace(b'"F32"', b'"F99"', 1), "F99"),
    ],
    ids=["cut", "longer", "header of 2**64", "unknown dtype"],
)
def test_damaged_safetensors_are_refused_by_name(damage, said, folder):
    path = folder() / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"model\.safetensors'.*({said})"):
        CLASSIFIER.from_pretrained(path.parent)


def test_missing_shards_are_all_named(folder):
    path = folder(max_shard_size="50KB")
    shards = sorted(path.glob("model-*.safetensors"))
    assert len(shards) > 3
    for shard in shards[1:3]:
        shard.unlink()
    message = refusal(CLASSIFIER, path)
    assert "model.safetensors.index.json" in message
    assert all(shard.name in message for shard in shards[1:3])
    assert shards[0].name not in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 96}, r"projection\.weight \(48, 3, 2, 8, 8\) instead of \(96, 3, 2, 8, 8"),
        ({"num_hidden_layers": 2}, r"unexpected: videomae\.encoder\.layer\.2\.attention"),
        ({"num_hidden_layers": 4}, r"missing: videomae\.encoder\.layer\.3\.attention"),
        ({"patch_size": 12}, r"\(48, 3, 2, 8, 8\) instead of \(48, 3, 2, 12, 12\)"),
        ({"tubelet_size": 4}, r"\(48, 3, 2, 8, 8\) instead of \(48, 3, 4, 8, 8\)"),
        (
            {"qkv_bias": False},
            r"unexpected: videomae\.encoder\.layer\.0\.attention\.attention\.q_bias",
        ),
        (
            {"id2label": ..., "label2id": ..., "num_labels": 5},
            r"classifier\.weight \(7, 48\) instead of \(5, 48\).*ignore_mismatched_sizes=True",
        ),
        ({"use_mean_pooling": False}, r"missing: videomae\.layernorm\.bias.*use_mean_pooling"),
        ({"num_attention_heads": 5}, r"config\.json .*num_attention_heads=5"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_configuration_that_contradicts_its_weights_is_refused(
    changes, said, folder, filled_models
):
    path = folder()
    change_config(path, **changes)
    with pytest.raises(ValueError, match=said) as caught:
        CLASSIFIER.from_pretrained(path)
    assert "hf" in str(caught.value)
    # a remedy that is none is not offered
    assert ("ignore_mismatched_sizes" in str(caught.value)) == (
        bool({"num_labels", "use_mean_pooling"} & set(changes))
    )
    assert not filled_models


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 10**7, "num_attention_heads": 16}, r"instead of \(10000000, 3, 2, 8, 8\)"),
        ({"num_hidden_layers": 10**6}, r"missing: videomae\.encoder\.layer\.10\."),
        ({"intermediate_size": 10**12}, "intermediate_size=1000000000000 .*correct it"),
        ({"hidden_size": 2**62, "num_attention_heads": 16}, "hidden_size=4611686018427387904"),
        ({"patch_size": 10**9, "image_size": 10**9}, "1000000000, 1000000000"),
        ({"id2label": ..., "num_labels": 10**5}, r"instead of \(100000, 48\)"),
    ],
    ids=str,
)
def test_absurd_sizes_in_a_configuration_cost_no_memory(changes, said, folder):
    path = folder()
    change_config(path, **{"label2id": ..., **changes})
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said):
            CLASSIFIER.from_pretrained(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20  # the names of 10**6 layers alone would take some GB


# What does not fit


@pytest.mark.parametrize("kind", ["V1", "MMAction2", "Hugging Face", "encoder of V1"])
def test_a_file_without_decoder_is_no_pretraining_checkpoint(kind, folder, tmp_path):
    path, options = tmp_path / "x.pth", {**INPUT, **DECODER}
    if kind == "V1":
        save_v1(path, v1_finetuned(SMALL))
    elif kind == "MMAction2":
        save_mmaction2(path, mmaction2(SMALL))
    elif kind == "Hugging Face":
        path, options = folder(), {}
    else:
        state = v1_pretraining(SMALL)
        save_v1(path, {n: t for n, t in state.items() if n.startswith("encoder.")})
    message = refusal(PRETRAINING, path, **options)
    assert "no decoder" in message
    assert "VideoMAEForVideoClassification" in message


def test_a_decoder_with_a_tensor_missing_is_not_said_to_be_absent(tmp_path):
    state = v1_pretraining(SMALL)
    del state["mask_token"]
    message = refuse_state(PRETRAINING, tmp_path, state, **DECODER)
    assert "missing: mask_token" in message
    assert "no decoder" not in message


def test_a_file_of_v2_does_not_load_as_v1(tmp_path):
    """V2's L has V1's encoder; its decoder is 4 deep instead of 12."""
    shape = dataclasses.replace(SMALL, decoder_depth=1)
    save_v1(tmp_path / "x.pth", v1_pretraining(shape))
    message = refusal(
        PRETRAINING, tmp_path / "x.pth", config=CONFIG.replace(use_mean_pooling=False)
    )
    assert "x.pth" in message
    assert "missing: decoder.blocks.1.attn.proj.bias" in message
    assert "unexpected" not in message
    shape = dataclasses.replace(SMALL, mlp=100)  # as V2's giant, whose MLP is not 4 times as wide
    save_v1(tmp_path / "x.pth", v1_pretraining(shape))
    message = refusal(
        PRETRAINING, tmp_path / "x.pth", config=CONFIG.replace(use_mean_pooling=False)
    )
    assert "encoder.blocks.0.mlp.fc1.weight (100, 48) instead of (104, 48)" in message


def test_another_number_of_classes_needs_a_word(tmp_path, caplog):
    state = v1_finetuned(SMALL)
    message = refuse_state(CLASSIFIER, tmp_path, state, num_labels=2)
    assert "head.weight (7, 48) instead of (2, 48)" in message
    assert "head.bias (7,) instead of (2,)" in message
    assert "ignore_mismatched_sizes=True" in message
    with caplog.at_level(logging.WARNING, "vmae_jax"):
        model = CLASSIFIER.from_pretrained(
            tmp_path / "x.pth", num_labels=2, ignore_mismatched_sizes=True, **INPUT
        )
    (record,) = caplog.records
    assert "head.weight (7, 48) instead of (2, 48)" in record.getMessage()
    assert "started classifier fresh" in record.getMessage()
    assert layouts.parameters(model.core)["classifier/kernel"].shape == (SMALL.width, 2)


def test_mismatched_sizes_elsewhere_are_never_ignored(tmp_path):
    state = v1_finetuned(SMALL)
    state["blocks.1.norm1.weight"] = torch.ones(47)
    message = refuse_state(CLASSIFIER, tmp_path, state, ignore_mismatched_sizes=True)
    assert "blocks.1.norm1.weight (47,) instead of (48,)" in message


FOREIGN = {
    "layer scale": ("encoder.blocks.0.gamma_1", (48,), "layer scale"),
    "cosine attention": ("encoder.blocks.1.attn.scale", (3, 1, 1), "cosine attention"),
    "position table": ("encoder.pos_embed", (1, 19, 48), "learned position table"),
    "detection head": ("roi_head.fc.weight", (3, 3), "detection head"),
    "absurd layer": ("encoder.blocks.999999999.norm1.weight", (48,), ""),
    "unknown": ("encoder.pooler.weight", (3, 3), ""),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_parts_of_related_models_are_named(kind, tmp_path):
    name, shape, said = FOREIGN[kind]
    state = v1_pretraining(SMALL) | {name: torch.ones(shape)}
    message = refuse_state(PRETRAINING, tmp_path, state, **DECODER)
    assert f"unexpected: {name}" in message
    assert said in message


def test_a_gap_in_the_layers_is_named(tmp_path):
    state = v1_pretraining(dataclasses.replace(SMALL, depth=5))
    state = {n: t for n, t in state.items() if not n.startswith("encoder.blocks.3.")}
    message = refuse_state(PRETRAINING, tmp_path, state, **DECODER)
    assert "missing: encoder.blocks.3.attn.proj.bias" in message
    assert "Get the file again" in message
    assert "unexpected: encoder.blocks.4.attn.proj.bias" in message


@pytest.mark.parametrize("lost", ["encoder.blocks.0.mlp.fc1.weight", "encoder_to_decoder.weight"])
def test_a_missing_tensor_that_sizes_are_told_by_is_named(lost, tmp_path):
    state = v1_pretraining(SMALL)
    del state[lost]
    message = refuse_state(PRETRAINING, tmp_path, state, **DECODER)
    assert lost in message
    assert "missing" in message


@pytest.mark.parametrize("shape", [(48,), (), (48, 3, 2, 8, 7)])
def test_a_patch_embedding_of_no_model_is_refused(shape, tmp_path):
    state = v1_finetuned(SMALL) | {"patch_embed.proj.weight": torch.ones(shape)}
    message = refuse_state(MODEL, tmp_path, state)
    assert "patch_embed.proj.weight" in message or "8 x 7" in message


def test_one_tensor_under_two_prefixes_is_refused(tmp_path):
    state = v1_finetuned(SMALL)
    state["module.fc_norm.bias"] = state["fc_norm.bias"] + 1
    message = refuse_state(CLASSIFIER, tmp_path, state)
    assert "'module.fc_norm.bias'" in message
    assert "fc_norm.bias, which is there as well" in message


@pytest.mark.parametrize("value", [0.0, 0.5, float("nan")])
def test_key_biases_of_hugging_face_must_be_zero(value, folder):
    path = folder()
    name = "videomae.encoder.layer.1.attention.attention.key.bias"
    change_tensors(path, lambda tensors: tensors | {name: np.full(48, value, np.float32)})
    if value == 0:
        CLASSIFIER.from_pretrained(path)
    else:
        message = refusal(CLASSIFIER, path)
        assert name in message
        assert "is not zero" in message


@pytest.mark.parametrize("value", [0.0, -1e-6])
def test_key_biases_of_official_files_must_be_zero(value, tmp_path):
    name = "blocks.2.attn.k_bias"
    state = v1_finetuned(SMALL) | {name: torch.full((48,), value)}
    if value == 0:
        save_v1(tmp_path / "x.pth", state)
        CLASSIFIER.from_pretrained(tmp_path / "x.pth", **INPUT)
    else:
        message = refuse_state(CLASSIFIER, tmp_path, state)
        assert f"{name} is not zero" in message


@pytest.mark.parametrize("change", ["1e-5 off", "learned", "other axes", "NaN"])
def test_a_position_table_of_mmaction2_beyond_rounding_is_refused(change, tmp_path):
    state = mmaction2(SMALL)
    table = state["backbone.pos_embed"]
    if change == "1e-5 off":
        table[0, 3, 5] += 1e-5
    elif change == "learned":
        table.normal_()
    elif change == "NaN":
        table[0, 0, 0] = float("nan")
    else:
        state["backbone.pos_embed"] = table[0]
    save_mmaction2(tmp_path / "x.pth", state)
    message = refusal(CLASSIFIER, tmp_path / "x.pth", **INPUT)
    assert "x.pth" in message
    assert "'pos_embed'" in message
    assert "1e-6" in message


def test_a_detector_of_mmaction2_is_refused(tmp_path):
    state = {n: t for n, t in mmaction2(SMALL).items() if "cls_head" not in n}
    state["roi_head.bbox_head.fc_cls.weight"] = torch.ones(81, 48)
    save_mmaction2(tmp_path / "x.pth", state)
    message = refusal(MODEL, tmp_path / "x.pth", **INPUT)
    assert "unexpected: roi_head.bbox_head.fc_cls.weight" in message
    assert "detection head" in message


# Values


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_load_and_are_named_in_the_log(value, tmp_path, caplog):
    state = v1_finetuned(SMALL)
    state["blocks.1.norm2.bias"][3] = value
    save_v1(tmp_path / "x.pth", state)
    with caplog.at_level(logging.WARNING, "vmae_jax"):
        model = CLASSIFIER.from_pretrained(tmp_path / "x.pth", **INPUT)
    (record,) = caplog.records
    assert "x.pth" in record.getMessage()
    assert "NaN or infinite values in 1 tensors: blocks.1.norm2.bias;" in record.getMessage()
    found = layouts.parameters(model.core)["encoder/layernorm_after/bias"][1]
    np.testing.assert_array_equal(found, state["blocks.1.norm2.bias"])


def test_weights_beyond_fp16_are_refused_as_fp16(tmp_path, filled_models):
    state = v1_finetuned(SMALL)
    state["blocks.1.mlp.fc1.weight"][3, 5] = 70_000
    message = refuse_state(CLASSIFIER, tmp_path, state, param_dtype="float16")
    assert "blocks.1.mlp.fc1.weight holds 70000" in message
    assert "param_dtype=float16" in message
    assert "bfloat16" in message
    assert not filled_models
    CLASSIFIER.from_pretrained(tmp_path / "x.pth", param_dtype="bfloat16", **INPUT)


def test_float64_beyond_fp32_is_refused(tmp_path):
    state = v1_finetuned(SMALL)
    state["head.bias"] = state["head.bias"].double()
    state["head.bias"][1] = -1e39
    assert "head.bias holds -1e+39" in refuse_state(CLASSIFIER, tmp_path, state)


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", "float8_e4m3fn"])
def test_weights_that_are_no_floats_are_refused_before_any_is_read(dtype, tmp_path, monkeypatch):
    state = v1_finetuned(SMALL)
    state["blocks.1.mlp.fc1.bias"] = torch.ones(104).to(getattr(torch, dtype))
    monkeypatch.setattr(Storage, "_read_view", None)
    message = refuse_state(CLASSIFIER, tmp_path, state)
    assert f"blocks.1.mlp.fc1.bias {dtype}" in message
    assert "none of float64, float32, float16, bfloat16" in message


def test_integers_in_a_part_that_is_dropped_do_no_harm(tmp_path):
    state = v1_finetuned(SMALL) | {"head.bias": torch.arange(7)}
    torch.save({"model": state}, tmp_path / "x.pth")
    model = MODEL.from_pretrained(tmp_path / "x.pth", **INPUT)
    torch.save({"model": v1_finetuned(SMALL)}, tmp_path / "floats.pth")
    floats = MODEL.from_pretrained(tmp_path / "floats.pth", **INPUT)
    for found, expected in zip(*map(jax.tree.leaves, map(nnx.state, (model, floats))), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_integers_in_safetensors_are_refused(folder):
    path = folder()
    change_tensors(path, lambda t: t | {"classifier.bias": np.arange(7, dtype=np.int32)})
    assert "classifier.bias int32" in refusal(CLASSIFIER, path)
