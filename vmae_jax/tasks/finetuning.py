"""Supervised training of an encoder on labelled clips: classes, several of them, or numbers.

Source: run_class_finetuning.py, engine_for_finetuning.py and kinetics.py of the official code.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vmae_jax import randomness, sharding
from vmae_jax.config import VideoMAEConfig
from vmae_jax.config_checks import PROBLEM_TYPES
from vmae_jax.device_augment import random_erasing, random_flip
from vmae_jax.device_crop import bilinear_crop
from vmae_jax.errors import SettingError
from vmae_jax.losses import smoothed_targets, target_losses
from vmae_jax.metrics import in_top_k
from vmae_jax.mixup import Mixup, mix_targets, mix_videos, reverse_groups
from vmae_jax.patches import normalize, patchify
from vmae_jax.tasks.task import Arrays, Baseline, Metrics, Task
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute, LoRA

if TYPE_CHECKING:
    from vmae_jax.data.clip_maker import ClipMaker
    from vmae_jax.data.sources.video_source import VideoSource

_PARTNER = "partner_"  # before the name of an array of the batch: that of the clip's partner
_NUMBERS = "mix_numbers"  # by which each clip is mixed
# What a clip's key is for, besides dropout and drop path.
_DROPS, _FLIP, _ERASE, _MIX = range(4)


@dataclasses.dataclass(frozen=True)
class Augment:
    """What is done to training clips, in this order.

    Attributes:
      rand_augment: policy, e.g. "rand-m7-n4-mstd0.5-inc1"; "": none.
      scale: least and largest share of the frame that a crop covers.
      ratio: least and largest width / height of a crop, before it is resized.
      flip: whether half of the clips are mirrored.
      erase_prob: that a rectangle of a clip is replaced by noise.
    """

    rand_augment: str = ""
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    erase_prob: float = 0.0


class FineTuning(Task):
    """The model has a classifier; a batch is clips and their labels.

    Args:
      problem_type: "single_label_classification", "multi_label_classification", or "regression".
      sampling: "dense" (a stretch of frames) or "tsn" (frames from the whole video).
      augment: fields of `Augment`.
      mixup: fields of `mixup.Mixup`.
      label_smoothing: of single labels, in [0, 1).
      class_weights: factors of the classes' terms in the training loss; None: 1.
      head_init_scale: factor of the fresh classifier (of the official initialization; that of
        Hugging Face has none).
      lora_rank, lora_alpha: of `vit.LoRA`; rank 0: none. With it these and the head are trained,
        unless optimizer.train says otherwise.
      allow_empty_classes: go on though a class has no training clip.
      allow_shared_videos: go on though a video is in the training and the held-out set.
    Raises:
      SettingError: for values that are unknown, or cannot work together.
    """

    parts = ("classifier",)
    uneven_frames = True

    def __init__(
        self,
        *,
        problem_type: str = PROBLEM_TYPES[1],
        sampling: str = "dense",
        augment: Mapping[str, Any],
        mixup: Mapping[str, Any],
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        head_init_scale: float = 0.001,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        allow_empty_classes: bool = False,
        allow_shared_videos: bool = False,
    ):
        if problem_type not in PROBLEM_TYPES:
            raise SettingError(
                f"finetuning.problem_type={problem_type!r} is unknown; choose from {PROBLEM_TYPES}."
            )
        self.problem_type = problem_type
        self._sampling = sampling
        self._augment = _section(Augment, "augment", augment)
        self._mixup = _section(Mixup, "mixup", mixup)
        if label_smoothing and not self._is_single:
            raise SettingError(
                f"finetuning.label_smoothing={label_smoothing} is for single labels, and "
                f"problem_type={problem_type!r}; set it to 0."
            )
        if not 0 <= label_smoothing < 1:
            raise SettingError(f"finetuning.label_smoothing={label_smoothing} must be in [0, 1).")
        self._smoothing = label_smoothing
        if class_weights is not None and (problem_type == "regression" or min(class_weights) < 0):
            raise SettingError(
                f"finetuning.class_weights={tuple(class_weights)[:8]} must be numbers from 0 on, "
                "and of classes."
            )
        self._class_weights = None if class_weights is None else np.asarray(class_weights, "f4")
        if not head_init_scale > 0:
            raise SettingError(f"finetuning.head_init_scale={head_init_scale} must be positive.")
        self._head_init_scale = head_init_scale
        if lora_rank < 0:
            raise SettingError(f"finetuning.lora_rank={lora_rank} must be 0 (none) or more.")
        self.lora = LoRA(lora_rank, lora_alpha) if lora_rank else None
        self.trains = ("lora", "head") if lora_rank else None
        self._allow_empty_classes = allow_empty_classes
        self._allow_shared_videos = allow_shared_videos

    @property
    def _is_single(self) -> bool:
        return self.problem_type == "single_label_classification"

    def make_model(self, config: VideoMAEConfig, compute: Compute, rngs: nnx.Rngs) -> VideoMAE:
        """With a classifier whose start is scaled; the published scale is part of the model's own
        initialization."""
        model = VideoMAE(config, classifier=True, lora=self.lora, compute=compute, rngs=rngs)
        if config.initialization == "videomae":
            kernel = model.classifier.kernel
            kernel[...] = kernel[...] * (self._head_init_scale / 0.001)
        return model

    # Data.

    def check_data(
        self, training: VideoSource, held_out: VideoSource | None, model: VideoMAEConfig
    ) -> None:
        """Labels fit the model, each class has clips, no video is on both sides, and mirroring
        does not change what a class means."""
        from vmae_jax.data.disjoint import check_disjoint
        from vmae_jax.data.labels import check_training, mirrored_classes

        check_training(
            training,
            self.problem_type,
            model.num_labels,
            training.class_names,
            allow_missing=self._allow_empty_classes,
        )
        if held_out is not None:
            check_disjoint(training, held_out, allow=self._allow_shared_videos)
        if self._class_weights is not None and len(self._class_weights) != model.num_labels:
            raise SettingError(
                f"finetuning.class_weights has {len(self._class_weights)} numbers, and the model "
                f"{model.num_labels} classes; give one for each."
            )
        mirrored = mirrored_classes(training.class_names) if self._augment.flip else []
        if mirrored:
            raise SettingError(
                f"finetuning.augment.flip=True mirrors clips, but a mirrored {mirrored[0]!r} is "
                "another class; set it to False."
            )

    def samples(
        self, source: VideoSource, model: VideoMAEConfig, data: Any, *, held_out: bool
    ) -> ClipMaker:
        """Training: random frames, `data.repeat` augmentations of them. Held out: the middle clip,
        or `data.segments` x `data.crops` views."""
        from vmae_jax.data import samplers, transforms
        from vmae_jax.data.clip_maker import ClipMaker
        from vmae_jax.data.labels import encoder
        from vmae_jax.data.video.rand_augment import parse_policy

        label = encoder(self.problem_type, model.num_labels)
        if not held_out:
            frames = (
                samplers.timed_frames(model.num_frames, data.fps)
                if data.fps is not None
                else samplers.fine_tuning_frames(
                    model.num_frames, data.frame_stride, self._sampling
                )
            )
            augment = self._augment
            transform = transforms.augmented_clips(
                model.frame_size,
                data.repeat,
                policy=parse_policy(augment.rand_augment) if augment.rand_augment else None,
                scale=tuple(augment.scale),
                ratio=tuple(augment.ratio),
                canvas=data.canvas_size,
            )
            return ClipMaker(source, frames, transform, label)
        segments, crops = _views(data)
        if data.fps is not None:
            frames = samplers.timed_view_frames(model.num_frames, data.fps, segments)
        elif data.segments is None:
            frames = samplers.validation_frames(model.num_frames, data.frame_stride, self._sampling)
        else:
            frames = samplers.view_frames(
                model.num_frames, data.frame_stride, self._sampling, segments
            )
        transform = transforms.view_clips(model.frame_size, segments, crops)
        return ClipMaker(source, frames, transform, label)

    def batch(self, model: VideoMAEConfig, data: Any, *, held_out: bool) -> Arrays:
        """`video` and `label`; in training with a canvas, `boxes` too."""
        num_samples = math.prod(_views(data)) if held_out else data.repeat
        if self._is_single:
            label = ((num_samples,), np.int32)
        else:
            label = ((num_samples, model.num_labels), np.float32)
        clip = (model.num_frames, *model.frame_size, model.num_channels)
        if held_out or data.canvas_size is None:
            return {"video": ((num_samples, *clip), np.uint8), "label": label}
        # RandAugment changes the frames themselves, so that no two crops share them
        canvases = num_samples if self._augment.rand_augment else 1
        canvas = (canvases, model.num_frames, *data.canvas_size, model.num_channels)
        boxes = (canvases, num_samples // canvases, 4)
        return {"video": (canvas, np.uint8), "boxes": (boxes, np.int32), "label": label}

    # Computation.

    def prepare(self, batch: dict[str, jax.Array], keys: jax.Array) -> dict[str, jax.Array]:
        """Gives each clip its partner and what is drawn for the two, and leaves the pixels for
        later: as bytes they are small."""
        if not self._mixup.mixes:
            return batch
        num_clips = len(keys)
        group = self._mixup.group_of(num_clips)

        def partners(name: str, x: jax.Array) -> jax.Array:
            clips_in_a_row = num_clips // len(x)
            if group % clips_in_a_row:
                raise SettingError(
                    f"mixup.group={group} cuts through the {clips_in_a_row} crops that share a "
                    "canvas; make it a multiple of data.repeat, or set data.canvas_size=None."
                )
            reversed_rows = reverse_groups(x, group // clips_in_a_row)
            return reversed_rows[:, ::-1] if name == "boxes" else reversed_rows

        mixed = {f"{_PARTNER}{name}": partners(name, x) for name, x in batch.items()}
        mixed[f"{_PARTNER}keys"] = reverse_groups(keys, group)
        # few numbers: every device draws all of them, rather than wait for the others in a loop
        drawing_keys = sharding.on_all(self._mixup.drawing_keys(keys))
        numbers = self._mixup.draw(randomness.fold_in(drawing_keys, _MIX))
        mixed[_NUMBERS] = sharding.on_all(numbers)
        return sharding.split_clips({**batch, **mixed})

    def objective(
        self,
        model: VideoMAE,
        batch: dict[str, jax.Array],
        keys: jax.Array,
        frozen: dict[str, Any],
        *,
        evaluation: bool = False,
    ) -> tuple[jax.Array, Metrics]:
        """The mean loss of the clips that count, and metrics: `loss`; in evaluation also `top1` and
        `top5` of single labels, `mae` of numbers.

        Args:
          model: with a classifier.
          batch: `video` uint8 [B, T, H, W, C] and `label`, as `labels.encoder` makes it, [B, ...];
            `boxes` with a canvas; `weight` fp32 [B] when held out; what `prepare` adds.
          keys: [B], for augmentation, dropout and drop path.
        """
        config = model.config
        if evaluation:
            video, targets = self._plain_clips(batch, config), self._targets(batch["label"], config)
        else:
            video, targets = self._training_clips(batch, keys, config)
        drop_keys = None if evaluation else randomness.fold_in(keys, _DROPS)
        logits = self._logits(model, video, drop_keys)
        per_clip = self._losses(logits, targets, weighted=not evaluation)
        measured = {"loss": per_clip}
        if evaluation:
            measured |= self._measured(logits, batch["label"])
        weight = batch.get("weight")
        metrics = {
            name: x.mean() if weight is None else jnp.sum(x * weight) / jnp.sum(weight)
            for name, x in measured.items()
        }
        return metrics["loss"], metrics

    def predict(
        self,
        model: VideoMAE,
        batch: dict[str, jax.Array],
        keys: jax.Array,
        frozen: dict[str, Any],
    ) -> dict[str, jax.Array]:
        """`logits` fp32 [B, K] of each view, and its `label`."""
        video = self._plain_clips(batch, model.config)
        return {"logits": self._logits(model, video, None), "label": batch["label"]}

    def _logits(self, model: VideoMAE, video: jax.Array, keys: jax.Array | None) -> jax.Array:
        config = model.config
        tubelets = patchify(video, config.tubelet_size, config.patch_size)  # [B, N, P]
        encoded = model.encode(tubelets, keys=keys)
        return model.classify(encoded.tokens, keys=keys).astype(jnp.float32)

    def _plain_clips(self, batch: dict[str, jax.Array], config: VideoMAEConfig) -> jax.Array:
        return _normalized(sharding.split_clips(batch["video"]), config)

    def _training_clips(
        self, batch: dict[str, jax.Array], keys: jax.Array, config: VideoMAEConfig
    ) -> tuple[jax.Array, jax.Array]:
        """Augmented clips, normalised fp32 [B, T, H, W, C], and targets fp32 [B, K]."""
        video, targets = (
            self._augmented(batch, keys, config),
            self._targets(batch["label"], config, self._smoothing),
        )
        if _NUMBERS not in batch:
            return video, targets
        partner = {
            name.removeprefix(_PARTNER): x for name, x in batch.items() if name.startswith(_PARTNER)
        }
        mix = self._mixup.mix(batch[_NUMBERS], config.frame_size)
        other = self._augmented(partner, partner["keys"], config)
        other_targets = self._targets(partner["label"], config, self._smoothing)
        return mix_videos(video, other, mix), mix_targets(targets, other_targets, mix)

    def _augmented(
        self, batch: dict[str, jax.Array], keys: jax.Array, config: VideoMAEConfig
    ) -> jax.Array:
        video = batch["video"]
        if "boxes" in batch:
            video = bilinear_crop(video, batch["boxes"], config.frame_size)
        video = _normalized(sharding.split_clips(video), config)
        if self._augment.flip:
            video = random_flip(video, randomness.fold_in(keys, _FLIP))
        return random_erasing(
            video, randomness.fold_in(keys, _ERASE), probability=self._augment.erase_prob
        )

    def _targets(
        self, labels: jax.Array, config: VideoMAEConfig, smoothing: float = 0.0
    ) -> jax.Array:
        return smoothed_targets(labels, config.num_labels, smoothing) if self._is_single else labels

    def _losses(self, logits: jax.Array, targets: jax.Array, *, weighted: bool) -> jax.Array:
        """[B]."""
        weights = self._class_weights if weighted else None
        return target_losses(logits, targets, self.problem_type, weights)

    def _measured(self, logits: jax.Array, labels: jax.Array) -> Metrics:
        """[B] each."""
        if self._is_single:
            return {f"top{k}": in_top_k(logits, labels, k).astype(jnp.float32) for k in (1, 5)}
        if self.problem_type == "regression":
            return {"mae": jnp.abs(logits - labels).mean(axis=-1)}
        return {}

    def baseline(self, model: VideoMAEConfig) -> Baseline | None:
        """The loss of equal scores for all classes."""
        if self._is_single:
            return Baseline("a guess", math.log(model.num_labels))
        return None


def _normalized(video: jax.Array, config: VideoMAEConfig) -> jax.Array:
    """fp32 [B, T, H, W, C] from pixels in 0 .. 255, of whatever dtype."""
    return normalize(video.astype(jnp.float32) / 255, config)


def _views(data: Any) -> tuple[int, int]:
    """(temporal, spatial) of a held-out record; the middle clip alone unless they are given."""
    return data.segments or 1, data.crops or 1


def _section(make: Callable, name: str, options: Mapping[str, Any]) -> Any:
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise SettingError(f"finetuning.{name}.{option} is no option; there are {list(known)}.")
    return make(**options)
