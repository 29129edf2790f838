"""From a model to a checkpoint that others load: Hugging Face's layout, the official one, or ours.

Weights are written in fp32. What a layout has no place for (an epsilon, a number of heads) is a
warning, for what reads the file takes it from elsewhere.
"""

from __future__ import annotations

import functools
import json
import os
import re
import warnings
from collections.abc import Mapping

import numpy as np

from vmae_jax.errors import MissingPackage, SettingError
from vmae_jax.files.atomic import write_file, write_files
from vmae_jax.sizes import ORIGINAL_EPSILONS, SIZES
from vmae_jax.videomae import VideoMAE
from vmae_jax.weights import layouts
from vmae_jax.weights.hub import CONFIG_FILE

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class DestinationTaken(SettingError, FileExistsError):
    """What would be written over is something else."""


def class_of(core: VideoMAE) -> str:
    """The name of the documented class that has the parts of a model."""
    parts = {path.split("/")[0] for path in layouts.parameters(core)}
    if "decoder" in parts:
        return "VideoMAEForPreTraining"
    return (
        "VideoMAEForVideoClassification" if parts & {"classifier", "fc_norm"} else "VideoMAEModel"
    )


def save_hugging_face(
    core: VideoMAE,
    directory: str | os.PathLike,
    class_name: str,
    max_shard_size: int | str = "5GB",
    *,
    others: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a folder that transformers 4 and 5 load: `config.json` and `model.safetensors`.

    Args:
      core: the model.
      directory: made if needed. Older weights in it are replaced.
      class_name: "VideoMAEModel", "VideoMAEForPreTraining" or "VideoMAEForVideoClassification".
      max_shard_size: bytes, or text like "500MB".
      others: contents of further files by name, which appear together with these.
    Raises:
      SettingError: if `max_shard_size` is none.
    """
    from safetensors.numpy import save as serialize

    limit = _bytes(max_shard_size)
    _warn_of_epsilons(core, {"decoder_norm_eps": 1e-5, "fc_norm_eps": 1e-5}, "transformers", 4)
    tensors = hugging_face_tensors(core, class_name)
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > limit:
            shards.append({})
        shards[-1][name] = tensor

    writers = {}
    names = [WEIGHTS_FILE]
    if len(shards) > 1:
        names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {n: file for file, s in zip(names, shards, strict=True) for n in s},
        }
        writers[INDEX_FILE] = _json(index)
    for name, shard in zip(names, shards, strict=True):
        writers[name] = functools.partial(
            lambda shard, file: file.write(serialize(shard, metadata={"format": "pt"})), shard
        )
    config = {**core.config.to_dict(), "architectures": [class_name], "dtype": "float32"}
    config.pop("torch_dtype", None)  # transformers 4's name of dtype: that of what was read
    for name, content in (others or {}).items():
        writers[name] = functools.partial(lambda content, file: file.write(content), content)
    writers[CONFIG_FILE] = _json(config)
    write_files(directory, writers, obsolete=lambda name: bool(_WEIGHTS.fullmatch(name)))


def hugging_face_tensors(core: VideoMAE, class_name: str) -> dict[str, np.ndarray]:
    """The tensors of a `model.safetensors`, under the names that transformers 4 and 5 read."""
    prefix = "videomae." if class_name == "VideoMAEModel" else ""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in layouts.foreign_tensors(core, layouts.HUGGING_FACE)
    }


def save_official(core: VideoMAE, path: str | os.PathLike) -> None:
    """Writes a `.pth` that the official code of VideoMAE and VideoMAE V2 loads.

    Args:
      core: a model with decoder (or an encoder alone) gives a pre-training file, one with a
        classifier a fine-tuned one.
      path: of the file.
    Raises:
      MissingPackage: without torch, which writes the file.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "writing a .pth needs torch; run `pip install vmae_jax[torch]`. Reading one does not."
        ) from error
    config = core.config
    _warn_of_epsilons(core, ORIGINAL_EPSILONS, "the official code", 3)
    if config.hidden_act != "gelu":
        warnings.warn(
            f"hidden_act={config.hidden_act!r} is not written, and the official code computes gelu "
            "always: its outputs will differ.",
            stacklevel=2,
        )
    if hasattr(core, "decoder") and config.use_mean_pooling:
        warnings.warn(
            "use_mean_pooling=True: this model has no LayerNorm after its encoder, and the "
            "official pre-training code has one always: it will miss encoder.norm in the file.",
            stacklevel=2,
        )
    for name in ("num_attention_heads", "decoder_num_attention_heads"):
        width_name = name.replace("num_attention_heads", "hidden_size")
        width, heads = getattr(config, width_name), getattr(config, name)
        published = {size[width_name]: size[name] for size in SIZES.values()}
        if (hasattr(core, "decoder") or not name.startswith("decoder")) and (
            published.get(width) != heads
        ):
            warnings.warn(
                f"{name}={heads} is not written, for a .pth has no place for it: build the model "
                f"of the official code with it (at width {width} it takes "
                f"{published.get(width, 'its own default')}).",
                stacklevel=2,
            )
    fine_tuned = class_of(core) == "VideoMAEForVideoClassification"
    layout = layouts.OFFICIAL_CLASSIFIER if fine_tuned else layouts.OFFICIAL_PRETRAINING
    state = {
        name: torch.from_numpy(tensor.copy())
        for name, tensor in layouts.foreign_tensors(core, layout)
    }
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    write_file(path, lambda file: torch.save({"model": state}, file))


def save_run(core: VideoMAE, directory: str | os.PathLike) -> None:
    """Writes the parameters as a checkpoint of ours, with fingerprints: `<directory>/0`.

    Raises:
      DestinationTaken: if there is one already.
    """
    from vmae_jax.checkpoints import finished_steps, saving  # loads Orbax and TensorStore

    if finished_steps.find_step(directory) is not None:
        raise DestinationTaken(f"{directory} holds a checkpoint already; give another folder.")
    checkpoints = saving.Checkpoints(directory, keep=1)
    checkpoints.save({"params": layouts.parameters(core)}, 0, {"model": core.config.to_dict()})
    checkpoints.wait()


def _warn_of_epsilons(
    core: VideoMAE, fixed: Mapping[str, float], reader: str, stacklevel: int
) -> None:
    parts = {"decoder_norm_eps": "decoder_norm", "fc_norm_eps": "fc_norm"}
    for name, epsilon in fixed.items():
        value = getattr(core.config, name)
        if value != epsilon and hasattr(core, parts.get(name, "encoder")):
            warnings.warn(
                f"{name}={value}, but {reader} computes this LayerNorm with {epsilon} always: its "
                "outputs will differ slightly.",
                stacklevel=stacklevel,
            )


def _bytes(size: int | str) -> int:
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    found = re.fullmatch(r"(\d+)\s*([A-Za-z]+)", size) if isinstance(size, str) else None
    if found is None or found[2].upper() not in _UNITS or not int(found[1]):
        raise SettingError(
            f"max_shard_size={size!r} must be a positive number of bytes, or text like '500MB'."
        )
    return int(found[1]) * _UNITS[found[2].upper()]


def _json(values: dict):
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    return lambda file: file.write(text.encode())
