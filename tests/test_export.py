"""What is written: read again by transformers and by the official forward; whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings

import numpy as np
import pytest
import safetensors.numpy
from published_layouts import (
    SMALL,
    finetuned_forward,
    pretraining_forward,
    random_inputs,
    v1_finetuned,
    v1_pretraining,
)

import vmae_jax
from vmae_jax.checkpoints import finished_steps, loading
from vmae_jax.files import atomic
from vmae_jax.weights import export, layouts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("hasty_compiler")

MODEL = vmae_jax.VideoMAEModel
PRETRAINING = vmae_jax.VideoMAEForPreTraining
CLASSIFIER = vmae_jax.VideoMAEForVideoClassification
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
    use_mean_pooling=False,
    num_labels=SMALL.classes,
)
ORIGINAL = CONFIG.replace(layer_norm_eps=1e-6, decoder_norm_eps=1e-6, fc_norm_eps=1e-6)
WIDTHS_OF_NOBODY = "ignore:.*num_attention_heads=.* is not written"


def assert_equal_parameters(one, other):
    one, other = (layouts.parameters(model.core) for model in (one, other))
    assert set(one) == set(other)
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# Hugging Face's folder


@pytest.mark.parametrize("cls", [MODEL, PRETRAINING, CLASSIFIER], ids=lambda cls: cls.__name__)
def test_shards_load_in_transformers_and_here(cls, random_model, tmp_path):
    model = random_model(cls, CONFIG.replace(use_mean_pooling=cls is CLASSIFIER))
    limit = 60_000
    model.save_pretrained(tmp_path, max_shard_size=limit)
    names = set(os.listdir(tmp_path)) - {"config.json", "preprocessor_config.json"}
    shards = sorted(names - {"model.safetensors.index.json"})
    assert len(shards) > 2
    assert shards == [
        f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))
    ]

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    found = {file: safetensors.numpy.load_file(tmp_path / file) for file in shards}
    assert index["weight_map"] == {name: file for file in shards for name in found[file]}
    sizes = {file: sum(t.nbytes for t in tensors.values()) for file, tensors in found.items()}
    assert all(sizes[file] <= limit or len(found[file]) == 1 for file in shards)
    assert index["metadata"]["total_size"] == sum(sizes.values())

    assert_equal_parameters(cls.from_pretrained(tmp_path), model)
    theirs, report = getattr(transformers, cls.__name__).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    video, mask = random_inputs(SMALL)
    video = video.transpose(1, 2).contiguous()  # (B, T, C, H, W)
    mask = () if cls is CLASSIFIER else (mask,)
    with torch.no_grad():
        expected = theirs.eval()(video, *mask)
    ours = model(video.numpy(), *(m.numpy() for m in mask))
    field = "last_hidden_state" if cls is MODEL else "logits"
    np.testing.assert_allclose(ours[field], expected[field].numpy(), atol=1e-4)


@pytest.mark.parametrize("first", [50_000, "5GB"], ids=["single over shards", "shards over single"])
def test_older_weights_are_replaced(first, random_model, tmp_path):
    """Both forms in one folder would leave it to the reader which model is loaded."""
    old, new = (random_model(MODEL, CONFIG, seed) for seed in (0, 1))
    old.save_pretrained(tmp_path, max_shard_size=first)
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "notes.txt"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    new.save_pretrained(tmp_path, max_shard_size="5GB" if first != "5GB" else 50_000)
    names = set(os.listdir(tmp_path))
    assert ("model.safetensors" in names) == (first != "5GB")
    assert ("model.safetensors.index.json" in names) == (first == "5GB")
    assert any("-of-" in name for name in names) == (first == "5GB")
    assert not any(name.startswith(("pytorch_model", ".")) for name in names)
    assert "notes.txt" in names
    assert_equal_parameters(MODEL.from_pretrained(tmp_path), new)


def test_fewer_shards_replace_more(random_model, tmp_path):
    model = random_model(MODEL, CONFIG)
    model.save_pretrained(tmp_path, max_shard_size=40_000)
    many = len(os.listdir(tmp_path))
    model.save_pretrained(tmp_path, max_shard_size=100_000)
    shards = [name for name in os.listdir(tmp_path) if "-of-" in name]
    assert len(shards) + 3 < many
    assert len({name.split("-of-")[1] for name in shards}) == 1


@pytest.mark.parametrize(
    ("size", "count"),
    [(10**9, 1), ("1 GB", 1), ("1gib", 1), ("100KB", None), ("100KiB", None), (1, None)],
)
def test_sizes_of_shards_are_read(size, count, random_model, tmp_path):
    units = {"100KB": 100_000, "100KiB": 102_400, 1: 1}
    model = random_model(MODEL, CONFIG)
    model.save_pretrained(tmp_path, max_shard_size=size)
    shards = list(tmp_path.glob("model*.safetensors"))
    tensors = [safetensors.numpy.load_file(shard) for shard in shards]
    if count is not None:
        assert len(shards) == count
        return
    sizes = sorted(sum(t.nbytes for t in some.values()) for some in tensors)
    assert all(n <= units[size] for n in sizes) or size == 1
    if size == 1:  # nothing is smaller than a tensor
        assert {len(some) for some in tensors} == {1}


@pytest.mark.parametrize("size", [0, -1, True, None, 1.5, "", "5", "GB", "1.5GB", "0MB", "5 XB"])
def test_sizes_that_are_none_are_refused_before_anything_is_written(size, random_model, tmp_path):
    with pytest.raises(ValueError, match=r"max_shard_size=.* must be a positive number of bytes"):
        random_model(MODEL, CONFIG).save_pretrained(tmp_path / "x", max_shard_size=size)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("image_size", [24, (16, 32), (40, 24)], ids=str)
def test_the_image_processor_of_transformers_makes_the_models_frames(
    image_size, random_model, tmp_path
):
    config = CONFIG.replace(
        image_size=image_size, image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.6, 0.7)
    )
    model = random_model(MODEL, config)
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    video = list(rng.integers(0, 256, (4, 50, 70, 3), dtype=np.uint8))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert "VideoMAE" in type(processor).__name__
    theirs = np.asarray(processor(video, return_tensors="np")["pixel_values"])
    assert theirs.shape == (1, 4, 3, *config.frame_size)
    assert model(theirs).last_hidden_state.shape == (1, config.num_tokens, SMALL.width)
    # uniform noise about the middle: the mean and the spread follow from the statistics
    middle = (0.5 - np.array(config.image_mean)) / np.array(config.image_std)
    np.testing.assert_allclose(theirs.mean((0, 1, 3, 4)), middle, atol=0.1)
    ours = vmae_jax.VideoMAEImageProcessor.from_pretrained(tmp_path)
    ours = ours(video, return_tensors="np")["pixel_values"]
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.mean((0, 1, 3, 4)), middle, atol=0.1)


# Whole or not at all


FAILURES = {
    "serialize": (safetensors.numpy, "save", 0),
    "sync of the first file": (os, "fsync", 0),
    "sync of the second file": (os, "fsync", 1),
    "first rename": (os, "replace", 0),
    "second rename": (os, "replace", 1),
}


OLD_AND_FAILURE = [
    (old, failure)
    for old in ("nothing", "single", "shards")
    for failure in FAILURES
    # of a save over shards, the second rename is still one of putting them aside
    if old == "shards" or failure != "second rename"
]


@pytest.mark.parametrize(("old", "failure"), OLD_AND_FAILURE)
def test_a_failed_save_changes_no_file(failure, old, random_model, tmp_path, monkeypatch):
    module, name, calls_before = FAILURES[failure]
    directory = tmp_path / "model"
    if old != "nothing":
        size = "5GB" if old == "single" else 50_000
        random_model(MODEL, CONFIG).save_pretrained(directory, max_shard_size=size)
    before = contents(directory) if old != "nothing" else {}
    call, calls = getattr(module, name), []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == calls_before + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*args, **kwargs)

    new = random_model(MODEL, CONFIG.replace(layer_norm_eps=1e-3), seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(OSError, match="No space left"):
            new.save_pretrained(directory)
    assert len(calls) > calls_before
    assert contents(directory) == before
    new.save_pretrained(directory)
    assert_equal_parameters(MODEL.from_pretrained(directory), new)
    assert set(contents(directory)) == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_shards_come_back_if_no_new_file_can_get_its_name(random_model, tmp_path):
    """Here a folder is in its way, once the old shards have been put aside."""
    random_model(MODEL, CONFIG).save_pretrained(tmp_path, max_shard_size=50_000)
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "model.safetensors" / "x").write_bytes(b"")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(OSError, match=r"model\.safetensors"):
        random_model(MODEL, CONFIG, seed=1).save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["model.safetensors"]


def test_one_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.bin"
    atomic.write_file(path, lambda file: file.write(b"old"))

    def break_off(file):
        file.write(b"n")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        atomic.write_file(path, break_off)
    assert contents(tmp_path) == {"x.bin": b"old"}
    atomic.write_file(path, lambda file: file.write(b"new"))
    assert contents(tmp_path) == {"x.bin": b"new"}


def test_a_relative_name_is_written_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atomic.write_file("x.bin", lambda file: file.write(b"1"))
    assert contents(tmp_path) == {"x.bin": b"1"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_an_error(random_model, tmp_path):
    model = random_model(MODEL, CONFIG)
    model.save_pretrained(tmp_path)
    before = contents(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            model.save_pretrained(tmp_path)
        assert contents(tmp_path) == before
    finally:
        tmp_path.chmod(0o700)


# The official .pth


def official_state(path):
    saved = torch.load(path, weights_only=True)
    assert set(saved) == {"model"}
    return saved["model"]


@pytest.mark.filterwarnings(WIDTHS_OF_NOBODY)
@pytest.mark.parametrize("kind", ["pre-training", "mean pooling", "first token"])
def test_official_files_give_our_outputs_in_the_official_forward(kind, random_model, tmp_path):
    cls = PRETRAINING if kind == "pre-training" else CLASSIFIER
    model = random_model(cls, ORIGINAL.replace(use_mean_pooling=kind == "mean pooling"))
    export.save_official(model.core, tmp_path / "new" / "x.pth")
    state = official_state(tmp_path / "new" / "x.pth")
    assert os.listdir(tmp_path / "new") == ["x.pth"]
    if kind == "pre-training":
        published = v1_pretraining(SMALL)
    else:
        published = v1_finetuned(SMALL, use_cls=kind == "first token")
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in published.items()}
    assert {t.dtype for t in state.values()} == {torch.float32}
    video, mask = random_inputs(SMALL)
    if kind == "pre-training":
        expected = pretraining_forward(state, SMALL, video, mask)
        mask = (mask.numpy(),)
    else:
        expected, mask = finetuned_forward(state, SMALL, video), ()
    ours = model(video.transpose(1, 2).numpy(), *mask).logits
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


@pytest.mark.filterwarnings(WIDTHS_OF_NOBODY)
def test_an_encoder_alone_has_the_names_of_a_pretraining_file(random_model, tmp_path):
    export.save_official(random_model(MODEL, ORIGINAL).core, tmp_path / "x.pth")
    published = {n for n in v1_pretraining(SMALL) if n.startswith("encoder.")}
    assert set(official_state(tmp_path / "x.pth")) == published


@pytest.mark.parametrize(
    ("cls", "changes", "warned"),
    [
        (PRETRAINING, {}, []),
        (CLASSIFIER, {"use_mean_pooling": True}, []),
        (PRETRAINING, {"layer_norm_eps": 1e-12}, ["layer_norm_eps=1e-12"]),
        (PRETRAINING, {"decoder_norm_eps": 1e-5}, ["decoder_norm_eps=1e-05"]),
        (PRETRAINING, {"fc_norm_eps": 1e-5}, []),  # it has none
        (CLASSIFIER, {"use_mean_pooling": True, "fc_norm_eps": 1e-5}, ["fc_norm_eps=1e-05"]),
        (CLASSIFIER, {"decoder_norm_eps": 1e-5}, []),
        (
            PRETRAINING,
            {"num_attention_heads": 16},
            ["num_attention_heads=16.*width 384 it takes 6"],
        ),
        (PRETRAINING, {"decoder_num_attention_heads": 4}, ["decoder_num_attention_heads=4"]),
        (CLASSIFIER, {"decoder_num_attention_heads": 4}, []),
        (MODEL, {"hidden_size": 48}, ["num_attention_heads=6.*its own default"]),
        (PRETRAINING, {"use_mean_pooling": True}, ["use_mean_pooling=True.*encoder.norm"]),
        (PRETRAINING, {"hidden_act": "relu"}, ["hidden_act='relu'.*gelu"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_a_pth_cannot_say_is_warned_of(cls, changes, warned, random_model, tmp_path):
    config = vmae_jax.VideoMAEConfig.from_size(
        "S", num_hidden_layers=1, decoder_num_hidden_layers=1, image_size=32, num_frames=2,
        use_mean_pooling=False, intermediate_size=8, decoder_intermediate_size=8,
    ).replace(**changes)  # fmt: skip
    model = random_model(cls, config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export.save_official(model.core, tmp_path / "x.pth")
    assert len(caught) == len(warned), [str(w.message) for w in caught]
    for warning, pattern in zip(caught, warned, strict=True):
        assert warning.filename == __file__
        with pytest.warns(UserWarning, match=pattern):
            warnings.warn(warning.message, stacklevel=1)


@pytest.mark.filterwarnings(WIDTHS_OF_NOBODY)
def test_a_failed_write_leaves_the_old_pth(random_model, tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(b"old")

    def fail(state, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="full"):
        export.save_official(random_model(MODEL, ORIGINAL).core, tmp_path / "x.pth")
    assert contents(tmp_path) == {"x.pth": b"old"}


def test_without_torch_an_official_file_cannot_be_written(random_model, tmp_path, monkeypatch):
    model = random_model(MODEL, CONFIG)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs torch; run `pip install vmae_jax\[torch"):
        export.save_official(model.core, tmp_path / "new" / "x.pth")
    assert os.listdir(tmp_path) == []


# A run of ours


@pytest.mark.parametrize("cls", [PRETRAINING, CLASSIFIER], ids=lambda cls: cls.__name__)
def test_a_run_is_read_as_it_was(cls, random_model, tmp_path):
    config = CONFIG.replace(id2label={0: "a", 1: "b", 2: "c"}, image_size=(16, 24))
    model = random_model(cls, config)
    export.save_run(model.core, tmp_path / "run")
    assert finished_steps.saved_steps(tmp_path / "run") == [0]
    for path in (tmp_path / "run", tmp_path / "run" / "0"):
        again = cls.from_pretrained(path)
        assert_equal_parameters(again, model)
        assert again.config == config
    with pytest.raises(FileExistsError, match=r"run holds a checkpoint already"):
        export.save_run(model.core, tmp_path / "run")


def test_a_damaged_run_is_refused(random_model, tmp_path):
    export.save_run(random_model(MODEL, CONFIG).core, tmp_path / "run")
    files = [p for p in (tmp_path / "run" / "0").rglob("*") if p.is_file() and "/d/" in str(p)]
    assert files
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(loading.CheckpointError, match=r"run/0 is damaged"):
        MODEL.from_pretrained(tmp_path / "run")


def test_a_processor_that_fits_the_model_is_kept_and_another_replaced(random_model, tmp_path):
    model = random_model(MODEL, CONFIG)
    height, width = CONFIG.frame_size
    own = {"crop_size": {"height": height, "width": width}, "resample": 3}
    vmae_jax.VideoMAEImageProcessor(**own).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    load = vmae_jax.VideoMAEImageProcessor.from_pretrained
    assert load(tmp_path).resample == 3
    vmae_jax.VideoMAEImageProcessor(crop_size={"height": 7, "width": 7}).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert load(tmp_path).crop_size == own["crop_size"]
