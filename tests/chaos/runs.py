"""A tiny run under test: started with a plan of faults, and watched.

run = Run(folder, faults=[Fault("kill -9", 12)], supervise=5)
run.finish()
problem = run.differs_from(clean_run)     # None: bit by bit the same
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.chaos import faults
from tests.chaos.traces import Traces
from tests.chaos.watch import Watch
from tests.process_group import ProcessGroup

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "model.image_size": "(16,16)",
    "model.num_frames": 2,
    "model.patch_size": 8,
    "model.hidden_size": 16,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 32,
    "model.decoder_hidden_size": 16,
    "model.decoder_num_hidden_layers": 1,
    "model.decoder_num_attention_heads": 2,
    "model.decoder_intermediate_size": 32,
    "model.drop_path_rate": 0.1,
    "compute.dtype": "float32",
    "pretraining.mask_ratio": 0.75,
    "data.name": "painted",
    "data.batch_size": 4,
    "data.frame_stride": 1,
    "data.num_threads": 2,
    "schedule.base_lr": 0.3,
    "schedule.num_steps": 60,
    "schedule.warmup_steps": 3,
    "run.log_every_steps": 1,
    "evals.held_out.every_steps": 0,
    "evals.loss_curve.every_steps": 0,
    "evals.reconstructions.every_steps": 0,
    "run.save_every_steps": 5,
}
FINE_TUNING = {
    "task": "finetuning",
    "model.use_mean_pooling": True,
    "model.num_labels": 24,
    "model.head_dropout_prob": 0.1,
    "finetuning.mixup.group": 4,
    "finetuning.head_init_scale": 1.0,
    "data.repeat": 2,
    "data.batch_size": 8,
    "optimizer.layer_decay": 0.75,
    "optimizer.ema_decay": 0.9,
}
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than all steps
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "OMP_NUM_THREADS": "1",
    "VMAE_HEARTBEAT": "10",
    "VMAE_START_TIMEOUT": "120",
}


class Run(Traces):
    """One run and its folder.

    Args:
      folder: of its own; gets the workdir, the plan, the notes, and what the processes print.
      cache: folder of compiled programs, shared by all runs.
      faults: the plan.
      count: processes.
      supervise: restarts in a row without progress, by a supervisor for each process; 0: none.
      pace: seconds that each step takes longer.
      env: added to the environment.
      changes: of SETTINGS, with "__" for the dot.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path,
        *,
        faults: Sequence[faults.Fault] = (),
        count: int = 1,
        supervise: int = 0,
        pace: float = 0.0,
        env: Mapping[str, str] | None = None,
        **changes: Any,
    ):
        super().__init__(folder, folder / "workdir", count)
        self._settings = SETTINGS | {"run.compilation_cache": str(cache)} | _dotted(changes)
        self._supervise = supervise
        self._env = {
            **ENVIRONMENT, "CHAOS_FOLDER": str(folder), "CHAOS_PACE": str(pace), **(env or {}),
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.plan(faults)

    def plan(self, more: Sequence[faults.Fault]) -> None:
        """Sets the faults, before a start."""
        faults.write_plan(self.folder, more)

    @property
    def num_steps(self) -> int:
        """Of the whole run."""
        return self._settings["schedule.num_steps"]

    def start(self, *flags: str, **changes: Any) -> ProcessGroup:
        """The processes; enter its context to start them."""
        settings = self._settings | _dotted(changes)
        command = [
            sys.executable,
            str(Path(__file__).parent / "faulty_train.py"),
            f"--config={ROOT / 'configs' / 'default.py'}",
            f"--workdir={self.workdir}",
            *(f"--config.{name}={value}" for name, value in settings.items()),
            *flags,
        ]
        if self.count > 1:
            command.append("--distributed={address},{count},{index}")
        if self._supervise:
            command.append(f"--supervise={self._supervise}")
        return ProcessGroup(command, self.count, self.folder, env=self._env)

    def finish(
        self,
        *flags: str,
        say=lambda text: None,
        deadline: float = 600,
        watch: Watch | None = None,
        **changes: Any,
    ) -> list[int]:
        """Starts it and waits for its end.

        Args:
          say: is told of each fault that happens.
          deadline: seconds; then it is an AssertionError, and nothing is left running.
          watch: looks at the processes meanwhile.
        Returns:
          The exit codes.
        """
        with self.start(*flags, **changes) as group:
            end = time.monotonic() + deadline
            told = len(faults.happened(self.folder))
            while not group.ended():
                assert time.monotonic() < end, f"no end in {deadline} s\n{self.output()[-4000:]}"
                if watch:
                    watch.look()
                if len(so_far := faults.happened(self.folder)) > told:
                    told = len(so_far)
                    say(f"{told} of {len(faults.whole_plan(self.folder))}: {so_far[-1].fault}")
                time.sleep(0.05)
            if watch:
                watch.look()
            return group.wait()

    def done(self, *flags: str, **arguments: Any) -> Run:
        """Like `finish`; anything but a good end is an AssertionError."""
        codes = self.finish(*flags, **arguments)
        assert codes == [0] * self.count, f"exit codes {codes}\n{self.output()[-4000:]}"
        return self


def facts_of(module: str, *arguments: object, deadline: float = 900) -> list[dict[str, Any]]:
    """What a module of ours says when it is run by itself: a line of JSON for each fact."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=deadline, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, f"{module}: {(done.stdout + done.stderr)[-4000:]}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _dotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in changes.items()}
