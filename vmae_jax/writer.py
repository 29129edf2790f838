"""Numbers of a run: `metrics.jsonl` (the truth), TensorBoard, and the progress line.

After a restart the records of steps that will be done again are cut off, so that a file tells one
story however often its run was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and to TensorBoard event files of a workdir."""

    def __init__(self, workdir: str | os.PathLike, *, start_step: int):
        """Opens the files; records of steps after `start_step` are removed."""
        from tensorboardX import SummaryWriter

        self.path = os.path.join(workdir, "metrics.jsonl")
        _cut_after(self.path, start_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self._board = SummaryWriter(os.path.join(workdir, "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One record; a crash right after loses nothing of it."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Ends both files."""
        self._file.close()
        self._board.close()


def _cut_after(path: str, step: int) -> None:
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:  # the line that a kill cut short
                continue
            if record["step"] <= step:
                kept.append(line)
    temporary = f"{path}.partial"
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(kept)
    os.replace(temporary, path)


class Progress:
    """Rates since the last report, and the line that shows them."""

    def __init__(self, *, start_step: int, num_steps: int, batch_size: int):
        """Starts the clock; `batch_size` counts clips of the global batch."""
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._step, self._time, self._waited, self._paused = start_step, 0.0, 0.0, 0.0
        self.restart(start_step)

    def add_wait(self, seconds: float) -> None:
        """Counts time in which no step could start for want of data."""
        self._waited += seconds

    @contextlib.contextmanager
    def pause(self):
        """Time spent inside (evaluating, saving) is left out of the rates."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started

    def restart(self, step: int) -> float:
        """Forgets the time so far (of compiling, say), and returns it in seconds."""
        now = time.perf_counter()
        seconds = now - self._time
        self._step, self._time, self._waited, self._paused = step, now, 0.0, 0.0
        return seconds

    def report(self, step: int) -> dict[str, float]:
        """Rates over the steps since the last report; none if there was no step since.

        `clips_per_second`, `data_wait_share` (of the time of the steps), `eta_seconds`.
        """
        if step == self._step:
            return {}
        now = time.perf_counter()
        seconds = max(now - self._time - self._paused, 1e-9)
        per_step = seconds / (step - self._step)
        rates = {
            "clips_per_second": self._batch_size / per_step,
            "data_wait_share": min(1.0, self._waited / seconds),
            "eta_seconds": per_step * (self._num_steps - step),
        }
        self.restart(step)
        return rates

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        """What is printed: "step 120/1500  loss 0.9534  ...", with the rates that `metrics` has."""
        text = (
            f"step {step}/{self._num_steps}  loss {metrics['loss']:.4f}  "
            f"grad norm {metrics['grad_norm']:.3f}  lr {metrics['learning_rate']:.2e}"
        )
        if "eta_seconds" not in metrics:
            return text
        eta = int(metrics["eta_seconds"])
        clock = f"{eta // 3600}:{eta // 60 % 60:02d}:{eta % 60:02d}"
        return (
            f"{text}  {metrics['clips_per_second']:.1f} clips/s  "
            f"data wait {100 * metrics['data_wait_share']:.0f} %  "
            f"bad clips {metrics['bad_clips']}  ETA {clock}"
        )
