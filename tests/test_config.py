import dataclasses
import json

import jax
import pytest
from flax import nnx

from vmae_jax.config import VideoMAEConfig
from vmae_jax.sizes import ORIGINAL_EPSILONS, SIZES
from vmae_jax.videomae import VideoMAE

# The published counts (VideoMAE's repository; B's classifier also in VideoMAE V2's training log).
PRETRAINING_COUNTS = {"S": 24_029_376, "B": 94_210_944, "L": 342_996_992, "H": 692_487_296}
CLASSIFIER_COUNTS = {
    ("S", 400): 22_033_936,
    ("S", 174): 21_946_926,
    ("B", 400): 86_534_800,
    ("B", 174): 86_361_006,
    ("L", 400): 304_270_736,
    ("L", 174): 304_039_086,
    ("H", 400): 632_119_440,
    ("H", 174): 631_829_934,
}
TINY = {
    "image_size": (32, 48),
    "num_frames": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


def count_parameters(config, **parts):
    """Without making any of them."""
    model = nnx.eval_shape(lambda: VideoMAE(config, rngs=nnx.Rngs(0), **parts))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def counted_by_hand(config):
    """Parameters of a pre-training model, from the widths alone."""

    def stack(width, depth, mlp):
        attention = 3 * width * width + 2 * width + width * width + width  # no bias for keys
        return depth * (attention + 2 * 2 * width + 2 * width * mlp + mlp + width)

    c = config
    D, E, P = c.hidden_size, c.decoder_hidden_size, 3 * c.tubelet_size * c.patch_size**2
    encoder = P * D + D + stack(D, c.num_hidden_layers, c.intermediate_size) + 2 * D
    decoder = stack(E, c.decoder_num_hidden_layers, c.decoder_intermediate_size)
    return encoder + D * E + E + decoder + 2 * E + E * P + P


def test_defaults_are_those_of_transformers():
    theirs = pytest.importorskip("transformers").VideoMAEConfig()
    ours = VideoMAEConfig()
    names = [*type(theirs).__annotations__, "num_labels", "id2label", "label2id", "problem_type"]
    names += ["output_attentions", "output_hidden_states", "return_dict"]
    assert "hidden_size" in names
    for name in names:
        if name == "model_type":
            continue
        our_name = {"qv_bias": "qkv_bias"}.get(name, name)
        assert getattr(ours, our_name) == getattr(theirs, name), name
    assert ours.use_return_dict is True


def test_additional_defaults_leave_the_model_as_transformers_has_it():
    config = VideoMAEConfig()
    assert (config.decoder_norm_eps, config.fc_norm_eps) == (1e-5, 1e-5)  # torch's default
    assert (config.drop_path_rate, config.head_dropout_prob) == (0, 0)
    assert config.image_mean == (0.485, 0.456, 0.406)
    assert config.image_std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_builds_with_the_parameters_of_its_widths(size):
    config = VideoMAEConfig.from_size(size, use_mean_pooling=False)
    count = count_parameters(config, decoder=True)
    assert count == counted_by_hand(config)
    assert count == PRETRAINING_COUNTS.get(size, count)


def test_published_counts_name_existing_sizes():
    assert set(PRETRAINING_COUNTS) <= set(SIZES)


@pytest.mark.parametrize(("size", "num_labels"), CLASSIFIER_COUNTS)
def test_classifiers_have_the_published_number_of_parameters(size, num_labels):
    config = VideoMAEConfig.from_size(size, use_mean_pooling=True, num_labels=num_labels)
    assert count_parameters(config, classifier=True) == CLASSIFIER_COUNTS[size, num_labels]


def test_giant_has_other_tokens_and_outputs():
    # VideoMAE V2's pre-training scripts and modeling_pretrain.py: patch 14, MLP ratio 48/11
    config = VideoMAEConfig.from_size("g-v2")
    assert config.grid == (8, 16, 16)
    assert config.num_tokens == 2048
    assert config.tubelet_values == 1176
    assert config.intermediate_size == 1408 * 48 // 11
    assert config.decoder_intermediate_size == int(512 * 48 / 11)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_originals_epsilons(size):
    config = VideoMAEConfig.from_size(size)
    assert {getattr(config, name) for name in ORIGINAL_EPSILONS} == {1e-6}
    assert config.layer_norm_eps == config.decoder_norm_eps == config.fc_norm_eps == 1e-6


def test_from_size_takes_changes():
    config = VideoMAEConfig.from_size("S", num_frames=32, fc_norm_eps=1e-5)
    assert (config.num_frames, config.fc_norm_eps, config.hidden_size) == (32, 1e-5, 384)
    with pytest.raises(ValueError, match=r"size='XL' is unknown; choose from S, B, L"):
        VideoMAEConfig.from_size("XL")


def test_base_derives_grid_tokens_and_values():
    config = VideoMAEConfig()
    assert (config.grid, config.num_tokens, config.tubelet_values) == ((8, 14, 14), 1568, 1536)
    wide = config.replace(image_size=(32, 48), num_frames=6, num_channels=1)
    assert (wide.grid, wide.num_tokens, wide.tubelet_values) == ((3, 2, 3), 18, 512)
    assert wide.frame_size == (32, 48)


def test_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VideoMAEConfig().hidden_size = 3


def test_equal_configs_are_equal_and_hash_alike():
    a = VideoMAEConfig(**TINY, id2label={0: "run", 1: "jump", 2: "sit"}, extra={"dtype": "float32"})
    b = VideoMAEConfig(**TINY, id2label={0: "run", 1: "jump", 2: "sit"}, extra={"dtype": "float32"})
    assert a == b
    assert hash(a) == hash(b)
    assert a != a.replace(id2label={0: "run", 1: "jump", 2: "stand"})
    assert a == a.replace(num_labels=3)  # the names it has, as in transformers
    assert a != a.replace(num_frames=8)


BAD_VALUES = [
    ({"hidden_size": 769}, "hidden_size=769 is not a multiple of num_attention_heads=12"),
    ({"decoder_hidden_size": 385}, "decoder_hidden_size=385 .*decoder_num_attention_heads=6"),
    *(
        ({name: value}, f"{name}={value!r} must be a positive integer")
        for name in (
            "patch_size",
            "num_channels",
            "num_frames",
            "tubelet_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
        )
        for value in (0, -2, True, 16.0, "16", None)
    ),
    ({"hidden_act": "gelo"}, "hidden_act='gelo' is unknown; choose from .*'gelu'"),
    ({"initialization": "xavier"}, "initialization='xavier' is unknown"),
    ({"problem_type": "single_label"}, "problem_type='single_label' is unknown"),
    ({"image_size": 225}, "image_size=225 .*height .*multiple of patch_size=16; choose e.g. 224"),
    ({"image_size": (224, 250)}, r"image_size=\(224, 250\) .*width .*patch_size=16; .* 256"),
    ({"image_size": (100, 224)}, r"image_size=\(100, 224\) .*height"),
    ({"image_size": 0}, "image_size=0"),
    ({"image_size": -224}, "image_size=-224"),
    ({"image_size": True}, "image_size=True"),
    ({"image_size": 224.0}, "image_size=224.0"),
    ({"image_size": float("nan")}, "image_size=nan"),
    ({"image_size": float("inf")}, "image_size=inf"),
    ({"image_size": "224"}, "image_size='224' must be one int or"),
    ({"image_size": None}, "image_size=None must be one int or"),
    ({"image_size": (16, 224, 224)}, r"image_size=\(16, 224, 224\) must be one int or"),
    ({"patch_size": (16, 14)}, r"patch_size=\(16, 14\) must be square"),
    ({"num_frames": 15}, "num_frames=15 is not a multiple of tubelet_size=2"),
    *(
        ({name: value}, f"{name}={value!r} must be a positive number")
        for name in ("layer_norm_eps", "decoder_norm_eps", "fc_norm_eps", "initializer_range")
        for value in (0, -1e-6, True, "1e-6", None, float("nan"))
    ),
    *(
        ({name: value}, f"{name}={value!r} must be in ")
        for name in (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "drop_path_rate",
            "head_dropout_prob",
        )
        for value in (-0.1, 1.0, 1.5, True, "0.1", None, float("nan"))
    ),
    ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "num_labels=3 contradicts id2label with 2"),
    ({"num_labels": -1}, "num_labels=-1"),
    ({"num_labels": True}, "num_labels=True"),
    ({"num_labels": 2.0}, "num_labels=2.0"),
    ({"id2label": {"first": "a"}}, "id2label="),
    ({"id2label": ["a", "b"]}, "id2label="),
    ({"image_mean": (0.5, 0.5)}, r"image_mean=\(0.5, 0.5\) must be 3 numbers"),
    ({"image_std": (0.5,)}, r"image_std=\(0.5,\) must be 3 numbers"),
    ({"image_mean": ()}, r"image_mean=\(\) must be 3 numbers"),
    ({"image_mean": 0.5}, "image_mean=0.5 must be 3 numbers"),
    ({"qkv_bias": "false"}, "qkv_bias='false' must be True or False"),
    ({"norm_pix_loss": 1}, "norm_pix_loss=1 must be True or False"),
    ({"num_channels": 1, "image_mean": (0.5, 0.5, 0.5)}, "image_mean=.* must be 1 numbers"),
    ({"image_mean": ("a", 0.5, 0.5)}, "image_mean=.* must be 3 numbers"),
    ({"image_std": (0.2, 0.0, 0.2)}, "image_std=.* must be positive"),
    ({"image_std": (0.2, float("nan"), 0.2)}, "image_std="),
    ({"image_size": 224, "patch_size": 1, "tubelet_size": 1}, "norm_pix_loss=True needs"),
]


