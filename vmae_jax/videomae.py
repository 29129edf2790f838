"""VideoMAE as functions of tokens: `encode`, `decode`, `classify`.

This core knows neither files nor pixels nor Hugging Face. A model holds parameters only: no mode,
no random state, no mask.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vmae_jax import randomness
from vmae_jax.config import VideoMAEConfig
from vmae_jax.initialization import make_initialization
from vmae_jax.masking import Mask
from vmae_jax.vit import (
    Block,
    Compute,
    LoRA,
    layer_norm,
    make_blocks,
    run_blocks,
    sincos_table,
    take_tokens,
)


def _purpose_keys(keys: jax.Array | None, purpose: int) -> jax.Array | None:
    """Keys [B], different for encoder (0), decoder (1) and head (2); None stays None."""
    return None if keys is None else randomness.fold_in(keys, purpose)


class Encoded(NamedTuple):
    """What `encode` returns.

    Attributes:
      tokens: [B, N_vis, D], after the final LayerNorm where the model has one.
      hidden_states: [depth + 1, B, N_vis, D], the embeddings first, the last before the final
        LayerNorm; None unless asked for.
      attentions: [depth, B, heads, N_vis, N_vis]; None unless asked for.
    """

    tokens: jax.Array
    hidden_states: jax.Array | None
    attentions: jax.Array | None


class VideoMAE(nnx.Module):
    """The encoder, with a decoder for pre-training, or a head for classification, or neither.

    As in the Hugging Face classes, the encoder ends in a LayerNorm only if
    `config.use_mean_pooling` is False, and a classifier has `fc_norm` only if it is True.
    """

    def __init__(
        self,
        config: VideoMAEConfig,
        *,
        decoder: bool = False,
        classifier: bool = False,
        lora: LoRA | None = None,
        compute: Compute = Compute(),
        rngs: nnx.Rngs,
    ):
        """Draws fresh parameters.

        Args:
          config: the model.
          decoder, classifier: which parts it has besides the encoder.
          lora: low-rank updates of the encoder's matrices, zero at first; None: none.
          compute: dtypes, precision, attention, remat.
          rngs: the stream `params` is used.
        """
        self.config = config
        self.compute = compute
        init = make_initialization(config, fine_tuning=classifier)

        def dense(in_width, out_width, kernel_init, **kwargs):
            return nnx.Linear(
                in_width,
                out_width,
                kernel_init=kernel_init,
                dtype=compute.dtype,
                param_dtype=compute.param_dtype,
                rngs=rngs,
                **kwargs,
            )

        def blocks(depth, width, num_heads, mlp_width, lora=None):
            def block(rngs):
                return Block(width, num_heads, mlp_width, config, compute, init.dense, rngs, lora)

            return make_blocks(depth, block, rngs)

        c = config
        self.embeddings = dense(
            c.tubelet_values, c.hidden_size, init.projection, bias_init=init.projection_bias
        )
        self.encoder = blocks(
            c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.intermediate_size, lora
        )
        if not c.use_mean_pooling:
            self.layernorm = layer_norm(c.hidden_size, c.layer_norm_eps, compute, rngs)
        if decoder:
            width = c.decoder_hidden_size
            self.encoder_to_decoder = dense(
                c.hidden_size, width, init.encoder_to_decoder, use_bias=False
            )
            self.mask_token = nnx.Param(
                init.mask_token(rngs.params(), (width,), compute.param_dtype)
            )
            self.decoder = blocks(
                c.decoder_num_hidden_layers,
                width,
                c.decoder_num_attention_heads,
                c.decoder_intermediate_size,
            )
            self.decoder_norm = layer_norm(width, c.decoder_norm_eps, compute, rngs)
            self.decoder_head = dense(width, c.tubelet_values, init.dense)
        if classifier:
            if c.use_mean_pooling:
                self.fc_norm = layer_norm(c.hidden_size, c.fc_norm_eps, compute, rngs)
            if c.num_labels > 0:
                self.classifier = dense(c.hidden_size, c.num_labels, init.classifier)

    def encode(
        self,
        tubelets: jax.Array,
        visible: jax.Array | None = None,
        *,
        keys: jax.Array | None = None,
        head_mask: jax.Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Encoded:
        """Features of the visible tokens; hidden ones are left out before any arithmetic.

        Args:
          tubelets: [B, N, P], normalised pixels in the order (time, row, column, channel).
          visible: int32 [B, N_vis], `Mask.visible`; None for all tokens.
          keys: PRNG keys [B], one per clip, for dropout and drop path; None means evaluation.
          head_mask: [depth, heads], factors of the attention probabilities.
        Raises:
          ValueError: if `tubelets` has another number of tokens or of values than the model's.
        Source: VideoMAE, section 3.3; PretrainVisionTransformerEncoder of the official code.
        """
        c = self.config
        if tubelets.ndim != 3 or tubelets.shape[1:] != (c.num_tokens, c.tubelet_values):
            raise ValueError(
                f"tubelets have shape {tubelets.shape}, but this model takes "
                f"(batch, {c.num_tokens}, {c.tubelet_values})."
            )
        keys = _purpose_keys(keys, 0)
        positions = self._positions(c.hidden_size)
        if visible is not None:
            tubelets = take_tokens(tubelets, visible)  # [B, N_vis, P]
            positions = positions[visible]
        with jax.default_matmul_precision(self.compute.precision):
            x = self.embeddings(tubelets.astype(self.compute.dtype)) + positions
            x, hidden, probs = run_blocks(
                self.encoder,
                x,
                c.num_hidden_layers,
                self.compute,
                drop_path_rate=c.drop_path_rate,
                keys=keys,
                head_mask=head_mask,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                trained=self.compute.trained,
            )
        if hidden is not None:
            hidden = jnp.concatenate([hidden, x[None]])
        return Encoded(x if c.use_mean_pooling else self.layernorm(x), hidden, probs)

    def decode(self, tokens: jax.Array, mask: Mask, *, keys: jax.Array | None = None) -> jax.Array:
        """Predicted target values of the hidden tokens, [B, N_mask, P] in the compute dtype.

        The decoder sees the encoded tokens followed by the mask tokens, each with its position.

        Args:
          tokens: [B, N_vis, D], encoded.
          mask: the one that was used to encode.
          keys: as in `encode`; the decoder draws other numbers from them.
        Source: VideoMAE, section 3.3; PretrainVisionTransformer of the official code.
        """
        c = self.config
        keys = _purpose_keys(keys, 1)
        positions = self._positions(c.decoder_hidden_size)
        with jax.default_matmul_precision(self.compute.precision):
            seen = self.encoder_to_decoder(tokens) + positions[mask.visible]
            hidden = self.mask_token[...].astype(seen.dtype) + positions[mask.masked]
            x = jnp.concatenate([seen, hidden], axis=1)  # [B, N, D_dec]
            x, _, _ = run_blocks(
                self.decoder,
                x,
                c.decoder_num_hidden_layers,
                self.compute,
                drop_path_rate=c.drop_path_rate,
                keys=keys,
            )
            x = x[:, mask.visible.shape[1] :]  # [B, N_mask, D_dec]
            return self.decoder_head(self.decoder_norm(x))

    def classify(self, tokens: jax.Array, *, keys: jax.Array | None = None) -> jax.Array:
        """Logits [B, num_labels]; the pooled features [B, D] if the model has no classes.

        Args:
          tokens: [B, N, D], encoded: their mean is classified, or, without `use_mean_pooling`, the
            first one (there is no class token: it is the tubelet at the top left of the first
            frames).
          keys: as in `encode`, for the dropout before the classifier.
        Source: VisionTransformer of the official modeling_finetune.py.
        """
        c = self.config
        x = self.fc_norm(tokens.mean(axis=1)) if c.use_mean_pooling else tokens[:, 0]
        if keys is not None and c.head_dropout_prob > 0:
            keys = _purpose_keys(keys, 2)
            x = randomness.dropout(x, c.head_dropout_prob, keys, x.shape[1:])
        if c.num_labels == 0:
            return x
        with jax.default_matmul_precision(self.compute.precision):
            return self.classifier(x)

    def _positions(self, width: int) -> jax.Array:
        """[N, width], cast to the activations' dtype before it is added, as in the originals."""
        return jnp.asarray(sincos_table(self.config.num_tokens, width), self.compute.dtype)
