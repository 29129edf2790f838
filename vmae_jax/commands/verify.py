"""Looks for damage in a prepared set, and compares it with its source if that is given."""

from __future__ import annotations

import argparse

from vmae_jax.commands.prepare import add_source_arguments, at_least_one, source_of
from vmae_jax.data.prepared.verification import damage, psnr_to_source
from vmae_jax.errors import SettingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that `run` reads."""
    parser.add_argument("dest", metavar="DEST", help="folder of the prepared set")
    parser.add_argument(
        "--source", metavar="PATH", help="what it was prepared from: compare some frames with it"
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--num-videos",
        type=at_least_one,
        default=16,
        metavar="N",
        help="videos to compare with the source (default: 16)",
    )
    parser.add_argument(
        "--min-psnr",
        type=float,
        default=35.0,
        metavar="DB",
        help="what the compared frames must reach together (default: 35; JPEG quality 85 gives "
        "about 40)",
    )
    parser.add_argument(
        "--workers",
        type=at_least_one,
        default=4,
        metavar="N",
        help="shards read at a time (default: 4)",
    )


def run(args: argparse.Namespace) -> None:
    """Prints what is wrong, or that nothing is.

    Raises:
      SettingError: if something is wrong.
      OSError: if a file cannot be read.
    """
    lines = damage(args.dest, args.workers)
    for line in lines:
        print(line)
    if lines:
        raise SettingError(
            f"{args.dest} is damaged in {len(lines)} places; delete the damaged shards and run "
            "the same `prepare` again."
        )
    print(f"{args.dest}: no damage")
    if args.source is None:
        return
    psnr, lines = psnr_to_source(args.dest, source_of(args), args.num_videos)
    for line in lines:
        print(line)
    print(f"PSNR to the source: {psnr:.2f} dB")
    if lines:
        raise SettingError(
            f"{args.dest}: {len(lines)} videos could not be compared; if their files were changed "
            "on purpose, prepare the set again."
        )
    if psnr < args.min_psnr:
        raise SettingError(
            f"{args.dest} differs from its source: psnr={psnr:.2f} is below min_psnr="
            f"{args.min_psnr}; prepare it with more --quality, or lower --min-psnr if its videos "
            "are hard to compress."
        )
