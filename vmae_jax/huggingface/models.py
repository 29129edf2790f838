"""The documented Hugging Face classes, over the core.

    config = VideoMAEConfig.from_size("S")
    model = VideoMAEForPreTraining(config, rngs=nnx.Rngs(0))
    pixel_values = jnp.zeros((1, 16, 3, 224, 224))          # (B, T, C, H, W), normalised
    mask = tube_mask(jax.random.key(0), 1, config.grid, 0.9).to_bool()
    model(pixel_values, mask).loss

They convert to tubelets and `Mask`, call the core in one compiled program, and name the results.
What differs from the Python classes of transformers: randomness is an argument (`key=None` means
evaluation; there is no `.train()`), bad masks are errors, `prune_heads` does not exist.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from vmae_jax.config import VideoMAEConfig, refuse_unknown
from vmae_jax.losses import classification_loss, mean_loss
from vmae_jax.masking import Mask
from vmae_jax.patches import denormalize, patchify, pixel_targets
from vmae_jax.videomae import Encoded, VideoMAE
from vmae_jax.vit import Compute, take_tokens

logger = logging.getLogger(__name__)
_COMPUTE_FIELDS = tuple(f.name for f in dataclasses.fields(Compute))


class _Output:
    """What the outputs share: tuple order, and access by name or position, None left out."""

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order: what `return_dict=False` returns."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(value for value in values if value is not None)

    def __getitem__(self, name: str | int) -> Any:
        return getattr(self, name) if isinstance(name, str) else self.to_tuple()[name]


@struct.dataclass
class BaseModelOutput(_Output):
    """Attributes:
    last_hidden_state: [B, N or N_vis, D].
    hidden_states: depth + 1 arrays [B, N or N_vis, D], the embeddings first; or None.
    attentions: depth arrays [B, heads, N, N] or with N_vis; or None.
    """

    last_hidden_state: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@struct.dataclass
class PreTrainingOutput(_Output):
    """Attributes:
    loss: fp32 scalar.
    logits: [B, N_mask, P], predicted targets of the hidden tubelets.
    hidden_states, attentions: of the encoder, as in `BaseModelOutput`.
    """

    loss: jax.Array
    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


@struct.dataclass
class VideoClassifierOutput(_Output):
    """Attributes:
    loss: fp32 scalar; None without labels.
    logits: [B, num_labels]; the pooled features [B, D] if num_labels is 0.
    hidden_states, attentions: as in `BaseModelOutput`.
    """

    loss: jax.Array | None
    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None


class _PreTrainedModel(nnx.Module):
    """Building, loading, saving, and the checks of inputs that the three classes share."""

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
        return self.core.config

    @classmethod
    def from_core(cls, core: VideoMAE) -> _PreTrainedModel:
        """This class's face on parameters that exist; nothing is copied."""
        return cls(core.config, core=core)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        revision: str | None = None,
        config: VideoMAEConfig | None = None,
        ignore_mismatched_sizes: bool = False,
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ) -> _PreTrainedModel:
        """The model of a checkpoint, in any of the layouts in which VideoMAE was published.

        What was saved for another class loads as well: what this class lacks is dropped, and a
        classifier that the file lacks starts fresh. A decoder that the file lacks is an error. The
        log says in one line what was loaded, dropped, fresh or otherwise worth knowing.

        Args:
          path: a folder in Hugging Face's form, or a hub id ("MCG-NJU/videomae-base"); a `.pth` of
            VideoMAE, VideoMAE V2 or MMAction2; the workdir of a run of ours, or one of its steps.
          revision: branch, tag or commit of a hub id.
          config: the model to load into, instead of the one that the checkpoint describes.
          ignore_mismatched_sizes: True: a classifier of other classes than `num_labels` (or
            `id2label`) says starts fresh, and so does its norm if the file has that of another
            `use_mean_pooling`. Otherwise these are errors.
          rngs: for the parts that start fresh.
          **options: fields of `vit.Compute` (`dtype=jnp.bfloat16`), or of the configuration, to
            replace the stored ones (`num_frames=32`, `num_labels=5`, `num_attention_heads=6`).
        Raises:
          FileNotFoundError: if there is no such file, folder or repository.
          ValueError: if a file is damaged, or does not fit: what is missing, unexpected or of
            another shape is named, and nothing is loaded.
          OSError: if the hub cannot be reached and the files are not in its cache.
        """
        from vmae_jax.weights.pretrained import load
        from vmae_jax.weights.stored import open_checkpoint

        refuse_unknown(options, also=_COMPUTE_FIELDS)
        compute = {k: v for k, v in options.items() if k in _COMPUTE_FIELDS}
        changes = {k: v for k, v in options.items() if k not in _COMPUTE_FIELDS}
        if config is not None:
            described = config.replace(**changes)
            changes = {f.name: getattr(described, f.name) for f in dataclasses.fields(described)}
        with open_checkpoint(path, revision) as stored:
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
        self, path: str | os.PathLike, *, max_shard_size: int | str = "5GB"
    ) -> None:
        """Writes a folder that transformers loads: `config.json`, `model.safetensors` (fp32), and
        `preprocessor_config.json` with this model's frame size and pixel statistics (one that is
        there already and gives such frames stays).

        All files are complete on disk before the first gets its name. Warns where an epsilon of
        this model is one that transformers has fixed.

        Args:
          path: made if needed.
          max_shard_size: bytes, or text like "500MB" (MB = 10^6 bytes). A larger model is written
            as several files and `model.safetensors.index.json`.
        """
        from vmae_jax.huggingface.saving import save_folder

        save_folder(self.core, path, type(self).__name__, max_shard_size)

    def gradient_checkpointing_enable(self) -> None:
        """Computes each block again in the backward pass instead of keeping its activations."""
        self.core.compute = dataclasses.replace(self.core.compute, remat="full")

    def gradient_checkpointing_disable(self) -> None:
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
        pixel_values = jnp.asarray(pixel_values)
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
            mask = Mask.from_bool(bool_masked_pos, num_masked=num_masked)
        found = (len(mask.visible), mask.visible.shape[1] + mask.masked.shape[1])
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
        head_mask = jnp.asarray(head_mask, jnp.float32)
        shape = (self.config.num_hidden_layers, self.config.num_attention_heads)
        if head_mask.shape not in (shape, shape[1:]):
            raise ValueError(
                f"head_mask has shape {head_mask.shape}, but must be (heads,) or (layers, heads) = "
                f"{shape}."
            )
        return jnp.broadcast_to(head_mask, shape)


