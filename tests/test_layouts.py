"""Files of transformers: what is in them, what is read from them, and what is refused.

Expected names, shapes and outputs come from transformers itself, through files on disk.
"""

from __future__ import annotations

import json
import logging
import os
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import vmae_jax
from vmae_jax.weights import export, layouts
from vmae_jax.weights.stored import open_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.usefixtures("hasty_compiler")

NAMES = ("VideoMAEModel", "VideoMAEForPreTraining", "VideoMAEForVideoClassification")
CLASSES = pytest.mark.parametrize("name", NAMES)
TINY = vmae_jax.VideoMAEConfig(
    image_size=(8, 16),
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
    num_labels=3,
    initialization="huggingface",
)
PIXELS = np.random.default_rng(0).standard_normal((2, 4, 3, 8, 16)).astype(np.float32)
MASK = np.array([[1, 0, 1, 0], [0, 1, 1, 0]], bool)


def transformers_config(**changes):
    fields = {"image_size", "patch_size", "num_frames", "use_mean_pooling", "num_labels"}
    for stack in ("", "decoder_"):
        fields |= {stack + "hidden_size", stack + "num_hidden_layers"}
        fields |= {stack + "num_attention_heads", stack + "intermediate_size"}
    values = {field: getattr(TINY, field) for field in fields}
    return transformers.VideoMAEConfig(**{**values, **changes})


def random_torch_model(name, **changes):
    """transformers' model, all parameters random, in evaluation mode."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


def outputs(model, torch_model):
    """The same call of both: features or logits."""
    mask = () if type(model).__name__ == "VideoMAEForVideoClassification" else (MASK,)
    with torch.no_grad():
        theirs = torch_model(torch.tensor(PIXELS), *map(torch.tensor, mask))
    ours = model(PIXELS, *mask)
    field = "last_hidden_state" if type(model).__name__ == "VideoMAEModel" else "logits"
    return np.asarray(ours[field]), theirs[field].numpy()


def tensors_in(directory):
    return safetensors.numpy.load_file(os.path.join(directory, "model.safetensors"))


def write_tensors(directory, tensors):
    safetensors.numpy.save_file(tensors, os.path.join(directory, "model.safetensors"))


def write_config(directory, **changes):
    """Changes values; ... takes a key away."""
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def assert_equal_parameters(one, other):
    one, other = (layouts.parameters(getattr(m, "core", m)) for m in (one, other))
    assert set(one) == set(other)
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


@pytest.fixture
def saved(random_model, tmp_path):
    """name -> a directory with that class's random model, and the model."""

    def save(name, config=TINY, seed=0):
        model = random_model(getattr(vmae_jax, name), config, seed)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, model

    return save


@pytest.mark.parametrize("num_labels", [0, 3])
@pytest.mark.parametrize("use_mean_pooling", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
@CLASSES
def test_table_has_each_parameter_once(name, qkv_bias, use_mean_pooling, num_labels, random_model):
    config = TINY.replace(
        qkv_bias=qkv_bias, use_mean_pooling=use_mean_pooling, num_labels=num_labels
    )
    ours = layouts.parameters(random_model(getattr(vmae_jax, name), config).core)
    paths = [row.path for row in layouts.HUGGING_FACE.rows]
    assert [paths.count(path) for path in ours] == [1] * len(ours)
    foreign = [n for row in layouts.HUGGING_FACE.rows for n in row.foreign]
    assert len(set(foreign)) == len(foreign)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_mean_pooling": True},
        {"qkv_bias": False, "num_labels": 0},
        {"num_channels": 1, "tubelet_size": 4, "num_hidden_layers": 11},
    ],
    ids=str,
)
@CLASSES
def test_written_tensors_are_those_of_transformers(name, changes, random_model):
    model = random_model(getattr(vmae_jax, name), TINY.replace(**changes))
    written = export.hugging_face_tensors(model.core, name)
    theirs = getattr(transformers, name)(transformers_config(**changes)).state_dict()
    # files have the old names of the biases, memory the new ones
    expected = {
        k.replace("attention.query.bias", "attention.q_bias").replace(
            "attention.value.bias", "attention.v_bias"
        ): tuple(v.shape)
        for k, v in theirs.items()
    }
    assert {k: v.shape for k, v in written.items()} == expected
    assert {v.dtype for v in written.values()} == {np.dtype("float32")}


