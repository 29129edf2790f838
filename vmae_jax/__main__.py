"""`python -m vmae_jax COMMAND ...`: one front for all commands.

Nothing heavy is imported until a command is known, so a listing costs nothing. Errors that a user
can do something about come out as one line and exit code 1; anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

PROGRAM = "python -m vmae_jax"
COMMANDS = {
    "build_tfds": "put the videos of a data set into ArrayRecord files for TFDS",
    "convert": "write a checkpoint in another layout: Hugging Face's, the official one, or ours",
    "inspect": "say what a checkpoint holds and loads into, or what is in a data set",
    "plan": "say what a run needs on a machine that is not there: memory, networks, time",
    "prepare": "store the frames of a data set so that training reads them fast",
    "verify": "look for damage in a prepared set, and compare it with its source",
    "visualize": "show what a pre-trained model reconstructs of a video, with PSNR",
}


def _listing() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {help_line}" for name, help_line in COMMANDS.items()]
    return "\n".join(
        [f"usage: {PROGRAM} COMMAND ...", "", *lines, "", f"{PROGRAM} COMMAND --help says more."]
    )


def _is_for_the_user(error: Exception) -> bool:
    """Whether its text says all: our own errors (settings, missing packages, ...), and files."""
    ours = type(error).__module__.split(".")[0] == "vmae_jax"
    return ours or isinstance(error, OSError)


def main(arguments: Sequence[str]) -> int:
    """Runs a command.

    Args:
      arguments: its name and its own arguments.
    Returns:
      The exit code: 0, 1 for an error of the command, 2 for wrong usage (argparse exits by itself).
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_listing())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}."
        print(f"error: {name!r} is no command; {hint}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"vmae_jax.commands.{name}")
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} {name}", description=command.__doc__)
    command.add_arguments(parser)
    args, unknown = parser.parse_known_args(rest)
    if getattr(command, "TAKES_OVERRIDES", False):  # of a configuration, as train.py does
        args.overrides = [word for word in unknown if word.startswith("--config.")]
        unknown = [word for word in unknown if word not in args.overrides]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        command.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
