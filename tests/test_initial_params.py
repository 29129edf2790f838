"""Starting from a trained encoder: it is that one bit for bit, and no difference goes unsaid."""

from __future__ import annotations

import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pretraining_task import make_model

import vmae_jax
from vmae_jax.checkpoints.fingerprints import named_leaves
from vmae_jax.config import VideoMAEConfig
from vmae_jax.errors import SettingError
from vmae_jax.vit import Compute
from vmae_jax.weights import export, layouts
from vmae_jax.weights.initial_params import DECODER, ENCODER, initial_params, parts_of

pytestmark = pytest.mark.usefixtures("hasty_compiler")

CONFIG = VideoMAEConfig(
    image_size=32, num_frames=4, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=40, use_mean_pooling=False, layer_norm_eps=1e-6, decoder_hidden_size=12,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=20,
)  # fmt: skip


def shapes(config: VideoMAEConfig = CONFIG, compute: Compute = Compute()) -> dict:
    return nnx.to_pure_dict(
        nnx.state(nnx.eval_shape(lambda: make_model(config, compute, seed=0)), nnx.Param)
    )


def fresh(config: VideoMAEConfig = CONFIG, compute: Compute = Compute()) -> dict:
    """Not what a run draws, but nothing has to be compiled."""
    return jax.tree.map(
        lambda x: jax.device_put(np.full(x.shape, 0.25, x.dtype)), shapes(config, compute)
    )


@pytest.fixture(scope="module")
def trained() -> vmae_jax.VideoMAEForPreTraining:
    """Every parameter random, but nothing compiled."""
    model = nnx.eval_shape(lambda: vmae_jax.VideoMAEForPreTraining(CONFIG))
    rng = np.random.default_rng(1)
    values = layouts.parameters(model.core)
    layouts.set_parameters(
        model.core, {path: rng.standard_normal(x.shape) for path, x in values.items()}
    )
    return model


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> pathlib.Path:
    """The workdir of the trained model."""
    workdir = tmp_path_factory.mktemp("run")
    export.save_run(trained.core, workdir)
    return workdir


def assert_from(params: dict, trained: dict, untouched: dict, parts=ENCODER) -> None:
    """Some parts of the one and the rest of the other, bit for bit."""
    found, rest = named_leaves(params), named_leaves(untouched)
    assert found.keys() == rest.keys()
    for name, value in found.items():
        source = trained if name.split("/")[0] in parts else rest
        np.testing.assert_array_equal(np.asarray(value), np.asarray(source[name]), err_msg=name)


@pytest.mark.parametrize("form", ["workdir", "step", "hugging_face", "pth"])
def test_the_encoder_is_taken_and_the_decoder_left(form, trained, run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    if form == "hugging_face":
        trained.save_pretrained(tmp_path)
        path = tmp_path
    elif form == "pth":
        pytest.importorskip("torch")
        path = tmp_path / "model.pth"
        with pytest.warns(UserWarning, match=r"num_attention_heads|decoder_norm_eps"):
            export.save_official(trained.core, path)
    else:
        path = run / ("0" if form == "step" else "")
    before = fresh()
    params, lines = initial_params(path, before, CONFIG)
    assert_from(params, layouts.parameters(trained.core), before)
    assert any(line.startswith("the encoder is that of ") for line in lines)
    assert "started decoder, decoder_head, decoder_norm, encoder_to_decoder, mask_token fresh, " \
        "to be trained" in lines  # fmt: skip
    assert any(line.startswith("dropped decoder, ") for line in lines)
    for line in lines:
        assert f"initial parameters: {line}" in caplog.text


@pytest.mark.parametrize("form", ["workdir", "pth"])
def test_encoder_and_decoder_are_taken_bit_by_bit(form, trained, run, tmp_path):
    path = run
    if form == "pth":
        pytest.importorskip("torch")
        path = tmp_path / "model.pth"
        with pytest.warns(UserWarning, match=r"num_attention_heads|decoder_norm_eps"):
            export.save_official(trained.core, path)
    parts = (*ENCODER, *DECODER)
    params, lines = initial_params(path, fresh(), CONFIG, parts)
    found = named_leaves(params)
    expected = layouts.parameters(trained.core)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(expected[name]), err_msg=name)
    assert lines[0].startswith("embeddings, encoder, layernorm, encoder_to_decoder, mask_token, ")
    assert " are those of " in lines[0]
    assert not any("fresh" in line or "dropped" in line for line in lines)


def test_any_parts_may_be_taken(trained, run):
    # whatever the rest of the file is
    config = CONFIG.replace(num_hidden_layers=2, hidden_act="relu", decoder_num_hidden_layers=1)
    parts = ("decoder", "decoder_norm")
    before = fresh(config)
    params, lines = initial_params(run, before, config, parts)
    assert_from(params, layouts.parameters(trained.core), before, parts)
    assert "loaded decoder, decoder_norm" in lines
    assert (
        "dropped decoder_head, embeddings, encoder, encoder_to_decoder, layernorm, mask_token, for "
        "which nobody asked"
    ) in lines
    assert "started decoder_head, embeddings, encoder, encoder_to_decoder, layernorm, mask_token " \
        "fresh, to be trained" in lines  # fmt: skip


