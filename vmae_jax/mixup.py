"""Mixup and cutmix of whole clips, in groups of consecutive ones.

Each clip of a group is mixed with one partner: the group in reverse order. What is drawn comes from
the clips' own keys, so it is the same on any devices and in any micro-batches, and a group may be
as small as the batch of one GPU was in the published runs, which drew once on each.

    mixup     the clip times w plus its partner times 1 - w
    cutmix    a rectangle of all frames is the partner's; w is the share that is left

Source: mixup.py of the official code (timm's), with its odd corner mended: "pair" and "elem" cut
height and width there only for single pictures.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vmae_jax import randomness
from vmae_jax.errors import SettingError

MODES = ("batch", "pair", "elem")


class Mix(NamedTuple):
    """What is drawn for clips.

    Attributes:
      weight: fp32 [B], the share of the clip itself, in targets and, without a box, in pixels.
      box: int32 [B, 4], (top, bottom, left, right) of what is the partner's; all 0: no box.
    """

    weight: jax.Array
    box: jax.Array


@dataclasses.dataclass(frozen=True)
class Mixup:
    """How clips are mixed.

    Attributes:
      alpha: mixup's weight is Beta(alpha, alpha); 0: no mixup.
      cutmix_alpha: cutmix's likewise; 0: no cutmix.
      prob: that anything is mixed.
      switch_prob: that it is cutmix, where both are there.
      mode: who shares a draw: "batch" a whole group, "pair" a clip and its partner, "elem" nobody.
      group: consecutive clips that are mixed among themselves, an even number; None: all.
    Raises:
      SettingError: for values out of range.
    """

    alpha: float = 0.8
    cutmix_alpha: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: str = "batch"
    group: int | None = None

    def __post_init__(self):
        for name in ("alpha", "cutmix_alpha"):
            if not getattr(self, name) >= 0:
                raise SettingError(f"mixup.{name}={getattr(self, name)} must be 0 (off) or more.")
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"mixup.{name}={getattr(self, name)} must be in [0, 1].")
        if self.mode not in MODES:
            raise SettingError(f"mixup.mode={self.mode!r} is unknown; choose from {MODES}.")

    @property
    def mixes(self) -> bool:
        """Whether anything is ever mixed."""
        return self.prob > 0 and (self.alpha > 0 or self.cutmix_alpha > 0)

    def group_of(self, batch_size: int) -> int:
        """Clips of a group.

        Raises:
          SettingError: if they are not an even number, or the batch is not made of whole groups.
        """
        group = batch_size if self.group is None else self.group
        if group < 2 or group % 2 or batch_size % group:
            raise SettingError(
                f"mixup.group={self.group} and data.batch_size={batch_size}: clips are mixed in "
                "pairs, so a group must be an even number of them that divides the batch (None: "
                "the whole batch); change one of them, or set mixup.prob=0."
            )
        return group

    def drawing_keys(self, keys: jax.Array) -> jax.Array:
        """Whose key each clip draws by: that of the first of its group, of the first of its pair,
        or its own. [B] of the clips' keys [B], in order.

        Raises:
          SettingError: as `group_of`.
        """
        grouped = keys.reshape(-1, self.group_of(len(keys)))
        if self.mode == "batch":
            grouped = jnp.broadcast_to(grouped[:, :1], grouped.shape)
        elif self.mode == "pair":
            half = grouped[:, : grouped.shape[1] // 2]
            grouped = jnp.concatenate([half, half[:, ::-1]], axis=1)
        return grouped.reshape(-1)

    def draw(self, keys: jax.Array) -> jax.Array:
        """Numbers by which clips are mixed, fp32 [B, 6], a row for each of the keys [B]; keys that
        are equal draw the same.

        They are drawn by rejection, in a loop that ends when the last row has its number: keep the
        keys on one device, or on all.
        """
        uniform = randomness.uniform(randomness.fold_in(keys, 0), (4,))
        betas = [_beta(keys, 1, self.alpha), _beta(keys, 2, self.cutmix_alpha)]
        return jnp.concatenate([uniform, jnp.stack(betas, axis=-1)], axis=-1)

    def mix(self, numbers: jax.Array, frame_size: tuple[int, int]) -> Mix:
        """What the numbers mean for frames of a size.

        Args:
          numbers: of `draw`.
          frame_size: (height, width) in pixels.
        """
        height, width = frame_size
        whether, which, down, right, mixup_weight, cutmix_weight = numbers.T
        mixes = whether < self.prob
        if self.alpha > 0 and self.cutmix_alpha > 0:
            cuts = which < self.switch_prob
        else:
            cuts = jnp.full(len(numbers), self.cutmix_alpha > 0)
        weight = jnp.where(mixes, jnp.where(cuts, cutmix_weight, mixup_weight), 1.0)
        # the rectangle has the frame's ratio of sides, its centre anywhere, and ends at the rim
        side = jnp.sqrt(1 - weight)
        rows, columns = _interval(height, side, down), _interval(width, side, right)
        box = jnp.stack([*rows, *columns], axis=-1)
        area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
        box *= (cuts & (area > 0))[:, None]
        weight = jnp.where(cuts, 1 - area / (height * width), weight)
        return Mix(weight, box)


def _beta(keys: jax.Array, purpose: int, alpha: float) -> jax.Array:
    if alpha == 0:
        return jnp.ones(len(keys))
    keys = randomness.fold_in(keys, purpose)
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)


def _interval(length: int, share: jax.Array, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
    half = (length * share).astype(jnp.int32) // 2
    centre = (centre * length).astype(jnp.int32)
    return jnp.clip(centre - half, 0, length), jnp.clip(centre + half, 0, length)


def reverse_groups(x: jax.Array, group: int) -> jax.Array:
    """The rows [B, ...] in reverse order within each group of consecutive ones."""
    return x.reshape(-1, group, *x.shape[1:])[:, ::-1].reshape(x.shape)


def mix_videos(video: jax.Array, partner: jax.Array, mix: Mix) -> jax.Array:
    """Mixed clips, fp32 [B, T, H, W, C].

    Args:
      video, partner: fp32, of this shape.
      mix: what was drawn for them.
    """
    top, bottom, left, right = (edge[:, None, None] for edge in mix.box.T)
    rows, columns = jnp.arange(video.shape[2])[:, None], jnp.arange(video.shape[3])
    inside = (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)  # [B, H, W]
    has_box = bottom > top
    weight = jnp.where(has_box, ~inside, mix.weight[:, None, None])[:, None, :, :, None]
    return weight * video + (1 - weight) * partner


def mix_targets(targets: jax.Array, partner: jax.Array, mix: Mix) -> jax.Array:
    """Mixed targets, fp32 [B, K]."""
    weight = mix.weight[:, None]
    return weight * targets + (1 - weight) * partner
