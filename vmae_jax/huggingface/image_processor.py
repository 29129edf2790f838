"""The documented image processor: frames of any kind to `pixel_values`, on the host, without jax.

    processor = VideoMAEImageProcessor.from_pretrained("MCG-NJU/videomae-base")
    inputs = processor(frames, return_tensors="np")     # 16 frames: PIL images or arrays
    model(**inputs, bool_masked_pos=mask)               # pixel_values (1, 16, 3, 224, 224)

Every frame is resized, cropped, rescaled and normalised, in this order. Resizing goes through 8
bits, whatever the dtype of the frame, and the defaults normalise with 0.5, not with ImageNet's
statistics, which the published checkpoints want: take those from their `preprocessor_config.json`.

Names and defaults are those of transformers 4.27, arithmetic and inputs those of the PIL processor
of transformers 5.23, bit for bit.
"""

from __future__ import annotations

import copy
import enum
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vmae_jax.errors import SettingError
from vmae_jax.files.published import JsonFile
from vmae_jax.huggingface import arrays
from vmae_jax.huggingface.batch_feature import BatchFeature
from vmae_jax.huggingface.image_transforms import (
    are_fractions,
    as_videos,
    channels_first,
    process_frame,
)
from vmae_jax.huggingface.processor_options import NEEDS, OPTIONS, checked, refuse_unknown

PROCESSOR_FILE = "preprocessor_config.json"
_NOT_OFFERED = {
    **dict.fromkeys(
        ("resize", "center_crop", "rescale", "normalize"),
        "call the processor with the other steps off (do_resize=False, ...)",
    ),
    "get_image_processor_dict": "use VideoMAEImageProcessor.from_pretrained(path).to_dict()",
    "register_for_auto_class": "there are no Auto classes; name the class",
}


class ChannelDimension(enum.StrEnum):
    """Where the channels of an array stand: (C, H, W) or (H, W, C)."""

    FIRST = "channels_first"
    LAST = "channels_last"


