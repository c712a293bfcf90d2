"""Series for any experiment: lines with bands, in one panel or several, power laws, and the scores of seeds."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mil_jax.errors import InputError
from mil_jax.plots import style
from mil_jax.plots.style import BLUE, MEMBER, Values, key, panel_grid, styled

Along = Num[Values, " X"]
Bands = Mapping[str, tuple[Along, Along, Along]]
Group = tuple[Float[Values, " S"], float, float]

COLOURS = (BLUE, style.VERMILLION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@styled
def lines_with_band(x: Along, series: Bands, x_label: str, y_label: str, log_x: bool = False) -> Figure:
    """Lines over x, each in a band of its colour.

    A series is (middle, low, high); the line has a gap where the middle is not finite. Labels come with units. With
    ``log_x``, x is on a logarithmic scale, with a tick for each value if they are few.
    """
    figure, (axes,) = panel_grid(1, 1, panel=(5.6, 3.6))
    axes.set(xlabel=x_label, ylabel=y_label)
    _draw_bands(axes, np.asarray(x), series, list(series), log_x)
    _series_legend(figure, axes)
    return figure


@styled
def panels_with_band(x: Along, panels: Mapping[str, Bands], x_label: str, log_x: bool = False) -> Figure:
    """`lines_with_band` for several quantities, a panel for each y label. A name has one look in all panels.

    Raises:
        InputError: there is no panel.
    """
    figure, grid = _grid(panels)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    for (y_label, series), axes in zip(panels.items(), grid, strict=True):
        axes.set(xlabel=x_label, ylabel=y_label)
        _draw_bands(axes, np.asarray(x), series, names, log_x)
    if len(names) > 1:
        handles = [key(name, **_look(number)) for number, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(names), 5))
    return figure


@styled
def panels_below_ceilings(
    x: Along, panels: Mapping[str, Bands], ceilings: Mapping[str, Mapping[str, float]], x_label: str
) -> Figure:
    """Lines with bands over x, on a logarithmic scale, and the heights that no line can pass, a panel for each y label.

    As many lines as there are colours stand out, those that end highest in the first panel; the others are grey.

    Args:
        x: where the lines have points.
        panels: as `panels_with_band`.
        ceilings: for each panel the names of its ceilings, which stand beside the lines, and their heights.
        x_label: with its unit.

    Raises:
        InputError: there is no panel.
    """
    if not panels:
        raise InputError("panels", dict(panels), "expected at least one")
    figure, grid = panel_grid(len(panels), len(panels), panel=(4.4, 3.4), margin=(1.9, 0.3))
    first = next(iter(panels.values()))
    names = sorted(first, key=lambda name: -np.nan_to_num(np.asarray(first[name][0])[-1]))
    bright = names[: len(COLOURS)]
    for (y_label, series), axes in zip(panels.items(), grid, strict=True):
        axes.set(xlabel=x_label, ylabel=y_label)
        for name in names[len(COLOURS) :]:
            axes.plot(x, series[name][0], color=style.LIGHT_GREY, linewidth=1, zorder=1)
        _draw_bands(axes, np.asarray(x), {name: series[name] for name in bright}, bright, log_x=True)
        for text, height in ceilings[y_label].items():
            axes.axhline(height, color=style.GREY, linestyle=style.DASHED, linewidth=1, zorder=1)
            place = {"xy": (0.01, height), "xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            above = height == max(ceilings[y_label].values())
            offset, side = ((0, 2), "bottom") if above else ((0, -2), "top")
            axes.annotate(text, xytext=offset, va=side, color=style.GREY, fontsize=7.5, **place)
    handles = [key(name, **_look(number)) for number, name in enumerate(bright)]
    if others := len(names) - len(bright):
        handles.append(key(f"{others} other{'s' * (others > 1)}", color=style.LIGHT_GREY, linewidth=1))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


@styled
def seeds_by_group(panels: Mapping[str, Mapping[str, Group]], join: bool = False) -> Figure:
    """What each seed scored in each group, and the mean with its interval, a panel for each score.

    Args:
        panels: the score, which becomes the y label, to its groups; a group is a name to the values of its seeds [S]
            and the ends of the interval of their mean. Values that are not finite are left out.
        join: whether a thin line joins the values of the same seed, which stand at the same place in all groups.

    Raises:
        InputError: there is no panel.
    """
    figure, grid = _grid(panels)
    for (y_label, groups), axes in zip(panels.items(), grid, strict=True):
        if join:
            columns = np.stack([np.asarray(values, np.float64) for values, _, _ in groups.values()])
            axes.plot(np.arange(len(columns)), columns, color=style.LIGHT_GREY, linewidth=0.7, zorder=1)
        for place, group in enumerate(groups.values()):
            _draw_seeds(axes, place, *group, strip=0.0 if join else 0.3)
        axes.set(ylabel=y_label, xlim=(-0.5, len(groups) - 0.5))
        axes.set_xticks(np.arange(len(groups)), [textwrap.fill(name, 14) for name in groups])
    dot = key("one seed", linestyle="none", marker="o", color=MEMBER, markersize=4)
    mark = key("mean with its 95 % interval", color=BLUE, marker="D", markeredgecolor="white")
    figure.legend(handles=[dot, mark], loc="outside upper center", ncols=2)
    return figure


@styled
def loglog_lines(x: Along, series: Mapping[str, Along], x_label: str, y_label: str) -> Figure:
    """Lines on logarithmic scales, where a power law is straight; values that are not positive are left out."""
    figure, (axes,) = panel_grid(1, 1, panel=(5.6, 3.6))
    axes.set(xlabel=x_label, ylabel=y_label)
    for number, (name, values) in enumerate(series.items()):
        heights = np.asarray(values, dtype=np.float64)
        axes.plot(np.asarray(x), np.where(heights > 0, heights, np.nan), **_look(number), label=name)
    axes.set_yscale("log")
    _log_x(axes, np.asarray(x))
    _series_legend(figure, axes)
    return figure


def _grid(panels: Mapping[str, Any]) -> tuple[Figure, list[Axes]]:
    """A figure with an axes for each panel, at most three side by side."""
    if not panels:
        raise InputError("panels", dict(panels), "expected at least one")
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    return panel_grid(len(panels), columns, panel=(3.1, 2.6), margin=(0.6, 0.5))


def _draw_bands(axes: Axes, x: np.ndarray, series: Bands, names: Sequence[str], log_x: bool) -> None:
    """Each line in a band of its colour; its place among the names decides its look."""
    for name, band in series.items():
        look, (middle, low, high) = _look(names.index(name)), map(np.asarray, band)
        axes.plot(x, middle, **look, label=name)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    if log_x:
        _log_x(axes, x)


def _draw_seeds(axes: Axes, place: int, values: Values, low: float, high: float, strip: float) -> None:
    """The seeds of a group in a strip of this width, and their mean with its interval."""
    values = np.asarray(values, np.float64)
    # Spread over the strip in a fixed order: the same input gives the same pixels.
    x = place + strip * (np.arange(len(values)) / max(len(values) - 1, 1) - 0.5)
    axes.plot(x, values, "o", color=MEMBER, alpha=0.6, markersize=3, markeredgewidth=0, zorder=2)
    finite = values[np.isfinite(values)]
    axes.vlines(place, low, high, color=BLUE, linewidth=2.2, zorder=3)
    mean = finite.mean() if finite.size else np.nan
    axes.plot(place, mean, "D", color=BLUE, markersize=5, markeredgecolor="white", zorder=4)


def _look(number: int) -> dict[str, Any]:
    """The n-th colour and marker; after all colours are used, the line is dashed."""
    turn, place = divmod(number, len(COLOURS))
    line = "-" if turn % 2 == 0 else style.DASHED
    return {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": line, "markersize": 4.5}


def _log_x(axes: Axes, x: np.ndarray) -> None:
    axes.set_xscale("log")
    if len(x) <= 8:
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.xaxis.set_minor_locator(NullLocator())


def _series_legend(figure: Figure, axes: Axes) -> None:
    """Above the axes while it is short, else beside them; never on a line."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) <= 4 and sum(map(len, names)) <= 44:
        figure.legend(handles, names, loc="outside upper center", ncols=4)
    else:
        figure.legend(handles, names, loc="outside right upper")
