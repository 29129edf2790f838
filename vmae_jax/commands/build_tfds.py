"""Puts the videos of a data set, as they are, into ArrayRecord files for TFDS."""

from __future__ import annotations

import argparse

from vmae_jax.data.sources.listings import LIST_FORMATS
from vmae_jax.data.tfds.annotations import READERS
from vmae_jax.data.tfds.building import build


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that `run` reads."""
    parser.add_argument("name", metavar="NAME", choices=list(READERS), help=", ".join(READERS))
    parser.add_argument("source", metavar="SOURCE", help="folder with the videos")
    parser.add_argument("dest", metavar="DEST", help="folder for data sets, as TFDS's data_dir")
    parser.add_argument(
        "--annotations", metavar="FOLDER", help="where the official lists are (default: SOURCE)"
    )
    parser.add_argument(
        "--split-number",
        type=int,
        choices=(1, 2, 3),
        help="which official split of ucf101 and hmdb51 (default: 1)",
    )
    parser.add_argument(
        "--list-format",
        choices=LIST_FORMATS,
        help="of the lists of kinetics400 and video_folder (default: path_label)",
    )
    parser.add_argument(
        "--num-shards", type=int, metavar="N", help="files per split (default: TFDS's rule)"
    )
    parser.add_argument(
        "--num-threads",
        type=int,
        default=8,
        metavar="N",
        help="files written at a time, without Beam (default: 8)",
    )
    parser.add_argument(
        "--beam-options",
        metavar="OPTIONS",
        help="run on Apache Beam with these pipeline options, commas between them: "
        "runner=DataflowRunner,project=...; workers need vmae_jax[beam] and must see SOURCE "
        "and DEST under the same names (default: threads of this process)",
    )


def run(args: argparse.Namespace) -> None:
    """Builds the set and says how many videos it got.

    Raises:
      SettingError, OSError, MissingPackage: as `building.build`.
    """
    folder, report = build(
        args.name,
        args.source,
        args.dest,
        annotations=args.annotations,
        split_number=args.split_number,
        list_format=args.list_format,
        num_shards=args.num_shards,
        num_threads=args.num_threads,
        beam_options=args.beam_options,
    )
    for split, counts in report.items():
        print(f"{split}: {counts['written']} of {counts['listed']} listed videos")
    skipped = sum(len(counts["skipped"]) for counts in report.values())
    if skipped:
        print(f"skipped {skipped}; {folder}/report.json says which, and why")
    print(f"wrote {folder}")
