"""What differs between the things a model can be trained for: the methods of `Task`."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from vmae_jax.config import VideoMAEConfig
from vmae_jax.flops import Work, classification_work
from vmae_jax.videomae import VideoMAE
from vmae_jax.vit import Compute, LoRA

if TYPE_CHECKING:
    from vmae_jax.data.clip_maker import ClipMaker
    from vmae_jax.data.sources.video_source import VideoSource

# Array name -> (shape of one group of samples, dtype). A group is what is made of the same frames.
Arrays = dict[str, tuple[tuple[int, ...], Any]]
Metrics = dict[str, jax.Array]


class Baseline(NamedTuple):
    """What a trivial prediction would score, for the log and the loss curve.

    Attributes:
      name: what predicts so, e.g. "predicting zero".
      loss: of it.
    """

    name: str
    loss: float


class Task(abc.ABC):
    """One thing to train for. A subclass overrides what differs; its arguments are its options.

    What is here serves any task on pixels: random clips as pre-training takes them for training,
    the middle of each held-out record, a model without parts besides the encoder, nothing frozen.

    The run calls the methods in this order: `samples` and `batch` when it opens the data,
    `make_model` and `make_frozen` for shapes, then for every step `prepare` once on the global
    batch and `objective` on each micro-batch.

    Attributes:
      parts: which parts the model has besides the encoder, of "decoder" and "classifier".
      frozen_parts: names of the model's parameters, up to the first "/", that are not trained. They
        are made fresh or taken from `init.checkpoint` at every start, and never saved again.
      trains: what is trained unless `optimizer.train` says it, as that option has it; None: all.
      lora: low-rank updates that the model has besides; they are merged on export.
      uneven_frames: whether its clips have frames at other distances than `data.frame_stride`,
        which only data sets with all frames can serve.
    """

    parts: tuple[str, ...] = ()
    frozen_parts: tuple[str, ...] = ()
    trains: tuple[str, ...] | None = None
    lora: LoRA | None = None
    uneven_frames: bool = False

    # What is trained.

    def make_model(self, config: VideoMAEConfig, compute: Compute, rngs: nnx.Rngs) -> VideoMAE:
        """A fresh model."""
        return VideoMAE(config, **dict.fromkeys(self.parts, True), compute=compute, rngs=rngs)

    def make_frozen(self, config: VideoMAEConfig, compute: Compute) -> dict[str, Any]:
        """Other parameters that the objective needs and nobody trains, as a teacher's: nested dicts
        of arrays, which are traced for their shapes. {} for none."""
        return {}

    def load_frozen(self, fresh: dict[str, Any]) -> dict[str, Any]:
        """Their values, at every start.

        Args:
          fresh: from `make_frozen`, on the run's devices.
        Returns:
          The same tree with the values to use, on the same shardings.
        """
        return fresh

    # What it is trained on.

    def samples(
        self, source: VideoSource, model: VideoMAEConfig, data: Any, *, held_out: bool
    ) -> ClipMaker:
        """What makes the samples of a record: `data.repeat` in training, one when held out.

        Args:
          source: the records.
          model: of the run.
          data: the section `data` of the run's configuration.
          held_out: whether for evaluation.
        Raises:
          SettingError: for options that cannot work.
        """
        # they decode video, which models go without
        from vmae_jax.data import samplers, transforms
        from vmae_jax.data.clip_maker import ClipMaker

        if data.fps is None:
            rate = data.frame_stride
            random, centre = samplers.pretraining_frames, samplers.centre_frames
        else:
            rate = data.fps
            random, centre = samplers.timed_frames, samplers.timed_centre_frames
        if held_out:
            transform = transforms.centre_view(model.frame_size, data.resize)
            return ClipMaker(source, centre(model.num_frames, rate), transform)
        transform = transforms.random_crops(
            model.frame_size, data.repeat, data.resize, data.canvas_size, data.crop_scales
        )
        return ClipMaker(source, random(model.num_frames, rate), transform)

    def batch(self, model: VideoMAEConfig, data: Any, *, held_out: bool) -> Arrays:
        """The arrays of a group that go to the devices; what else the samples have stays behind.

        Args:
          model, data, held_out: as in `samples`.
        """
        channels = model.num_channels
        repeat = 1 if held_out else data.repeat
        if held_out or data.canvas_size is None:
            shape = (repeat, model.num_frames, *model.frame_size, channels)
            return {"video": (shape, np.uint8)}
        canvas = (1, model.num_frames, *data.canvas_size, channels)
        return {"video": (canvas, np.uint8), "boxes": ((1, repeat, 4), np.int32)}

    def check_data(
        self, training: VideoSource, held_out: VideoSource | None, model: VideoMAEConfig
    ) -> None:
        """Looks for records that the task cannot use, before anything is computed.

        Args:
          training, held_out: the records; None if nothing looks at held-out ones.
          model: of the run.
        Raises:
          SettingError: for the first problem.
        """
        return

    # What is computed.

    def prepare(self, batch: dict[str, jax.Array], keys: jax.Array) -> dict[str, jax.Array]:
        """What is done to the global training batch before it is cut into micro-batches: here
        clips can meet that end up in different ones, as mixup needs.

        Args:
          batch: as `batch` says, of all groups.
          keys: PRNG keys [B], one per clip.
        """
        return batch

    @abc.abstractmethod
    def objective(
        self,
        model: VideoMAE,
        batch: dict[str, jax.Array],
        keys: jax.Array,
        frozen: dict[str, Any],
        *,
        evaluation: bool = False,
    ) -> tuple[jax.Array, Metrics]:
        """The loss, an fp32 scalar, and metrics, fp32 scalars with "loss" among them.

        Args:
          model: with its parameters.
          batch: a micro-batch; held-out ones also have `weight` fp32 [B], 0 for clips that do not
            count: means are over the others.
          keys: PRNG keys [B], one per clip: everything random of a clip comes from its key.
          frozen: of `load_frozen`.
          evaluation: no dropout and no drop path.
        """

    def predict(
        self,
        model: VideoMAE,
        batch: dict[str, jax.Array],
        keys: jax.Array,
        frozen: dict[str, Any],
    ) -> dict[str, jax.Array]:
        """What evaluators want to know of each held-out clip, arrays [B, ...]: its loss, say, or
        its logits, to be merged where a record has several views. {} for nothing.

        Args: as of `objective`.
        """
        return {}

    # What is said of it.

    def baseline(self, model: VideoMAEConfig) -> Baseline | None:
        """What a trivial prediction would score, where that is a constant."""
        return None

    def work(self, model: VideoMAEConfig) -> Work:
        """The arithmetic of a clip in a step, from which `plan` makes its bounds: here that of an
        encoder over all tokens, and a head over their mean."""
        return classification_work(model)
