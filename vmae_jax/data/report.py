"""What is in a data set: statistics of its videos."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmae_jax.data.sources.record_label import classes_of, targets_of
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.data.video.reader import VideoError
from vmae_jax.processes.isolation import ChildDied, Isolated

VISIT_TIMEOUT = 60.0  # seconds for one record


@dataclass(frozen=True)
class Facts:
    """Tells what one record is, when called with its number; can be pickled."""

    source: VideoSource

    def __call__(self, i: int) -> dict[str, Any]:
        """{"frames", "seconds", "fps", "height", "width", "codec"} of record i.

        Raises:
          VideoError: if it cannot be read.
        """
        with self.source.open(i) as reader:
            reader.read([reader.frame_phase])  # a header alone may promise anything
            return {
                "frames": reader.num_frames,
                "seconds": reader.num_frames / reader.fps,
                "fps": reader.fps,
                "height": reader.height,
                "width": reader.width,
                "codec": reader.codec,
            }


def visit(
    source: VideoSource,
    function: Callable[..., dict[str, Any]],
    records: Sequence[int],
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(record, what the function says of it or, if the record is bad, the reason), one by one.

    Args:
      source: of the records.
      function: is given the number of a record; can be pickled.
      records: their numbers.
    """
    isolated = Isolated(function, timeout=VISIT_TIMEOUT) if source.needs_isolation else None
    try:
        for i in records:
            try:
                yield i, (isolated or function)(i)
            except (VideoError, ChildDied, MemoryError) as error:
                yield i, str(error) or "out of memory"
    finally:
        if isolated is not None:
            isolated.close()


def spread(num_records: int, count: int) -> list[int]:
    """At most `count` records, evenly over the source."""
    count = min(count, num_records)
    return [k * num_records // count for k in range(count)]


def statistics(source: VideoSource, found: Sequence[tuple[int, dict[str, Any] | str]]) -> dict:
    """What `inspect --json` prints of a data set.

    Args:
      source: of the records.
      found: from `visit` with `Facts`.
    """
    good = [facts for _, facts in found if not isinstance(facts, str)]
    bad = [(source[i].clip_id, facts) for i, facts in found if isinstance(facts, str)]
    labels = collections.Counter(k for record in source for k in classes_of(record.label))
    targets = [x for record in source for x in targets_of(record.label)]

    def quartiles(name: str) -> dict[str, float] | None:
        if not good:
            return None
        low, middle, high = np.percentile([facts[name] for facts in good], [0, 50, 100])
        mean = float(np.mean([facts[name] for facts in good]))
        return {"min": float(low), "median": float(middle), "max": float(high), "mean": mean}

    def counts(values: Iterator[str]) -> dict[str, int]:
        return dict(collections.Counter(values).most_common())

    return {
        "records": len(source),
        "looked_at": len(found),
        "bad_share": len(bad) / len(found) if found else 0.0,
        "bad": [{"clip_id": clip_id, "reason": reason} for clip_id, reason in bad],
        "seconds": quartiles("seconds"),
        "frames": quartiles("frames"),
        "fps": quartiles("fps"),
        "sizes": counts(f"{facts['width']}x{facts['height']}" for facts in good),
        "codecs": counts(facts["codec"] for facts in good),
        "classes": len(labels),
        "records_per_class": {
            "min": min(labels.values()), "median": float(np.median(list(labels.values()))),
            "max": max(labels.values()),
        } if labels else None,
        "targets": {"min": min(targets), "max": max(targets)} if targets else None,
    }  # fmt: skip


def as_text(statistics: dict[str, Any]) -> str:
    """`statistics` for people."""
    s = statistics
    lines = [
        f"{s['records']} records, {s['looked_at']} looked at, "
        f"{100 * s['bad_share']:.1f} % of them bad"
    ]
    for name, unit in (("seconds", "s"), ("frames", ""), ("fps", "")):
        if q := s[name]:
            text = (
                f"{q['min']:.5g} to {q['max']:.5g}{unit and ' ' + unit}, median {q['median']:.5g}"
            )
            lines.append(f"{name}: {text}")
    for name in ("sizes", "codecs"):
        some = [f"{key} ({count})" for key, count in list(s[name].items())[:6]]
        more = f" and {len(s[name]) - 6} more" if len(s[name]) > 6 else ""
        lines.append(f"{name}: {', '.join(some)}{more}")
    if (per_class := s["records_per_class"]) is not None:
        lines.append(
            f"classes: {s['classes']}, {per_class['min']} to {per_class['max']} records each"
        )
    if (targets := s["targets"]) is not None:
        lines.append(f"targets: {targets['min']:.5g} to {targets['max']:.5g}")
    lines += [f"bad: {bad['clip_id']}: {bad['reason']}" for bad in s["bad"][:10]]
    if len(s["bad"]) > 10:
        lines.append(f"and {len(s['bad']) - 10} more bad ones, see --json")
    return "\n".join(lines)