class VideoMAEImageProcessor(JsonFile):
    """Turns videos into what the models take; see `preprocess`.

    Args, and attributes of the same names:
      do_resize: whether to resize.
      size: {"shortest_edge": n}, which keeps the proportions, or n; or {"height": h, "width": w},
        or (h, w). None: {"shortest_edge": 224}.
      resample: a filter of PIL, as `PIL.Image.Resampling` or its number.
      do_center_crop: whether to crop; a frame that is smaller gets a frame of zeros.
      crop_size: {"height": h, "width": w}, or (h, w), or n for a square. None: 224 x 224.
      do_rescale: whether to multiply by `rescale_factor`.
      rescale_factor: what takes [0, 255] to [0, 1].
      do_normalize: whether to subtract the mean and divide by the standard deviation.
      image_mean, image_std: one number, or one per channel, after rescaling. None: 0.5 each.

    `extra` holds the entries of a JSON file that mean nothing here; they are attributes too, and
    are written back.

    Raises:
      ValueError: for any value that cannot work, and for unknown options, which transformers keeps.
    """

    FILE: ClassVar[str] = PROCESSOR_FILE
    KIND: ClassVar[str] = "processor of VideoMAE"
    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __init__(
        self,
        do_resize: bool = True,
        size: Mapping[str, int] | Sequence[int] | int | None = None,
        resample: Image.Resampling | int = Image.Resampling.BILINEAR,
        do_center_crop: bool = True,
        crop_size: Mapping[str, int] | Sequence[int] | int | None = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        **unknown: Any,
    ):
        refuse_unknown(unknown, list(OPTIONS))
        options = {
            "do_resize": do_resize,
            "size": {"shortest_edge": 224} if size is None else size,
            "resample": resample,
            "do_center_crop": do_center_crop,
            "crop_size": 224 if crop_size is None else crop_size,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": [0.5] * 3 if image_mean is None else image_mean,
            "image_std": [0.5] * 3 if image_std is None else image_std,
        }
        for name, value in checked(options).items():
            setattr(self, name, value)
        self.extra = {}

    def __call__(self, images: Any, **options: Any) -> BatchFeature:
        """The same as `preprocess`."""
        return self.preprocess(images, **options)

    def preprocess(
        self,
        videos: Any,
        do_resize: bool | None = None,
        size: Mapping[str, int] | Sequence[int] | int | None = None,
        resample: Image.Resampling | int | None = None,
        do_center_crop: bool | None = None,
        crop_size: Mapping[str, int] | Sequence[int] | int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        return_tensors: str | None = None,
        data_format: ChannelDimension | str = ChannelDimension.FIRST,
        input_data_format: ChannelDimension | str | None = None,
        **unknown: Any,
    ) -> BatchFeature:
        """`pixel_values` of one video or a batch, with the processor's options unless given here.

        Args:
          videos: a frame, a list of frames or a list of lists of frames, where a frame is a PIL
            image (grey, RGB or RGBA) or an array of numpy, jax, torch or TensorFlow, [H, W, C],
            [C, H, W] or [H, W]; also arrays of 4 axes (a video), a list of these, or one of 5 axes
            (a batch). C is the number of means; grey frames become three equal channels where there
            are three. With one mean for all, C is 1, 3 or 4, the first axis if it can be it. Values
            in [0, 255], of any dtype; fractions in [0, 1] want do_rescale=False (a warning says
            so), and lose all but 8 bits where they are resized.
          return_tensors: "np", "jax", "pt" (torch) or "tf" (TensorFlow) for one array; None for
            lists of lists of numpy arrays.
          data_format: "channels_first" or "channels_last", of the result.
          input_data_format: the same of the frames' arrays; None to find out.
        Returns:
          A mapping with "pixel_values", [B, T, C, H, W] or [B, T, H, W, C]; fp32, unless the frames
          are of another floating type and neither resized nor rescaled.
        Raises:
          ValueError: for inputs and options that cannot work.
          MissingPackage: if torch or TensorFlow is asked for and not installed.
        Source: transformers 5.23, VideoMAEImageProcessorPil; docs/differences.md lists what differs
        on purpose.
        """
        given = {
            "do_resize": do_resize,
            "size": size,
            "resample": resample,
            "do_center_crop": do_center_crop,
            "crop_size": crop_size,
            "do_rescale": do_rescale,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
        }
        refuse_unknown(unknown, [*given, "return_tensors", "data_format", "input_data_format"])
        options = checked(
            {name: getattr(self, name) if value is None else value for name, value in given.items()}
        )
        for step, needed in NEEDS.items():
            for name in needed:
                if options[step] and options[name] is None:
                    raise ValueError(
                        f"{name}=None, but {step}=True needs it; give it, or pass {step}=False."
                    )
        arrays.check_tensor_type("return_tensors", return_tensors)
        for name, value in (("data_format", data_format), ("input_data_format", input_data_format)):
            if value not in tuple(ChannelDimension) and (name, value) != (
                "input_data_format",
                None,
            ):
                raise SettingError(
                    f"{name}={value!r} is unknown; choose 'channels_first' or 'channels_last'."
                )
        num_channels = self._num_channels(options)
        frames = [
            [channels_first(frame, num_channels, input_data_format) for frame in video]
            for video in as_videos(videos)
        ]
        if options["do_rescale"] and options["rescale_factor"] < 1 and are_fractions(frames):
            warnings.warn(
                "the values of the frames lie in [0, 1], and rescale_factor="
                f"{options['rescale_factor']:.4g} makes them next to nothing; if they are shares "
                "of full brightness, pass do_rescale=False.",
                stacklevel=3,
            )
        pixel_values = [[process_frame(frame, options) for frame in video] for video in frames]
        if data_format == ChannelDimension.LAST:
            pixel_values = [[np.moveaxis(x, 0, -1) for x in video] for video in pixel_values]
        return BatchFeature({"pixel_values": pixel_values}, return_tensors)

    @staticmethod
    def _num_channels(options: Mapping[str, Any]) -> int | None:
        """As many as there are means, or deviations; None if one number is for all channels."""
        statistics = [options[name] for name in ("image_mean", "image_std")]
        lengths = [len(numbers) for numbers in statistics if isinstance(numbers, list)]
        return lengths[0] if lengths and options["do_normalize"] else None

    @classmethod
    def from_dict(
        cls, image_processor_dict: Mapping[str, Any], **overrides: Any
    ) -> VideoMAEImageProcessor:
        """From what `to_dict` returned; unknown entries are kept in `extra`.

        Raises:
          ValueError: for bad values, and for unknown overrides.
        """
        values = image_processor_dict
        known = {name: value for name, value in values.items() if name in OPTIONS}
        processor = cls(**{**known, **overrides})
        ours = {*OPTIONS, "image_processor_type"}
        extra = {name: value for name, value in values.items() if name not in ours}
        processor.extra = copy.deepcopy(extra)
        return processor

    def to_dict(self) -> dict[str, Any]:
        """The options and `extra`, as JSON has them."""
        options = checked({name: getattr(self, name) for name in OPTIONS})
        if options["resample"] is not None:
            options["resample"] = int(options["resample"])
        described = {**copy.deepcopy(self.extra), **options}
        return {**described, "image_processor_type": "VideoMAEImageProcessor"}

    def __getattr__(self, name: str) -> Any:
        extra = self.__dict__.get("extra", {})  # empty while it is unpickled
        if name in extra:
            return extra[name]
        hint = f": {_NOT_OFFERED[name]}" if name in _NOT_OFFERED else ""
        raise AttributeError(f"a {type(self).__name__} has no {name!r}{hint}.")


class VideoMAEFeatureExtractor(VideoMAEImageProcessor):
    """The former name of `VideoMAEImageProcessor`, and the same otherwise."""

    def __init__(self, *args: Any, **options: Any):
        warnings.warn(
            "VideoMAEFeatureExtractor is deprecated; use VideoMAEImageProcessor.",
            FutureWarning,
            stacklevel=2,
        )
        super().__init__(*args, **options)
