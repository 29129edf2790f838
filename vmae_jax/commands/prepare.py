"""Prepares a data set for fast reading: JPEG frames (or video) of each video in ArrayRecord files.

May be stopped or killed at any time: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys

from vmae_jax.data.datasets import make_source
from vmae_jax.data.prepared.index import STORED_AS
from vmae_jax.data.prepared.preparation import VIDEO_TIMEOUT, prepare
from vmae_jax.data.prepared.progress import readable_bytes
from vmae_jax.data.prepared.shard_folder import BAD_FILES
from vmae_jax.data.prepared.video_encoding import FRAME_STEPS, Settings
from vmae_jax.data.sources.video_source import VideoSource


def add_source_arguments(parser, default: str | None = "video_folder") -> None:
    """Declares the arguments that `source_of` reads, beside `source`.

    Args:
      parser: or a group of one.
      default: of --dataset; None for what the path shows.
    """
    parser.add_argument(
        "--dataset",
        default=default,
        metavar="NAME",
        help="what the path is, as config.data.name says it (default: "
        f"{default or 'what it shows itself to be'})",
    )
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="of the data set (default: train)"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="KEY=VALUE",
        help="of the data set, as config.data.options has them; may be repeated",
    )


def source_of(args: argparse.Namespace) -> VideoSource:
    """The data set that the arguments name.

    Raises:
      SettingError: if there is no such set.
    """
    return make_source(args.dataset, args.source, args.split, **dict(args.option))


def _option(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as held_out_ratio=0")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value  # a string without quotes


def at_least_one(text: str) -> int:
    """The type of an argument that counts something.

    Raises:
      ArgumentTypeError: if it is not a whole number from 1 on.
    """
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _host(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I < N, such as 0/4")
    return int(i), int(n)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that `run` reads."""
    parser.add_argument("source", metavar="SOURCE", help="the data set's path")
    parser.add_argument("dest", metavar="DEST", help="folder for the prepared set; made if needed")
    add_source_arguments(parser)
    parser.add_argument(
        "--encoding",
        choices=list(STORED_AS),
        default="jpeg",
        help="jpeg: frames, fastest to read; h264: video in short groups, smaller; original: the "
        "files as they are (default: jpeg)",
    )
    parser.add_argument(
        "--frame-step",
        type=int,
        choices=FRAME_STEPS,
        help="keep every N-th frame: serves clips whose frame_stride is a multiple; fine-tuning "
        "needs 1 (default: 4 for jpeg; video keeps all)",
    )
    parser.add_argument(
        "--short-side",
        type=int,
        default=Settings.short_side,
        metavar="PIXELS",
        help="reduce larger videos to this; 256 is faster and smaller, but small crops lose detail "
        "(default: 320)",
    )
    parser.add_argument(
        "--quality",
        type=int,
        default=Settings.quality,
        metavar="Q",
        help="of JPEG frames, 1 to 100; 90 adds 1 dB and a fifth of the size (default: 85)",
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=Settings.shard_size,
        metavar="N",
        help="videos in a file (default: 1000)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        metavar="N",
        help="processes that decode (default: one for each core)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=VIDEO_TIMEOUT,
        metavar="SECONDS",
        help="give up a video that takes longer (default: 300)",
    )
    parser.add_argument(
        "--host",
        type=_host,
        default=(0, 1),
        metavar="I/N",
        help="make every N-th shard only, beginning with the I-th; N machines with one DEST make "
        "all (default: 0/1)",
    )
    parser.add_argument(
        "--force", action="store_true", help="go on even if the disk seems to be too small"
    )


def run(args: argparse.Namespace) -> None:
    """Makes what is missing of the set.

    Raises:
      SettingError, MissingPackage, OSError: as `preparation.prepare`.
    """
    frame_step = args.frame_step or (4 if args.encoding == "jpeg" else 1)
    settings = Settings(frame_step, args.short_side, args.quality, args.encoding, args.shard_size)
    try:
        index = prepare(
            source_of(args),
            args.dest,
            settings,
            workers=args.workers,
            timeout=args.timeout,
            host=args.host,
            force=args.force,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the unfinished shards", file=sys.stderr)
        raise SystemExit(130) from None
    if index is None:
        print(f"the shards of host {args.host[0]} are finished; others are not yet")
        return
    counts = index["counts"]
    print(f"{args.dest}: {counts['videos']} videos, {readable_bytes(index['bytes'])}")
    if counts["bad"]:
        print(f"{counts['bad']} could not be used: see {os.path.join(args.dest, BAD_FILES)}")
        print("to try them again, delete the shard-*.json that name them, and run this again")
