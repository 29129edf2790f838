"""From a checkpoint of any layout to a model.

    with open_checkpoint("MCG-NJU/videomae-base") as stored:
        core, report = load(stored, decoder=True)

Opening reads names and shapes only (but a run of ours whole, to compare its fingerprints). The
whole fit is checked before the first value is read or the first parameter made, so a file that does
not fit costs nothing, and never half a model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from vmae_jax.checkpoints.finished_steps import find_step
from vmae_jax.config import ORIGINAL_EPSILONS, SIZES, VideoMAEConfig
from vmae_jax.errors import SettingError
from vmae_jax.files.storage import is_remote
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute, sincos_table
from vmae_jax.weights import hub, layouts, weight_files
from vmae_jax.weights.layouts import Layout, Row
from vmae_jax.weights.torch_file import open_torch_file
from vmae_jax.weights.torch_pickle import LazyTensor
from vmae_jax.weights.weight_files import Tensor, WeightFileError

logger = logging.getLogger(__name__)

# DeepSpeed writes a folder per checkpoint; the weights of a run without model parallelism are here.
DEEPSPEED_FILE = "mp_rank_00_model_states.pt"
_STATE_KEYS = ("model", "module", "state_dict")
_FLOATS = ("float64", "float32", "float16", "bfloat16")
# A missing file of such a name is not looked for on the hub.
_FILE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_LARGEST_SIZE = 2**31 - 1  # of a field; products of larger ones overflow in the shapes of arrays
_SHOWN = 12  # names in a message; the rest is counted
_REFUSED = 500  # likewise of what does not fit: all of a real model, not the million of a bad file

# A class may lack these of a file: they belong to another class, or to the other kind of pooling.
_MAY_BE_DROPPED = {
    "encoder_to_decoder",
    "mask_token",
    "decoder",
    "decoder_norm",
    "decoder_head",
    "fc_norm",
    "classifier",
    "layernorm",
}
# A file may lack these of a classifier, which then has to be trained.
_MAY_BE_FRESH = {"fc_norm", "classifier"}
_KEY_BIAS = re.compile(r"\.(attention\.attention\.key\.bias|attn\.k_bias)$")
_HEADS = {size["hidden_size"]: size["num_attention_heads"] for size in SIZES.values()}
_DECODER_HEADS = {
    size["decoder_hidden_size"]: size["decoder_num_attention_heads"] for size in SIZES.values()
}
# What some files of related models hold, and this model has no place for.
_FOREIGN_PARTS = {
    r"\.gamma_[12]$": "layer scale (gamma_1, gamma_2), which no published VideoMAE has",
    r"\.attn\.scale$": "cosine attention (attn.scale), which no published VideoMAE has",
    r"(^|\.)pos_embed$": "a learned position table, and that of every published VideoMAE is fixed",
    r"^roi_head\.": "a detection head (roi_head), which is not supported",
}


class Stored(NamedTuple):
    """A checkpoint that is open, but not read.

    Attributes:
      path: for messages.
      layout: how its tensors are named.
      config: the model that it describes.
      unknown: fields of `config` that neither the file nor the published sizes tell; they must be
        given to `load`.
      tensors: by the names of `layout`.
    """

    path: str
    layout: Layout
    config: VideoMAEConfig
    unknown: tuple[str, ...]
    tensors: Mapping[str, Tensor]


@contextlib.contextmanager
def open_checkpoint(path: str | os.PathLike, revision: str | None = None) -> Iterator[Stored]:
    """A checkpoint of any layout in `layouts.LAYOUTS`.

    Args:
      path: a file (`.pth`, `.pt`, `.bin`, `.ckpt`, or `.safetensors`); a folder in Hugging Face's
        form, or DeepSpeed's; the workdir of a run of ours, or one of its steps; or a hub id.
      revision: branch, tag or commit of a hub id.
    Raises:
      FileNotFoundError: if there is nothing of that name.
      ValueError: if a file is damaged, or of no layout that is known (mostly `WeightFileError`,
        `TorchFileError`); CheckpointError likewise for a run of ours.
      OSError: if the hub cannot be reached, or a file not be read.
    """
    path = os.fspath(path)
    if not path.endswith(_FILE_ENDINGS) and hub.is_hub_id(path):
        path = hub.download_checkpoint(path, revision=revision)
    elif revision is not None:
        raise SettingError(
            f"revision={revision!r} is for hub ids, and {path!r} is a path; leave it out."
        )
    if (is_remote(path) or os.path.isdir(path)) and (step := find_step(path)) is not None:
        yield _open_run(step)
    elif os.path.isfile(os.path.join(path, DEEPSPEED_FILE)):
        with _open_torch(os.path.join(path, DEEPSPEED_FILE)) as tensors:
            yield _described(path, tensors)
    elif os.path.isdir(path):
        with weight_files.open_directory(path) as tensors:
            yield _described(path, tensors, os.path.join(path, hub.CONFIG_FILE))
    elif not os.path.lexists(path):
        raise FileNotFoundError(
            f"{path!r} does not exist here, and an id on the hub looks like 'organisation/name'."
        )
    elif path.endswith(".safetensors"):
        with weight_files.open_safetensors(path) as tensors:
            yield _described(path, tensors, os.path.join(os.path.dirname(path), hub.CONFIG_FILE))
    else:
        with _open_torch(path) as tensors:
            yield _described(path, tensors, os.path.join(os.path.dirname(path), hub.CONFIG_FILE))


def _open_run(step: os.PathLike) -> Stored:
    from vmae_jax.checkpoints.loading import read_params  # loads Orbax, for our own runs alone

    values, info = read_params(step)
    tensors = {
        name: Tensor(value.shape, str(value.dtype), functools.partial(np.asarray, value))
        for name, value in values.items()
    }
    config = VideoMAEConfig.from_dict(info["model"])
    return Stored(os.fspath(step), layouts.OURS, config, (), tensors)


@contextlib.contextmanager
def _open_torch(path: str) -> Iterator[dict[str, Tensor]]:
    """The state dict in a file of torch.save; optimizer, arguments and the like are left alone."""
    with open_torch_file(path) as file:
        candidates = [file.tree]
        if isinstance(file.tree, Mapping):
            candidates = [file.tree.get(key) for key in _STATE_KEYS] + candidates
        for candidate in candidates:
            if isinstance(candidate, Mapping) and (
                tensors := {n: t for n, t in candidate.items() if isinstance(t, LazyTensor)}
            ):
                yield {str(name): tensor for name, tensor in tensors.items()}
                return
        raise WeightFileError(
            path,
            None,
            f"holds no state dict: neither its top level nor {', '.join(_STATE_KEYS)} maps names "
            "to tensors; save model.state_dict()",
        )


def _described(
    path: str, stored: Mapping[str, Tensor], config_file: str | os.PathLike = ""
) -> Stored:
    """The layout and configuration of a file's tensors."""
    layout = layouts.identify(stored)
    if layout is None:
        known = ", ".join(layout.name for layout in layouts.LAYOUTS)
        raise WeightFileError(
            path,
            None,
            f"is of no layout that is known, for it has {_some(stored)}; known are: {known}",
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        canonical = layout.canonical(name)
        if canonical in tensors:
            raise WeightFileError(
                path, name, f"is another name of {canonical}, which is there as well; remove one"
            )
        tensors[canonical] = tensor
    if layout is layouts.HUGGING_FACE:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(
                f"{config_file} does not exist; weights in Hugging Face's layout need it, for "
                "they do not tell the number of heads nor the epsilons."
            )
        return Stored(path, layout, _published(config_file), (), tensors)
    if layout is layouts.MMACTION2:
        _check_position_buffer(path, tensors)
        tensors = {n: t for n, t in tensors.items() if not n.startswith("data_preprocessor.")}
    config, unknown = _inferred(path, layout, tensors)
    return Stored(path, layout, config, unknown, tensors)


def _published(config_file: str | os.PathLike) -> VideoMAEConfig:
    """A `config.json`, obeyed; with a warning if its heads are not those of its size."""
    config = VideoMAEConfig.from_json_file(config_file)
    for name, size in SIZES.items():
        same = all(
            getattr(config, field) == size[field] for field in ("hidden_size", "num_hidden_layers")
        )
        if same and config.num_attention_heads != size["num_attention_heads"]:
            logger.warning(
                "%s says num_attention_heads=%d, but size %s was trained with %d; the file is "
                "obeyed unless num_attention_heads=%d is given, which is the trained model.",
                config_file,
                config.num_attention_heads,
                name,
                size["num_attention_heads"],
                size["num_attention_heads"],
            )
            break
    return config


def _check_position_buffer(path: str, tensors: dict[str, Tensor]) -> None:
    """Takes MMAction2's position table out, after making sure that it is the fixed one.

    Its formula differs from the official one's in the last place of a few elements.
    """
    stored = tensors.pop("pos_embed", None)
    if stored is None:
        return
    is_fixed = len(stored.shape) == 3 and stored.shape[0] == 1
    if is_fixed:
        expected = np.asarray(sincos_table(*stored.shape[1:]))
        found = np.asarray(stored.read(), np.float32)
        is_fixed = bool(np.abs(found - expected).max(initial=0) <= 1e-6)
    if not is_fixed:
        raise WeightFileError(
            path,
            "pos_embed",
            f"{stored.shape} is not the sin-cos table within 1e-6, and no published model has a "
            "learned one; the file is of another model",
        )


def _inferred(
    path: str, layout: Layout, tensors: Mapping[str, Tensor]
) -> tuple[VideoMAEConfig, tuple[str, ...]]:
    """The configuration that the shapes tell, and the fields that they do not.

    Frames and resolution are the published 16 and 224 x 224, for no tensor depends on them; heads
    are those of the published size of that width. Every LayerNorm has epsilon 1e-6, in V1, V2 and
    MMAction2.
    """

    def shape(our_path: str, ndim: int) -> tuple[int, ...]:
        name = layout.row(our_path).foreign[0].replace("{i}", "0")
        if name not in tensors or len(tensors[name].shape) != ndim:
            found = f"has shape {tensors[name].shape}" if name in tensors else "is missing"
            raise WeightFileError(
                path, name, f"{found}, but must have {ndim} axes in the {layout.name} layout"
            )
        return tensors[name].shape

    def depth(our_path: str) -> int:
        before, after = layout.row(our_path).foreign[0].split("{i}")
        return sum(name.startswith(before) and name.endswith(after) for name in tensors)

    def has(our_path: str) -> bool:
        paths = {row.path: row for row in layout.rows}
        return our_path in paths and paths[our_path].foreign[0].replace("{i}", "0") in tensors

    width, channels, tubelet, patch, patch_width = shape("embeddings/kernel", 5)
    if patch != patch_width:
        raise WeightFileError(path, None, f"has patches of {patch} x {patch_width}, not square")
    layers = depth("encoder/intermediate/kernel")
    known: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_channels": channels,
        "tubelet_size": tubelet,
        "patch_size": patch,
        "intermediate_size": shape("encoder/intermediate/kernel", 2)[0],
        "qkv_bias": has("encoder/attention/q_bias"),
        "use_mean_pooling": not has("layernorm/scale"),
        "num_attention_heads": _HEADS.get(width),
    }
    if has("decoder/intermediate/kernel"):
        decoder_width = shape("encoder_to_decoder/kernel", 2)[0]
        known |= {
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": depth("decoder/intermediate/kernel"),
            "decoder_intermediate_size": shape("decoder/intermediate/kernel", 2)[0],
            "decoder_num_attention_heads": _DECODER_HEADS.get(decoder_width),
        }
    if has("classifier/kernel"):
        known["num_labels"] = shape("classifier/kernel", 2)[0]
    unknown = tuple(name for name, value in known.items() if value is None)
    published = next(
        (
            size
            for size in SIZES.values()
            if (size["hidden_size"], size["num_hidden_layers"]) == (width, layers)
        ),
        {},
    )
    # one head fits any width; the caller is asked for the true number
    known |= dict.fromkeys(unknown, 1)
    try:
        config = VideoMAEConfig(**{**ORIGINAL_EPSILONS, **published, **known})
    except ValueError as error:
        raise WeightFileError(path, None, f"has the shapes of no model ({error})") from error
    return config, unknown