_compiled = functools.partial(
    jax.jit, static_argnames=("output_attentions", "output_hidden_states")
)


def _encode(core: VideoMAE, pixel_values, visible, head_mask, key, shown) -> Encoded:
    video = jnp.moveaxis(pixel_values, 2, -1)  # [B, T, H, W, C]
    tubelets = patchify(video, core.config.tubelet_size, core.config.patch_size)
    return core.encode(tubelets, visible, key=key, head_mask=head_mask, **shown)


@_compiled
def _features(core, pixel_values, visible, head_mask, key, **shown):
    return _encode(core, pixel_values, visible, head_mask, key, shown)


@_compiled
def _pretraining(core, pixel_values, mask, head_mask, key, **shown):
    encoded = _encode(core, pixel_values, mask.visible, head_mask, key, shown)
    logits = core.decode(encoded.tokens, mask, key=key)
    video = jnp.moveaxis(pixel_values, 2, -1)
    tubelets = patchify(video, core.config.tubelet_size, core.config.patch_size)
    hidden = denormalize(take_tokens(tubelets, mask.masked), core.config)
    return mean_loss(logits, pixel_targets(hidden, core.config)), logits, encoded


@_compiled
def _classification(core, pixel_values, head_mask, key, **shown):
    encoded = _encode(core, pixel_values, None, head_mask, key, shown)
    return core.classify(encoded.tokens, key=key), encoded


def _unstack(stacked: jax.Array | None) -> tuple[jax.Array, ...] | None:
    return None if stacked is None else tuple(stacked)


class VideoMAEModel(_PreTrainedModel):
    """The encoder: a feature for each token."""

    def __call__(
        self,
        pixel_values,
        bool_masked_pos=None,
        head_mask=None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        key: jax.Array | None = None,
        num_masked: int | None = None,
    ) -> BaseModelOutput | tuple:
        """Features [B, N, D] of all tokens, or of those that a mask leaves visible.

        Args:
          pixel_values: float [B, T, C, H, W], normalised with the config's mean and std.
          bool_masked_pos: bool [B, N], True = hidden, equal counts per row; or a `Mask`; or None.
          head_mask: (heads,) or (layers, heads) factors of the attention probabilities.
          output_attentions, output_hidden_states, return_dict: None takes the config's.
          key: PRNG key for dropout and drop path (one, or one per clip); None means evaluation.
          num_masked: hidden tokens per row; needed for a boolean mask under jit, see
            `Mask.from_bool`: what the mask holds cannot be checked there.
        Raises:
          ValueError: for inputs that don't fit the model, or a mask that cannot be one.
        """
        pixel_values = self._check_pixels(pixel_values)
        shown, as_output = self._options(output_attentions, output_hidden_states, return_dict)
        visible = None
        if bool_masked_pos is not None:
            visible = self._make_mask(bool_masked_pos, num_masked, len(pixel_values)).visible
        head_mask = self._expand_head_mask(head_mask)
        encoded = _features(self.core, pixel_values, visible, head_mask, key, **shown)
        output = BaseModelOutput(
            encoded.tokens, _unstack(encoded.hidden_states), _unstack(encoded.attentions)
        )
        return output if as_output else output.to_tuple()


