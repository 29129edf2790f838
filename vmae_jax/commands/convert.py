"""Writes a checkpoint in another layout; sizes and classes stay as they are."""

from __future__ import annotations

import argparse
import os
import sys
import warnings

from vmae_jax.commands.inspect import add_checkpoint_arguments, given_heads
from vmae_jax.huggingface.image_processor import PROCESSOR_FILE, VideoMAEImageProcessor
from vmae_jax.huggingface.saving import save_folder
from vmae_jax.weights import export
from vmae_jax.weights.pretrained import load
from vmae_jax.weights.stored import open_checkpoint


def _to_hugging_face(core, destination: str, source: str) -> None:
    if os.path.isfile(destination):
        raise export.DestinationTaken(
            f"{destination} is a file; a Hugging Face checkpoint is a folder."
        )
    processor = None
    if os.path.isfile(os.path.join(source, PROCESSOR_FILE)):
        processor = VideoMAEImageProcessor.from_pretrained(source)
    save_folder(core, destination, export.class_of(core), processor=processor)


def _to_official(core, destination: str, source: str) -> None:
    if os.path.exists(destination) and not os.path.isfile(destination):
        raise export.DestinationTaken(
            f"{destination} is a folder or a device, not a file; name the .pth file to write."
        )
    export.save_official(core, destination)


def _to_run(core, destination: str, source: str) -> None:
    export.save_run(core, destination)


TARGETS = {"hf": _to_hugging_face, "v1": _to_official, "orbax": _to_run}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that `run` reads."""
    add_checkpoint_arguments(parser, "SOURCE")
    parser.add_argument("destination", metavar="DEST", help="folder (hf, orbax) or file (v1)")
    parser.add_argument(
        "--to",
        required=True,
        choices=list(TARGETS),
        help="hf: a folder that transformers loads; v1: a .pth of the official code, V1 and V2 "
        "alike (needs torch); orbax: a checkpoint of ours",
    )


def run(args: argparse.Namespace) -> None:
    """Loads all that the source holds, and writes it.

    Raises:
      SettingError, OSError: for a source that cannot be used, or a destination that cannot be
        written; nothing is left half written.
    """
    with open_checkpoint(args.path, args.revision) as stored:
        has_classes = stored.has("classifier")
        has_norm = stored.has("fc_norm")  # alone in V2's repositories on the hub
        core, report = load(
            stored,
            decoder=stored.has("decoder"),
            classifier=has_classes or has_norm,
            **({"num_labels": 0} if has_norm and not has_classes else {}),
            **given_heads(args),
        )
    for line in report:
        print(f"note: {line}", file=sys.stderr)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TARGETS[args.to](core, args.destination, stored.path)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    print(f"wrote {args.destination} ({export.class_of(core)}) from {stored.layout.name} layout")
