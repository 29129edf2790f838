"""From a checkpoint of any layout to a model.

    with open_checkpoint("MCG-NJU/videomae-base") as stored:
        core, report = load(stored, decoder=True)

The whole fit is checked before the first value is read or the first parameter made, so a file that
does not fit costs nothing, and never half a model.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from vmae_jax.errors import SettingError
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute
from vmae_jax.weights import layouts
from vmae_jax.weights.fit import FLOATS, Fit
from vmae_jax.weights.stored import Stored
from vmae_jax.weights.tensors import some

_LARGEST_SIZE = 2**31 - 1  # of a field; products of larger ones overflow in the shapes of arrays
_NAMED = 12  # tensors in a message
_ALIGNMENT = 64  # bytes; an array of JAX's on a CPU starts at a multiple
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


def compare(
    stored: Stored,
    core: VideoMAE,
    *,
    parts: Collection[str] | None = None,
    ignore_mismatched_sizes: bool = False,
) -> Fit:
    """How a checkpoint fits a model.

    Args:
      stored: from `open_checkpoint`.
      core: the model; its parameters may be shapes only.
      parts: that are to be taken, by their first names in `layouts.parameters`; None for all that
        the model has.
      ignore_mismatched_sizes: as of `load`.
    """
    ours = {
        path: value
        for path, value in layouts.parameters(core).items()
        if parts is None or path.split("/")[0] in parts
    }
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
            left_out = parts is not None and part not in parts
            if left_out or part in _MAY_BE_DROPPED - our_parts:
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
        if stored.tensors[name].dtype not in FLOATS
    ]
    return Fit(
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
      SettingError: for changes that cannot work, and for sizes that no array has.
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
      SettingError: naming all missing, unexpected and mis-shaped tensors, key biases that are not
        zero, weights that overflow `compute.param_dtype`; or fields that must be given.
    """
    if not_given := [name for name in must_be_given(stored, decoder) if name not in changes]:
        raise SettingError(
            f"{stored.path} does not tell {' and '.join(not_given)}, and its width is none of the "
            f"published sizes; give {', '.join(f'{name}=...' for name in not_given)}."
        )
    parts = {"decoder": decoder, "classifier": classifier, "compute": compute}
    core = outline(stored, **parts, **changes)
    fit = compare(stored, core, ignore_mismatched_sizes=ignore_mismatched_sizes)
    values, report = read_values(stored, core, fit, decoder=decoder, classifier=classifier)
    # they are nobody else's, so JAX may keep what it need not convert where it lies
    mine = {path: x for path, x in values.items() if x.dtype == compute.param_dtype}
    params = values | jax.device_put(mine, may_alias=True)
    if fit.fresh:
        params |= _draw(core, fit.fresh, parts, rngs if rngs is not None else nnx.Rngs(0))
    layouts.set_parameters(core, params)
    return core, report


def _draw(
    core: VideoMAE, fresh: Collection[str], parts: Mapping[str, Any], rngs: nnx.Rngs
) -> dict[str, jax.Array]:
    """The parameters of the fresh parts by path, drawn as for a model that is all fresh."""

    @nnx.jit  # so that the compiler leaves out the draws of all other parts
    def draw(rngs: nnx.Rngs) -> dict[str, jax.Array]:
        drawn = layouts.parameters(VideoMAE(core.config, **parts, rngs=rngs))
        return {path: x for path, x in drawn.items() if path.split("/")[0] in fresh}

    return draw(rngs)


def read_values(
    stored: Stored, core: VideoMAE, fit: Fit, *, decoder: bool, classifier: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The values that a model takes from a checkpoint.

    Args:
      stored, core: what was compared.
      fit: what `compare` found.
      decoder, classifier: as of `outline`, for the message if it does not fit.
    Returns:
      Our parameters by path, in the file's dtypes; and the report, as of `load`.
    Raises:
      SettingError: as `load`.
    """
    if not fit.fits:
        raise SettingError(fit.refusal(stored, decoder, classifier))
    values, odd = _read(stored, fit, core.compute.param_dtype)
    return values, [*_report(stored, core, fit), *odd]


def _read(
    stored: Stored, fit: Fit, param_dtype: np.dtype
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
        if value.dtype == param_dtype:
            return value
        with np.errstate(over="ignore"):
            overflows = finite & ~np.isfinite(value.astype(param_dtype))
        if overflows.any():
            raise SettingError(
                f"{stored.path}: {name} holds {float(value[overflows][0]):.6g}, which is beyond "
                f"param_dtype={np.dtype(param_dtype)}; load it as float32 or bfloat16."
            )
        return value

    for name in fit.key_biases:
        if np.any(read(name)):
            raise SettingError(
                f"{stored.path}: {name} is not zero, and attention keys have no bias in VideoMAE; "
                "the file is of another model."
            )
    values = {}
    for row, layers, shape in fit.rows:
        per_layer = [row.transform.read([read(name) for name in names], shape) for names in layers]
        values[row.path] = _stack(per_layer) if layouts.is_stacked(row) else per_layer[0]
    notes = []
    if odd := sorted(dtypes - {"float32"}):
        notes.append(f"stored as {', '.join(odd)}, held as {np.dtype(param_dtype)}")
    if not_finite:
        notes.append(
            f"NaN or infinite values in {len(not_finite)} tensors: {some(not_finite, _NAMED)}; "
            "outputs will not be finite"
        )
    return values, notes


def _stack(layers: Sequence[np.ndarray]) -> np.ndarray:
    """As `np.stack`, at an address from which JAX takes an array on a CPU without a copy."""
    shape, dtype = (len(layers), *layers[0].shape), np.result_type(*layers)
    num_bytes = math.prod(shape) * dtype.itemsize
    room = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return np.stack(layers, out=room[start : start + num_bytes].view(dtype).reshape(shape))


def _report(stored: Stored, core: VideoMAE, fit: Fit) -> Iterator[str]:
    if fit.dropped or fit.fresh:
        yield f"loaded {', '.join(fit.loaded)}"
    known = {path.split("/")[0] for path in layouts.parameters(core)}
    if foreign := [part for part in fit.dropped if part not in known]:
        yield f"dropped {', '.join(foreign)}, which this class does not have"
    if unwanted := [part for part in fit.dropped if part in known]:
        yield f"dropped {', '.join(unwanted)}, for which nobody asked"
    if fit.fresh:
        yield f"started {', '.join(fit.fresh)} fresh, to be trained"
    if fit.resized:
        yield f"left out the classifier of other classes ({'; '.join(fit.resized)})"
    before, after = (f"{c.num_frames} x {c.frame_size[0]} x {c.frame_size[1]}"
                     for c in (stored.config, core.config))  # fmt: skip
    if before != after:
        yield f"position tables made for {after} (frames, height, width) instead of {before}"
