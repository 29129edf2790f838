"""The documented Hugging Face classes, over the core.

    config = VideoMAEConfig.from_size("S")
    model = VideoMAEForPreTraining(config, rngs=nnx.Rngs(0))
    pixel_values = jnp.zeros((1, 16, 3, 224, 224))          # (B, T, C, H, W), normalised
    mask = tube_mask(jax.random.key(0), 1, config.grid, 0.9).to_bool()
    model(pixel_values, mask).loss

They convert to tubelets and `Mask`, call the core in one compiled program, and name the results.
Arrays of numpy and tensors of torch are taken too. What differs from the classes of transformers
stands in docs/differences.md: above all, randomness is an argument (`key=None` means evaluation).
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmae_jax.config import VideoMAEConfig
from vmae_jax.huggingface import arrays
from vmae_jax.huggingface.outputs import (
    BaseModelOutput,
    ImageClassifierOutput,
    VideoMAEForPreTrainingOutput,
)
from vmae_jax.huggingface.pretrained_model import PreTrainedModel, make_keys
from vmae_jax.losses import classification_loss, mean_loss
from vmae_jax.patches import denormalize, patchify, pixel_targets
from vmae_jax.videomae import Encoded, VideoMAE
from vmae_jax.vit import take_tokens

logger = logging.getLogger(__name__)


_compiled = functools.partial(
    jax.jit, static_argnames=("output_attentions", "output_hidden_states")
)


def _encode(core: VideoMAE, pixel_values, visible, head_mask, key, shown) -> Encoded:
    video = jnp.moveaxis(pixel_values, 2, -1)  # [B, T, H, W, C]
    tubelets = patchify(video, core.config.tubelet_size, core.config.patch_size)
    return core.encode(tubelets, visible, keys=key, head_mask=head_mask, **shown)


@_compiled
def _features(core, pixel_values, visible, head_mask, key, **shown):
    return _encode(core, pixel_values, visible, head_mask, key, shown)


@_compiled
def _pretraining(core, pixel_values, mask, head_mask, key, **shown):
    encoded = _encode(core, pixel_values, mask.visible, head_mask, key, shown)
    logits = core.decode(encoded.tokens, mask, keys=key)
    video = jnp.moveaxis(pixel_values, 2, -1)
    tubelets = patchify(video, core.config.tubelet_size, core.config.patch_size)
    pixels = denormalize(take_tokens(tubelets, mask.masked), core.config)
    return mean_loss(logits, pixel_targets(pixels, core.config)), logits, encoded


@_compiled
def _classification(core, pixel_values, head_mask, key, **shown):
    encoded = _encode(core, pixel_values, None, head_mask, key, shown)
    return core.classify(encoded.tokens, keys=key), encoded


def _unstack(stacked: jax.Array | None) -> tuple[jax.Array, ...] | None:
    return None if stacked is None else tuple(stacked)


class VideoMAEModel(PreTrainedModel):
    """The encoder: a feature for each token."""

    @property
    def base_model(self) -> VideoMAEModel:
        """The model itself."""
        return self

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
        key = make_keys(key, pixel_values)
        encoded = _features(self.core, pixel_values, visible, head_mask, key, **shown)
        output = BaseModelOutput(
            encoded.tokens, _unstack(encoded.hidden_states), _unstack(encoded.attentions)
        )
        return output if as_output else output.to_tuple()

    forward = __call__


class _WithHead(PreTrainedModel):
    @property
    def base_model(self) -> VideoMAEModel:
        """The encoder alone, of the same parameters."""
        return VideoMAEModel.from_core(self.core)

    @property
    def videomae(self) -> VideoMAEModel:
        """The same as `base_model`."""
        return self.base_model


class VideoMAEForPreTraining(_WithHead):
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
    ) -> VideoMAEForPreTrainingOutput | tuple:
        """Loss and predictions for the hidden tubelets; arguments as for `VideoMAEModel`.

        `bool_masked_pos` is required. A batch of tube masks: `tube_mask(key, B, config.grid, 0.9)`.
        """
        pixel_values = self._check_pixels(pixel_values)
        shown, as_output = self._options(output_attentions, output_hidden_states, return_dict)
        if bool_masked_pos is None:
            raise ValueError("bool_masked_pos is None; pre-training needs a mask, e.g. tube_mask.")
        mask = self._make_mask(bool_masked_pos, num_masked, len(pixel_values))
        head_mask = self._expand_head_mask(head_mask)
        key = make_keys(key, pixel_values)
        loss, logits, encoded = _pretraining(self.core, pixel_values, mask, head_mask, key, **shown)
        output = VideoMAEForPreTrainingOutput(
            loss, logits, _unstack(encoded.hidden_states), _unstack(encoded.attentions)
        )
        return output if as_output else output.to_tuple()

    forward = __call__


class VideoMAEForVideoClassification(_WithHead):
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
    ) -> ImageClassifierOutput | tuple:
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
        key = make_keys(key, pixel_values)
        logits, encoded = _classification(self.core, pixel_values, head_mask, key, **shown)
        loss = None
        if labels is not None:
            if arrays.is_torch(labels):
                labels = arrays.to_numpy(labels)
            problem_type = self._problem_type(labels)
            loss = _classification_loss(logits, jnp.asarray(labels), problem_type)
        output = ImageClassifierOutput(
            loss, logits, _unstack(encoded.hidden_states), _unstack(encoded.attentions)
        )
        return output if as_output else output.to_tuple()

    forward = __call__

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