class VideoMAEForPreTraining(_PreTrainedModel):
    """Encoder and decoder: predicts the pixels of hidden tubelets."""

    _decoder = True

    def __call__(
        self,
        pixel_values,
        bool_masked_pos,
        head_mask=None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        key: jax.Array | None = None,
        num_masked: int | None = None,
    ) -> PreTrainingOutput | tuple:
        """Loss and predictions for the hidden tubelets; arguments as for `VideoMAEModel`.

        `bool_masked_pos` is required. A batch of tube masks: `tube_mask(key, B, config.grid, 0.9)`.
        """
        pixel_values = self._check_pixels(pixel_values)
        shown, as_output = self._options(output_attentions, output_hidden_states, return_dict)
        if bool_masked_pos is None:
            raise ValueError("bool_masked_pos is None; pre-training needs a mask, e.g. tube_mask.")
        mask = self._make_mask(bool_masked_pos, num_masked, len(pixel_values))
        head_mask = self._expand_head_mask(head_mask)
        loss, logits, encoded = _pretraining(self.core, pixel_values, mask, head_mask, key, **shown)
        output = PreTrainingOutput(
            loss, logits, _unstack(encoded.hidden_states), _unstack(encoded.attentions)
        )
        return output if as_output else output.to_tuple()


class VideoMAEForVideoClassification(_PreTrainedModel):
    """Encoder and a linear classifier on pooled features."""

    _classifier = True

    def __init__(self, config: VideoMAEConfig, **options: Any):
        if not config.use_mean_pooling:
            _warn_of_first_token_pooling()
        super().__init__(config, **options)

    def __call__(
        self,
        pixel_values=None,
        head_mask=None,
        labels=None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        key: jax.Array | None = None,
    ) -> VideoClassifierOutput | tuple:
        """Logits, and the loss if labels are given; other arguments as for `VideoMAEModel`.

        Args:
          labels: int [B] (one class each; -100 is not counted), float [B, K] (many classes), or
            numbers (regression). `config.problem_type` decides; if it is None, the number of labels
            and the dtype do, anew in each call.
        Raises:
          ValueError: also for labels that don't fit, and outside jit for classes out of range.
        """
        pixel_values = self._check_pixels(pixel_values)
        shown, as_output = self._options(output_attentions, output_hidden_states, return_dict)
        head_mask = self._expand_head_mask(head_mask)
        logits, encoded = _classification(self.core, pixel_values, head_mask, key, **shown)
        loss = None
        if labels is not None:
            problem_type = self._problem_type(labels)
            loss = _classification_loss(logits, jnp.asarray(labels), problem_type)
        output = VideoClassifierOutput(
            loss, logits, _unstack(encoded.hidden_states), _unstack(encoded.attentions)
        )
        return output if as_output else output.to_tuple()

    def _problem_type(self, labels) -> str:
        num_labels = self.config.num_labels
        if num_labels == 0:
            raise ValueError("labels were given, but num_labels=0: the model has no classifier.")
        problem_type = self.config.problem_type
        if problem_type is None:
            integers = jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer)
            many = "single_label_classification" if integers else "multi_label_classification"
            problem_type = "regression" if num_labels == 1 else many
        if problem_type == "single_label_classification" and not isinstance(
            labels, jax.core.Tracer
        ):
            values = np.asarray(labels)
            wrong = values[((values < 0) & (values != -100)) | (values >= num_labels)]
            if wrong.size:
                raise ValueError(
                    f"labels hold {wrong.flat[0]}, but must be in [0, {num_labels}) or -100."
                )
        return problem_type


_classification_loss = jax.jit(classification_loss, static_argnames="problem_type")


@functools.cache
def _warn_of_first_token_pooling() -> None:
    logger.warning(
        "use_mean_pooling=False: the classifier sees the first token only. There is no class "
        "token; it is the tubelet at the top left of the first frames. Fine-tuning as published "
        "sets use_mean_pooling=True."
    )