def has_part(stored: Stored, part: str) -> bool:
    """Whether a checkpoint holds a part of a model: "decoder", "classifier", ..."""
    names = {
        name.split("{i}")[0]
        for row in stored.layout.rows
        if row.path.split("/")[0] == part
        for name in row.foreign
    }
    return any(tensor.startswith(tuple(names)) for tensor in stored.tensors) if names else False


class Plan(NamedTuple):
    """What of a checkpoint would go where in a model.

    Attributes:
      rows: the layout's row, its names per layer, and the shape of one layer of our parameter.
      missing, unexpected: names of tensors.
      misshaped, mistyped: sentences.
      loaded, dropped, fresh: parts of a model, e.g. "decoder".
      resized: names of tensors of a classifier with other classes, which is left out.
      key_biases: tensors that have no place and must be zero.
    """

    rows: list[tuple[Row, list[tuple[str, ...]], tuple[int, ...]]]
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]
    mistyped: list[str]
    loaded: list[str]
    dropped: list[str]
    fresh: list[str]
    resized: list[str]
    key_biases: list[str]

    @property
    def fits(self) -> bool:
        """Whether the model can be made of the checkpoint."""
        return not (self.missing or self.unexpected or self.misshaped or self.mistyped)


def make_plan(stored: Stored, core: VideoMAE, *, ignore_mismatched_sizes: bool = False) -> Plan:
    """Compares a checkpoint with a model, whose parameters may be shapes only."""
    ours = layouts.parameters(core)
    our_parts = {path.split("/")[0] for path in ours}
    unused = set(stored.tensors)
    key_biases = sorted(name for name in unused if _KEY_BIAS.search(name))
    unused -= set(key_biases)
    missing, misshaped, resized = set(), [], []
    loaded, dropped, fresh = set(), set(), set()
    rows = []
    # a classifier without its weights has to be trained anyway, then its norm may be new as well
    untrained = not any(
        name in stored.tensors
        for row in stored.layout.rows
        if row.path.startswith("classifier/")
        for name in row.foreign
    )
    for row in stored.layout.rows:
        part = row.path.split("/")[0]
        if row.path not in ours:
            if part in _MAY_BE_DROPPED - our_parts:
                prefixes = tuple(name.split("{i}")[0] for name in row.foreign)
                gone = {name for name in unused if name.startswith(prefixes)}
                dropped |= {part} if gone else set()
                unused -= gone
            continue
        shape = ours[row.path].shape
        depth, shape = (shape[0], shape[1:]) if layouts.is_stacked(row) else (None, shape)
        # of a million layers that a bad configuration claims, one more than there can be will do
        most = None if depth is None else min(depth, len(stored.tensors) + 1)
        layers = layouts.layer_names(row, most)
        names = {name for layer in layers for name in layer}
        unused -= names
        expected = row.transform.foreign_shapes(shape, core.config)
        wrong = [
            f"{name} {tuple(stored.tensors[name].shape)} instead of {tuple(wanted)}"
            for layer in layers
            for name, wanted in zip(layer, expected, strict=True)
            if name in stored.tensors and tuple(stored.tensors[name].shape) != tuple(wanted)
        ]
        if part == "classifier" and wrong and ignore_mismatched_sizes:
            resized += wrong
            fresh.add(part)
            continue
        may_be_fresh = untrained or ignore_mismatched_sizes
        if part in _MAY_BE_FRESH and may_be_fresh and not names & set(stored.tensors):
            fresh.add(part)
            continue
        loaded.add(part)
        missing |= names - set(stored.tensors)
        misshaped += wrong
        rows.append((row, layers, shape))
    for part in {path.split("/")[0] for path in set(ours) - {r.path for r in stored.layout.rows}}:
        if part in _MAY_BE_FRESH and untrained:
            fresh.add(part)
        else:
            missing.add(part)
    if resized:  # a weight of the right shape beside a bias of the wrong one is no classifier
        rows = [entry for entry in rows if not entry[0].path.startswith("classifier/")]
        loaded.discard("classifier")
    used = {name for _, layers, _ in rows for layer in layers for name in layer}
    mistyped = [
        f"{name} {stored.tensors[name].dtype}"
        for name in sorted(used & set(stored.tensors)) + key_biases
        if stored.tensors[name].dtype not in _FLOATS
    ]
    return Plan(
        rows, sorted(missing), sorted(unused), misshaped, mistyped,
        sorted(loaded), sorted(dropped), sorted(fresh), resized, key_biases,
    )  # fmt: skip


