"""The PyTorch statement of the official models that other tests trust, held against transformers.

Expected outputs come from transformers' classes, all epsilons set to ours, after a renaming that is
written here from the published tables of names; counts of parameters from published model sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import re

import numpy as np
import published_layouts
import pytest
from published_layouts import SMALL, V2_SMALL, S

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPES = pytest.mark.parametrize("shape", [SMALL, V2_SMALL], ids=["V1", "V2"])
# The second shows each LayerNorm's epsilon; next to activations of size 1, 1e-6 does not.
EPSILONS = pytest.mark.parametrize("eps", [1e-6, 0.1])

# Beginnings of V1's names -> those of transformers; fine-tuned files lack the "encoder."
V1_TO_TRANSFORMERS = {
    r"(encoder\.)?patch_embed\.proj\.": "videomae.embeddings.patch_embeddings.projection.",
    r"(encoder\.)?norm\.": "videomae.layernorm.",
    r"head\.": "classifier.",
    r"decoder\.blocks\.(\d+)\.": r"decoder.decoder_layers.\1.",
    r"(?:encoder\.)?blocks\.(\d+)\.": r"videomae.encoder.layer.\1.",
}
IN_BLOCK = {
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
    "attn.proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}


def as_transformers(state):
    """The same parameters under the names of transformers' classes."""
    renamed = {}
    for name, value in state.items():
        for ours, theirs in V1_TO_TRANSFORMERS.items():
            name, matches = re.subn(f"^{ours}", theirs, name)
            if matches:
                break
        if name.endswith("attn.qkv.weight"):
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = rows
            continue
        for ours, theirs in IN_BLOCK.items():
            name = name.replace(f".{ours}", f".{theirs}")
        renamed[name] = value
    return renamed


def transformers_model(class_name, shape, state, eps, **changes):
    config = transformers.VideoMAEConfig(
        image_size=shape.image,
        patch_size=shape.patch,
        num_frames=shape.frames,
        tubelet_size=2,
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp,
        decoder_hidden_size=shape.decoder_width,
        decoder_num_hidden_layers=shape.decoder_depth,
        decoder_num_attention_heads=shape.decoder_heads,
        decoder_intermediate_size=shape.decoder_mlp,
        num_labels=shape.classes,
        attn_implementation="eager",
        **changes,
    )
    model = getattr(transformers, class_name)(config).eval()
    model.load_state_dict(as_transformers(state), strict=True)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps
    return model


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=1e-5)


@EPSILONS
@SHAPES
def test_pretraining_model_predicts_as_that_of_transformers(shape, eps, monkeypatch):
    monkeypatch.setattr(published_layouts, "EPS", eps)
    state = published_layouts.v1_pretraining(shape, seed=1)
    video, mask = published_layouts.random_inputs(shape, seed=2)
    theirs = transformers_model("VideoMAEForPreTraining", shape, state, eps, use_mean_pooling=False)
    with torch.no_grad():
        expected = theirs(video.transpose(1, 2), mask).logits
    predictions = published_layouts.pretraining_forward(state, shape, video, mask)
    assert predictions.shape == (2, int(0.7 * shape.tokens), shape.values)
    assert_close(predictions, expected)


@pytest.mark.parametrize("use_cls", [False, True])
@EPSILONS
@SHAPES
def test_finetuned_model_classifies_as_that_of_transformers(shape, eps, use_cls, monkeypatch):
    monkeypatch.setattr(published_layouts, "EPS", eps)
    state = published_layouts.v1_finetuned(shape, seed=1, use_cls=use_cls)
    video, _ = published_layouts.random_inputs(shape, seed=2)
    theirs = transformers_model(
        "VideoMAEForVideoClassification", shape, state, eps, use_mean_pooling=not use_cls
    )
    with torch.no_grad():
        expected = theirs(video.transpose(1, 2)).logits
    assert_close(published_layouts.finetuned_forward(state, shape, video), expected)


def test_every_layer_norm_has_the_epsilon_of_the_originals():
    assert published_layouts.EPS == 1e-6


def test_mmaction2_is_v1_under_other_names():
    # renamed here the other way round, from the published table of MMAction2's names
    table = {
        "backbone.patch_embed.projection.": "patch_embed.proj.",
        "mlp.layers.0.0.": "mlp.fc1.",
        "mlp.layers.1.": "mlp.fc2.",
        "cls_head.fc_cls.": "head.",
        "backbone.": "",
    }
    state = published_layouts.mmaction2(SMALL, seed=1)
    video, _ = published_layouts.random_inputs(SMALL, seed=2)
    logits = published_layouts.mmaction2_forward(state, SMALL, video)
    renamed = {}
    for name, value in state.items():
        for theirs, v1 in table.items():
            name = name.replace(theirs, v1)
        renamed[name] = value
    del renamed["pos_embed"]
    assert set(renamed) == set(published_layouts.v1_finetuned(SMALL))
    assert_close(logits, published_layouts.finetuned_forward(renamed, SMALL, video))


