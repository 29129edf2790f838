"""A picture of what a data set gives a model: frames, the crops taken of them, and what is hidden.

Two rows for each record: whole frames with the crops drawn in, and below them the red crop as a
model of 16 frames of 224 x 224 pixels gets it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vmae_jax.data.report import visit
from vmae_jax.data.sample_numbers import sample_rng
from vmae_jax.data.samplers import pretraining_frames
from vmae_jax.data.sources.record_label import as_text
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.augment import crop_and_resize, sample_crop_box
from vmae_jax.errors import SettingError

NUM_FRAMES, IMAGE_SIZE = 16, (224, 224)
TUBELET_SIZE, PATCH_SIZE = 2, 16
GRID = (8, 14, 14)  # of tokens: (t, h, w)
_CELL, _GAP, _HEAD = 150, 6, 34  # pixels: width of a frame, between two, height of the text
_INK, _FAINT = (25, 25, 25), (110, 110, 110)
_FIRST, _BOX = (225, 40, 30), (255, 196, 0)


@dataclass(frozen=True)
class Look:
    """Takes a training clip of a record apart, to be drawn; can be pickled.

    Attributes:
      source: of the records.
      frame_stride: of the clip, in frames.
      repeat: crops of the same frames (R).
    """

    source: VideoSource
    frame_stride: int
    repeat: int

    def __call__(self, i: int) -> dict[str, np.ndarray]:
        """What record i gives.

        Returns:
          {"frames": uint8 [T, H, W, 3], "boxes": int [R, 4], as `sample_crop_box` gives them,
          "crop": uint8 [T, *IMAGE_SIZE, 3], of the first box, "indices": int64 [T]}.
        Raises:
          VideoError: if the record cannot be read.
        """
        rng = sample_rng(0, i)
        with self.source.open(i) as reader:
            indices = pretraining_frames(NUM_FRAMES, self.frame_stride)(reader, rng)
            frames = reader.read(indices)
        _, height, width, _ = frames.shape
        boxes = [sample_crop_box(height, width, IMAGE_SIZE, rng) for _ in range(self.repeat)]
        crop = crop_and_resize(frames, boxes[0], IMAGE_SIZE)
        return {"frames": frames, "boxes": np.array(boxes), "crop": crop, "indices": indices}


def draw_contact_sheet(
    source: VideoSource,
    records: Sequence[int],
    hidden: np.ndarray,
    path: str | os.PathLike,
    *,
    frame_stride: int = 4,
    repeat: int = 4,
    columns: int = 8,
) -> None:
    """Writes the sheet, a PNG.

    Args:
      source: of the records.
      records: numbers of those to draw; bad ones are left out.
      hidden: bool [*GRID], the tokens whose pixels are greyed, the same in every clip.
      path: of the PNG.
      frame_stride: of the clips, in frames.
      repeat: crops drawn in.
      columns: frames shown of each clip, evenly spread.
    Raises:
      SettingError: if no record can be drawn.
    """
    rows = [
        _row(source[i], look, hidden, columns)
        for i, look in visit(source, Look(source, frame_stride, repeat), records)
        if not isinstance(look, str)
    ]
    if not rows:
        raise SettingError("none of the records can be read, so there is nothing to draw.")
    size = (max(row.width for row in rows), sum(row.height for row in rows))
    sheet = Image.new("RGB", size, "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path)


def _row(
    record: VideoRecord, look: dict[str, np.ndarray], hidden: np.ndarray, columns: int
) -> Image.Image:
    frames, crop, indices = look["frames"], look["crop"], look["indices"]
    num_frames, frame_height, frame_width, _ = frames.shape
    scale = _CELL / frame_width
    height = max(1, round(frame_height * scale))
    crop_height = max(1, round(crop.shape[1] * _CELL / crop.shape[2]))
    size = (columns * (_CELL + _GAP) + _GAP, _HEAD + height + crop_height + 2 * _GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    title = ", ".join(filter(None, (record.clip_id, as_text(record.label))))
    draw.text((_GAP, 4), title, fill=_INK, font=ImageFont.load_default(14))
    text = (
        f"{frame_width} x {frame_height} pixels, frames {indices[0]} to {indices[-1]}; below: the "
        f"red crop, {100 * hidden.mean():.0f} % hidden"
    )
    draw.text((_GAP, 20), text, fill=_FAINT, font=ImageFont.load_default(11))
    shown = np.unique(np.linspace(0, num_frames - 1, columns).round().astype(int))
    for column, t in enumerate(shown):
        left = _GAP + column * (_CELL + _GAP)
        picture.paste(_reduced(frames[t], height), (left, _HEAD))
        for n, (top, box_left, box_height, box_width) in reversed([*enumerate(look["boxes"])]):
            corner = (left + box_left * scale, _HEAD + top * scale)
            end = (corner[0] + box_width * scale - 1, corner[1] + box_height * scale - 1)
            draw.rectangle((corner, end), outline=_BOX if n else _FIRST, width=2)
        covered = crop[t].copy()
        pixels = hidden[t // TUBELET_SIZE].repeat(PATCH_SIZE, 0).repeat(PATCH_SIZE, 1)
        covered[pixels] = (covered[pixels] * 0.3 + 110).astype(np.uint8)
        picture.paste(_reduced(covered, crop_height), (left, _HEAD + height + _GAP))
    return picture


def _reduced(frame: np.ndarray, height: int) -> Image.Image:
    return Image.fromarray(frame).resize((_CELL, height), Image.Resampling.BILINEAR)
