import copy
import dataclasses
import inspect
import json
import pickle
import re

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


def test_unknown_keywords_are_kept_read_as_attributes_and_written_back(tmp_path):
    config = VideoMAEConfig(**TINY, is_decoder=False, attn_implementation="eager", extra={"x": 1})
    assert config.extra == {"x": 1, "is_decoder": False, "attn_implementation": "eager"}
    assert (config.is_decoder, config.attn_implementation, config.x) == (False, "eager", 1)
    assert config.to_dict()["attn_implementation"] == "eager"
    config.save_pretrained(tmp_path)
    assert VideoMAEConfig.from_pretrained(tmp_path) == config
    assert config.replace(num_frames=8).is_decoder is False
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert VideoMAEConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("hiden_size", "hidden_size"),
        ("num_frame", "num_frames"),
        ("patchsize", "patch_size"),
        ("hidden_dropout", "hidden_dropout_prob"),
        ("drop_path", "drop_path_rate"),
        ("num_classes", "num_labels"),
        ("layer_norm_epsilon", "layer_norm_eps"),
        ("mean_pooling", "use_mean_pooling"),
    ],
)
def test_a_keyword_that_is_nearly_a_field_is_refused(name, near):
    with pytest.raises(ValueError, match=f"{name} is no field .*did you mean {near}\\?"):
        VideoMAEConfig(**{name: 1})
    assert VideoMAEConfig(extra={name: 1}).to_dict()[name] == 1  # kept, if that is meant


def test_no_keyword_of_transformers_is_taken_for_a_misspelling():
    transformers = pytest.importorskip("transformers")
    source = inspect.getsource(transformers.PretrainedConfig)
    names = set(re.findall(r'kwargs\.(?:pop|get)\("(\w+)"', source))
    # of 4.27.4
    names |= {
        *("max_length", "min_length", "num_beams", "num_beam_groups", "num_return_sequences"),
        *("is_decoder", "is_encoder_decoder", "output_scores", "return_dict_in_generate"),
        *("torchscript", "torch_dtype", "pruned_heads", "tie_word_embeddings", "architectures"),
        *("cross_attention_hidden_size", "add_cross_attention", "finetuning_task", "prefix"),
        *("chunk_size_feed_forward", "encoder_no_repeat_ngram_size", "top_k", "typical_p"),
    }
    assert len(names) > 20
    for name in sorted(names - {field.name for field in dataclasses.fields(VideoMAEConfig)}):
        assert name in VideoMAEConfig(**{name: None}).extra


def test_assignment_says_what_to_do_instead():
    config = VideoMAEConfig()
    remedy = r"config\.replace\(output_attentions=True\), or give .* from_pretrained"
    with pytest.raises(dataclasses.FrozenInstanceError, match=remedy):
        config.output_attentions = True
    with pytest.raises(dataclasses.FrozenInstanceError, match="does not change"):
        config.no_field = 3
    with pytest.raises(AttributeError, match=r"has no 'update'.*config\.replace\(\*\*values\)"):
        config.update({"output_attentions": True})
    with pytest.raises(AttributeError, match="a VideoMAEConfig has no 'nothing'"):
        config.nothing  # noqa: B018


FIVE = {str(i): name for i, name in enumerate(["run", "sit", "stand", "jump", "eat"])}


@pytest.mark.parametrize(
    ("stored", "overrides", "expected"),
    [
        ({"num_labels": 2, "id2label": FIVE}, {"num_labels": 5}, {"num_labels": 5}),
        ({"num_labels": 2, "id2label": FIVE}, {"num_labels": 3}, {"num_labels": 3}),
        ({"id2label": FIVE}, {"id2label": {0: "a"}}, {"num_labels": 1, "label2id": {"a": 0}}),
        ({"id2label": FIVE}, {"label2id": {"b": 0, "c": 1}}, {"id2label": {0: "b", 1: "c"}}),
        ({"image_size": 225}, {"image_size": 224}, {"image_size": 224}),
        ({"hidden_size": 770}, {"num_attention_heads": 10}, {"hidden_size": 770}),
        ({"image_mean": [0.1, 0.2, 0.3]}, {"num_channels": 1}, {"image_mean": (0.0,)}),
        ({"qv_bias": True}, {"qv_bias": False}, {"qkv_bias": False}),
    ],
    ids=str,
)
def test_overrides_count_before_a_file_is_checked(stored, overrides, expected, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(stored))
    for place in (tmp_path, path):
        config = VideoMAEConfig.from_pretrained(place, **overrides)
        assert {name: getattr(config, name) for name in expected} == expected
    assert VideoMAEConfig.from_dict(stored, **overrides) == config


def test_names_stay_where_their_number_is_given():
    config = VideoMAEConfig.from_dict({"num_labels": 2, "id2label": FIVE}, num_labels=5)
    assert config.id2label[4] == "eat"
    config = VideoMAEConfig.from_dict({"num_labels": 2, "id2label": FIVE}, num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_names_may_be_told_by_label2id_alone():
    config = VideoMAEConfig(label2id={"run": 0, "sit": 1, "eat": 2})
    assert (config.num_labels, config.id2label) == (3, {0: "run", 1: "sit", 2: "eat"})
    with pytest.raises(ValueError, match="num_labels=2 contradicts id2label with 3 entries"):
        VideoMAEConfig(num_labels=2, label2id={"run": 0, "sit": 1, "eat": 2})
    with pytest.raises(ValueError, match=r"label2id=.* must map names to class numbers"):
        VideoMAEConfig(label2id=["run"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 100_000_000}, r"image_size=100000000, .*hidden_size=768 .*Correct what"),
        ({"num_frames": 2 * 10**9}, "num_frames=2000000000.* tokens"),
        ({"decoder_hidden_size": 6 * 10**6}, "decoder_hidden_size=6000000"),
    ],
    ids=str,
)
def test_a_position_table_that_cannot_be_made_is_refused_at_loading(values, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        VideoMAEConfig.from_pretrained(tmp_path)
    large = VideoMAEConfig(
        image_size=1024, num_frames=128, hidden_size=1408, num_attention_heads=16
    )
    assert large.num_tokens == 64 * 64 * 64  # which can


def test_only_what_differs_from_all_models_defaults_is_left_out_of_a_file():
    config = VideoMAEConfig(**TINY, output_attentions=True)
    left_out = set(config.to_dict()) - set(config.to_diff_dict())
    assert left_out == {
        "id2label",
        "label2id",
        "problem_type",
        "output_hidden_states",
        "return_dict",
    }
    assert json.loads(config.to_json_string(use_diff=False)) == config.to_dict()
    assert VideoMAEConfig.from_dict(config.to_diff_dict()) == config
    named = config.replace(id2label={0: "run", 1: "sit"})
    assert named.to_diff_dict()["id2label"] == {"0": "run", "1": "sit"}
    assert repr(named) == f"VideoMAEConfig {named.to_json_string()}"


def test_a_configuration_is_looked_for_where_it_may_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds config\.json, or a hub id"):
        VideoMAEConfig.from_pretrained(tmp_path)
    VideoMAEConfig(**TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"revision='v1' is for hub ids, and {tmp_path} is none"):
        VideoMAEConfig.from_pretrained(tmp_path, revision="v1")
    with pytest.raises(ValueError, match="cache_dir is no option here; set HF_HUB_CACHE"):
        VideoMAEConfig.from_pretrained(tmp_path, cache_dir="/tmp")
