"""train.py, hurt: takes its flags, and from the environment the folder of a plan of faults.

    CHAOS_FOLDER=... python tests/chaos/faulty_train.py --config=... --workdir=... [--supervise=9]

It also spares what costs seconds at each of a campaign's hundreds of starts and is not under test:
the measurement of the input, and compiling again in all processes but the first, whose programs
alone JAX keeps on CPUs.
"""

from __future__ import annotations

import os
import re
import sys
import time
import types
from pathlib import Path

from jax._src import compiler

import train
from tests.chaos import notes, poison
from tests.chaos.hooks import Hooks
from tests.chaos.painted import PAINTED
from vmae_jax import loop
from vmae_jax.data import input_probe
from vmae_jax.data.datasets import DATASETS
from vmae_jax.running import supervisor

# seconds that a supervisor bears with a frozen trainer, unless the environment says another number
MAX_STOPPED = 4


def main() -> None:
    """Installs the faults, and hands over."""
    folder = Path(os.environ["CHAOS_FOLDER"])
    process = process_index(sys.argv)
    DATASETS["painted"] = PAINTED
    measure = input_probe.measure
    input_probe.measure = lambda group, repeat: measure(group, repeat, seconds=0.0)
    _keep_programs_of_all()
    supervisor.MAX_STOPPED = int(os.environ.get("CHAOS_MAX_STOPPED", MAX_STOPPED))
    Hooks(folder, process, float(os.environ.get("CHAOS_PACE", 0))).install()
    poison.install(folder)
    real_train = loop.train

    def noted_train(*args, **kwargs):
        notes.add(folder, notes.STARTS, process, time.time())
        return real_train(*args, **kwargs)

    loop.train = noted_train
    if trainer := os.environ.get("CHAOS_EVALUATE_UNTIL"):
        _evaluate_until(Path(trainer) / "ended", folder)
    train.main(sys.argv)


def _keep_programs_of_all() -> None:
    """The function that writes programs down does so in process 0, and takes any for it."""
    write = compiler._cache_write
    number_zero = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))
    names = {**vars(compiler), "distributed": number_zero}
    compiler._cache_write = types.FunctionType(write.__code__, names)


def _evaluate_until(ended: Path, folder: Path) -> None:
    """Evaluators evaluate again and again, until a file is there; each time is noted."""
    evaluate, log_measured = loop.evaluate, loop.log_measured

    def evaluate_all(*args):
        metrics = evaluate(*args)
        while not ended.exists():
            metrics = evaluate(*args)
        return metrics

    def noted_log(step, metrics):
        notes.add(folder, notes.EVALUATIONS, step, metrics)
        log_measured(step, metrics)

    loop.evaluate, loop.log_measured = evaluate_all, noted_log


def process_index(arguments: list[str]) -> int:
    """Of this process, as --distributed=host:port,n,i says."""
    found = [re.fullmatch(r"--distributed=.*,(\d+)", argument) for argument in arguments]
    return next((int(match[1]) for match in found if match), 0)


if __name__ == "__main__":
    main()
