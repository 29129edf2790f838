"""What is in a data set: statistics of its videos, and a contact sheet to look at."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vmae_jax.data.samples import sample_rng
from vmae_jax.data.sources.source import VideoSource
from vmae_jax.data.video.augment import crop_and_resize, sample_crop_box
from vmae_jax.data.video.clips import pretraining_indices
from vmae_jax.data.video.decoders import VideoError
from vmae_jax.errors import SettingError
from vmae_jax.processes.isolation import ChildDied, Isolated

_INK, _FAINT = (25, 25, 25), (110, 110, 110)
_FIRST, _BOX = (225, 40, 30), (255, 196, 0)


@dataclass(frozen=True)
class Facts:
    """Tells what one record is, when called with its number; can be pickled."""

    source: VideoSource

    def __call__(self, i: int) -> dict[str, Any]:
        """frames, seconds, fps, height, width, codec. Raises VideoError."""
        with self.source.open(i) as reader:
            # a header alone may promise anything
            reader.read([getattr(reader, "frame_phase", 0)])
            return {
                "frames": reader.num_frames,
                "seconds": reader.num_frames / reader.fps,
                "fps": reader.fps,
                "height": reader.height,
                "width": reader.width,
                "codec": getattr(reader, "codec", "unknown"),
            }


@dataclass(frozen=True)
class Look:
    """Takes a training clip of a record apart, to be drawn; can be pickled."""

    source: VideoSource
    num_frames: int
    frame_stride: int
    image_size: tuple[int, int]
    repeat: int

    def __call__(self, i: int, seed: int) -> dict[str, Any]:
        """ "frames" uint8 [T, H, W, 3], "boxes" [R, 4], "crop" uint8 [T, h, w, 3], "indices" [T].
        Raises VideoError."""
        rng = sample_rng(seed, i)
        with self.source.open(i) as reader:
            indices = pretraining_indices(
                reader.num_frames,
                self.num_frames,
                self.frame_stride,
                rng,
                frame_step=getattr(reader, "frame_step", 1),
                frame_phase=getattr(reader, "frame_phase", 0),
            )
            frames = reader.read(indices)
        height, width = frames.shape[1:3]
        boxes = [sample_crop_box(height, width, self.image_size, rng) for _ in range(self.repeat)]
        crop = crop_and_resize(frames, boxes[0], self.image_size)
        return {"frames": frames, "boxes": np.array(boxes), "crop": crop, "indices": indices}


def visit(
    source: VideoSource,
    function: Callable[..., dict[str, Any]],
    records: Sequence[int],
    *args: Any,
    timeout: float = 60,
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(record, what the function says of it), or why the record is bad, for each record."""
    isolated = Isolated(function, timeout=timeout) if source.needs_isolation else None
    try:
        for i in records:
            try:
                yield i, (isolated or function)(i, *args)
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
    labels = collections.Counter(record.label for record in source.records)
    labels.pop(-1, None)

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
    lines += [f"bad: {bad['clip_id']}: {bad['reason']}" for bad in s["bad"][:10]]
    if len(s["bad"]) > 10:
        lines.append(f"and {len(s['bad']) - 10} more bad ones, see --json")
    return "\n".join(lines)


def draw_contact_sheet(
    source: VideoSource,
    records: Sequence[int],
    path: str | os.PathLike,
    *,
    frame_stride: int = 4,
    repeat: int = 4,
    columns: int = 8,
) -> None:
    """A PNG with two rows for each record: whole frames with the crops drawn in, and below them the
    red one as a model of 16 frames of 224 x 224 gets it, what a tube mask of 0.9 hides greyed.

    Args:
      source: of the records.
      records: numbers of those to draw; bad ones are left out.
      path: of the PNG.
      frame_stride: of the clips, in frames.
      repeat: crops drawn in.
      columns: frames shown of each clip, evenly spread.
    Raises:
      ValueError: if no record can be drawn.
    """
    import jax

    from vmae_jax.masking import tube_mask

    look = Look(source, 16, frame_stride, (224, 224), repeat)
    looks = [
        (i, found) for i, found in visit(source, look, records, 0) if not isinstance(found, str)
    ]
    if not looks:
        raise SettingError("none of the records can be read, so there is nothing to draw.")
    patch_size, tubelet_size = 16, 2
    mask = tube_mask(jax.random.key(0), len(looks), (8, 14, 14), 0.9)
    hidden = np.asarray(mask.to_bool()).reshape(len(looks), 8, 14, 14)
    cell, gap, head = 150, 6, 34
    rows = []
    for (i, found), mask in zip(looks, hidden, strict=True):
        frames, crop = found["frames"], found["crop"]
        shown = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))
        scale = cell / frames.shape[2]
        height = max(1, round(frames.shape[1] * scale))
        crop_height = max(1, round(crop.shape[1] * cell / crop.shape[2]))
        picture = Image.new(
            "RGB", (columns * (cell + gap) + gap, head + height + crop_height + 2 * gap), "white"
        )
        draw = ImageDraw.Draw(picture)
        record = source[i]
        label = f", class {record.label}" if record.label >= 0 else ""
        size = f"{frames.shape[2]} x {frames.shape[1]} pixels"
        draw.text((gap, 4), f"{record.clip_id}{label}", fill=_INK, font=_font(14))
        text = (
            f"{size}, frames {found['indices'][0]} to {found['indices'][-1]}; below: the red "
            f"crop, {100 * mask.mean():.0f} % hidden"
        )
        draw.text((gap, 20), text, fill=_FAINT, font=_font(11))
        for column, t in enumerate(shown):
            left = gap + column * (cell + gap)
            whole = Image.fromarray(frames[t]).resize((cell, height), Image.Resampling.BILINEAR)
            picture.paste(whole, (left, head))
            for n, box in reversed(list(enumerate(found["boxes"]))):
                top, crop_left, box_height, box_width = box
                corner = (left + crop_left * scale, head + top * scale)
                end = (corner[0] + box_width * scale - 1, corner[1] + box_height * scale - 1)
                draw.rectangle((corner, end), outline=_BOX if n else _FIRST, width=2)
            covered = crop[t].copy()
            pixels = mask[t // tubelet_size].repeat(patch_size, 0).repeat(patch_size, 1)
            covered[pixels] = (covered[pixels] * 0.3 + 110).astype(np.uint8)
            small = Image.fromarray(covered).resize((cell, crop_height), Image.Resampling.BILINEAR)
            picture.paste(small, (left, head + height + gap))
        rows.append(picture)
    sheet = Image.new(
        "RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white"
    )
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
