"""Numbers of a run: `metrics.jsonl` (the truth), TensorBoard, and the progress line.

After a restart the records of steps that will be done again are cut off, so that a file tells one
story however often its run was killed.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping

from vmae_jax.files.appended_file import AppendedFile, cut_after
from vmae_jax.files.storage import join
from vmae_jax.running.goodput import Goodput


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and to a TensorBoard event file of a workdir.

    Only one process of a run has one. A write that fails is borne, see `appended_file`.

    Args:
      workdir: local, or an address ("gs://...").
      start_step: records of later steps are removed.
    """

    def __init__(self, workdir: str | os.PathLike, *, start_step: int):
        workdir = os.fspath(workdir)
        self._there: set[tuple] = set()

        def start(old: bytes) -> bytes:
            kept = cut_after(old, start_step)
            records = map(json.loads, kept.splitlines()[-2:])  # of a step there are two at most
            self._there = {tuple(record.values())[:1] + tuple(record)[1:] for record in records}
            return kept

        self._metrics = AppendedFile(join(workdir, "metrics.jsonl"), start=start)
        self._board = _Board(join(workdir, "tensorboard"), purge_step=start_step + 1)

    @property
    def metrics_file(self) -> str:
        """`metrics.jsonl` up to now, on this machine."""
        return self._metrics.local_path

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One record; a crash right after loses nothing of it, in a local workdir."""
        if (step, *metrics) in self._there:  # this repeated evaluation is in the file already
            return
        self._metrics.append(json.dumps({"step": step, **metrics}).encode() + b"\n")
        self._board.write(step, metrics)

    def close(self) -> None:
        """Ends both files."""
        self._metrics.close()
        self._board.close()


class _Board:
    """One TensorBoard event file.

    tensorboardX makes the events. Its own writer is a thread that dies of a full disk, whereupon
    the eleventh event blocks its caller for good.
    """

    def __init__(self, folder: str, *, purge_step: int):
        _load_tensorboardx()
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._file = AppendedFile(join(folder, name))
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # TensorBoard then forgets later steps of earlier files
        restart = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), step=purge_step, session_log=restart))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in metrics.items():
            self._append(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def close(self) -> None:
        self._file.close()

    def _append(self, event) -> None:
        from tensorboardX.record_writer import masked_crc32c

        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._file.append(length + checks[0] + data + checks[1])


def _load_tensorboardx() -> None:
    """Without PyTorch, which it loads where that is installed: seconds at each start, for a type
    that nobody here uses."""
    if "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # an import of it fails
    try:
        import tensorboardX  # noqa: F401
    finally:
        del sys.modules["torch"]


class Rates:
    """How fast a run goes, since the last report, and the line that shows it.

    Args:
      goodput: the run's clock; of its time, "steps" and "data" make the rates.
      start_step, num_steps: of the run.
      batch_size: clips of the global batch.
    """

    def __init__(self, goodput: Goodput, *, start_step: int, num_steps: int, batch_size: int):
        self._goodput = goodput
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._step, self._seconds = start_step, goodput.seconds()

    def report(self, step: int) -> dict[str, float]:
        """Rates over the steps since the last report; none if there was no step since.

        `clips_per_second`, `data_wait_share` (of the time of the steps), `eta_seconds`.
        """
        if step == self._step:
            return {}
        now = self._goodput.seconds()
        working, waited = (max(now[use] - self._seconds[use], 0.0) for use in ("steps", "data"))
        seconds = max(working + waited, 1e-9)
        per_step = seconds / (step - self._step)
        rates = {
            "clips_per_second": self._batch_size / per_step,
            "data_wait_share": min(1.0, waited / seconds),
            "eta_seconds": per_step * (self._num_steps - step),
        }
        self._step, self._seconds = step, now
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
