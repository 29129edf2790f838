"""How fast the input is, told before the first step instead of after the first day."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vmae_jax.data.samples import TrainingSamples

logger = logging.getLogger(__name__)


class InputRate(NamedTuple):
    """What one core delivers.

    Attributes:
      clips_per_second: of one thread (and its decoding process, if it has one).
      cores: that this process may use.
    """

    clips_per_second: float
    cores: int

    def line(self, num_threads: int) -> str:
        """For the log."""
        at_once = min(max(num_threads, 1), self.cores)
        return (
            f"{self.clips_per_second:.1f} clips/s per core, {self.cores} cores, {num_threads} "
            f"threads: about {self.clips_per_second * at_once:.0f} clips/s at best"
        )


class Hint:
    """Says once which setting would help a run that waits for data.

    Args:
      data: the section `data` of the run's configuration.
      samples: of the run; what a core delivers of them is measured and logged at once.
    """

    def __init__(self, data: Any, samples: TrainingSamples):
        self._data, self._given = data, False
        rate = measure(samples.group, samples.repeat)
        logger.info("input: %s", rate.line(data.num_threads))

    def give(self, rates: Mapping[str, float]) -> None:
        """Logs the hint, if the run waits and has not been told yet; rates: as of `advice`."""
        if not self._given and (hint := advice(rates, self._data)):
            logger.info(hint)
            self._given = True


def measure(group: Callable[[int], object], repeat: int, seconds: float = 2.0) -> InputRate:
    """Times groups of samples, made one after another in this thread.

    Args:
      group: of `TrainingSamples`; the groups asked for are those of the first steps.
      repeat: samples in a group.
      seconds: roughly how long to measure. The first group, which starts decoding processes and
        fills caches, is not counted.
    """
    group(0)
    started = time.perf_counter()
    count = 0
    while count < 1 or time.perf_counter() - started < seconds:
        count += 1
        group(count)
    rate = count * repeat / (time.perf_counter() - started)
    return InputRate(rate, _usable_cores())


def advice(rates: Mapping[str, float], data) -> str | None:
    """Which setting would help a run that waits for data; None if it does not wait, or no
    longer will once a cache of files is full.

    Args:
      rates: of `writer.Progress.report`.
      data: the section `data` of the run's configuration.
    """
    wait_share = rates.get("data_wait_share", 0.0)
    if wait_share < 0.1 or data.cache_size is not None:  # a cache is filled in the first epoch
        return None
    demand = rates["clips_per_second"] / (1 - min(wait_share, 0.99))
    hints = []
    if data.num_threads < _usable_cores():
        hints.append(f"data.num_threads={_usable_cores()} (now {data.num_threads})")
    if data.name != "prepared":
        hints.append(
            "a prepared copy of the videos (python -m vmae_jax prepare, then data.name=prepared)"
        )
    if data.repeat == 1:
        hints.append("data.repeat=4, which makes four crops of each decoded clip")
    elif data.canvas_size is None:
        hints.append("data.canvas_size, which leaves the crops to the device")
    if not hints:
        hints.append("more cores")
    return (
        f"the steps wait for data {100 * wait_share:.0f} % of the time: they could take "
        f"{demand:.0f} clips/s and get {rates['clips_per_second']:.0f}. What would help: "
        f"{'; or '.join(hints)}."
    )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