def must_be_given(stored: Stored, decoder: bool) -> list[str]:
    """Fields of the configuration that `load` takes from its caller."""
    return [name for name in stored.unknown if decoder or not name.startswith("decoder_")]


def outline(
    stored: Stored,
    *,
    decoder: bool = False,
    classifier: bool = False,
    compute: Compute = Compute(),
    **changes: Any,
) -> VideoMAE:
    """The model that `load` would fill: shapes only, however large they are.

    Raises:
      ValueError: for changes that cannot work, and for sizes that no array has.
    """
    if classifier and stored.layout is layouts.OFFICIAL_PRETRAINING:
        changes = {"use_mean_pooling": True, **changes}  # as the official fine-tuning has it
    config = stored.config.replace(**changes)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int) and value > _LARGEST_SIZE:
            raise SettingError(
                f"{stored.path}: {field.name}={value} of its configuration is above "
                f"{_LARGEST_SIZE}, as no model has it; correct it."
            )
    return nnx.eval_shape(
        lambda: VideoMAE(
            config, decoder=decoder, classifier=classifier, compute=compute, rngs=nnx.Rngs(0)
        )
    )


def load(
    stored: Stored,
    *,
    decoder: bool = False,
    classifier: bool = False,
    compute: Compute = Compute(),
    rngs: nnx.Rngs | None = None,
    ignore_mismatched_sizes: bool = False,
    **changes: Any,
) -> tuple[VideoMAE, list[str]]:
    """A model with the parameters of a checkpoint.

    Args:
      stored: from `open_checkpoint`.
      decoder, classifier: the parts that the model is to have besides the encoder.
      compute: dtypes, precision, attention, remat.
      rngs: for parts that start fresh; None for `nnx.Rngs(0)`.
      ignore_mismatched_sizes: a classifier of other classes starts fresh, and so does the norm
        before it if the file has another; otherwise these are errors.
      **changes: fields of the configuration that replace the checkpoint's. Other frames and
        resolutions fit any checkpoint: the position tables are fixed, and made for them.
    Returns:
      The model; and what a user should know, in lines: what was loaded, dropped and started fresh,
      other input shapes and dtypes, values that are not finite.
    Raises:
      ValueError: naming all missing, unexpected and mis-shaped tensors, key biases that are not
        zero, weights that overflow `compute.param_dtype`; or fields that must be given.
    """
    if not_given := [name for name in must_be_given(stored, decoder) if name not in changes]:
        raise SettingError(
            f"{stored.path} does not tell {' and '.join(not_given)}, and its width is none of the "
            f"published sizes; give {', '.join(f'{name}=...' for name in not_given)}."
        )
    parts = {"decoder": decoder, "classifier": classifier, "compute": compute}
    core = outline(stored, **parts, **changes)
    plan = make_plan(stored, core, ignore_mismatched_sizes=ignore_mismatched_sizes)
    if not plan.fits:
        raise SettingError(_refusal(stored, plan, decoder, classifier))
    values, odd = _read(stored, plan, compute.param_dtype)
    if plan.fresh:
        core = VideoMAE(core.config, **parts, rngs=rngs if rngs is not None else nnx.Rngs(0))
    layouts.set_parameters(core, values)
    return core, [*_report(stored, core.config, plan), *odd]


