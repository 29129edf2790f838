"""Trains a model: `python train.py --config=configs/demo.py --workdir=runs/demo`.

Run it again with the same workdir and it goes on from the newest checkpoint. The loop itself is
`vmae_jax.loop.train`; what the exit codes mean stands in `vmae_jax/processes/exit_codes.py`.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback

from absl import app, flags

from vmae_jax import config_file, loop
from vmae_jax.errors import SettingError
from vmae_jax.processes import distributed
from vmae_jax.processes.exit_codes import CRASH, DONE, INTERRUPTED, SETTINGS, describe, exit_code
from vmae_jax.running.supervisor import newest_step, supervise

logger = logging.getLogger("train")

flags.DEFINE_string(
    "config",
    None,
    "The run's configuration: a recipe's file, or its name in configs/. "
    "--config.section.name=value replaces a value of it.",
    required=True,
)
flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics, pictures.", required=True)
flags.DEFINE_string(
    "distributed",
    "off",
    "Processes of the run: off (this one is all), auto (as the cluster says: TPU VM, SLURM, GKE, "
    "Open MPI), or host:port,num_processes,process_index.",
)
flags.DEFINE_integer(
    "supervise",
    0,
    "Start the run again, up to so many times in a row without progress, when it is preempted or "
    "crashes. Exit codes: vmae_jax/processes/exit_codes.py.",
)
flags.DEFINE_bool("evaluate", False, "Only evaluate the newest checkpoint, as --evaluators says.")
flags.DEFINE_list(
    "evaluators", None, "For --evaluate: sections of config.evals. Those that are due by default."
)
flags.DEFINE_bool(
    "force", False, "Go on in a workdir whose run had other settings. They are logged."
)
flags.DEFINE_string("profile", "", "Trace these steps, first:last, to <workdir>/profile.")


def main(arguments: list[str]) -> None:
    """Runs what a command line says, and ends the process."""
    app.define_help_flags()
    set_up_log()
    try:
        FLAGS, overrides = read_flags(arguments)
    except (flags.Error, SettingError) as error:
        logger.error("%s: %s", describe(SETTINGS), " ".join(str(error).split()))
        sys.exit(SETTINGS)
    if FLAGS.supervise:
        code = supervise(
            [sys.executable, *arguments, "--supervise=0"],
            restarts=FLAGS.supervise,
            progress=functools.partial(newest_step, os.path.join(FLAGS.workdir, "checkpoints")),
        )
        sys.exit(code)
    code = DONE
    try:
        run(FLAGS, overrides)
    except KeyboardInterrupt:
        code = INTERRUPTED
        logger.error("%s: before anything could be saved", describe(code))
    except Exception as error:
        code = exit_code(error)
        if code == CRASH:
            traceback.print_exc()
        else:
            logger.error("%s: %s", describe(code), " ".join(str(error).split()))
    distributed.end(code)


def read_flags(arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags, and the overrides of values of the configuration.

    Raises:
      SettingError: for a word that is neither.
      absl.flags.Error: for an unknown flag, or a value that is none.
    """
    overrides = [word for word in arguments if word.startswith(config_file.PREFIX)]
    left = flags.FLAGS([word for word in arguments if word not in overrides])[1:]
    if left:
        raise SettingError(
            f"unexpected words {left}; values of the configuration are given as "
            f"{config_file.PREFIX}section.name=value."
        )
    return flags.FLAGS, overrides


def run(FLAGS: flags.FlagValues, overrides: list[str]) -> None:
    """Trains or evaluates in this process."""
    try:
        config = config_file.load(FLAGS.config, overrides)
    except OSError as error:
        raise SettingError(f"config={FLAGS.config!r} cannot be read: {error}") from error
    distributed.start(FLAGS.distributed)
    if not distributed.is_main():  # one of them speaks
        logging.getLogger("vmae_jax").setLevel(logging.WARNING)
    distributed.check_devices()
    if FLAGS.evaluate:
        loop.evaluate(config, FLAGS.workdir, FLAGS.evaluators)
    else:
        loop.train(config, FLAGS.workdir, force=FLAGS.force, profile=FLAGS.profile)


def set_up_log() -> None:
    """Ours is shown, of libraries only what is wrong."""
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout, force=True
    )
    for name, level in (
        ("", logging.WARNING),
        ("absl", logging.WARNING),
        ("vmae_jax", logging.INFO),
    ):
        logging.getLogger(name).setLevel(level)


if __name__ == "__main__":
    main(sys.argv)
