"""Shows what a pre-trained model reconstructs of a video: a PNG, a GIF, and the PSNR."""

from __future__ import annotations

import argparse
import os

import jax
import numpy as np

from vmae_jax.data.video.augment import centre_crop
from vmae_jax.data.video.clips import centre_indices
from vmae_jax.data.video.decoders import open_video
from vmae_jax.data.video.reader import VideoReader
from vmae_jax.errors import SettingError
from vmae_jax.huggingface.models import VideoMAEForPreTraining
from vmae_jax.masking import MASKS
from vmae_jax.pictures import animate_reconstruction, draw_reconstruction
from vmae_jax.reconstruction import (
    Reconstruction,
    gain,
    gain_over_interpolation,
    psnr,
    reconstruct,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that `run` reads."""
    parser.add_argument("video", metavar="VIDEO", help="a video file")
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a pre-training model (encoder and decoder), as "
        "VideoMAEForPreTraining.from_pretrained loads it",
    )
    parser.add_argument(
        "--output",
        default=".",
        metavar="FOLDER",
        help="where <video name>_reconstruction.png and .gif go; made if needed (default: here)",
    )
    parser.add_argument("--mask", choices=list(MASKS), default="tube", help="default: tube")
    parser.add_argument(
        "--mask-ratio", type=float, default=0.9, metavar="X", help="share hidden (default: 0.9)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the mask (default: 0)")
    parser.add_argument(
        "--frame-stride",
        type=int,
        default=4,
        metavar="N",
        help="distance between two frames of the clip (default: 4)",
    )
    parser.add_argument(
        "--start",
        type=int,
        metavar="FRAME",
        help="first frame of the clip (default: a centre clip)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="to compute in (default: float32)",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the pictures and prints the table.

    Raises:
      ValueError, OSError: for a checkpoint or a video that cannot be used.
    """
    reader = open_video(args.video)  # before the checkpoint, which takes longer
    try:
        model = VideoMAEForPreTraining.from_pretrained(args.checkpoint, dtype=args.dtype).core
    except ValueError as error:
        raise SettingError(
            f"{args.checkpoint} does not load as a model with encoder and decoder: {error}"
        ) from error
    config = model.config
    if config.num_channels != 3:
        raise SettingError(
            f"num_channels={config.num_channels}, but a video file gives 3; for other channels "
            "call vmae_jax.reconstruction.reconstruct with your own arrays."
        )
    indices = _clip_indices(args, reader, config.num_frames)
    video = centre_crop(reader.read(indices), config.frame_size)[None]
    mask = MASKS[args.mask](jax.random.key(args.seed), 1, config.grid, args.mask_ratio)
    reconstruction = reconstruct(model, video, mask)

    os.makedirs(args.output, exist_ok=True)
    name = os.path.basename(args.video)
    stem = os.path.join(args.output, f"{os.path.splitext(name)[0]}_reconstruction")
    captions = {"clip_name": name, "mask_name": f"{args.mask} mask"}
    draw_reconstruction(reconstruction, f"{stem}.png", frame_numbers=indices, **captions)
    rate = reader.fps / args.frame_stride
    animate_reconstruction(reconstruction, f"{stem}.gif", frames_per_second=rate, **captions)

    print(
        f"clip: {args.video}, frames {indices[0]} to {indices[-1]} by {args.frame_stride} "
        f"of {reader.num_frames}"
    )
    print(
        f"mask: {args.mask}, {mask.masked.shape[1]} of {config.num_tokens} tubelets hidden, "
        f"seed {args.seed}"
    )
    print(_table(reconstruction))
    print(f"wrote {stem}.png and {stem}.gif")


def _clip_indices(args: argparse.Namespace, reader: VideoReader, num_frames: int) -> np.ndarray:
    """Frame numbers [num_frames] without the repetition that training allows in short videos."""
    centre = centre_indices(reader.num_frames, num_frames, args.frame_stride)
    start = int(centre[0]) if args.start is None else args.start
    indices = start + args.frame_stride * np.arange(num_frames)
    if start < 0 or indices[-1] >= reader.num_frames:
        raise SettingError(
            f"start={start} with frame_stride={args.frame_stride} needs frames {indices[0]} to "
            f"{indices[-1]}, but {args.video} has frames 0 to {reader.num_frames - 1}; choose a "
            "smaller --frame-stride, or another --start."
        )
    return indices


def _table(reconstruction: Reconstruction) -> str:
    lines = [f"{'PSNR on hidden patches (dB)':34}{'prediction':>12}{'zero':>10}{'gain':>10}"]
    for x in reconstruction.renderings:
        lines.append(f"{x.name:34}{psnr(x.error):12.2f}{psnr(x.zero_error):10.2f}{gain(x):+10.2f}")
    error, over = psnr(reconstruction.interpolated_error), gain_over_interpolation(reconstruction)
    lines.append(f"{'no model, linear interpolation':34}{error:12.2f}")
    lines.append(f"{'leak-free gain over interpolation':34}{over:+12.2f}")
    return "\n".join(lines)
