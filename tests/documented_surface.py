"""The documented surface of transformers' VideoMAE, line by line, and what is different here.

The page is that of 4.27.2; of the base classes, what users call is here (4.27.4 was read for it,
5.23 is compared with). `test_documented_surface.py` asks every line of both libraries, and that no
public name of theirs is without one. The lines that differ are docs/differences.md, which

    python -m tests.documented_surface

writes. Questions are Python expressions; their names (config, model, outputs, ...) are the test's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parent.parent / "docs" / "differences.md"


class Raises(NamedTuple):
    """Attributes:
    message: a regular expression; an answer that is an error.
    """

    message: str = ""


class Asked:
    """Stands for the answer of transformers 5.23, where no other is given."""


class Line(NamedTuple):
    """Attributes:
    question: an expression.
    theirs: its value as the page or 4.27.4 has it, where 5.23 differs from them.
    ours: its value here, if it differs on purpose.
    why: the reason, if it differs.
    names: further names of theirs for which the same holds.
    shown: how the page writes the question.
    """

    question: str
    theirs: Any = Asked
    ours: Any = Asked
    why: str = ""
    names: str = ""
    shown: str = ""


def same(*questions: str) -> list[Line]:
    return [Line(question) for question in questions]


def stated(question: str, theirs: Any) -> list[Line]:
    return [Line(question, theirs)]


def differs(
    question: str, ours: Any, why: str, *, theirs: Any = Asked, names: str = "", shown: str = ""
) -> Line:
    return Line(question, theirs, ours, why, names, shown or question)


# The page's signatures, in Python; ours may have more parameters after these, with defaults.
SIGNATURES = {
    "Config": """image_size=224, patch_size=16, num_channels=3, num_frames=16, tubelet_size=2,
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        hidden_act='gelu', hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.02, layer_norm_eps=1e-12, qkv_bias=True, use_mean_pooling=True,
        decoder_num_attention_heads=6, decoder_hidden_size=384, decoder_num_hidden_layers=4,
        decoder_intermediate_size=1536, norm_pix_loss=True, **kwargs""",
    "FeatureExtractor": "*args, **kwargs",
    "FeatureExtractor.__call__": "self, images, **kwargs",
    "Processor": """do_resize=True, size=None, resample=2, do_center_crop=True, crop_size=None,
        do_rescale=True, rescale_factor=0.00392156862745098, do_normalize=True, image_mean=None,
        image_std=None, **kwargs""",
    "Processor.__call__": "self, images, **kwargs",
    "Processor.preprocess": """self, videos, do_resize=None, size=None, resample=None,
        do_center_crop=None, crop_size=None, do_rescale=None, rescale_factor=None,
        do_normalize=None, image_mean=None, image_std=None, return_tensors=None,
        data_format='channels_first', **kwargs""",
    "Model": "config",
    "Model.forward": """self, pixel_values, bool_masked_pos=None, head_mask=None,
        output_attentions=None, output_hidden_states=None, return_dict=None""",
    "PreTraining": "config",
    "PreTraining.forward": """self, pixel_values, bool_masked_pos, head_mask=None,
        output_attentions=None, output_hidden_states=None, return_dict=None""",
    "Classifier": "config",
    "Classifier.forward": """self, pixel_values=None, head_mask=None, labels=None,
        output_attentions=None, output_hidden_states=None, return_dict=None""",
    # of the base classes, 4.27.4
    "Config.from_pretrained": "pretrained_model_name_or_path, **kwargs",
    "Config.save_pretrained": "self, save_directory, push_to_hub=False, **kwargs",
    "Config.from_dict": "config_dict, **kwargs",
    "Config.from_json_file": "json_file",
    "Config.to_dict": "self",
    "Config.to_diff_dict": "self",
    "Config.to_json_string": "self, use_diff=True",
    "Config.to_json_file": "self, json_file_path, use_diff=True",
    "Processor.from_pretrained": "pretrained_model_name_or_path, **kwargs",
    "Processor.save_pretrained": "self, save_directory, push_to_hub=False, **kwargs",
    "Processor.from_dict": "image_processor_dict, **kwargs",
    "Processor.from_json_file": "json_file",
    "Processor.to_dict": "self",
    "Processor.to_json_string": "self",
    "Processor.to_json_file": "self, json_file_path",
    "BatchFeature": "data=None, tensor_type=None",
    "BatchFeature.convert_to_tensors": "self, tensor_type=None",
    "BatchFeature.to": "self, *args, **kwargs",
    "Model.from_pretrained": "pretrained_model_name_or_path, **kwargs",
    "Model.push_to_hub": "self, repo_id, **kwargs",
    "Model.gradient_checkpointing_enable": "self",
    "Model.gradient_checkpointing_disable": "self",
    "BaseModelOutput": "last_hidden_state=None, hidden_states=None, attentions=None",
    "PreTrainingOutput": "loss=None, logits=None, hidden_states=None, attentions=None",
    "ClassifierOutput": "loss=None, logits=None, hidden_states=None, attentions=None",
}

_FIELDS = [
    *("image_size", "patch_size", "num_channels", "num_frames", "tubelet_size", "hidden_size"),
    *("num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"),
    *("layer_norm_eps", "use_mean_pooling", "decoder_num_attention_heads", "decoder_hidden_size"),
    *("decoder_num_hidden_layers", "decoder_intermediate_size", "norm_pix_loss", "num_labels"),
    *("id2label", "label2id", "problem_type", "output_attentions", "output_hidden_states"),
    *("return_dict", "use_return_dict", "model_type", "name_or_path"),
]

CONFIG = [
    *same(*(f"Config().{name}" for name in _FIELDS)),
    *stated("Config().qkv_bias", True),
    *same(
        *(f"config.{name}" for name in _FIELDS),
        "Config() == Config()",
        "config == Config()",
        "Config(id2label={'0': 'run', '1': 'sit', '2': 'eat'}).id2label",
        "Config(id2label={'0': 'run', '1': 'sit', '2': 'eat'}).num_labels",
        "Config(num_labels=3).id2label",
        "Config(num_labels=3).label2id",
        "Config(is_decoder=False, attn_implementation='eager').is_decoder",
        "Config(is_decoder=True).to_dict()['is_decoder']",
        "Config(any_word=[1, 2]).any_word",
        "Config(**config.to_dict()).to_dict()['hidden_size']",
        "Config.from_dict({**config.to_dict(), 'any_word': 3}).any_word",
        "Config.from_dict(config.to_dict(), num_labels=7).num_labels",
        "Config.from_dict(config.to_dict(), output_attentions=True).output_attentions",
        "config.to_dict()['model_type']",
        "config.to_dict()['hidden_size']",
        "config.to_dict()['label2id']",
        "'hidden_size' in config.to_diff_dict()",
        "'id2label' in Config().to_diff_dict()",
        "'id2label' in config.to_diff_dict()",
        "'output_attentions' in Config(output_attentions=True).to_diff_dict()",
        "json.loads(config.to_json_string())['id2label']",
        "json.loads(config.to_json_string(use_diff=False))['hidden_size']",
        "[config.to_json_file(path), Config.from_json_file(path).id2label]",
        "[config.to_json_file(path, use_diff=False), Config.from_json_file(path).hidden_size]",
        "[config.save_pretrained(new), sorted(os.listdir(new))]",
        "[config.save_pretrained(new), Config.from_pretrained(new).id2label]",
        "Config.from_pretrained(saved).num_labels",
        "Config.from_pretrained(f'{saved}/config.json').hidden_size",
        "Config.from_pretrained(saved, num_labels=5).num_labels",
        "Config.from_pretrained(saved, output_hidden_states=True).output_hidden_states",
        "Config.from_pretrained(f'{saved}/nothing')",
        "repr(config)[:16]",
        "config.no_such_attribute",
        "callable(config.push_to_hub)",
    ),
    *stated("Config.from_pretrained(contradicting, num_labels=5).id2label[4]", "eat"),
    differs(
        "setattr(config, 'output_attentions', True)",
        Raises(r"config\.replace\(output_attentions=True\)"),
        "a configuration is frozen and hashable, for compiled programs are kept by it; "
        "`config.replace(output_attentions=True)` makes another, and models take the value in "
        "`from_pretrained` and in every call",
        shown="config.output_attentions = True",
    ),
    differs(
        "config.update({})",
        Raises(
            r"has no 'update': a configuration does not change; .*config\.replace\(\*\*values\)"
        ),
        "the same; `config.replace(**values)`",
        names="update_from_string",
    ),
    differs(
        "Config(hiden_size=32)",
        Raises("hiden_size is no field .*did you mean hidden_size"),
        "unknown keywords are kept, but for one that is nearly a field: that is a misspelling",
    ),
    differs(
        "Config(hidden_size=7, num_attention_heads=2)",
        Raises("hidden_size=7 is not a multiple of num_attention_heads=2"),
        "values that cannot work are refused when a configuration is made, not when a model is",
        names="validate validate_architecture validate_layer_type validate_output_attentions "
        "validate_rope validate_token_ids",
    ),
    differs(
        "Config(num_labels=3, id2label={0: 'run', 1: 'sit'}).num_labels",
        Raises("num_labels=3 contradicts id2label with 2 entries"),
        "values that contradict each other are an error; the original warns and takes the names",
        shown="Config(num_labels=3, id2label={0: ..., 1: ...})",
    ),
    differs(
        "Config.from_pretrained(saved, any_word=3).hidden_size",
        Raises("any_word is no field of VideoMAEConfig"),
        "an override that is no field is an error; the original drops it without a word",
        shown="Config.from_pretrained(path, any_word=3)",
    ),
    differs(
        "Config.from_pretrained(saved, return_unused_kwargs=True)[1]",
        Raises("return_unused_kwargs is no option here; .*none is left over"),
        "so no overrides are left over to be returned",
        shown="Config.from_pretrained(path, return_unused_kwargs=True)",
    ),
    differs(
        "Config.from_pretrained(saved, local_files_only=True).hidden_size",
        Raises("local_files_only is no option here; set HF_HUB_OFFLINE=1"),
        "downloads are governed by the variables that all libraries of the hub read "
        "(`HF_HUB_OFFLINE`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`); each error names its own. "
        "Likewise `cache_dir`, `force_download`, `proxies`, `resume_download`, `subfolder`, "
        "`token`, `use_auth_token`, `trust_remote_code`, in all three `from_pretrained`",
        shown="Config.from_pretrained(path, local_files_only=True)",
    ),
    differs(
        "sorted(config.to_dict()['id2label'])",
        ["0", "1", "2"],
        "`to_dict` is what the file holds, and JSON has text as keys; the attribute has numbers",
        shown="config.to_dict(), id2label",
    ),
    differs(
        "'transformers_version' in config.to_dict()",
        False,
        "only what a file said of it is kept: the file was not written by that library",
        names="transformers_version dtype torch_dtype architectures dict_dtype_to_str "
        "dict_torch_dtype_to_str",
        shown="config.transformers_version, config.architectures, config.torch_dtype",
    ),
    differs(
        "Config(hidden_act=len).hidden_act is len",
        Raises("hidden_act=.* is unknown; choose from"),
        "an activation is given by name, for a function cannot be written to a file",
        theirs=True,
        shown="Config(hidden_act=function)",
    ),
    differs(
        "hasattr(config, 'max_length') or hasattr(config, 'chunk_size_feed_forward')",
        False,
        "attributes that only other kinds of models use (text generation, tokenizers, nested, "
        "composed or distributed models) are there only if they were given",
        names="chunk_size_feed_forward is_encoder_decoder is_composition attribute_map sub_configs "
        "sub_configs_defaults base_config_key base_model_ep_plan base_model_fsdp_plan "
        "base_model_pp_plan base_model_tp_plan extra_config_files extra_files get_text_config "
        "get_mtp_config allow_global_per_layer_attribute_access convert_rope_params_to_dict "
        "default_config_fields default_rope_type default_theta ignore_keys_at_rope_validation "
        "is_heterogeneous nested_rope_parameter_keys per_layer_attributes per_layer_config "
        "rope_scaling serialize_explicit_per_layer_config standardize_rope_params",
        shown="config.max_length, config.chunk_size_feed_forward, ...",
    ),
    differs(
        "Config(qv_bias=False).qv_bias",
        Raises("has no 'qv_bias'"),
        "the field is `qkv_bias`, as the page has it; `qv_bias`, its name in 5.x, is read from "
        "keywords and files",
    ),
    differs(
        "Config.get_config_dict(saved)[0]['hidden_size']",
        Raises("get_config_dict"),
        "`from_pretrained(path).to_dict()` says the same",
        shown="Config.get_config_dict(path)",
    ),
    differs(
        "callable(Config.register_for_auto_class)",
        Raises("register_for_auto_class"),
        "there are no Auto classes: one model needs none. For `AutoImageProcessor` write "
        "`VideoMAEImageProcessor`; code from repositories is never run",
        names="is_custom_code is_remote_code",
        shown="AutoConfig, Config.register_for_auto_class()",
    ),
]

_OPTIONS = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 2,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

PROCESSOR = [
    *(line for name, value in _OPTIONS.items() for line in stated(f"Processor().{name}", value)),
    *same(
        "Processor().model_input_names",
        "Processor(size=20).to_dict()['size']",
        "json.loads(processor.to_json_string())",
        "processor.to_dict()['image_processor_type']",
        "[processor.to_json_file(path), Processor.from_json_file(path).to_dict()]",
        "[processor.save_pretrained(new), sorted(os.listdir(new))][1]",
        "[processor.save_pretrained(new), Processor.from_pretrained(new).to_dict()][1]",
        "Processor.from_pretrained(saved).to_dict()['crop_size']",
        "Processor.from_pretrained(f'{saved}/preprocessor_config.json').do_resize",
        "Processor.from_pretrained(saved, do_resize=False).do_resize",
        "Processor.from_dict(processor.to_dict(), size={'shortest_edge': 20}).to_dict()['size']",
        "Processor.from_dict({**processor.to_dict(), 'any_word': 3}).any_word",
        "Processor.from_dict({**processor.to_dict(), 'any_word': 3}).to_dict()['any_word']",
        "repr(processor)[:6]",
        "callable(processor.push_to_hub)",
        "processor(video).pixel_values",
        "processor.preprocess(video).pixel_values",
        "processor(video, return_tensors='np').pixel_values",
        "processor(video, return_tensors='pt').pixel_values",
        "processor([video, video], return_tensors='pt').pixel_values.shape",
        "processor(video, return_tensors='np', do_normalize=False, size=20).pixel_values",
        "processor(video, return_tensors='np', input_data_format='channels_last').pixel_values",
        "processor(four, return_tensors='np', input_data_format='channels_first', "
        "image_mean=[0.0] * 4, image_std=[1.0] * 4).pixel_values",
        "processor(four, return_tensors='np', input_data_format='channels_first')",
        "processor(images, return_tensors='np').pixel_values",
        "processor(Image.new('RGBA', (20, 20)))",
        "processor(video, return_tensors='xy')",
        "processor('a path')",
    ),
    *stated("type(processor(video, return_tensors='jax').pixel_values).__name__", "ArrayImpl"),
    *stated("processor(video, return_tensors='tf')", Raises()),  # ImportError without TensorFlow
    *stated(
        "processor(video, return_tensors='np', data_format='channels_last').pixel_values.shape",
        (1, 4, 16, 16, 3),
    ),
    *stated("processor(video, data_format=None)", Raises()),  # the code of 4.27.4
    *stated("isinstance(former, Processor)", True),
    *stated("former(video, return_tensors='np').pixel_values.shape", (1, 4, 3, 16, 16)),
    differs(
        "Processor(any_word=3).any_word",
        Raises("'any_word' is no option here"),
        "an unknown option is an error, which names the nearest one: most are misspellings. What "
        "stands in a file is kept, readable as an attribute, and written back",
    ),
    differs(
        "processor(video, do_resise=False)['pixel_values'] is not None",
        Raises("did you mean 'do_resize'"),
        "the same of a call",
        theirs=True,
        names="do_convert_rgb do_pad pad_size device disable_grouping valid_kwargs",
        shown="processor(video, do_resise=False)",
    ),
    differs(
        "processor([grey], return_tensors='np').pixel_values.shape",
        (1, 1, 3, 16, 16),
        "grey frames (also without an axis of channels, and PIL's) become three equal channels "
        "where three means are given; the original has an error about the means",
        shown="processor(grey_frames)",
    ),
    differs(
        "processor([Image.new('P', (20, 20))], image_mean=0.5, image_std=0.5) is not None",
        Raises("mode 'P' .a palette., .*convert\\('RGB'\\)"),
        "PIL images whose numbers are no grey, RGB or RGBA (palettes, CMYK, YCbCr, ...) are "
        "refused; the original takes them for intensities",
        names="convert_to_rgb",
        shown="processor(palette_images)",
    ),
    differs(
        "processor(six, image_mean=[0.5] * 6, image_std=[0.5] * 6, return_tensors='np')"
        ".pixel_values.shape",
        (1, 2, 6, 16, 16),
        "as many channels as means are given, any number; the original finds 1, 3 or 4",
        shown="processor(frames_of_six_bands, image_mean=six_numbers, image_std=six_numbers)",
    ),
    differs(
        "processor(np.stack([video, video]), return_tensors='np').pixel_values.shape",
        (2, 4, 3, 16, 16),
        "arrays of 5 axes (batches) are taken, arrays of jax, and tensors that require gradients",
        names="fetch_images",
        shown="processor(array_of_five_axes)",
    ),
    differs(
        "caught(lambda: processor(video / 255))",
        ["UserWarning"],
        "fractions in [0, 1] that `do_rescale` would scale once more are warned of",
        shown="processor(video / 255)",
    ),
    differs(
        "processor.resize(np.zeros((3, 20, 30), np.uint8), size_dict) is not None",
        Raises("has no 'resize': call the processor with the other steps off"),
        "single steps are the processor with the other steps off (`do_center_crop=False`, ...)",
        theirs=True,
        names="center_crop rescale normalize pad process_image backend",
        shown="processor.resize, .center_crop, .rescale, .normalize",
    ),
    differs(
        "processor([video, video[:1]], return_tensors='np') is not None",
        Raises("do not fit into one array"),
        "videos of different lengths are an error where an array is asked for (5.23 makes one of "
        "objects); without `return_tensors` they come as lists",
        shown="processor([video, shorter_video], return_tensors=...)",
    ),
    differs(
        "processor.save_pretrained(new)",
        None,
        "nothing is returned: the one file is `preprocessor_config.json` in that folder",
    ),
    differs(
        "Processor.get_image_processor_dict(saved)[0]['do_resize']",
        Raises("get_image_processor_dict"),
        "`from_pretrained(path).to_dict()` says the same",
        names="register_for_auto_class is_custom_code is_remote_code",
        shown="Processor.get_image_processor_dict(path)",
    ),
    differs(
        "hasattr(processor, 'return_tensors')",
        False,
        "what only a call has is no attribute",
        names="return_tensors data_format input_data_format default_to_square image_seq_length",
        shown="processor.return_tensors, processor.data_format, ...",
    ),
]

BATCH = [
    *same(
        "list(batch)",
        "len(batch)",
        "list(batch.keys())",
        "[name for name, value in batch.items()]",
        "[value.shape for value in batch.values()]",
        "sorted({**batch})",
        "'pixel_values' in batch",
        "batch['pixel_values']",
        "batch.pixel_values",
        "batch.data['pixel_values']",
        "batch[0]",
        "batch['nothing']",
        "batch.nothing",
        "batch.get('nothing')",
        "isinstance(batch, dict)",
        "BatchFeature({'any_word': 3}).any_word",
        "BatchFeature({'x': np.ones(3)}, 'pt').x",
        "BatchFeature({'x': np.ones(3)}).convert_to_tensors('pt')['x']",
        "[tensors.to('cpu') is tensors, list(tensors)]",
        "str(copy.copy(tensors).to(torch.float16).pixel_values.dtype)",
        "str(copy.deepcopy(tensors).to('meta').pixel_values.device)",
        "list(copy.copy(batch))",
        "list(batch.copy())",
        "list(pickle.loads(pickle.dumps(batch)))",
        "[batch.update(x=3), batch.x, batch.pop('x'), batch.setdefault('x', 4), batch.x]",
        "[batch.update(x=3), len(batch.popitem()), batch.clear(), len(batch)]",
        "list(BatchFeature.fromkeys(['x']))",
    ),
    differs(
        "batch.to('cpu') is batch",
        Raises("moves torch tensors, and pixel_values .ndarray. is none; .*jax.device_put"),
        "what is no torch tensor cannot be moved by torch; 4.27 has an error too, 5.23 leaves it "
        "where it is",
        shown="batch.to(device)",
    ),
]

OUTPUTS = [
    *same(
        "len(outputs)",
        "list(outputs)",
        "[*outputs]",
        "list(outputs.keys())",
        "[name for name, value in outputs.items()]",
        "len(outputs.values())",
        "sorted({**outputs})",
        "dict(outputs)['logits']",
        "'loss' in outputs",
        "'attentions' in outputs",
        "outputs['logits']",
        "outputs.logits",
        "outputs.hidden_states",
        "outputs.attentions",
        "outputs['attentions']",
        "outputs['nothing']",
        "outputs.nothing",
        "outputs.get('attentions', 3)",
        "outputs.get('loss')",
        "outputs[0]",
        "outputs[-1]",
        "outputs[7]",
        "outputs[:2]",
        "outputs[1:]",
        "outputs.to_tuple()",
        "type(outputs.to_tuple()).__name__",
        "isinstance(outputs, collections.abc.Mapping)",
        "type(outputs).__name__",
        "type(pretraining(pixels, mask)).__name__",
        "list(pretraining(pixels, mask))",
        "type(model(pixels)).__name__",
        "list(model(pixels, output_attentions=True))",
        "model(pixels).last_hidden_state",
        "model(pixels, mask).last_hidden_state",
        "classifier(pixels, return_dict=False)",
        "type(classifier(pixels, return_dict=False)).__name__",
        "list(BaseModelOutput(last_hidden_state=pixels))",
        "list(ClassifierOutput(logits=pixels))",
        "list(PreTrainingOutput(logits=pixels, attentions=(pixels,)))",
        "list(copy.copy(outputs))",
        "list(pickle.loads(pickle.dumps(outputs)))",
        "outputs.pop('loss')",
        "outputs.update({})",
        "outputs.setdefault('loss', 3)",
        "operator.delitem(outputs, 'loss')",
    ),
    differs(
        "setattr(outputs, 'loss', 3)",
        Raises("cannot assign"),
        "outputs are frozen pytrees, which pass through jit and grad; `outputs.replace(loss=...)` "
        "makes another, and `dict(outputs)` is a copy that may be changed",
        names="clear copy fromkeys move_to_end popitem",
        shown="outputs.loss = value",
    ),
    differs(
        "isinstance(outputs, dict)",
        False,
        "the same: they are a `collections.abc.Mapping`",
    ),
]

MODELS = [
    *same(
        "Model.config_class.__name__",
        "Model.base_model_prefix",
        "Model.main_input_name",
        "Model.supports_gradient_checkpointing",
        "model.config.hidden_size",
        "model.num_parameters()",
        "pretraining.num_parameters()",
        "classifier.num_parameters()",
        "str(model.dtype).removeprefix('torch.')",
        "model.get_memory_footprint()",
        "model.base_model is model",
        "type(classifier.base_model).__name__",
        "classifier.videomae(pixels).last_hidden_state",
        "model.forward(pixels).last_hidden_state",
        "classifier.eval() is classifier",
        "classifier.train(False) is classifier",
        "model.is_gradient_checkpointing",
        "[model.gradient_checkpointing_enable(), model.is_gradient_checkpointing]",
        "[model.gradient_checkpointing_disable(), model.is_gradient_checkpointing]",
        "pretraining(pixels, bool_masked_pos=mask).logits",
        "pretraining(pixels, bool_masked_pos=mask).loss",
        "classifier(pixel_values=pixels, labels=labels).loss",
        "classifier(pixel_values=pixels).loss",
        "len(classifier(pixels, output_hidden_states=True).hidden_states)",
        "[x.shape for x in classifier(pixels, output_attentions=True).attentions]",
        "Classifier.from_pretrained(saved).config.num_labels",
        "Classifier.from_pretrained(saved)(pixels).logits",
        "Model.from_pretrained(saved)(pixels).last_hidden_state",
        "Classifier.from_pretrained(saved, num_labels=5, ignore_mismatched_sizes=True)"
        ".config.num_labels",
        "Classifier.from_pretrained(saved, num_labels=5)",
        "Classifier.from_pretrained(saved, output_hidden_states=True)(pixels).hidden_states[0]",
        "Classifier.from_pretrained(saved, config=classifier.config)(pixels).logits",
        "Classifier.from_pretrained(saved, config=saved)(pixels).logits",
        "Model.from_pretrained(f'{saved}/nothing')",
        "[classifier.save_pretrained(new), 'model.safetensors' in os.listdir(new)]",
        "[classifier.save_pretrained(save_directory=new, max_shard_size='10KB'),"
        " 'model.safetensors.index.json' in os.listdir(new)]",
        "callable(model.push_to_hub)",
    ),
    differs(
        "classifier.train()",
        Raises(r"no training mode; give its call a key, model\(\.\.\., key="),
        "randomness is an argument: `model(..., key=jax.random.key(0))` drops, without a key "
        "nothing does; so there is no mode to forget",
    ),
    differs(
        "model(pixels, mask * 1) is not None",
        Raises("dtype int.*must be boolean"),
        "masks that cannot be one (integers, unequal counts, nothing visible) are errors; the "
        "original computes something from some of them. Under jit a boolean mask needs "
        "`num_masked=`, and a `Mask` of indices is taken everywhere",
        shown="model(pixels, mask)",
    ),
    differs(
        "[classifier(pixels, labels=labels).loss is not None, classifier.config.problem_type]",
        [True, None],
        "the kind of loss is found anew in each call where the configuration does not say it; the "
        "original writes the first one into the configuration",
        shown="classifier.config.problem_type",
    ),
    differs(
        "hasattr(model, 'core')",
        True,
        "the model of tokens, which training uses; `from_core` puts a class on one that exists",
        shown="model.core",
    ),
    differs(
        "Config.from_size('B').layer_norm_eps",
        1e-6,
        "`Config()` has the defaults of transformers, `Config.from_size` the original's epsilons; "
        "those of the decoder's last norm and the classifier's are fields of their own "
        "(`decoder_norm_eps`, `fc_norm_eps`), which transformers fixes to 1e-5",
        shown="Config.from_size(size)",
    ),
    differs(
        "[classifier.save_pretrained(new), sorted(os.listdir(new))][1]",
        ["config.json", "model.safetensors", "preprocessor_config.json"],
        "`save_pretrained` writes a processor that fits as well, unless one is there",
        shown="model.save_pretrained(path)",
    ),
    differs(
        "[classifier.save_pretrained(new, safe_serialization=False)]",
        Raises("safe_serialization=False, but only safetensors are written"),
        "weights are written as fp32 safetensors, which 4.x and 5.x read, by the process that "
        "calls: no `is_main_process`, `state_dict`, `save_function`, `variant`",
        theirs=[None],
        shown="model.save_pretrained(path, safe_serialization=False)",
    ),
    differs(
        "Model.from_pretrained(saved, torch_dtype='float32').num_parameters()",
        Raises("torch_dtype is no option here; give dtype="),
        "`dtype=` is that of the computation, `param_dtype=` that of the parameters, and "
        "`attention=`, `remat=` are options as well. Options about torch are refused with what "
        "to do instead: `device_map`, `low_cpu_mem_usage`, `state_dict`, `variant`, "
        "`output_loading_info`, `from_tf`, `from_flax`, `attn_implementation`, ...",
        names="set_attn_implementation get_correct_attn_implementation "
        "get_correct_experts_implementation get_experts_implementation set_experts_implementation",
        shown="Model.from_pretrained(path, torch_dtype=...)",
    ),
    differs(
        "model.num_parameters(only_trainable=True)",
        Raises("unexpected keyword"),
        "`num_parameters` and `get_memory_footprint` take no options: every parameter is "
        "trainable, none is an embedding of words, and there are no buffers",
        names="named_non_persistent_buffers get_parameter_or_buffer",
    ),
    differs(
        "str(model.device)",
        Raises("has no 'device': JAX places arrays"),
        "JAX places arrays, also on several devices at once; inputs need not be moved. So no "
        "`.device`, `.to`, `.cuda`, `.cpu`, and no plans of what lies where",
        names="to is_parallelizable ep_plan fsdp_plan fsdp_size pp_plan tp_plan tp_size "
        "init_parallel_plans maybe_distribute_model prepare_distribute_model supports_pp_plan "
        "supports_tp_plan supports_context_parallel gather_sharded_state_dict_for_save "
        "save_distributed_checkpoint should_save_on_this_rank "
        "barrier_after_gathered_checkpoint_save "
        "is_distributed_loading_by_transformers",
        shown="model.device, model.to(device)",
    ),
    differs(
        "str(model.half().dtype)",
        Raises("has no 'half': give dtype="),
        "parameters have the dtype that they were made or loaded with",
        theirs="torch.float16",
        names="float dequantize use_kernels set_use_kernels",
        shown="model.half(), model.float(), ...",
    ),
    differs(
        "len(list(model.parameters())) > 0",
        Raises(r"has no 'parameters': the parameters are nnx\.state\(model\)"),
        "nothing of torch's `nn.Module` is here (`parameters`, `state_dict`, `zero_grad`, hooks, "
        "...): a model is an `nnx.Module`, its parameters a pytree, its gradients what `jax.grad` "
        "returns",
        names="add_memory_hooks reset_memory_hooks_state enable_input_require_grads "
        "disable_input_require_grads activation_checkpointing_enable "
        "activation_checkpointing_disable is_activation_checkpointing get_compiled_call",
        shown="model.parameters(), model.state_dict(), ...",
    ),
    differs(
        "callable(model.prune_heads)",
        Raises("has no 'prune_heads': head_mask="),
        "`head_mask` nullifies heads in a call; heads are not taken away",
        theirs=True,
        names="get_head_mask",
        shown="model.prune_heads(heads)",
    ),
    differs(
        "callable(model.resize_position_embeddings)",
        Raises(r"has no 'resize_position_embeddings': the tables are made for the configuration"),
        "position tables are fixed and made for the configuration: "
        "`from_pretrained(path, num_frames=32)`",
        names="get_position_embeddings",
        shown="model.resize_position_embeddings(number)",
    ),
    differs(
        "model.get_input_embeddings() is not None",
        Raises(r"has no 'get_input_embeddings': it is model\.core\.embeddings"),
        "there are no words whose embeddings could be swapped, tied or resized; that of the "
        "tubelets is `model.core.embeddings`",
        names="set_input_embeddings get_output_embeddings set_output_embeddings tie_weights "
        "resize_token_embeddings get_expanded_tied_weights_keys mark_tied_weights_as_initialized "
        "get_decoder get_encoder set_decoder set_encoder warn_if_padding_and_no_attention_mask "
        "estimate_tokens floating_point_ops invert_attention_mask get_extended_attention_mask "
        "create_extended_attention_mask_for_decoder",
        shown="model.get_input_embeddings(), model.tie_weights(), ...",
    ),
    differs(
        "hasattr(model, 'framework') or hasattr(model, 'dummy_inputs')",
        False,
        "what the library needs to build, convert and generate with all its models is not here; a "
        "class with a configuration is a fresh model, `rngs=nnx.Rngs(0)` its seed",
        names="post_init init_weights initialize_weights retrieve_modules_from_names can_generate "
        "generate prepare_inputs_for_generation adjust_logits_during_generation "
        "compute_transition_scores contrastive_search greedy_search sample beam_search beam_sample "
        "group_beam_search constrained_beam_search generation_config_class can_record_outputs "
        "get_init_context input_modalities is_backend_compatible loss_function model_tags "
        "add_model_tags",
        shown="model.framework, model.dummy_inputs, model.post_init(), model.generate(), ...",
    ),
    differs(
        "callable(model.add_adapter)",
        Raises("has no 'add_adapter'"),
        "adapters (PEFT) are not supported",
        names="active_adapters delete_adapter disable_adapters enable_adapters enable_peft_hotswap "
        "get_adapter_state_dict load_adapter set_adapter",
        shown="model.add_adapter(...), ...",
    ),
    differs(
        "callable(Model.register_for_auto_class)",
        Raises("register_for_auto_class"),
        "there are no Auto classes, and code from repositories is never run",
        names="is_custom_code is_remote_code",
        shown="Model.register_for_auto_class()",
    ),
    differs(
        "len(repr(model)) > 200",
        False,
        "`repr` of a model is one line; `nnx.display(model)` shows its layers",
        shown="repr(model)",
    ),
]

SURFACE = {
    "VideoMAEConfig": CONFIG,
    "VideoMAEImageProcessor, VideoMAEFeatureExtractor": PROCESSOR,
    "BatchFeature": BATCH,
    "BaseModelOutput, VideoMAEForPreTrainingOutput, ImageClassifierOutput": OUTPUTS,
    "VideoMAEModel, VideoMAEForPreTraining, VideoMAEForVideoClassification": MODELS,
}

# Public names of 4.27.4 that 5.23 no longer has, read from its wheel.
NAMES_OF_4_27 = {
    "VideoMAEConfig": "is_composition attribute_map qkv_bias dict_torch_dtype_to_str",
    "VideoMAEImageProcessor, VideoMAEFeatureExtractor": "resize center_crop rescale normalize",
    "BaseModelOutput, VideoMAEForPreTrainingOutput, ImageClassifierOutput": "to_tuple",
    "BatchFeature": "convert_to_tensors to",
    "VideoMAEModel, VideoMAEForPreTraining, VideoMAEForVideoClassification": """
        is_parallelizable dummy_inputs framework post_init can_generate init_weights prune_heads
        to half float retrieve_modules_from_names add_memory_hooks reset_memory_hooks_state
        invert_attention_mask create_extended_attention_mask_for_decoder
        get_extended_attention_mask get_head_mask estimate_tokens floating_point_ops
        prepare_inputs_for_generation adjust_logits_during_generation compute_transition_scores
        generate contrastive_search greedy_search sample beam_search beam_sample
        group_beam_search constrained_beam_search""",
}


def page() -> str:
    """docs/differences.md."""
    parts = [
        "# What differs from transformers, and why\n\n"
        "The classes have the signatures, attributes and outputs of the page of VideoMAE in\n"
        "transformers 4.27, and what of their base classes users call; the tests ask each of\n"
        "transformers 5.23 too. What is different on purpose stands here. This page is written by\n"
        "`python -m tests.documented_surface`.\n"
    ]
    for classes, lines in SURFACE.items():
        names = ", ".join(f"`{name}`" for name in classes.split(", "))
        parts.append(f"\n## {names}\n\n")
        parts += [f"- `{line.shown}`: {line.why}.\n" for line in lines if line.why]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