@pytest.mark.parametrize("use_mean_pooling", [True, False])
@CLASSES
def test_transformers_loads_what_we_save(name, use_mean_pooling, saved):
    directory, model = saved(name, TINY.replace(use_mean_pooling=use_mean_pooling))
    theirs, report = getattr(transformers, name).from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values()), report
    ours, expected = outputs(model, theirs.eval())
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert theirs.config.num_labels == 3


@CLASSES
def test_transformers_counts_all_tensors_of_a_new_save_as_its_own(name, saved, tmp_path):
    """Written back by transformers, the files hold the same tensors, bit by bit."""
    directory, _ = saved(name)
    getattr(transformers, name).from_pretrained(directory).save_pretrained(tmp_path / "again")
    ours, theirs = tensors_in(directory), tensors_in(tmp_path / "again")
    assert set(ours) == set(theirs)
    for key, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[key], err_msg=key)


@pytest.mark.parametrize("biases", ["old names", "new names", "none"])
@CLASSES
def test_we_load_what_transformers_saves(name, biases, tmp_path):
    theirs = random_torch_model(name, qv_bias=biases != "none")
    theirs.save_pretrained(tmp_path)
    tensors = tensors_in(tmp_path)
    assert any(k.endswith(".q_bias") for k in tensors) == (biases != "none")
    if biases == "new names":
        for old, new in (("q_bias", "query.bias"), ("v_bias", "value.bias")):
            tensors = {k.replace(old, new): v for k, v in tensors.items()}
        write_tensors(tmp_path, tensors)
        assert any(k.endswith(".query.bias") for k in tensors)
    model = getattr(vmae_jax, name).from_pretrained(tmp_path)
    assert model.config.qkv_bias == (biases != "none")
    ours, expected = outputs(model, theirs)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"use_mean_pooling": True, "qkv_bias": False}], ids=str)
@CLASSES
def test_a_round_trip_changes_no_bit(name, changes, saved, caplog):
    directory, model = saved(name, TINY.replace(**changes))
    with caplog.at_level(logging.INFO, "vmae_jax"):
        again = type(model).from_pretrained(directory)
    assert_equal_parameters(again, model)
    assert "dropped" not in caplog.text
    assert "fresh" not in caplog.text
    config = again.config
    assert config == model.config.replace(extra=config.extra)
    assert config.extra == {"architectures": [name], "dtype": "float32"}


def test_files_of_the_bare_model_have_no_prefix(saved):
    directory, _ = saved("VideoMAEModel")
    tensors = tensors_in(directory)
    assert "embeddings.patch_embeddings.projection.weight" in tensors
    assert "layernorm.bias" in tensors
    assert not any(name.startswith("videomae.") for name in tensors)