def test_a_part_that_the_checkpoint_lacks_is_named(random_model, tmp_path):
    model = random_model(vmae_jax.VideoMAEModel, CONFIG)
    export.save_run(model.core, tmp_path)
    with pytest.raises(SettingError, match=r"has no mask_token, decoder, which the run is to take"):
        initial_params(tmp_path, fresh(), CONFIG, (*ENCODER, "mask_token", "decoder"))


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (("encoder", "classifier"), "model has no classifier; choose from decoder, decoder_head"),
        (("encoders",), "no encoders"),
        ((), "at least one"),
    ],
)
def test_parts_that_the_model_lacks_are_named(parts, named, run):
    with pytest.raises(SettingError, match=named):
        initial_params(run, fresh(), CONFIG, parts)


def test_a_decoder_of_other_heads_is_refused_if_it_is_taken(run):
    config = CONFIG.replace(decoder_num_attention_heads=3)
    initial_params(run, fresh(config), config)
    with pytest.raises(SettingError, match="decoder_num_attention_heads=2, and the run has 3"):
        initial_params(run, fresh(config), config, (*ENCODER, *DECODER))


def test_another_decoder_and_other_clips_do_not_matter(trained, run):
    config = CONFIG.replace(
        decoder_hidden_size=16, decoder_num_hidden_layers=2, num_frames=8, image_size=48
    )
    before = fresh(config)
    params, lines = initial_params(run, before, config)
    assert_from(params, layouts.parameters(trained.core), before)
    assert any("position tables made for 8 x 48 x 48" in line for line in lines)


def test_dtypes_and_shardings_are_those_of_the_run(trained, run):
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec())
    before = jax.device_put(fresh(compute=Compute(param_dtype=jnp.bfloat16)), sharding)
    params, _ = initial_params(run, before, CONFIG)
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == jnp.bfloat16
        assert leaf.sharding == sharding
    kernel = layouts.parameters(trained.core)["encoder/output/kernel"]
    np.testing.assert_array_equal(
        named_leaves(params)["encoder/output/kernel"], kernel.astype(jnp.bfloat16)
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 2}, r"encoder/output/kernel \(3, 40, 24\) instead of \(2, 40, 24\)"),
        ({"intermediate_size": 48}, r"\(3, 24, 40\) instead of \(3, 24, 48\)"),
        ({"patch_size": 8}, "embeddings/kernel"),
        ({"num_attention_heads": 3}, "num_attention_heads=4, and the run has 3"),
        ({"hidden_act": "relu"}, "hidden_act=gelu, and the run has relu"),
        ({"qkv_bias": False}, "unexpected: encoder/attention/q_bias, encoder/attention/v_bias"),
    ],
)
def test_another_encoder_is_refused(changes, named, run):
    config = CONFIG.replace(**changes)
    with pytest.raises(ValueError, match=named):
        initial_params(run, fresh(config), config)


def test_an_encoder_without_its_norm_is_refused(random_model, tmp_path):
    config = CONFIG.replace(use_mean_pooling=True)
    model = random_model(vmae_jax.VideoMAEForVideoClassification, config)
    export.save_run(model.core, tmp_path)
    with pytest.raises(ValueError, match="missing: layernorm/bias, layernorm/scale"):
        initial_params(tmp_path, fresh(), CONFIG)


def test_shapes_are_no_parameters(run):
    with pytest.raises(ValueError, match="embeddings/bias is a placeholder, ShapeDtypeStruct"):
        initial_params(run, shapes(), CONFIG)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        initial_params(tmp_path / "absent", fresh(), CONFIG)


def test_as_it_is_a_pre_training_run_goes_on_with_the_decoder_too(trained, run):
    before = fresh()
    params, lines = initial_params(run, before, CONFIG, None)
    assert_from(params, layouts.parameters(trained.core), before, (*ENCODER, *DECODER))
    assert not any("fresh" in line for line in lines)


def test_as_it_is_an_encoder_without_decoder_leaves_it_fresh(trained, tmp_path):
    vmae_jax.VideoMAEModel(CONFIG).save_pretrained(tmp_path)
    before = fresh()
    params, lines = initial_params(tmp_path, before, CONFIG, None)
    np.testing.assert_array_equal(params["mask_token"], before["mask_token"])
    assert any("decoder" in line and "fresh" in line for line in lines)


def test_groups_of_parts():
    assert parts_of(None) is None
    assert parts_of(("encoder", "classifier")) == (*ENCODER, "fc_norm", "classifier")
    assert parts_of("decoder") == DECODER
    with pytest.raises(SettingError, match=r"'head' is no part; choose from \('encoder'"):
        parts_of(("encoder", "head"))


@pytest.mark.parametrize(
    ("names", "words"),
    [(("cat", "dog"), None), (("dog", "cat"), "another order"), (("cat", "fish"), "other classes"),
     (("LABEL_0", "LABEL_1"), None)],
)  # fmt: skip
def test_a_classifier_is_taken_for_the_same_classes_only(names, words, tmp_path):
    config = CONFIG.replace(use_mean_pooling=True, id2label={0: "cat", 1: "dog"})
    model = vmae_jax.VideoMAEForVideoClassification(config)
    export.save_run(model.core, tmp_path)
    ours = config.replace(id2label=dict(enumerate(names)))
    values = nnx.to_pure_dict(nnx.state(model.core, nnx.Param))
    zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype)), values)
    parts = parts_of(("encoder", "classifier"))
    if words is None:
        params, _ = initial_params(tmp_path, zeros, ours, parts)
        np.testing.assert_array_equal(
            params["classifier"]["kernel"], values["classifier"]["kernel"]
        )
        return
    with pytest.raises(SettingError, match=words):
        initial_params(tmp_path, zeros, ours, parts)
