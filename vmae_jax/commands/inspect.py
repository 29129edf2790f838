"""Says what is in a checkpoint, or in a data set.

A checkpoint: layout, sizes, classes, tensors, and which class it loads into. A data set (a folder
of videos, a manifest, a prepared set, or what --dataset names): lengths, sizes, rates, codecs,
classes, the share of bad records, and with --output a contact sheet of frames, crops and masks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import numpy as np

from vmae_jax.commands.prepare import add_source_arguments, at_least_one
from vmae_jax.data.datasets import make_source
from vmae_jax.data.prepared.index import index_file
from vmae_jax.data.prepared.prepared_source import PreparedSource
from vmae_jax.data.sources.folders import VIDEO_EXTENSIONS
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.files.storage import list_files


def add_checkpoint_arguments(parser: argparse.ArgumentParser, metavar: str) -> None:
    """Declares what names a checkpoint: path or hub id, revision, heads."""
    parser.add_argument(
        "path",
        metavar=metavar,
        help="a folder or hub id in Hugging Face's form, a .pth of VideoMAE, VideoMAE V2 or "
        "MMAction2, or a run of ours",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    for name in ("num-attention-heads", "decoder-num-attention-heads"):
        parser.add_argument(
            f"--{name}",
            type=int,
            metavar="N",
            help="where neither the file nor the published sizes tell",
        )


def given_heads(args: argparse.Namespace) -> dict[str, int]:
    """The numbers of heads among the arguments."""
    names = ("num_attention_heads", "decoder_num_attention_heads")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that `run` reads."""
    add_checkpoint_arguments(parser, "PATH")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    data = parser.add_argument_group("data sets")
    add_source_arguments(data, default=None)
    data.add_argument(
        "--records",
        type=at_least_one,
        default=200,
        metavar="N",
        help="records to open, evenly spread (default: 200)",
    )
    data.add_argument(
        "--output", metavar="FOLDER", help="where contact_sheet.png and statistics.json go"
    )
    data.add_argument(
        "--clips",
        type=at_least_one,
        default=6,
        metavar="N",
        help="on the contact sheet (default: 6)",
    )
    data.add_argument(
        "--frame-stride",
        type=at_least_one,
        default=4,
        metavar="N",
        help="of those clips (default: 4)",
    )
    data.add_argument(
        "--repeat",
        type=at_least_one,
        default=4,
        metavar="R",
        help="crops drawn in (default: 4)",
    )


def run(args: argparse.Namespace) -> None:
    """Prints what is there.

    Raises:
      SettingError, OSError: for a path that cannot be used.
    """
    if (source := _data_set(args)) is not None:
        _inspect_data(source, args)
        return
    from vmae_jax.weights.checkpoint_report import as_text, checkpoint_report
    from vmae_jax.weights.stored import open_checkpoint

    with open_checkpoint(args.path, args.revision) as stored:
        report = checkpoint_report(stored, given_heads(args))
    print(json.dumps(report, indent=2) if args.json else as_text(report))


def _data_set(args: argparse.Namespace) -> VideoSource | None:
    """The data set that the arguments name, or that the path shows to be one; None for what may be
    a checkpoint."""
    path, options = args.path, dict(args.option)
    if args.dataset is not None:
        return make_source(args.dataset, path, args.split, **options)
    if index_file(path):
        return PreparedSource(path, **options)
    if index_file(os.path.join(path, args.split)):
        return make_source("prepared", path, args.split, **options)
    if path.endswith((".csv", ".json", ".jsonl")):
        return make_source("manifest", path, args.split, **options)
    files = list_files(path) if os.path.isdir(path) else ()
    if any(file.lower().endswith(VIDEO_EXTENSIONS) for file in files):
        if args.split == "train":  # all of it, unless a part is asked for
            options = {"held_out_ratio": 0, **options}
        return make_source("video_folder", path, args.split, **options)
    return None


def _inspect_data(source: VideoSource, args: argparse.Namespace) -> None:
    from vmae_jax.data import report

    records = report.spread(len(source), args.records)
    found = []
    for count, item in enumerate(report.visit(source, report.Facts(source), records), start=1):
        found.append(item)
        if count % 20 == 0:
            print(f"looked at {count} of {len(records)} records", file=sys.stderr)
    statistics = report.statistics(source, found)
    print(json.dumps(statistics, indent=2) if args.json else report.as_text(statistics))
    if args.output is None:
        return
    import jax

    from vmae_jax.data import contact_sheet
    from vmae_jax.masking import tube_mask

    os.makedirs(args.output, exist_ok=True)
    with open(os.path.join(args.output, "statistics.json"), "w", encoding="utf-8") as file:
        json.dump(statistics, file, indent=2)
    good = [i for i, facts in found if not isinstance(facts, str)]
    chosen = [good[k] for k in report.spread(len(good), args.clips)]
    path = os.path.join(args.output, "contact_sheet.png")
    mask = tube_mask(jax.random.key(0), 1, contact_sheet.GRID, 0.9)
    hidden = np.asarray(mask.to_bool()).reshape(contact_sheet.GRID)
    contact_sheet.draw_contact_sheet(
        source, chosen, hidden, path, frame_stride=args.frame_stride, repeat=args.repeat
    )
    print(f"wrote {path} and statistics.json beside it")