@pytest.mark.parametrize(
    ("source", "target", "options", "notes"),
    [
        (
            "VideoMAEForPreTraining",
            "VideoMAEModel",
            {},
            ("dropped decoder, decoder_head, decoder_norm, encoder_to_decoder, mask_token,",),
        ),
        (
            "VideoMAEForPreTraining",
            "VideoMAEForVideoClassification",
            {},
            (
                "dropped decoder, decoder_head, decoder_norm, encoder_to_decoder, mask_token,",
                "started classifier fresh",
            ),
        ),
        (
            "VideoMAEForPreTraining",
            "VideoMAEForVideoClassification",
            {"use_mean_pooling": True, "num_labels": 7},
            ("mask_token,", "layernorm,", "started classifier, fc_norm fresh"),
        ),
        ("VideoMAEForVideoClassification", "VideoMAEModel", {}, ("dropped classifier,",)),
        (
            "VideoMAEModel",
            "VideoMAEForVideoClassification",
            {},
            ("started classifier fresh",),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_another_class_load_and_the_log_tells_what_is_missing(
    source, target, options, notes, saved, caplog
):
    directory, model = saved(source)
    with caplog.at_level(logging.WARNING, "vmae_jax.huggingface.models"):
        loaded = getattr(vmae_jax, target).from_pretrained(directory, rngs=nnx.Rngs(1), **options)
    assert len([r for r in caplog.records if "from" in r.message and target in r.message]) == 1
    for note in notes:
        assert note in caplog.text
    assert ("dropped" in caplog.text) == ("dropped" in " ".join(notes) or "layernorm," in notes)
    assert ("fresh" in caplog.text) == ("fresh" in " ".join(notes))
    ours, stored = (layouts.parameters(m.core) for m in (loaded, model))
    fresh = layouts.parameters(getattr(vmae_jax, target)(loaded.config, rngs=nnx.Rngs(1)).core)
    for path, value in ours.items():
        if path.split("/")[0] in ("fc_norm", "classifier"):
            # drawn in a compiled program, which may round otherwise
            np.testing.assert_allclose(value, fresh[path], rtol=1e-6, err_msg=path)
        else:
            np.testing.assert_array_equal(value, stored[path], err_msg=path)
    assert loaded.config == model.config.replace(**options, extra=loaded.config.extra)


def test_a_decoder_never_starts_fresh(saved):
    directory, _ = saved("VideoMAEModel")
    with pytest.raises(ValueError, match=r"missing: decoder\.decoder_layers\.0.* no decoder"):
        vmae_jax.VideoMAEForPreTraining.from_pretrained(directory)


@pytest.mark.parametrize("file", ["pooled", "first token"])
def test_a_classifier_loses_its_norm_only_if_told_to_pool_otherwise(file, saved, caplog):
    pooled = TINY.replace(use_mean_pooling=True)
    directory, _ = saved("VideoMAEForVideoClassification", pooled if file == "pooled" else TINY)
    load = vmae_jax.VideoMAEForVideoClassification.from_pretrained
    if file == "pooled":
        with pytest.raises(ValueError, match=r"missing: videomae\.layernorm.*=True; give that"):
            load(directory, use_mean_pooling=False)
    else:
        with pytest.raises(ValueError, match=r"missing: fc_norm.*=False; give that.*ignore_mism"):
            load(directory, use_mean_pooling=True)
        load(directory, use_mean_pooling=True, ignore_mismatched_sizes=True)
        assert "dropped layernorm" in caplog.text
        assert "started fc_norm fresh" in caplog.text


def test_all_that_does_not_fit_is_named_at_once(saved):
    directory, _ = saved("VideoMAEForPreTraining")
    tensors = tensors_in(directory)
    del tensors["mask_token"], tensors["videomae.encoder.layer.1.attention.attention.key.weight"]
    tensors["decoder.norm.weight"] = np.zeros(5, np.float32)
    tensors["videomae.encoder.layer.0.output.dense.weight"] = np.zeros((16, 20), np.float32)
    tensors["videomae.encoder.layer.2.output.dense.bias"] = np.zeros(16, np.float32)
    tensors["pooler.weight"] = np.zeros(3, np.float32)
    write_tensors(directory, tensors)

    with pytest.raises(ValueError, match="nothing was loaded") as error:
        vmae_jax.VideoMAEForPreTraining.from_pretrained(directory)
    message = str(error.value)
    assert str(directory) in message
    missing, unexpected, misshaped = (
        message.split(f"{kind}: ")[1].split(";")[0].removesuffix(".")
        for kind in ("missing", "unexpected", "of another shape")
    )
    assert missing == "mask_token, videomae.encoder.layer.1.attention.attention.key.weight"
    assert unexpected == "pooler.weight, videomae.encoder.layer.2.output.dense.bias"
    assert "decoder.norm.weight (5,) instead of (12,)" in misshaped
    assert "layer.0.output.dense.weight (16, 20) instead of (16, 24)" in misshaped


@pytest.mark.parametrize(
    ("option", "value", "tensor"),
    [
        ("hidden_size", 24, "videomae.embeddings.patch_embeddings.projection.weight"),
        ("num_hidden_layers", 3, "videomae.encoder.layer.2.attention.attention.key.weight"),
        ("num_hidden_layers", 1, "videomae.encoder.layer.1.attention.attention.key.weight"),
        ("qkv_bias", False, "videomae.encoder.layer.0.attention.attention.q_bias"),
        ("patch_size", 4, "videomae.embeddings.patch_embeddings.projection.weight"),
        ("num_labels", 5, "classifier.weight"),
    ],
)
def test_a_configuration_of_another_model_is_an_error(option, value, tensor, saved):
    directory, _ = saved("VideoMAEForVideoClassification")
    with pytest.raises(ValueError, match=tensor):
        vmae_jax.VideoMAEForVideoClassification.from_pretrained(directory, **{option: value})


def test_biases_of_a_decoder_without_biases_are_unexpected(saved):
    directory, _ = saved("VideoMAEForPreTraining")
    tensors = tensors_in(directory)
    tensors = {
        k: v for k, v in tensors.items() if not k.startswith("videomae.") or "_bias" not in k
    }
    write_tensors(directory, tensors)
    write_config(directory, qkv_bias=False)
    with pytest.raises(ValueError, match=r"unexpected: decoder\.decoder_layers\.0\..*q_bias"):
        vmae_jax.VideoMAEForPreTraining.from_pretrained(directory)


@pytest.mark.parametrize("damage", ["empty", "cut in the header", "cut at the end", "text"])
def test_damaged_weights_are_one_error_that_names_the_file(damage, saved):
    directory, _ = saved("VideoMAEModel")
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut in the header": content[:100],
            "cut at the end": content[:-8],
            "text": b"version https://git-lfs.github.com/spec/v1\n" * 9,
        }[damage]
    )
    reason = {"empty": "is empty", "text": "Git LFS pointer"}.get(
        damage, "is damaged|outside|bytes"
    )
    with pytest.raises(ValueError, match=rf"model\.safetensors'.*({reason})"):
        vmae_jax.VideoMAEModel.from_pretrained(directory)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(file, saved):
    directory, _ = saved("VideoMAEModel")
    (directory / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        vmae_jax.VideoMAEModel.from_pretrained(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"config\.json is no VideoMAE configuration"),
        ("", r"config\.json is no VideoMAE configuration"),
        ("\xff\xfe{", r"config\.json is no VideoMAE configuration"),
        ("[1]", r"config\.json .* JSON list"),
        ('{"model_type": "vit"}', r"config\.json .* model_type is not 'videomae'"),
        ('{"hidden_size": 10}', r"config\.json .* hidden_size=10 is not a multiple"),
        ('{"hidden_size": "768"}', r"config\.json .* hidden_size='768'"),
        ('{"qkv_bias": true, "qv_bias": false}', r"config\.json .* qkv_bias=True contradicts"),
    ],
)
def test_a_wrong_config_json_is_one_error_that_names_the_file(content, message, saved):
    directory, _ = saved("VideoMAEModel")
    (directory / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        vmae_jax.VideoMAEModel.from_pretrained(directory)


@pytest.mark.parametrize(
    ("name", "setting", "warned"),
    [
        ("VideoMAEForPreTraining", "decoder_norm_eps", True),
        ("VideoMAEForVideoClassification", "fc_norm_eps", True),
        ("VideoMAEForVideoClassification", "decoder_norm_eps", False),  # it has no decoder
        ("VideoMAEForPreTraining", "fc_norm_eps", False),
        ("VideoMAEModel", "decoder_norm_eps", False),
        ("VideoMAEForPreTraining", "layer_norm_eps", False),  # transformers reads that one
        ("VideoMAEForPreTraining", None, False),
    ],
)
def test_epsilons_that_transformers_cannot_keep_are_warned_of(name, setting, warned, saved):
    config = TINY.replace(use_mean_pooling=True, **({setting: 1e-6} if setting else {}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        directory, _ = saved(name, config)
    messages = [str(w.message) for w in caught if "LayerNorm" in str(w.message)]
    assert len(messages) == warned
    assert all(f"{setting}=1e-06" in message for message in messages)
    if warned:
        assert caught[0].filename == __file__  # it points at the caller of save_pretrained
    with open_checkpoint(directory) as opened:
        stored = opened.config
    assert stored == config.replace(extra=stored.extra)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_files_are_read_as_fp32(dtype, tmp_path):
    theirs = random_torch_model("VideoMAEModel").to(dtype)
    theirs.save_pretrained(tmp_path)
    found = safetensors_torch.load_file(tmp_path / "model.safetensors")
    assert {x.dtype for x in found.values()} == {dtype}
    model = vmae_jax.VideoMAEModel.from_pretrained(tmp_path)
    assert {x.dtype for x in layouts.parameters(model.core).values()} == {jnp.dtype("float32")}
    ours, expected = outputs(model, theirs.float())
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_dtype_options_set_those_of_computation_and_storage(saved):
    directory, model = saved("VideoMAEModel")
    half = vmae_jax.VideoMAEModel.from_pretrained(directory, dtype=jnp.bfloat16)
    assert half(PIXELS).last_hidden_state.dtype == jnp.bfloat16
    assert_equal_parameters(half, model)
    stored = vmae_jax.VideoMAEModel.from_pretrained(directory, param_dtype=jnp.bfloat16)
    assert {x.dtype for x in layouts.parameters(stored.core).values()} == {jnp.dtype("bfloat16")}


def test_models_stored_in_bfloat16_are_written_as_fp32(random_model, tmp_path):
    model = random_model(vmae_jax.VideoMAEModel, TINY, param_dtype=jnp.bfloat16)
    model.save_pretrained(tmp_path)
    assert {x.dtype for x in tensors_in(tmp_path).values()} == {np.dtype("float32")}
    again = vmae_jax.VideoMAEModel.from_pretrained(tmp_path, param_dtype=jnp.bfloat16)
    assert_equal_parameters(again, model)


def test_another_number_of_frames_makes_another_position_table(saved):
    directory, _ = saved("VideoMAEModel")
    model = vmae_jax.VideoMAEModel.from_pretrained(directory, num_frames=8)
    theirs = transformers.VideoMAEModel.from_pretrained(directory, num_frames=8).eval()
    pixels = np.concatenate([PIXELS, PIXELS[::-1]], axis=1)
    with torch.no_grad():
        expected = theirs(torch.tensor(pixels)).last_hidden_state
    np.testing.assert_allclose(model(pixels).last_hidden_state, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("option", "hint"),
    [("num_frmes", "did you mean num_frames"), ("dtpye", "did you mean dtype"), ("zzz", "remat")],
)
def test_unknown_options_are_errors(option, hint, saved):
    directory, _ = saved("VideoMAEModel")
    with pytest.raises(ValueError, match=f"{option} is no field.*, nor one of dtype.*{hint}"):
        vmae_jax.VideoMAEModel.from_pretrained(directory, **{option: 8})


@pytest.mark.parametrize("failure", ["serialize", "disk", "replace"])
def test_a_failed_save_leaves_the_old_files(failure, saved, random_model, monkeypatch):
    directory, _ = saved("VideoMAEModel")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert set(before) == {"config.json", "model.safetensors", "preprocessor_config.json"}

    def fail(*args, **kwargs):
        raise OSError("no space left")

    target = {
        "serialize": (safetensors.numpy, "save"),
        "disk": (os, "fsync"),
        "replace": (os, "replace"),
    }[failure]
    new = random_model(vmae_jax.VideoMAEModel, TINY.replace(layer_norm_eps=1e-3), seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises(OSError, match="no space left"):
            new.save_pretrained(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    new.save_pretrained(directory)
    assert_equal_parameters(vmae_jax.VideoMAEModel.from_pretrained(directory), new)
    assert set(os.listdir(directory)) == set(before)


def test_unknown_keys_of_the_configuration_are_kept(saved, tmp_path):
    directory, _ = saved("VideoMAEForVideoClassification")
    extra = {"transformers_version": "4.27.0", "_name_or_path": "x", "nested": {"a": [1, None]}}
    write_config(directory, **extra, torch_dtype="float16")
    model = vmae_jax.VideoMAEForVideoClassification.from_pretrained(directory)
    model.save_pretrained(tmp_path / "again")
    found = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {k: found[k] for k in extra} == extra
    assert found["dtype"] == "float32"  # of what was written, under one name
    assert "torch_dtype" not in found
    assert transformers.VideoMAEConfig.from_pretrained(tmp_path / "again").nested["a"] == [1, None]


def test_class_names_survive_transformers_and_back(saved, tmp_path):
    labels = {0: "eating", 1: "running", 2: "sleeping"}
    directory, model = saved("VideoMAEForVideoClassification", TINY.replace(id2label=labels))
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(directory)
    assert theirs.config.id2label == labels
    theirs.save_pretrained(tmp_path / "again")
    again = vmae_jax.VideoMAEForVideoClassification.from_pretrained(tmp_path / "again")
    assert again.config.id2label == labels
    assert again.config.label2id == {"eating": 0, "running": 1, "sleeping": 2}
    assert_equal_parameters(again, model)


@pytest.mark.parametrize("spelling", ["qkv_bias", "qv_bias"])
def test_both_spellings_of_the_bias_setting_are_read(spelling, saved):
    directory, _ = saved("VideoMAEModel", TINY.replace(qkv_bias=False))
    write_config(directory, **{"qkv_bias": ..., spelling: False})
    assert not vmae_jax.VideoMAEModel.from_pretrained(directory).config.qkv_bias
    with open_checkpoint(directory) as opened:
        assert opened.config.to_dict()["qkv_bias"] is False
    assert not transformers.VideoMAEConfig.from_pretrained(directory).qv_bias
