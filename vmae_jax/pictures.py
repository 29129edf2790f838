"""Pictures of a run: what its model reconstructs (PNG, GIF), and its loss curve."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vmae_jax.errors import SettingError
from vmae_jax.reconstruction import Reconstruction, Rendering, difference, psnr


class _Panel(NamedTuple):
    """One row of the picture, or one column of the animation."""

    paragraphs: list[tuple[str, str]]  # (a key of _STYLES, text)
    video: np.ndarray  # [T, H, W, C]
    is_baseline: bool


def _panels(reconstruction: Reconstruction, clip: int, mask_name: str) -> list[_Panel]:
    r = reconstruction
    height, width = r.original.shape[2:4]
    share = f"{100 * r.hidden[clip].mean():.1f} % hidden"
    panels = [
        _Panel(
            [("title", "Original"), ("text", f"{height} × {width} pixels")], r.original[clip], False
        ),
        _Panel(
            [("title", "Masked input"), ("text", f"{mask_name}, {share}: all that the model sees")],
            r.masked[clip],
            False,
        ),
    ]
    for x in r.renderings:
        panels += _prediction_and_zero(x, r, clip)
    error = psnr(r.interpolated_error[clip])
    text = "no model: linear, between the visible pixels of the same frame"
    captions = [("title", "Interpolation"), ("text", text), ("number", f"PSNR {error:.2f} dB")]
    # beside the prediction that it is compared with
    panels.insert(3, _Panel(captions, r.interpolated[clip], True))
    return panels


def _prediction_and_zero(x: Rendering, r: Reconstruction, clip: int) -> list[_Panel]:
    """The rows of a rendering. Pixels have no zero prediction: black is no match for anything."""
    error, zero = psnr(x.error[clip]), psnr(x.zero_error[clip])
    style = "warning" if x.leaks else "title"
    captions = [
        (style, f"Prediction, {x.name}"),
        ("text", x.statistics),
        ("number", f"PSNR {error:.2f} dB"),
    ]
    if not x.leaks:
        interpolated = psnr(r.interpolated_error[clip])
        captions.append(("title", f"{difference(error, interpolated):+.2f} dB over interpolation"))
    if len(r.renderings) == 1:
        return [_Panel(captions, x.video[clip], False)]
    captions.append(("title", f"{difference(error, zero):+.2f} dB over the zero prediction"))
    zero_captions = [
        (style, f"Zero prediction, {x.name}"),
        ("text", "the same rendering, had the model predicted zeros"),
        ("number", f"PSNR {zero:.2f} dB"),
    ]
    return [
        _Panel(captions, x.video[clip], False),
        _Panel(zero_captions, x.zero_video[clip], True),
    ]


def draw_reconstruction(
    reconstruction: Reconstruction,
    path: str | os.PathLike,
    *,
    clip: int = 0,
    clip_name: str = "a clip",
    mask_name: str = "mask",
    frames_shown: int = 8,
    frame_numbers: Sequence[int] | None = None,
) -> None:
    """Writes a PNG: rows for original, masked input, prediction, what interpolation makes of the
    same input, and, for normalised targets, the leaky rendering and both zero predictions.

    Args:
      reconstruction: of clips with 1 or 3 channels; of more the first three are shown.
      path: of the file.
      clip: which one of the batch; its own PSNR is shown.
      clip_name, mask_name: for the captions, e.g. "bikes.mp4", "tube mask".
      frames_shown: columns, at least 1, evenly spaced from the first frame on: half the number of
        frames shows one for each time step of two-frame tubelets.
      frame_numbers: [T], where the frames come from; counted from 0 if None.
    Raises:
      SettingError: for 2 channels.
    """
    panels = _panels(reconstruction, clip, mask_name)
    num_frames = len(panels[0].video)
    columns = np.arange(min(frames_shown, num_frames)) * num_frames // min(frames_shown, num_frames)
    numbers = range(num_frames) if frame_numbers is None else frame_numbers
    rows = [_displayable(panel.video[columns], 128) for panel in panels]
    height, width = rows[0].shape[1:3]
    text_scale = max(1.0, height / 160)  # to stay readable where a large picture is shown small
    gap, text_width = 6, round(260 * text_scale)
    total_width = text_width + len(columns) * (width + gap) + gap
    labels = [_label(panel.paragraphs, text_width - 2 * gap, text_scale) for panel in panels]
    header = _label(
        [
            ("heading", f"Reconstruction of {clip_name}"),
            ("text", "PSNR counts hidden patches only. Visible patches are the original's."),
        ],
        total_width - 2 * gap,
        text_scale,
    )
    names = [_label([("text", f"frame {numbers[i]}")], width, text_scale) for i in columns]

    row_heights = [max(height, label.height) + gap for label in labels]
    top = header.height + 2 * gap + names[0].height
    canvas = Image.new("RGB", (total_width, top + sum(row_heights)), "white")
    canvas.paste(header, (gap, gap))
    left = [text_width + k * (width + gap) for k in range(len(columns))]
    for x, name in zip(left, names, strict=True):
        canvas.paste(name, (x, top - name.height))
    for label, frames, row_height in zip(labels, rows, row_heights, strict=True):
        canvas.paste(label, (gap, top))
        for x, frame in zip(left, frames, strict=True):
            canvas.paste(Image.fromarray(frame), (x, top))
        top += row_height
    canvas.save(path)


def animate_reconstruction(
    reconstruction: Reconstruction,
    path: str | os.PathLike,
    *,
    clip: int = 0,
    clip_name: str = "a clip",
    mask_name: str = "mask",
    frames_per_second: float = 6.0,
) -> None:
    """Writes a GIF: original, masked input and renderings side by side, no baselines.

    Args:
      frames_per_second: of the animation; video rate / frame stride plays it in real time.
      others: as in `draw_reconstruction`.
    """
    panels = [x for x in _panels(reconstruction, clip, mask_name) if not x.is_baseline]
    videos = [_displayable(panel.video, 200) for panel in panels]
    height, width = videos[0].shape[1:3]
    gap = 8
    labels = [_label(panel.paragraphs, width) for panel in panels]
    total_width = len(panels) * (width + gap) + gap
    header = _label([("heading", f"Reconstruction of {clip_name}")], total_width - 2 * gap)
    top = header.height + 2 * gap
    still = Image.new(
        "RGB", (total_width, top + height + gap + max(x.height for x in labels) + gap), "white"
    )
    still.paste(header, (gap, gap))
    left = [gap + k * (width + gap) for k in range(len(panels))]
    for x, label in zip(left, labels, strict=True):
        still.paste(label, (x, top + height + gap))
    images = []
    for frames in zip(*videos, strict=True):
        image = still.copy()
        for x, frame in zip(left, frames, strict=True):
            image.paste(Image.fromarray(frame), (x, top))
        images.append(image)
    palette = images[len(images) // 2].quantize(256)  # one for all, or still parts would flicker
    images = [image.quantize(palette=palette) for image in images]
    duration = round(1000 / frames_per_second)  # ms
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)


def _displayable(frames: np.ndarray, least_side: int) -> np.ndarray:
    """uint8 [n, H', W', 3] from fp32 [n, H, W, C], enlarged by a whole number if too small."""
    channels = frames.shape[-1]
    if channels == 2:
        raise SettingError("num_channels=2 cannot be shown; draw one channel, or add a third.")
    frames = np.repeat(frames, 3, axis=-1) if channels == 1 else frames[..., :3]
    frames = np.round(np.clip(frames, 0, 1) * 255).astype(np.uint8)
    times = math.ceil(least_side / min(frames.shape[1:3]))
    return frames.repeat(times, axis=1).repeat(times, axis=2)


# style: (file of the font, size, colour)
_STYLES = {
    "heading": ("DejaVuSans-Bold.ttf", 18, "black"),
    "title": ("DejaVuSans-Bold.ttf", 13, "black"),
    "warning": ("DejaVuSans-Bold.ttf", 13, "#b00020"),
    "number": ("DejaVuSans.ttf", 13, "black"),
    "text": ("DejaVuSans.ttf", 12, "#555555"),
}


@functools.cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # it brings fonts; Pillow's own has few characters

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", file), size)


def _label(paragraphs: Sequence[tuple[str, str]], width: int, scale: float = 1.0) -> Image.Image:
    """Wrapped text as an image of the given width and as high as it needs."""
    lines = []
    for style, text in paragraphs:
        file, size, colour = _STYLES[style]
        font = _font(file, round(scale * size))
        line = ""
        for word in text.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append((line, font, colour))
                longer = word
            line = longer
        lines.append((line, font, colour))
    heights = [round(1.4 * font.size) for _, font, _ in lines]
    image = Image.new("RGB", (width, sum(heights)), "white")
    draw = ImageDraw.Draw(image)
    top = 0
    for (text, font, colour), height in zip(lines, heights, strict=True):
        draw.text((0, top), text, font=font, fill=colour)
        top += height
    return image


def draw_curve(
    metrics_path: str | os.PathLike,
    path: str | os.PathLike,
    *,
    title: str = "Loss",
    baseline: tuple[str, float] | None = None,
) -> None:
    """Writes a PNG of a run's loss on training and held-out clips, and of its learning rate.

    Args:
      metrics_path: a `metrics.jsonl`: one JSON object per line with `step`, and `loss` and
        `learning_rate` or `held_out/loss`. Where a resumed run wrote a step twice the later line
        counts; a last line that is still being written (no line end) is left out.
      path: of the file.
      title: above the curve.
      baseline: what a trivial prediction is called, and its loss, drawn as a line.
    Raises:
      SettingError: if a line is no JSON object with a step, or none has a loss.
    """
    from matplotlib.figure import Figure

    series = _read_series(metrics_path)
    if not series.get("loss"):
        raise SettingError(
            f"{metrics_path} has no line with 'loss' and 'step': nothing to draw yet."
        )
    steps, losses = _columns(series["loss"])
    window = 1 + len(losses) // 20
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes, rate_axes = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1], "hspace": 0.04}
    )
    axes.plot(steps, losses, color="#9ec3e6", linewidth=0.8, label="training clips")
    axes.plot(
        steps,
        _running_mean(losses, window),
        color="#1f5fa8",
        linewidth=1.8,
        label=f"training clips, running mean of {window}",
    )
    if "held_out/loss" in series:
        axes.plot(
            *_columns(series["held_out/loss"]),
            color="#d1690e",
            marker="o",
            markersize=5,
            linewidth=1.2,
            label="held-out clips",
        )
    if baseline is not None:
        name, loss = baseline
        axes.axhline(
            loss,
            color="#555555",
            linestyle="--",
            linewidth=1.2,
            label=f"{name}: {loss:.3f}",
        )
    axes.set_title(title, fontsize=13, fontweight="bold", loc="left")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    if "learning_rate" in series:
        rate_axes.plot(*_columns(series["learning_rate"]), color="#4f8a3c", linewidth=1.5)
    rate_axes.set_ylim(bottom=0)
    rate_axes.set_ylabel("learning\nrate")
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate_axes.set_xlabel("step (updates)")
    for each in (axes, rate_axes):
        each.grid(color="#e6e6e6", linewidth=0.8)
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _read_series(path: str | os.PathLike) -> dict[str, dict[int, float]]:
    """{metric: {step: value}}."""
    series: dict[str, dict[int, Any]] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                break
            try:
                values = json.loads(line)
                step = values.pop("step")
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                raise SettingError(
                    f"line {number} of {os.fspath(path)} is no JSON object with a step; "
                    "give the metrics.jsonl of a run."
                ) from error
            for name, value in values.items():
                series.setdefault(name, {})[step] = value
    return series


def _columns(series: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array(sorted(series))
    return steps, np.array([series[step] for step in steps], float)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Means over up to `window` points around each; fewer at the ends."""
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")
