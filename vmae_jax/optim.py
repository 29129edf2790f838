"""AdamW with the published schedule: rules about parameters go by the last word of their path.

Beware of two things that surprise in the original: the first step has learning rate 0, and the
final rate is scaled with the batch size just as the peak is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from vmae_jax.errors import SettingError

# Decay is for matrices. Stacked biases and scales have two axes, so their number says nothing.
DECAYS = {
    "kernel": True,
    "bias": False,
    "scale": False,
    "q_bias": False,
    "v_bias": False,
    "mask_token": False,
    "lora_a": True,
    "lora_b": True,
}
# Of layer-wise rates: what lies before the blocks. The rest, outside of the encoder, lies behind.
FIRST_LAYER = ("embeddings", "mask_token")


class Schedule(NamedTuple):
    """Linear warmup from 0, then half a cosine. Steps count updates; rates are absolute.

    Source: cosine_scheduler in utils.py of the official code, whose two ends touch: the last step
    of the warmup and the first of the cosine both have the peak rate; `final_lr` is never quite
    reached.
    """

    peak_lr: float
    final_lr: float
    warmup_steps: int
    num_steps: int

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """The learning rate of an update, fp32; the first one is step 0."""
        warmup = optax.linear_schedule(0.0, self.peak_lr, max(1, self.warmup_steps - 1))
        cosine = optax.cosine_decay_schedule(
            self.peak_lr, self.num_steps - self.warmup_steps, alpha=self.final_lr / self.peak_lr
        )
        return optax.join_schedules([warmup, cosine], [self.warmup_steps])(step)


def make_schedule(
    *,
    base_lr: float,
    base_final_lr: float,
    batch_size: int,
    num_clips: int,
    num_epochs: float | None,
    num_steps: int | None,
    warmup_epochs: float | None,
    warmup_steps: int | None,
) -> Schedule:
    """The schedule of a run; past this point only steps and absolute rates exist.

    Both rates are per 256 clips: peak = base_lr * batch_size / 256, and the final one alike. An
    epoch has num_clips // batch_size steps.

    Args:
      base_lr, base_final_lr: per 256 clips.
      batch_size: clips in a global batch.
      num_clips: of the training set.
      num_epochs, num_steps: length of the run; give one, the other is None.
      warmup_epochs, warmup_steps: likewise.
    Raises:
      ValueError: if both or neither is given, or the numbers cannot make a schedule.
    """

    def in_steps(name, epochs, steps):
        if (epochs is None) == (steps is None):
            raise SettingError(
                f"schedule.{name}_epochs={epochs} and schedule.{name}_steps={steps}: "
                "give exactly one."
            )
        if steps is not None:
            return steps
        if num_clips < batch_size:
            raise SettingError(
                f"data.batch_size={batch_size} is more than the {num_clips} clips of an epoch; "
                f"make it smaller, or give schedule.{name}_steps instead of epochs."
            )
        return int(epochs * (num_clips // batch_size))

    total = in_steps("num", num_epochs, num_steps)
    warmup = in_steps("warmup", warmup_epochs, warmup_steps)
    if not 0 <= warmup < total:
        raise SettingError(
            f"the schedule has {total} steps, {warmup} of them warmup; it needs at least one step "
            "more than the warmup."
        )
    if base_lr <= 0 or not 0 <= base_final_lr <= base_lr:
        raise SettingError(
            f"schedule.base_lr={base_lr} must be positive and "
            f"schedule.base_final_lr={base_final_lr} between 0 and it."
        )
    scale = batch_size / 256
    return Schedule(base_lr * scale, base_final_lr * scale, warmup, total)


def decay_mask(params) -> dict:
    """True for each parameter that weight decay shrinks; the same tree as `params`.

    Raises:
      ValueError: for a parameter that `DECAYS` does not know.
    """

    def decays(path, _):
        name = path[-1].key
        if name not in DECAYS:
            raise SettingError(
                f"parameter {jax.tree_util.keystr(path)} has no rule for weight decay; "
                f"add {name!r} to optim.DECAYS."
            )
        return DECAYS[name]

    return jax.tree_util.tree_map_with_path(decays, params)


def layer_scales(params: Mapping[str, Any], layer_decay: float, num_layers: int) -> dict[str, Any]:
    """Factors of the learning rate: layer_decay to the power of a layer's distance from the head.

    With L blocks, block k has layer_decay^(L - k), the embedding layer_decay^(L + 1), and what
    follows the blocks 1.

    Args:
      params: nested dicts of arrays; in "encoder" their first axis counts the layers, or only the
        last of them, where the first are not trained.
      layer_decay: in (0, 1].
      num_layers: of the encoder (L).
    Returns:
      The same tree of fp32 factors, which broadcast against the parameters.
    Raises:
      SettingError: if layer_decay is out of range.
    Source: optim_factory.py of the official code, LayerDecayValueAssigner.
    """
    if not 0 < layer_decay <= 1:
        raise SettingError(
            f"optimizer.layer_decay={layer_decay} must be in (0, 1]; 1 gives all layers one rate."
        )

    def scale(path: tuple, x: Any) -> np.ndarray:
        if path[0].key == "encoder":
            layers = np.arange(num_layers - x.shape[0], num_layers)
            factors = np.float32(layer_decay ** (num_layers - layers))
            return factors.reshape(-1, *(1,) * (len(x.shape) - 1))
        return np.float32(layer_decay ** (num_layers + 1) if path[0].key in FIRST_LAYER else 1)

    return jax.tree_util.tree_map_with_path(scale, params)


def scale_by_layer(layer_decay: float, num_layers: int) -> optax.GradientTransformation:
    """Multiplies updates by `layer_scales`; decoupled weight decay before it shrinks alike."""

    def update(updates, params):
        scales = layer_scales(params, layer_decay, num_layers)
        return jax.tree.map(lambda u, scale: u * scale, updates, scales)

    return optax.stateless(update)


def make_optimizer(
    schedule: Callable,
    *,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    clip_norm: float | None,
    layer_decay: float | None = None,
    num_layers: int = 0,
) -> optax.GradientTransformation:
    """AdamW as torch has it: decoupled decay, scaled by the learning rate.

    Args:
      schedule: step -> learning rate.
      weight_decay: of the parameters that `DECAYS` names.
      betas: decay rates of the two moments.
      eps: added to the root of the second moment.
      clip_norm: largest global gradient norm, or None.
      layer_decay, num_layers: as of `layer_scales`; None: all layers have one rate.
    """
    steps = [
        ("adam", optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps)),
        ("weight_decay", optax.add_decayed_weights(weight_decay, mask=decay_mask)),
        ("learning_rate", optax.scale_by_learning_rate(schedule)),
    ]
    if layer_decay is not None:
        steps.insert(2, ("layer_decay", scale_by_layer(layer_decay, num_layers)))
    if clip_norm is not None:
        steps.insert(0, ("clip", optax.clip_by_global_norm(clip_norm)))
    return optax.named_chain(*steps)
