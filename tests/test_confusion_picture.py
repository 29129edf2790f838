"""The picture as a viewer gets it: where it is dark, and what is written on it."""

from __future__ import annotations

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from vmae_jax import confusion_picture


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A function of draw's arguments, which gives (darkness [K, K] in the PNG, axes, figure).

    The darkness of a cell is that of a place where no count is written: 0 white, 255 black.
    """
    saved = []
    savefig = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, *args: saved.append(figure) or savefig(figure, *args),
    )

    def draw(matrix, names, **options):
        path = tmp_path / "confusion.png"
        confusion_picture.draw(np.array(matrix), names, path, **options)
        figure = saved[-1]
        axes = figure.axes[0]
        pixels = np.asarray(Image.open(path).convert("L"))
        grid = np.arange(len(matrix)) - (0.3 if len(matrix) <= 40 else 0)
        places = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)  # (column, row)
        x, y = axes.transData.transform(places).T
        dark = 255 - pixels[(len(pixels) - y).astype(int), x.astype(int)].astype(int)
        return dark.reshape(len(matrix), -1), axes, figure

    return draw


def texts(axes):
    return {tuple(int(x) for x in text.get_position()): text.get_text() for text in axes.texts}


def test_cells_are_as_dark_as_their_share_of_the_row(drawn):
    # shares in percent: 100 0 0, 50 50 0, 10 20 70
    dark, axes, _ = drawn([[3, 0, 0], [40, 40, 0], [1, 2, 7]], ["a", "b", "c"], title="step 9")
    order = [dark[0, 1], dark[2, 0], dark[2, 1], dark[1, 0], dark[2, 2], dark[0, 0]]
    assert order == sorted(set(order))  # 0 < 10 < 20 < 50 < 70 < 100
    assert dark[1, 0] == dark[1, 1]
    # (column, row): nothing is written where there is nothing
    expected = {(0, 0): "3", (0, 1): "40", (1, 1): "40", (0, 2): "1", (1, 2): "2", (2, 2): "7"}
    assert texts(axes) == expected
    assert axes.get_title() == "step 9: 53.8 % of 93 records right"  # (3 + 40 + 7) / 93


def test_rows_are_true_classes_and_start_at_the_top(drawn):
    dark, axes, _ = drawn([[0, 5], [0, 5]], ["first", "second"])
    assert dark[0, 1] == dark[1, 1] > dark[0, 0] == dark[1, 0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    heights = axes.transData.transform([(0, tick) for tick in axes.get_yticks()])[:, 1]
    assert labels == ["first", "second"]
    assert heights[0] > heights[1]
    assert axes.get_ylabel() == "true class"
    assert axes.get_xlabel() == "class the model says"


def test_many_classes_have_a_dark_diagonal_and_numbers_for_names(drawn):
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 2, (174, 174)) + 300 * np.eye(174, dtype=int)
    dark, axes, _ = drawn(matrix, [f"class {i}" for i in range(174)])
    diagonal = np.eye(174, dtype=bool)
    assert dark[diagonal].min() > dark[~diagonal].max()
    assert not axes.texts
    assert axes.get_ylabel() == "true class (number)"


@pytest.mark.parametrize("count", [2, 12, 40])
def test_long_names_are_cut_and_nothing_leaves_the_picture(drawn, count):
    names = [f"{i}: pretending to throw something, and not throwing it" for i in range(count)]
    _, axes, figure = drawn(np.eye(count, dtype=int), names, title="step 1000")
    width, height = figure.bbox.size
    renderer = FigureCanvasAgg(figure).get_renderer()
    for artist in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title):
        box = artist.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    for axis in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label, name in zip(axis, names, strict=True):
            assert label.get_text() == name[:27] + "…"


def test_classes_without_a_record_are_blank(drawn):
    dark, axes, _ = drawn([[2, 0], [0, 0]], ["a", "b"])
    assert dark[0, 0] > dark[1, 1] == dark[1, 0]
    assert axes.get_title() == "100.0 % of 2 records right"
    _, axes, _ = drawn([[0, 0], [0, 0]], ["a", "b"])
    assert axes.get_title() == ""
