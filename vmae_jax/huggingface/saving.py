"""A model as a folder that transformers loads: weights, configuration, image processor."""

from __future__ import annotations

import os

from vmae_jax.config import VideoMAEConfig
from vmae_jax.huggingface.image_processor import PROCESSOR_FILE, VideoMAEImageProcessor
from vmae_jax.videomae import VideoMAE
from vmae_jax.weights import export


def save_folder(
    core: VideoMAE,
    directory: str | os.PathLike,
    class_name: str,
    max_shard_size: int | str = "10GB",
    *,
    processor: VideoMAEImageProcessor | None = None,
) -> None:
    """Writes a folder; see `save_pretrained` of the classes, whose names `class_name` is one of.

    Args:
      core: the model.
      directory: made if needed. Older weights in it are replaced.
      class_name: "VideoMAEModel", "VideoMAEForPreTraining" or "VideoMAEForVideoClassification".
      max_shard_size: bytes, or text like "500MB".
      processor: for `preprocessor_config.json`; None keeps the file that is there if it gives
        frames of the model's size, else writes one with the model's pixel statistics.
    """
    if processor is None and not _has_processor_for(directory, core.config):
        processor = _processor_for(core.config)
    others = {} if processor is None else {PROCESSOR_FILE: processor.to_json_string().encode()}
    export.save_hugging_face(core, directory, class_name, max_shard_size, others=others)


def _processor_for(config: VideoMAEConfig) -> VideoMAEImageProcessor:
    height, width = config.frame_size
    return VideoMAEImageProcessor(
        # if an edge were shorter than the crop, the crop would be filled up with black
        size={"shortest_edge": max(height, width)},
        crop_size={"height": height, "width": width},
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )


def _has_processor_for(directory: str | os.PathLike, config: VideoMAEConfig) -> bool:
    try:  # the file itself, for a folder that does not exist yet may be named like a hub id
        path = os.path.join(directory, PROCESSOR_FILE)
        processor = VideoMAEImageProcessor.from_json_file(path)
    except (OSError, ValueError):
        return False
    return processor.crop_size == _processor_for(config).crop_size