@pytest.mark.parametrize(("values", "message"), BAD_VALUES, ids=lambda x: str(x)[:50])
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        VideoMAEConfig(**values)
    with pytest.raises(ValueError, match=message):  # changes are checked as well
        VideoMAEConfig().replace(**values)


@pytest.mark.parametrize(
    "make", [VideoMAEConfig().replace, lambda **x: VideoMAEConfig.from_size("B", **x)]
)
def test_unknown_fields_are_refused_with_the_nearest_name(make):
    with pytest.raises(ValueError, match=r"hiden_size is no .* mean hidden_size\?"):
        make(hiden_size=3)
    with pytest.raises(ValueError, match=r"zzz is no field of VideoMAEConfig\.$"):
        make(zzz=3)


def test_square_sizes_may_be_given_twice():
    assert VideoMAEConfig(image_size=[224, 224]) == VideoMAEConfig(image_size=(224, 224))
    assert VideoMAEConfig(image_size=[224, 224]).image_size == 224
    assert VideoMAEConfig(patch_size=[16, 16]).patch_size == 16
    assert VideoMAEConfig(image_size=[32, 48]).image_size == (32, 48)  # hashable


def test_label_names_may_have_text_numbers():
    config = VideoMAEConfig(id2label={"0": "run", "1": "jump", "2": "sit"})
    assert config.id2label == {0: "run", 1: "jump", 2: "sit"}
    assert config.label2id == {"run": 0, "jump": 1, "sit": 2}
    assert config.num_labels == 3


