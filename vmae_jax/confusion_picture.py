"""A confusion matrix as a picture: rows are true classes, columns what they were taken for."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

_NAMED = 40  # classes; with more, names and counts would be too small to read


def draw(
    matrix: np.ndarray, names: Sequence[str], path: str | os.PathLike, *, title: str = ""
) -> None:
    """Writes a PNG.

    A cell is as dark as its share of the row, so that what is right makes a dark diagonal. Up to 40
    classes have their names, and their counts in the cells; more have their numbers.

    Args:
      matrix: int [K, K], see `metrics.confusion_matrix`.
      names: of the classes.
      path: of the picture.
      title: above it, before the overall accuracy.
    """
    from matplotlib.figure import Figure  # without pyplot, which would keep it

    count, total = len(matrix), int(matrix.sum())
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = np.clip(0.5 * count + 2, 5, 16) if count <= _NAMED else 10
    figure = Figure((side + 1, side), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="% of the records of a true class", shrink=0.8)
    unit = "" if count <= _NAMED else " (number)"
    axes.set_xlabel(f"class the model says{unit}")
    axes.set_ylabel(f"true class{unit}")
    right = f"{100 * np.trace(matrix) / total:.1f} % of {total} records right" if total else ""
    axes.set_title(f"{title}: {right}" if title else right)
    if count <= _NAMED:
        short = [name if len(name) <= 28 else f"{name[:27]}…" for name in names]
        axes.set_xticks(range(count), short, rotation=45, ha="right")
        axes.set_yticks(range(count), short)
        for i, j in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if percent[i, j] > 50 else "black"
            axes.text(j, i, str(matrix[i, j]), color=colour, ha="center", va="center", fontsize=9)
    figure.savefig(path)
