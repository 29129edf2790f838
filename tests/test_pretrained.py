"""Every published layout, from a file built in that exact form to outputs.

The forwards to compare with are PyTorch's: transformers for its own layout, and for the official
and MMAction2 files those of `published_layouts`, which are checked against transformers.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import textwrap
import warnings

import jax
import numpy as np
import pytest
import safetensors.torch
from flax import nnx
from published_layouts import (
    SMALL,
    V2_SMALL,
    S,
    finetuned_forward,
    mmaction2,
    mmaction2_forward,
    pretraining_forward,
    random_inputs,
    save_mmaction2,
    save_v1,
    sincos_table,
    v1_finetuned,
    v1_pretraining,
)

import vmae_jax
from vmae_jax.weights import export, layouts
from vmae_jax.weights.stored import open_checkpoint, recognise
from vmae_jax.weights.tensors import Tensor

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("hasty_compiler")

SHAPES = pytest.mark.parametrize("shape", [SMALL, V2_SMALL, S], ids=["small", "V2 small", "S"])
PRETRAINING = vmae_jax.VideoMAEForPreTraining
CLASSIFIER = vmae_jax.VideoMAEForVideoClassification


def input_options(shape):
    """What no official file tells: its input, and heads of a width that nobody published."""
    options = {"num_frames": shape.frames, "image_size": shape.image}
    if shape is not S:
        options["num_attention_heads"] = shape.heads
    return options


def decoder_options(shape):
    return {} if shape is S else {"decoder_num_attention_heads": shape.decoder_heads}


def pixels(video):
    """The official code has (B, C, T, H, W), Hugging Face (B, T, C, H, W)."""
    return video.transpose(1, 2).numpy()


def stored_values(model, layout):
    return dict(layouts.foreign_tensors(model.core, layout))


def assert_equal_tensors(ours, theirs):
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name].numpy(), err_msg=name)


@pytest.mark.parametrize(
    "saving",
    [
        {},
        {"training": True},
        {"wrapping": "module", "training": True},
        {"wrapping": "bare"},
        {"prefix": "module."},
        {"prefix": "_orig_mod."},
        {"prefix": "model."},
        {"prefix": "backbone."},
    ],
    ids=str,
)
@SHAPES
def test_official_pretraining_files_give_the_official_predictions(shape, saving, tmp_path):
    state = v1_pretraining(shape)
    save_v1(tmp_path / "checkpoint.pth", state, **saving)
    options = {**input_options(shape), **decoder_options(shape)}
    model = PRETRAINING.from_pretrained(tmp_path / "checkpoint.pth", **options)
    # every tensor is taken, and none changed
    assert_equal_tensors(stored_values(model, layouts.OFFICIAL_PRETRAINING), state)
    if saving and shape is not SMALL:
        return  # the same parameters as without
    video, mask = random_inputs(shape)
    expected = pretraining_forward(state, shape, video, mask).numpy()
    np.testing.assert_allclose(model(pixels(video), mask.numpy()).logits, expected, atol=1e-4)


@pytest.mark.parametrize("use_cls", [False, True], ids=["mean pooling", "first token"])
@SHAPES
def test_official_fine_tuned_files_give_the_official_logits(shape, use_cls, tmp_path):
    state = v1_finetuned(shape, use_cls=use_cls)
    save_v1(tmp_path / "checkpoint.pth", state, training=True)
    model = CLASSIFIER.from_pretrained(tmp_path / "checkpoint.pth", **input_options(shape))
    assert model.config.num_labels == shape.classes
    assert model.config.use_mean_pooling is not use_cls
    assert_equal_tensors(stored_values(model, layouts.OFFICIAL_CLASSIFIER), state)
    video, _ = random_inputs(shape)
    expected = finetuned_forward(state, shape, video).numpy()
    np.testing.assert_allclose(model(pixels(video)).logits, expected, atol=1e-4)


@pytest.mark.parametrize("shape", [SMALL, S], ids=["small", "S"])
def test_mmaction2_files_give_its_logits(shape, tmp_path):
    state = mmaction2(shape)
    save_mmaction2(tmp_path / "checkpoint.pth", state)
    model = CLASSIFIER.from_pretrained(tmp_path / "checkpoint.pth", **input_options(shape))
    assert model.config.num_labels == shape.classes
    found = stored_values(model, layouts.MMACTION2)
    expected = {n.removeprefix("backbone."): t for n, t in state.items() if "pos_embed" not in n}
    assert_equal_tensors(found, expected)
    video, _ = random_inputs(shape)
    expected = mmaction2_forward(state, shape, video).numpy()
    np.testing.assert_allclose(model(pixels(video)).logits, expected, atol=1e-4)


def hugging_face_model(name, shape):
    config = transformers.VideoMAEConfig(
        image_size=shape.image,
        patch_size=shape.patch,
        num_frames=shape.frames,
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp,
        decoder_hidden_size=shape.decoder_width,
        decoder_num_hidden_layers=shape.decoder_depth,
        decoder_num_attention_heads=shape.decoder_heads,
        decoder_intermediate_size=shape.decoder_mlp,
        use_mean_pooling=name == "VideoMAEForVideoClassification",
        num_labels=shape.classes,
    )
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # also biases and norms, which start at 0 and 1
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("form", ["old", "new", "sharded", "bin", "sharded bin"])
@pytest.mark.parametrize("name", ["VideoMAEForPreTraining", "VideoMAEForVideoClassification"])
@pytest.mark.parametrize("shape", [SMALL, S], ids=["small", "S"])
def test_hugging_face_folders_give_its_outputs(name, form, shape, tmp_path):
    theirs = hugging_face_model(name, shape)
    renamed = {
        n.replace("attention.query.bias", "attention.q_bias").replace(
            "attention.value.bias", "attention.v_bias"
        ): tensor.clone()
        for n, tensor in theirs.state_dict().items()
    }
    if form == "new":  # the names of transformers 5 in memory, which some releases wrote
        theirs.save_pretrained(tmp_path)
        state = {n: tensor.contiguous() for n, tensor in theirs.state_dict().items()}
        safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    elif form in ("old", "sharded"):
        size = sum(t.numel() for t in renamed.values()) * 4
        theirs.save_pretrained(tmp_path, max_shard_size=size // 3 if form == "sharded" else "1GB")
        assert (tmp_path / "model.safetensors.index.json").exists() == (form == "sharded")
    else:  # transformers 4 wrote these, 5 does not any more
        theirs.config.save_pretrained(tmp_path)
        names = sorted(renamed)
        parts = [names[::2], names[1::2]] if form == "sharded bin" else [names]
        files = [
            f"pytorch_model-{n + 1:05}-of-00002.bin" if len(parts) > 1 else "pytorch_model.bin"
            for n in range(len(parts))
        ]
        for file, part in zip(files, parts, strict=True):
            torch.save({n: renamed[n] for n in part}, tmp_path / file)
        if len(parts) > 1:
            index = {n: file for file, part in zip(files, parts, strict=True) for n in part}
            text = json.dumps({"metadata": {}, "weight_map": index})
            (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    model = getattr(vmae_jax, name).from_pretrained(tmp_path)
    assert_equal_tensors(stored_values(model, layouts.HUGGING_FACE), renamed)
    video, mask = random_inputs(shape)
    masks = () if model._classifier else (mask,)
    with torch.no_grad():
        expected = theirs(video.transpose(1, 2), *masks).logits.numpy()
    ours = model(pixels(video), *(mask.numpy() for mask in masks)).logits
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["pretraining", "classifier", "first token", "encoder"])
@pytest.mark.parametrize("way", ["Hugging Face", "official", "run"])
def test_round_trips_change_no_bit(kind, way, random_model, tmp_path):
    config = vmae_jax.VideoMAEConfig.from_size(
        "S", num_hidden_layers=2, decoder_num_hidden_layers=1, image_size=32, num_frames=2,
        use_mean_pooling=kind == "classifier", num_labels=5,
    )  # fmt: skip
    cls = {"pretraining": PRETRAINING, "encoder": vmae_jax.VideoMAEModel}.get(kind, CLASSIFIER)
    model = random_model(cls, config)
    path = tmp_path / "there"
    if way == "Hugging Face":
        with warnings.catch_warnings():  # of epsilons that transformers has fixed
            warnings.simplefilter("ignore")
            model.save_pretrained(path)
    elif way == "official":
        path = tmp_path / "there.pth"
        export.save_official(model.core, path)
    else:
        export.save_run(model.core, path)
    options = {"image_size": 32, "num_frames": 2} if way == "official" else {}
    again = cls.from_pretrained(path, **options)
    if way != "official" or kind != "encoder":  # an encoder does not tell its decoder's sizes
        assert again.config == config.replace(extra=again.config.extra) or way == "official"
    before, after = (layouts.parameters(m.core) for m in (model, again))
    assert set(before) == set(after)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


PUBLISHED = {  # the scripts of VideoMAE and VideoMAE V2: width, depth, heads, mlp; decoder's; patch
    "S": (384, 12, 6, 1536, 192, 4, 3, 768, 16),
    "B": (768, 12, 12, 3072, 384, 4, 6, 1536, 16),
    "L": (1024, 24, 16, 4096, 512, 12, 8, 2048, 16),
    "H": (1280, 32, 16, 5120, 640, 12, 8, 2560, 16),
    "L of V2": (1024, 24, 16, 4096, 512, 4, 8, 2048, 16),
    "H of V2": (1280, 32, 16, 5120, 512, 4, 8, 2048, 16),
    "g": (1408, 40, 16, 6144, 512, 4, 8, 2234, 14),
}


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("kind", ["pretraining", "fine-tuned"])
def test_published_sizes_are_recognised_from_shapes(size, kind):
    width, depth, heads, mlp, d_width, d_depth, d_heads, d_mlp, patch = PUBLISHED[size]
    shape = dataclasses.replace(
        S, width=width, depth=depth, heads=heads, mlp=mlp, decoder_width=d_width,
        decoder_depth=d_depth, decoder_heads=d_heads, decoder_mlp=d_mlp, patch=patch, image=224,
        frames=16, classes=400,
    )  # fmt: skip
    with torch.device("meta"):  # shapes only
        build = v1_pretraining if kind == "pretraining" else v1_finetuned
        state = build(shape)
    tensors = {name: Tensor(tuple(tensor.shape), "float32", None) for name, tensor in state.items()}
    stored = recognise("x.pth", tensors)
    assert stored.unknown == ()
    expected = {
        "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads,
        "intermediate_size": mlp, "patch_size": patch, "tubelet_size": 2, "num_channels": 3,
        "image_size": 224, "num_frames": 16, "qkv_bias": True, "layer_norm_eps": 1e-6,
        "decoder_norm_eps": 1e-6, "fc_norm_eps": 1e-6, "norm_pix_loss": True,
        "use_mean_pooling": kind != "pretraining",
    }  # fmt: skip
    if kind == "pretraining":
        expected |= {
            "decoder_hidden_size": d_width, "decoder_num_hidden_layers": d_depth,
            "decoder_num_attention_heads": d_heads, "decoder_intermediate_size": d_mlp,
        }  # fmt: skip
    else:
        expected["num_labels"] = 400
    assert {name: getattr(stored.config, name) for name in expected} == expected


def test_heads_that_nothing_tells_must_be_given(tmp_path):
    save_v1(tmp_path / "x.pth", v1_pretraining(SMALL))
    options = {"num_frames": SMALL.frames, "image_size": SMALL.image}
    with pytest.raises(ValueError, match=r"num_attention_heads and decoder_num_attention_heads"):
        PRETRAINING.from_pretrained(tmp_path / "x.pth", **options)
    options["num_attention_heads"] = SMALL.heads
    with pytest.raises(ValueError, match=r"give decoder_num_attention_heads=\.\.\."):
        PRETRAINING.from_pretrained(tmp_path / "x.pth", **options)
    model = vmae_jax.VideoMAEModel.from_pretrained(tmp_path / "x.pth", **options)
    assert model.config.num_attention_heads == SMALL.heads


def test_fine_tuning_from_an_official_file_lists_what_became_of_it(tmp_path, caplog):
    state = v1_pretraining(SMALL)
    save_v1(tmp_path / "x.pth", state)
    with caplog.at_level(logging.WARNING, "vmae_jax.huggingface.models"):
        model = CLASSIFIER.from_pretrained(
            tmp_path / "x.pth", num_labels=5, rngs=nnx.Rngs(3), **input_options(SMALL)
        )
    (line,) = [r.getMessage() for r in caplog.records]
    assert "loaded embeddings, encoder;" in line
    assert (
        "dropped decoder, decoder_head, decoder_norm, encoder_to_decoder, layernorm, mask_token,"
        in line
    )
    assert "started classifier, fc_norm fresh" in line
    assert "position tables made for 4 x 24 x 24 (frames, height, width) instead of 16 x" in line
    assert model.config.use_mean_pooling
    found = stored_values(model, layouts.OFFICIAL_CLASSIFIER)
    for name, tensor in state.items():
        if name.startswith(("encoder.blocks", "encoder.patch_embed")):
            np.testing.assert_array_equal(found[name.removeprefix("encoder.")], tensor)
    # fresh parts are those of a fresh model: the norm the identity, the head as published
    np.testing.assert_array_equal(found["fc_norm.weight"], np.ones(SMALL.width))
    fresh = layouts.parameters(CLASSIFIER(model.config, rngs=nnx.Rngs(3)).core)
    ours = layouts.parameters(model.core)
    # drawn in a compiled program, which may round otherwise
    np.testing.assert_allclose(ours["classifier/kernel"], fresh["classifier/kernel"], rtol=1e-6)


def test_other_class_counts_need_a_word_and_start_fresh(tmp_path, caplog):
    save_v1(tmp_path / "x.pth", v1_finetuned(SMALL))
    load = CLASSIFIER.from_pretrained
    options = {**input_options(SMALL), "id2label": {0: "a", 1: "b"}}
    with pytest.raises(
        ValueError, match=rf"head\.weight \({SMALL.classes}, {SMALL.width}\) instead of \(2, .*"
        "ignore_mismatched_sizes=True",
    ):  # fmt: skip
        load(tmp_path / "x.pth", **options)
    with caplog.at_level(logging.WARNING, "vmae_jax.huggingface.models"):
        model = load(tmp_path / "x.pth", ignore_mismatched_sizes=True, **options)
    assert "started classifier fresh" in caplog.text
    assert model.config.id2label == {0: "a", 1: "b"}
    assert layouts.parameters(model.core)["classifier/kernel"].shape == (SMALL.width, 2)
    state = v1_finetuned(SMALL)
    found = stored_values(model, layouts.OFFICIAL_CLASSIFIER)
    np.testing.assert_array_equal(found["fc_norm.weight"], state["fc_norm.weight"])


@pytest.mark.parametrize(("frames", "size"), [(8, (24, 24)), (4, (40, 40)), (6, (16, 32))], ids=str)
def test_a_checkpoint_takes_other_frames_and_resolutions(frames, size, tmp_path, caplog):
    """The position table is rebuilt for the tokens that there are, as the official code does."""
    state = v1_finetuned(SMALL)
    save_v1(tmp_path / "x.pth", state)
    model = CLASSIFIER.from_pretrained(
        tmp_path / "x.pth", num_frames=frames, image_size=size, num_attention_heads=SMALL.heads
    )
    said = f"position tables made for {frames} x {size[0]} x {size[1]} (frames, height, width)"
    assert said in caplog.text
    height, width = size
    video = torch.randn(2, 3, frames, height, width, generator=torch.Generator().manual_seed(0))
    tokens = frames // 2 * (height // SMALL.patch) * (width // SMALL.patch)
    expected = finetuned_on_any_grid(state, video, tokens)
    np.testing.assert_allclose(model(pixels(video)).logits, expected, atol=1e-4)


def finetuned_on_any_grid(state, video, tokens):
    """`finetuned_forward` knows square frames only; its parts know any."""
    import published_layouts as official

    x = official._tokens(state, "patch_embed.proj", video) + sincos_table(tokens, SMALL.width)
    for i in range(SMALL.depth):
        x = official._block(state, f"blocks.{i}.", SMALL.heads, x)
    return official._linear(state, "head", official._norm(state, "fc_norm", x.mean(1))).numpy()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_pth_files_are_held_as_fp32_and_that_is_said(dtype, tmp_path, caplog):
    state = v1_finetuned(SMALL)
    save_v1(tmp_path / "x.pth", state, dtype=getattr(torch, dtype))
    model = CLASSIFIER.from_pretrained(tmp_path / "x.pth", **input_options(SMALL))
    assert f"stored as {dtype}, held as float32" in caplog.text
    rounded = {n: t.to(getattr(torch, dtype)).float() for n, t in state.items()}
    assert_equal_tensors(stored_values(model, layouts.OFFICIAL_CLASSIFIER), rounded)


def test_dtype_may_be_given_by_name(tmp_path):
    save_v1(tmp_path / "x.pth", v1_finetuned(SMALL))
    model = CLASSIFIER.from_pretrained(tmp_path / "x.pth", dtype="bfloat16", **input_options(SMALL))
    assert model.core.compute.dtype == jax.numpy.bfloat16


def test_a_small_hub_configuration_with_16_heads_is_obeyed_and_warned_of(tmp_path, caplog):
    """The hub's small models say 16 heads, their authors' code 6."""
    theirs = hugging_face_model("VideoMAEForVideoClassification", dataclasses.replace(S, heads=16))
    theirs.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = CLASSIFIER.from_pretrained(tmp_path)
    assert model.config.num_attention_heads == 16
    assert "num_attention_heads=16, but size S was trained with 6" in caplog.text
    video, _ = random_inputs(S)
    with torch.no_grad():
        expected = theirs(video.transpose(1, 2)).logits.numpy()
    np.testing.assert_allclose(model(pixels(video)).logits, expected, atol=1e-4)
    assert (
        CLASSIFIER.from_pretrained(tmp_path, num_attention_heads=6).config.num_attention_heads == 6
    )


def test_deepspeed_folders_are_read(tmp_path):
    state = v1_pretraining(SMALL)
    (tmp_path / "checkpoint-7").mkdir()
    file = tmp_path / "checkpoint-7" / "mp_rank_00_model_states.pt"
    save_v1(file, state, "module", training=True)
    options = {**input_options(SMALL), **decoder_options(SMALL)}
    model = PRETRAINING.from_pretrained(tmp_path / "checkpoint-7", **options)
    assert_equal_tensors(stored_values(model, layouts.OFFICIAL_PRETRAINING), state)


def test_a_given_configuration_is_the_model_to_load_into(tmp_path):
    state = v1_pretraining(SMALL)
    save_v1(tmp_path / "x.pth", state)
    with open_checkpoint(tmp_path / "x.pth") as stored:
        config = stored.config.replace(
            layer_norm_eps=1e-3, **input_options(SMALL), **decoder_options(SMALL)
        )
    model = PRETRAINING.from_pretrained(tmp_path / "x.pth", config=config)
    assert model.config == config


def test_only_runs_of_ours_load_orbax(tmp_path):
    """Which takes a second, replaces the hook for unraisable errors, and silences loggers."""
    save_v1(tmp_path / "x.pth", v1_pretraining(SMALL))
    hugging_face_model("VideoMAEModel", SMALL).save_pretrained(tmp_path / "folder")
    script = f"""
        import sys
        hook = sys.unraisablehook
        import vmae_jax.weights.export, vmae_jax.weights.initial_params
        from vmae_jax.weights.pretrained import load
        from vmae_jax.weights.stored import open_checkpoint
        heads = {{"num_attention_heads": {SMALL.heads}}}
        for path in ({str(tmp_path / "x.pth")!r}, {str(tmp_path / "folder")!r}):
            with open_checkpoint(path) as stored:
                load(stored, **heads)
        loaded = {{name.split(".")[0] for name in sys.modules}}
        assert not {{"orbax", "tensorstore", "torch"}} & loaded
        assert "vmae_jax.huggingface" not in sys.modules
        assert sys.unraisablehook is hook
    """
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, check=True, timeout=120
    )