def test_number_of_labels_alone_makes_names():
    config = VideoMAEConfig(num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert VideoMAEConfig(num_labels=0).id2label == {}
    assert VideoMAEConfig(num_labels=2, id2label={0: "a", 1: "b"}).num_labels == 2


def test_replace_drops_the_names_of_other_labels():
    config = VideoMAEConfig(id2label={0: "run", 1: "jump"})
    more = config.replace(num_labels=3)
    assert more.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert set(more.label2id) == {"LABEL_0", "LABEL_1", "LABEL_2"}
    named = more.replace(id2label={0: "sit"})
    assert (named.num_labels, named.label2id) == (1, {"sit": 0})
    turned = config.replace(label2id={"jump": 0, "run": 1, "sit": 2})
    assert (turned.num_labels, turned.id2label) == (3, {0: "jump", 1: "run", 2: "sit"})
    assert config.replace(hidden_size=384).id2label == {0: "run", 1: "jump"}
    with pytest.raises(ValueError, match="contradicts"):
        config.replace(num_labels=3, id2label={0: "sit"})


def test_replace_drops_the_pixel_statistics_of_other_channels():
    config = VideoMAEConfig(image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.6, 0.7))
    gray = config.replace(num_channels=1)
    assert (gray.image_mean, gray.image_std) == ((0.0,), (1.0,))
    assert gray.replace(num_channels=3) == VideoMAEConfig()
    assert config.replace(num_channels=3, hidden_size=384).image_mean == (0.1, 0.2, 0.3)
    assert config.replace(num_channels=1, image_mean=(0.5,)).image_mean == (0.5,)


