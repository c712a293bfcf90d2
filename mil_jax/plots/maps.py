"""Figures with a place for each number: tables as colours, and the patches of an image where they lie."""

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from mil_jax.errors import InputError
from mil_jax.plots.style import BLACK, CELL, Pair, Values, styled


@styled
def confusion_matrix(counts: Int[Values, "C C"], class_names: Sequence[str]) -> Figure:
    """Counts [C, C] and row percentages; a row is a true class, a column a predicted one. Long names are wrapped.

    Raises:
        InputError: names are not one per class.
    """
    counts = np.asarray(counts)
    total = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(total, 1)
    texts = [[f"{count}" for count in row] for row in counts]
    for row, column in np.argwhere(np.broadcast_to(total > 0, counts.shape)):
        texts[row][column] += f"\n{100 * shares[row, column]:.1f} %"
    figure, axes, _ = _draw_cells(shares, (0.0, 1.0), texts, (class_names, class_names))
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


@styled
def heat_map(
    values: Float[Values, "R C"],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    row_title: str,
    column_title: str,
    colour_label: str,
    number_format: str = ".3g",
) -> Figure:
    """A table of numbers as colours, dark for large; NaN cells stay empty.

    There is a label for each row and column, and a title, with units, for rows, columns and values. Values are
    printed in ``number_format``, as after the colon of an f-string.

    Raises:
        InputError: labels are not one per row or column.
    """
    values = np.asarray(values, dtype=np.float64)
    texts = [[format(value, number_format) if np.isfinite(value) else "" for value in row] for row in values]
    finite = values[np.isfinite(values)]
    limits = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    figure, axes, mesh = _draw_cells(values, limits, texts, (row_labels, column_labels), bar=0.9)
    axes.set(xlabel=column_title, ylabel=row_title)
    bar = figure.colorbar(mesh, ax=axes, label=colour_label, shrink=0.9, aspect=18)
    bar.ax.spines["outline"].set_visible(False)
    return figure


def _draw_cells(
    values: np.ndarray,
    limits: Pair,
    texts: list[list[str]],
    names: tuple[Sequence[str], Sequence[str]],
    bar: float = 0.0,
) -> tuple[Figure, Axes, QuadMesh]:
    """Coloured cells, the first row on top, with a text in each; names are those of rows and columns."""
    for argument, labels, count in zip(("row", "column"), names, values.shape, strict=True):
        if len(labels) != count:
            raise InputError(f"{argument} labels", list(labels), f"expected {count}, one per {argument}")
    rows, columns = values.shape
    side, text_size = (0.85, 9) if max(rows, columns) <= 6 else (0.6, 6.5)
    width, height = (min(max(side * cells, 1.7), 11) for cells in (columns, rows))
    figure = Figure(figsize=(width + 1.3 + bar, height + 0.9), layout="constrained")
    axes = figure.subplots()
    low, high = limits
    look = {"vmin": low, "vmax": high if high > low else low + 1, "edgecolors": "white", "linewidth": 1.2}
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=CELL, **look)
    for row, column in np.ndindex(rows, columns):
        colour = "white" if values[row, column] > low + 0.5 * (high - low) else BLACK
        place = (column + 0.5, row + 0.5)
        axes.text(*place, texts[row][column], ha="center", va="center", color=colour, size=text_size)
    _label_cells(axes, *names)
    return figure, axes, mesh


def _label_cells(axes: Axes, row_labels: Sequence[str], column_labels: Sequence[str]) -> None:
    """Names at the cells; long ones lean, so that neighbours do not run into each other."""
    rows, columns = len(row_labels), len(column_labels)
    lean = max(map(len, column_labels)) > (9 if columns <= 6 else 4)
    look = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if lean else {}
    axes.set_xticks(np.arange(columns) + 0.5, [textwrap.fill(label, 22) for label in column_labels], **look)
    axes.set_yticks(np.arange(rows) + 0.5, [textwrap.fill(label, 22) for label in row_labels])
    axes.set(ylim=(rows, 0), aspect="equal")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)


@styled
def patch_map(
    patches: UInt8[np.ndarray, "K h w 3"],
    position: Float[Values, "K 2"],
    weight: Float[Values, " K"],
    truth: Bool[Values, " K"],
    heading: str,
) -> Figure:
    """An image as its patches at their places: all, the truly positive ones, and all weighted by attention.

    As in the figures of Ilse et al. 2018: a patch is multiplied by its weight, rescaled to 0 … 1 over the image. The
    position is that of a patch's centre in pixels, x before y.
    """
    weight = np.asarray(weight, np.float64)
    rescaled = (weight - weight.min()) / max(float(np.ptp(weight)), np.finfo(float).tiny)
    panels = {
        f"all {len(patches)} patches": np.ones(len(patches)),
        f"the {int(np.sum(truth))} truly positive ones": np.asarray(truth, float),
        "all, times attention (rescaled to 0 … 1)": rescaled,
    }
    figure = Figure(figsize=(10.2, 3.9), layout="constrained")
    for axes, (title, strength) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.imshow(_paint(patches, np.asarray(position), strength))
        axes.set_title(title)
        axes.set_axis_off()
    figure.suptitle(heading, fontsize=9, x=0.01, ha="left", fontweight="bold")
    return figure


def _paint(patches: np.ndarray, position: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The patches on black, the stronger ones over the weaker ones."""
    height, width = patches.shape[1:3]
    corner = np.rint(position[:, ::-1]).astype(int) - np.array([height // 2, width // 2])
    corner -= corner.min(axis=0)
    lowest, rightmost = corner.max(axis=0)
    canvas = np.zeros((lowest + height, rightmost + width, 3), np.uint8)
    for i in np.argsort(strength, kind="stable"):
        top, left = corner[i]
        canvas[top : top + height, left : left + width] = patches[i] * strength[i]
    return canvas