def test_stored_table_of_mmaction2_is_one_unit_in_the_last_place_off():
    stored = published_layouts.mmaction2(SMALL)["backbone.pos_embed"].numpy()
    table = published_layouts.sincos_table(SMALL.tokens, SMALL.width).numpy()
    assert stored.shape == (1, SMALL.tokens, SMALL.width)
    assert (stored[0] != table).sum() == 1
    np.testing.assert_array_max_ulp(stored[0], table, maxulp=1)


def test_position_table_has_the_values_of_the_original():
    # row 1 and the sum, recorded from the original's function
    table = published_layouts.sincos_table(1568, 384)
    expected = [0.8414710, 0.5403023, 0.8152506, 0.5791082]
    np.testing.assert_allclose(table[1, :4].numpy(), expected, atol=1e-7)
    assert table.double().sum().item() == pytest.approx(122425.858, abs=1e-3)


def test_vit_s_has_the_published_numbers_of_parameters():
    pretraining = published_layouts.v1_pretraining(S)
    assert len(pretraining) == 10 + 13 * (12 + 4)
    assert sum(x.numel() for x in pretraining.values()) == 24_029_376
    finetuned = published_layouts.v1_finetuned(S)
    assert sum(x.numel() for x in finetuned.values()) == 22_033_936
    full_clip = dataclasses.replace(S, frames=16, image=224)
    assert published_layouts.mmaction2(full_clip)["backbone.pos_embed"].shape == (1, 1568, 384)


@pytest.mark.parametrize("shape", [SMALL, V2_SMALL, S], ids=["V1", "V2", "S"])
def test_random_masks_hide_as_many_tokens_in_each_row_but_not_the_same(shape):
    video, mask = published_layouts.random_inputs(shape, batch=3)
    assert video.shape == (3, 3, shape.frames, shape.image, shape.image)
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [int(0.7 * shape.tokens)] * 3
    assert not torch.equal(mask[0], mask[1])


def test_states_follow_their_seed():
    one, same, other = (published_layouts.v1_pretraining(SMALL, seed) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert all(x.dtype == torch.float32 and x.std() > 0.1 * x.abs().max() for x in one.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "backbone.", "model."])
@pytest.mark.parametrize("wrapping", ["model", "module", "bare"])
def test_v1_files_hold_the_parameters_where_asked(wrapping, prefix, dtype, tmp_path):
    state = published_layouts.v1_finetuned(V2_SMALL)
    published_layouts.save_v1(tmp_path / "a.pth", state, wrapping, prefix=prefix, dtype=dtype)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    if wrapping != "bare":
        assert set(content) == {wrapping}
        content = content[wrapping]
    assert list(content) == [prefix + name for name in state]
    for name, value in state.items():
        assert content[prefix + name].dtype == dtype
        assert torch.equal(content[prefix + name], value.to(dtype))


def test_training_file_holds_what_a_run_saves(tmp_path):
    state = published_layouts.v1_pretraining(V2_SMALL)
    published_layouts.save_v1(tmp_path / "a.pth", state, training=True)
    content = torch.load(tmp_path / "a.pth", weights_only=False)
    assert set(content) == {"model", "optimizer", "epoch", "scaler", "args", "model_ema"}
    assert isinstance(content["args"], argparse.Namespace)
    assert {"scale", "growth_factor", "_growth_tracker"} <= set(content["scaler"])
    moments = content["optimizer"]["state"]
    for moment, value in zip(moments.values(), list(state.values())[:4], strict=True):
        assert moment["exp_avg"].shape == moment["exp_avg_sq"].shape == value.shape
    for name, value in state.items():
        assert torch.equal(content["model"][name], value)
        assert not torch.isclose(content["model_ema"][name], value).any()


def test_deepspeed_file_holds_its_module_and_counters(tmp_path):
    state = published_layouts.v1_finetuned(V2_SMALL)
    published_layouts.save_v1(tmp_path / "a.pt", state, "module", training=True)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert {"module", "epoch", "global_steps", "model_ema"} <= set(content)
    assert "model" not in content
    assert list(content["module"]) == list(state)


def test_impossible_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="wrapping='state_dict'"):
        published_layouts.save_v1(tmp_path / "a.pth", {}, "state_dict")
    with pytest.raises(ValueError, match="bare"):
        published_layouts.save_v1(tmp_path / "a.pth", {}, "bare", training=True)
    assert not list(tmp_path.iterdir())


def test_mmaction2_file_holds_its_state_under_state_dict(tmp_path):
    state = published_layouts.mmaction2(V2_SMALL)
    published_layouts.save_mmaction2(tmp_path / "a.pth", state)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert set(content) == {"state_dict", "meta", "message_hub"}
    assert list(content["state_dict"]) == list(state)
    assert all(torch.equal(content["state_dict"][name], state[name]) for name in state)
