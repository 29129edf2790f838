"""What the three documented models share: building, loading, saving, and the checks of inputs."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from vmae_jax import randomness
from vmae_jax.config import VideoMAEConfig, refuse_unknown
from vmae_jax.errors import SettingError
from vmae_jax.files import hub
from vmae_jax.files.published import Published
from vmae_jax.huggingface import arrays
from vmae_jax.masking import Mask
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute

logger = logging.getLogger(__name__)
_COMPUTE_FIELDS = tuple(f.name for f in dataclasses.fields(Compute))

_PRECISION = "give dtype= (of the computation) or param_dtype= to from_pretrained or the class"
_PLACEMENT = "JAX places arrays: JAX_PLATFORMS, jax.default_device, or shardings"
_IS_PYTREE = (
    "the parameters are nnx.state(model), a pytree; from_pretrained and save_pretrained are"
)
_POSITIONS = "the tables are made for the configuration: from_pretrained(path, num_frames=32)"
# Options of transformers' from_pretrained, and what is used here instead.
_LOADED_OTHERWISE = {
    "attn_implementation": "give attention='xla', or another that `vit.Compute` names",
    "device_map": f"leave it out; {_PLACEMENT}",
    "from_flax": "save the model with transformers as safetensors first",
    "from_tf": "save the model with transformers as safetensors first",
    "low_cpu_mem_usage": "leave it out, for tensors are read one by one",
    "max_memory": f"leave it out; {_PLACEMENT}",
    "output_loading_info": "the log says what was loaded, dropped and started fresh",
    "quantization_config": f"quantised weights are not supported; {_PRECISION}",
    "state_dict": "give the path of the file that holds the weights",
    "torch_dtype": _PRECISION,
    "use_safetensors": "leave it out, for safetensors are taken where there are any",
    "variant": "give the path of the file that holds the weights",
}
_NOT_OFFERED = {
    **dict.fromkeys(("cpu", "cuda", "device", "to"), _PLACEMENT),
    **dict.fromkeys(("bfloat16", "double", "float", "half"), _PRECISION),
    **dict.fromkeys(
        ("load_state_dict", "named_parameters", "parameters", "state_dict"), _IS_PYTREE
    ),
    **dict.fromkeys(("get_position_embeddings", "resize_position_embeddings"), _POSITIONS),
    "get_input_embeddings": "it is model.core.embeddings",
    "prune_heads": "head_mask= nullifies heads in a call; take parameters away in nnx.state(model)",
    "register_for_auto_class": "there are no Auto classes; name the class",
    "requires_grad_": "jax.grad differentiates what it is told to; optax.masked leaves parts alone",
    "zero_grad": "gradients are what jax.grad returns, and are never added up",
}


class PreTrainedModel(nnx.Module, Published):
    """Building, loading, saving, and the checks of inputs that the three classes share."""

    config_class: ClassVar[type] = VideoMAEConfig
    base_model_prefix: ClassVar[str] = "videomae"
    main_input_name: ClassVar[str] = "pixel_values"
    supports_gradient_checkpointing: ClassVar[bool] = True

    _decoder = False
    _classifier = False

    def __init__(
        self,
        config: VideoMAEConfig,
        *,
        rngs: nnx.Rngs | None = None,
        core: VideoMAE | None = None,
        **compute: Any,
    ):
        """A model with fresh parameters.

        Args:
          config: the model.
          rngs: the stream `params` is used; None for `nnx.Rngs(0)`.
          core: for `from_core`.
          **compute: fields of `vit.Compute`: dtype, param_dtype, precision, attention, remat,
            unroll.
        """
        if core is None:
            core = VideoMAE(
                config,
                decoder=self._decoder,
                classifier=self._classifier,
                compute=Compute(**compute),
                rngs=rngs if rngs is not None else nnx.Rngs(0),
            )
        self.core = core

    @property
    def config(self) -> VideoMAEConfig:
        """The model's description, which does not change."""
        return self.core.config

    @property
    def dtype(self) -> jnp.dtype:
        """Of the parameters."""
        return jnp.dtype(self.core.compute.param_dtype)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the backward pass computes something again."""
        return self.core.compute.remat != "none"

    def num_parameters(self) -> int:
        """How many numbers are trained; the position tables are not among them."""
        return sum(leaf.size for leaf in self._leaves())

    def get_memory_footprint(self) -> int:
        """Bytes of the parameters."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self._leaves())

    def _leaves(self) -> list[jax.Array]:
        return jax.tree.leaves(nnx.state(self, nnx.Param))

    def eval(self, **attributes: Any) -> Self:
        """The model itself, which always evaluates unless a call is given a key."""
        return self

    def train(self, mode: bool = True, **attributes: Any) -> Self:
        """The model itself, for mode=False.

        Raises:
          ValueError: otherwise: there is no such mode.
        """
        if mode:
            raise ValueError(
                "a model has no training mode; give its call a key, model(..., "
                "key=jax.random.key(0)), and it drops what the configuration's rates say."
            )
        return self

    def __getattr__(self, name: str) -> Any:
        hint = f": {_NOT_OFFERED[name]}" if name in _NOT_OFFERED else ""
        raise AttributeError(f"a {type(self).__name__} has no {name!r}{hint}.")

    def __repr__(self) -> str:
        c = self.config
        parts = [f"{c.num_hidden_layers} layers of width {c.hidden_size}"]
        if self._decoder:
            parts.append(f"a decoder of {c.decoder_num_hidden_layers}, {c.decoder_hidden_size}")
        if self._classifier:
            parts.append(f"{c.num_labels} labels")
        height, width = c.frame_size
        parts.append(f"clips of {c.num_frames} x {c.num_channels} x {height} x {width}")
        return f"<{type(self).__name__}: {self.num_parameters():,} parameters, {', '.join(parts)}>"

    @classmethod
    def from_core(cls, core: VideoMAE) -> Self:
        """This class's face on parameters that exist; nothing is copied."""
        return cls(core.config, core=core)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        config: VideoMAEConfig | str | os.PathLike | None = None,
        ignore_mismatched_sizes: bool = False,
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ) -> Self:
        """The model of a checkpoint, in any of the layouts in which VideoMAE was published.

        What was saved for another class loads as well: what this class lacks is dropped, and a
        classifier that the file lacks starts fresh. A decoder that the file lacks is an error. The
        log says in one line what was loaded, dropped, fresh or otherwise worth knowing.

        Args:
          pretrained_model_name_or_path: a folder in Hugging Face's form, or a hub id
            ("MCG-NJU/videomae-base"); a `.pth` of VideoMAE, VideoMAE V2 or MMAction2; the workdir
            of a run of ours, or one of its steps.
          revision: branch, tag or commit of a hub id.
          config: the model to load into, instead of the one that the checkpoint describes; or the
            folder, file or hub id that has it.
          ignore_mismatched_sizes: True: a classifier of other classes than `num_labels` (or
            `id2label`) says starts fresh, and so does its norm if the file has that of another
            `use_mean_pooling`. Otherwise these are errors.
          rngs: for the parts that start fresh.
          **options: fields of `vit.Compute` (`dtype=jnp.bfloat16`), or of the configuration, to
            replace the stored ones before they are checked (`num_frames=32`, `num_labels=5`,
            `num_attention_heads=6`).
        Raises:
          FileNotFoundError: if there is no such file, folder or repository.
          ValueError: if a file is damaged, or does not fit: what is missing, unexpected or of
            another shape is named, and nothing is loaded.
          OSError: if the hub cannot be reached and the files are not in its cache.
        """
        from vmae_jax.weights.pretrained import load
        from vmae_jax.weights.stored import open_checkpoint

        path = pretrained_model_name_or_path
        hub.refuse_download_options(options)
        for name in options:
            if name in _LOADED_OTHERWISE:
                raise SettingError(f"{name} is no option here; {_LOADED_OTHERWISE[name]}.")
        refuse_unknown(options, also=_COMPUTE_FIELDS)
        compute = {k: v for k, v in options.items() if k in _COMPUTE_FIELDS}
        changes = {k: v for k, v in options.items() if k not in _COMPUTE_FIELDS}
        if config is not None:
            if not isinstance(config, VideoMAEConfig):
                config = VideoMAEConfig.from_pretrained(config)
            described = config.replace(**changes)
            changes = {f.name: getattr(described, f.name) for f in dataclasses.fields(described)}
        with open_checkpoint(path, revision, overrides=changes) as stored:
            core, report = load(
                stored,
                decoder=cls._decoder,
                classifier=cls._classifier,
                compute=Compute(**compute),
                rngs=rngs,
                ignore_mismatched_sizes=ignore_mismatched_sizes,
                **changes,
            )
        if report:
            logger.warning("%s from %s: %s", cls.__name__, path, "; ".join(report))
        return cls.from_core(core)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        **push_options: Any,
    ) -> None:
        """Writes a folder that transformers loads: `config.json`, `model.safetensors` (fp32), and
        `preprocessor_config.json` with this model's frame size and pixel statistics (one that is
        there already and gives such frames stays).

        All files are complete on disk before the first gets its name. Warns where an epsilon of
        this model is one that transformers has fixed.

        Args:
          save_directory: made if needed.
          max_shard_size: bytes, or text like "500MB" (MB = 10^6 bytes). A larger model is written
            as several files and `model.safetensors.index.json`.
          safe_serialization: only True; `python -m vmae_jax convert --to v1` writes a `.pth`.
          push_to_hub: whether to push it too, under the folder's name unless `repo_id` is given.
          **push_options: for `push_to_hub`.
        """
        from vmae_jax.huggingface.saving import save_folder

        if not safe_serialization:
            raise SettingError(
                "safe_serialization=False, but only safetensors are written; leave it out, or "
                "write a .pth of the official code with `python -m vmae_jax convert --to v1`."
            )
        save_folder(self.core, save_directory, type(self).__name__, max_shard_size)
        self._push_saved(save_directory, push_to_hub, push_options, max_shard_size=max_shard_size)

    def gradient_checkpointing_enable(self) -> None:
        """Computes each block again in the backward pass instead of keeping its activations."""
        self.core.compute = dataclasses.replace(self.core.compute, remat="full")

    def gradient_checkpointing_disable(self) -> None:
        """Keeps the activations of the blocks for the backward pass."""
        self.core.compute = dataclasses.replace(self.core.compute, remat="none")

    def _options(self, output_attentions, output_hidden_states, return_dict):
        """A call's options, with the configuration's for those that are None."""
        c = self.config
        shown = {
            "output_attentions": c.output_attentions if output_attentions is None
            else bool(output_attentions),
            "output_hidden_states": c.output_hidden_states if output_hidden_states is None
            else bool(output_hidden_states),
        }  # fmt: skip
        return shown, c.use_return_dict if return_dict is None else return_dict

    def _check_pixels(self, pixel_values) -> jax.Array:
        c = self.config
        expected = (c.num_frames, c.num_channels, *c.frame_size)
        if pixel_values is None:
            raise ValueError(f"pixel_values is None; give an array (batch, *{expected}).")
        pixel_values = to_jax(pixel_values)
        names = ("frames", "channels", "height", "width")
        if pixel_values.ndim != 5:
            raise ValueError(
                f"pixel_values has shape {pixel_values.shape}, but must be "
                f"(batch, {', '.join(names)}) = (batch, {', '.join(map(str, expected))})."
            )
        wrong = [
            f"{have} {name} (the model takes {want})"
            for name, have, want in zip(names, pixel_values.shape[1:], expected, strict=True)
            if have != want
        ]
        if wrong:
            raise ValueError(
                f"pixel_values has shape {pixel_values.shape}, with {', '.join(wrong)}; resize or "
                "resample the clip, or build the model with another configuration."
            )
        if not jnp.issubdtype(pixel_values.dtype, jnp.floating):
            raise ValueError(
                f"pixel_values has dtype {pixel_values.dtype}, but must be normalised floats: "
                "(pixel / 255 - mean) / std."
            )
        return pixel_values

    def _make_mask(self, bool_masked_pos, num_masked, batch_size: int) -> Mask:
        if isinstance(bool_masked_pos, Mask):
            mask = bool_masked_pos
        else:
            if arrays.is_torch(bool_masked_pos):
                bool_masked_pos = arrays.to_numpy(bool_masked_pos)
            mask = Mask.from_bool(bool_masked_pos, num_masked=num_masked)
        found = (len(mask.visible), mask.num_tokens)
        if found != (batch_size, self.config.num_tokens):
            t, h, w = self.config.grid
            raise ValueError(
                f"bool_masked_pos is for (clips, tokens) = {found}, but must be for "
                f"{(batch_size, self.config.num_tokens)}: one entry per clip and token of the "
                f"{t} x {h} x {w} grid."
            )
        return mask

    def _expand_head_mask(self, head_mask) -> jax.Array | None:
        if head_mask is None:
            return None
        head_mask = to_jax(head_mask).astype(jnp.float32)
        shape = (self.config.num_hidden_layers, self.config.num_attention_heads)
        if head_mask.shape not in (shape, shape[1:]):
            raise ValueError(
                f"head_mask has shape {head_mask.shape}, but must be (heads,) or (layers, heads) = "
                f"{shape}."
            )
        return jnp.broadcast_to(head_mask, shape)


def to_jax(array: Any) -> jax.Array:
    """An array of jax, numpy or torch, or numbers in lists, as one of jax."""
    return jnp.asarray(arrays.to_numpy(array) if arrays.is_torch(array) else array)


def make_keys(key: jax.Array | None, pixel_values: jax.Array) -> jax.Array | None:
    """A key for each clip, [B]; None stays None."""
    return None if key is None else randomness.clip_keys(key, len(pixel_values))