def _read(
    stored: Stored, plan: Plan, param_dtype: np.dtype
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Our parameters by path, and what is odd about them, in lines."""
    not_finite, dtypes = [], set()

    def read(name: str) -> np.ndarray:
        tensor = stored.tensors[name]
        dtypes.add(tensor.dtype)
        value = tensor.read()
        finite = np.isfinite(value)
        if not finite.all():
            not_finite.append(name)
        with np.errstate(over="ignore"):
            overflows = finite & ~np.isfinite(value.astype(param_dtype))
        if overflows.any():
            raise SettingError(
                f"{stored.path}: {name} holds {float(value[overflows][0]):.6g}, which is beyond "
                f"param_dtype={np.dtype(param_dtype)}; load it as float32 or bfloat16."
            )
        return value

    for name in plan.key_biases:
        if np.any(read(name)):
            raise SettingError(
                f"{stored.path}: {name} is not zero, and attention keys have no bias in VideoMAE; "
                "the file is of another model."
            )
    values = {}
    for row, layers, shape in plan.rows:
        per_layer = [row.transform.read([read(name) for name in names], shape) for names in layers]
        values[row.path] = np.stack(per_layer) if layouts.is_stacked(row) else per_layer[0]
    notes = []
    if odd := sorted(dtypes - {"float32"}):
        notes.append(f"stored as {', '.join(odd)}, held as {np.dtype(param_dtype)}")
    if not_finite:
        notes.append(
            f"NaN or infinite values in {len(not_finite)} tensors: {_some(not_finite)}; "
            "outputs will not be finite"
        )
    return values, notes


def _report(stored: Stored, config: VideoMAEConfig, plan: Plan) -> Iterator[str]:
    if plan.dropped or plan.fresh:
        yield f"loaded {', '.join(plan.loaded)}"
    if plan.dropped:
        yield f"dropped {', '.join(plan.dropped)}, which this class does not have"
    if plan.fresh:
        yield f"started {', '.join(plan.fresh)} fresh, to be trained"
    if plan.resized:
        yield f"left out the classifier of other classes ({'; '.join(plan.resized)})"
    before, after = (f"{c.num_frames} x {c.frame_size[0]} x {c.frame_size[1]}"
                     for c in (stored.config, config))  # fmt: skip
    if before != after:
        yield f"position tables made for {after} (frames, height, width) instead of {before}"


def _refusal(stored: Stored, plan: Plan, decoder: bool, classifier: bool) -> str:
    """All that does not fit, and what to do about it."""
    problems = [
        f"{kind}: {_some(names, _REFUSED)}"
        for kind, names in (
            ("missing", plan.missing),
            ("unexpected", plan.unexpected),
            ("of another shape", plan.misshaped),
            (f"none of {', '.join(_FLOATS)}", plan.mistyped),
        )
        if names
    ]
    hints = [
        f"It holds {what}."
        for pattern, what in _FOREIGN_PARTS.items()
        if any(re.search(pattern, name) for name in plan.unexpected)
    ]
    if decoder and not has_part(stored, "decoder"):
        hints.append(
            "It has no decoder, so it is no pre-training checkpoint; load it with VideoMAEModel or "
            "VideoMAEForVideoClassification."
        )
    if plan.misshaped and all(
        s.startswith(("classifier", "head.", "cls_head.")) for s in plan.misshaped
    ):
        hints.append(
            "Give ignore_mismatched_sizes=True to start a classifier of other classes fresh."
        )
    for norm, other, pools in (("fc_norm", "layernorm", False), ("layernorm", "fc_norm", True)):
        names = {
            name for row in stored.layout.rows if row.path.startswith(norm) for name in row.foreign
        }
        if classifier and names & set(plan.missing) and has_part(stored, other):
            hints.append(
                f"It was trained with use_mean_pooling={pools}; give that, or, to train it anew "
                "with the other, ignore_mismatched_sizes=True."
            )
    if not hints:
        hints.append(
            "Get the file again if it should be whole, or correct what describes the model; "
            "`python -m vmae_jax inspect` shows what the file holds."
        )
    return (
        f"{stored.path} ({stored.layout.name} layout) does not fit the model that its "
        "configuration (or the given options) describes; nothing was loaded. "
        f"{'; '.join(problems)}. {' '.join(hints)}"
    ).rstrip()


def _some(names: Iterable[str], most: int = _SHOWN) -> str:
    """The first few, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