def test_both_spellings_of_the_bias_are_read():
    assert VideoMAEConfig.from_dict({"qv_bias": False}).qkv_bias is False
    assert VideoMAEConfig.from_dict({"qkv_bias": False}).qkv_bias is False
    assert VideoMAEConfig.from_dict({"qkv_bias": False, "qv_bias": False}).qkv_bias is False
    assert VideoMAEConfig.from_dict({}).qkv_bias is True
    assert "qv_bias" not in VideoMAEConfig.from_dict({"qv_bias": False}).extra
    with pytest.raises(ValueError, match="qkv_bias=True contradicts qv_bias=False"):
        VideoMAEConfig.from_dict({"qkv_bias": True, "qv_bias": False})


def test_unknown_keys_are_kept_and_written_back():
    stored = {"architectures": ["VideoMAEModel"], "transformers_version": "4.27.0", "extra": 1}
    config = VideoMAEConfig.from_dict({**stored, "hidden_size": 384})
    assert config.extra == stored
    assert {k: config.to_dict()[k] for k in stored} == stored
    assert config.to_dict()["hidden_size"] == 384


@pytest.mark.parametrize(
    "config",
    [
        VideoMAEConfig(),
        *(VideoMAEConfig.from_size(size) for size in SIZES),
        VideoMAEConfig(**TINY, num_labels=0, extra={"dtype": "float32"}),
        VideoMAEConfig(
            num_channels=4,
            image_mean=(0.1, 0.2, 0.3, 0.4),
            image_std=[0.5] * 4,
            id2label={0: "run", 1: "jump", 2: "sit"},
            problem_type="regression",
            qkv_bias=False,
            return_dict=False,
            initialization="huggingface",
        ),
    ],
)
def test_json_round_trip_is_equal(config, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(config.to_json_string())
    assert VideoMAEConfig.from_json_file(path) == config
    assert json.loads(path.read_text())["model_type"] == "videomae"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is no VideoMAE configuration"),
        ("[]", "config.json is no VideoMAE .*list, not an object"),
        ('{"model_type": "vit"}', "config.json is no .*model_type is not 'videomae'"),
        ('{"hidden_size": "768"}', "config.json is no .*hidden_size='768'"),
    ],
)
def test_files_that_hold_something_else_are_named(text, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        VideoMAEConfig.from_json_file(path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": False, "num_labels": 7},
        {"id2label": {0: "run", 1: "jump", 2: "sit"}, "problem_type": "regression"},
        {"use_mean_pooling": False, "norm_pix_loss": False, "output_attentions": True},
    ],
)
def test_transformers_reads_what_we_write_and_we_what_it_writes(changes, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = VideoMAEConfig(**TINY, **changes)
    (tmp_path / "config.json").write_text(config.to_json_string())
    theirs = transformers.VideoMAEConfig.from_pretrained(tmp_path)
    for name in ("hidden_size", "num_labels", "id2label", "label2id", "problem_type", *changes):
        their_name = {"qkv_bias": "qv_bias"}.get(name, name)
        assert getattr(theirs, their_name) == getattr(config, name), name
    assert tuple(theirs.image_size) == (32, 48)

    theirs.save_pretrained(tmp_path / "again")
    ours = VideoMAEConfig.from_json_file(tmp_path / "again" / "config.json")
    assert ours.replace(extra={}) == config


def test_labels_default_to_two_in_a_file_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.VideoMAEConfig(**{**TINY, "image_size": [32, 48]}).save_pretrained(tmp_path)
    ours = VideoMAEConfig.from_json_file(tmp_path / "config.json")
    assert ours.replace(extra={}) == VideoMAEConfig(**TINY)
