"""The look of all figures: one palette, one meaning per colour, one set of settings, and what figures share."""

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np
from jax import Array
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Values = np.ndarray | Array
Pair = tuple[float, float]
P = ParamSpec("P")

# The palette of Okabe and Ito, which stays apart under every common form of colour blindness.
BLACK, GREY, LIGHT_GREY = "#222222", "#6E6E6E", "#D4D4D4"
ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE = "#D55E00", "#CC79A7"

# One meaning per colour, in all figures.
TRAINING, VALIDATION = GREEN, ORANGE
POSITIVE, NEGATIVE = VERMILLION, BLUE
MEMBER, ENSEMBLE = SKY, BLUE
CLASSES = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
WEIGHT = LinearSegmentedColormap.from_list("weight", [LIGHT_GREY, ORANGE, VERMILLION])
CELL = LinearSegmentedColormap.from_list("cell", ["#F6FAFD", SKY, BLUE, "#00395A"])

DOTTED, DASHED = (0, (1, 1.2)), (0, (4, 3))

STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that every machine draws the same letters
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "grid.color": "#E9E9E9",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 8),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), BLACK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), "#8C8C8C"),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.formatter.useoffset", "legend.frameon"), False),
    **dict.fromkeys(("lines.solid_capstyle", "lines.solid_joinstyle"), "round"),
    **dict.fromkeys(("lines.linewidth", "legend.columnspacing", "legend.handlelength"), 1.8),
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Makes a function draw in ``STYLE``, whatever the caller's own settings are, and lay its figure out for good.

    Left to matplotlib, the layout, which costs more than drawing, would be made twice more each time a figure is saved.
    """
    defaults: dict[Any, Any] = {name: value for name, value in rcParamsDefault.items() if name != "backend"}

    @functools.wraps(draw)
    def draw_styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(defaults):
            with rc_context(STYLE):
                figure = draw(*args, **kwargs)
                engine = figure.get_layout_engine()
                if engine:
                    engine.execute(figure)  # makes the ticks: outside of this context they would miss STYLE
            if engine:
                engine.execute(figure)  # as many ticks as saving, outside of this context, will find room for
                figure.set_layout_engine(None)
        return figure

    return draw_styled


def panel_grid(count: int, columns: int, panel: Pair, margin: Pair = (0.0, 0.0)) -> tuple[Figure, list[Axes]]:
    """A figure with this many axes in rows; inches of each and of what is around all, width before height."""
    rows = math.ceil(count / columns)
    size = (margin[0] + panel[0] * columns, margin[1] + panel[1] * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def key(label: str, **look: Any) -> Line2D:
    """A line of a legend."""
    return Line2D([], [], label=label, **look)


def member_alpha(members: int) -> float:
    """How opaque the line of one of so many members is."""
    return max(0.18, min(0.8, 1.2 / math.sqrt(max(members, 1))))


def weight_scale(attention: np.ndarray | None, mask: np.ndarray) -> float:
    """The weight at the end of the colour scale: 1, or less where all weights [B, K] under the mask are small."""
    heaviest = 1.0 if attention is None else attention[mask].max(initial=0.0)
    return next((top for top in (0.02, 0.05, 0.1, 0.2, 0.5) if heaviest <= top), 1.0)


def weight_frame(strength: float | None) -> tuple[str, float]:
    """Colour and width (points) of a frame; ``strength`` is the share of the scale in 0..1, None without weights."""
    return (GREY, 0.8) if strength is None else (to_hex(WEIGHT(strength)), 1.0 + 2.2 * strength)
