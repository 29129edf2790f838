"""Looks at every step's numbers, two steps late, so that the devices never wait for the host.

A step whose loss or gradient is not finite has changed nothing (`training.train_step` sees to
that); here it is counted and named, and a streak of them ends the run. Spikes of loss and gradient
norm are recorded with the clips that caused them.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from vmae_jax.files.appended_file import AppendedFile, cut_after
from vmae_jax.files.storage import join, write_bytes
from vmae_jax.processes.exit_codes import NON_FINITE

logger = logging.getLogger(__name__)

LAG = 2  # steps that the host may be ahead of the devices
_WATCHED = ("loss", "grad_norm")


class NonFinite(FloatingPointError):
    """Too many steps in a row whose loss or gradient is not finite."""

    exit_code = NON_FINITE


class _Pending(NamedTuple):
    step: int
    metrics: Mapping[str, jax.Array]
    clip_ids: Sequence[str]


class Health:
    """Reads the metrics of steps, keeps the last ones, and notes what is wrong with them.

        health = Health(workdir, max_streak=5)
        for step in ...:
            state, metrics = train_step(state, batch)
            health.add(step, metrics, batch["clip_id"])
            if logs:
                floats = health.metrics(step)

    In a run of several processes each calls it alike: all see the same metrics.

    Args:
      folder: where `health.jsonl` is added to, local or remote; None keeps no file.
      start_step: that the run goes on from; what is written of later ones is removed.
      max_streak: steps in a row that may be skipped; the last of them raises NonFinite.
      gather: text of this process -> that of all, to name the clips of all hosts; called by all
        processes at the same step.
      saved_step: the newest checkpoint, for the message.
    Raises:
      ValueError: if max_streak is below 1.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        *,
        start_step: int = 0,
        max_streak: int,
        gather: Callable[[str], list[str]] = lambda text: [text],
        saved_step: Callable[[], int | None] = lambda: None,
    ):
        if max_streak < 1:
            raise ValueError(f"run.max_skipped_in_a_row={max_streak} must be at least 1 step.")
        self._folder = folder
        self._file = folder and AppendedFile(
            join(os.fspath(folder), "health.jsonl"), start=lambda old: cut_after(old, start_step)
        )
        self._max_streak = max_streak
        self._gather = gather
        self._saved_step = saved_step
        self._pending: collections.deque[_Pending] = collections.deque()
        self._latest: dict[str, float] = {}
        self._streak: list[dict[str, Any]] = []
        self._usual = {name: _Usual() for name in _WATCHED}

    def add(self, step: int, metrics: Mapping[str, jax.Array], clip_ids: Sequence[str]) -> None:
        """Takes note of a step, and looks at the one `LAG` steps before, waiting for it if need be.

        Args:
          step: that was started.
          metrics: of `training.train_step`, perhaps not computed yet.
          clip_ids: of this process's part of its batch.
        Raises:
          NonFinite: with the step, the number, the clips of all hosts and the newest checkpoint.
        """
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append(_Pending(step, metrics, clip_ids))
        while len(self._pending) > LAG:
            self._look(self._pending.popleft())

    def idle(self) -> bool:
        """Whether the devices have done all that was started."""
        return not self._pending or self._pending[-1].metrics["loss"].is_ready()

    def metrics(self) -> dict[str, float]:
        """The numbers of the last step, once it is done; some may not be finite.

        Raises:
          NonFinite: as `add`.
        """
        while self._pending:
            self._look(self._pending.popleft())
        return dict(self._latest)

    def _look(self, done: _Pending) -> None:
        floats = {name: float(x) for name, x in jax.device_get(dict(done.metrics)).items()}
        self._latest = floats
        if floats["streak"]:
            self._skipped(done, floats)
            return
        self._streak.clear()
        for name in _WATCHED:
            usual = self._usual[name]
            if floats[name] > usual.limit():
                self._record(
                    done,
                    f"{name} spike",
                    {name: floats[name], "usual": usual.mean},
                    logging.WARNING,
                )
            usual.add(min(floats[name], usual.limit()))  # a spike must not hide the next one

    def _skipped(self, done: _Pending, floats: Mapping[str, float]) -> None:
        wrong = next((n for n in _WATCHED if not math.isfinite(floats[n])), "loss")
        record = self._record(
            done,
            "skipped",
            {name: floats[name] for name in (*_WATCHED, "learning_rate")},
            logging.WARNING,
        )
        self._streak.append(record)
        if floats["streak"] < self._max_streak:
            return
        path = self._write_streak(done.step)
        saved = self._saved_step()  # 0 or None: there is none
        clips = [clip for record in self._streak for clip in record["clip_ids"]]
        raise NonFinite(
            f"{wrong}={floats[wrong]} at step {done.step}, the last of {int(floats['streak'])} in "
            f"a row (run.max_skipped_in_a_row={self._max_streak}). Their clips: {_few(clips)}"
            f"{f' (all in {path})' if path else ''}. None of these steps changed the weights; the "
            f"newest checkpoint is {f'that of step {saved}' if saved else 'none yet'}. Look at "
            "the clips; lower the learning rate (schedule.base_lr) or set optimizer.clip_norm."
        )

    def _record(
        self, done: _Pending, what: str, numbers: Mapping[str, float], level: int
    ) -> dict[str, Any]:
        """Writes and logs what a step did, with the clips of all hosts."""
        clip_ids = [
            i for text in self._gather(json.dumps(list(done.clip_ids))) for i in json.loads(text)
        ]
        record = {"step": done.step, "what": what}
        # JSON has no word for NaN
        record |= {k: v if math.isfinite(v) else str(v) for k, v in numbers.items()}
        record["clip_ids"] = clip_ids
        text = ", ".join(f"{k} {v:.4g}" for k, v in numbers.items())
        logger.log(level, "step %d: %s (%s); clips %s", done.step, what, text, _few(clip_ids))
        if self._file is not None:
            self._file.append(json.dumps(record).encode() + b"\n")
        return record

    def _write_streak(self, step: int) -> str | None:
        if self._folder is None:
            return None
        path = join(os.fspath(self._folder), f"nonfinite_step_{step}.json")
        try:
            write_bytes(path, json.dumps(self._streak, indent=2).encode())
        except Exception as error:  # of the disk or a remote store; the run has its reason to end
            logger.warning("%s could not be written (%s)", path, error)
            return None
        return path

    def close(self) -> None:
        """Ends the file."""
        if self._file is not None:
            self._file.close()


class _Usual:
    """Running mean and spread of a number, over the last few hundred steps."""

    _MEMORY = 0.99
    _WARMUP = 100  # steps before anything is called a spike
    _DEVIATIONS = 6

    def __init__(self):
        self.mean = 0.0
        self._variance = 0.0
        self._count = 0

    def add(self, value: float) -> None:
        self._count += 1
        share = max(1 / self._count, 1 - self._MEMORY)
        change = value - self.mean
        self.mean += share * change
        self._variance = (1 - share) * (self._variance + share * change**2)

    def limit(self) -> float:
        """What is above it is a spike."""
        if self._count < self._WARMUP:
            return math.inf
        # a number that hardly moves would make spikes of nothing
        return max(self.mean + self._DEVIATIONS * math.sqrt(self._variance), 1.05 * self.mean)


def _few(clip_ids: Sequence[str]) -> str:
    shown = ", ".join(map(repr, clip_ids[:8]))
    return shown if len(clip_ids) <= 8 else f"{shown} and {len(clip_ids) - 8} more"
