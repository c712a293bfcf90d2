"""Heat maps of slides: what the patches weigh where they lie, how sure that is, and the outermost patches as images.

Maps are drawn as images, not as a shape for each patch, so that a slide of 100,000 patches takes a second. Axes: K
patches, k of them shown as tiles; H and W pixels; x to the right, y downwards.
"""

import math
import textwrap
from typing import Any, Literal, NamedTuple, get_args

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from mil_jax.errors import InputError, check_choice
from mil_jax.heatmaps import MOST_RANK_SPREAD, Map, Tiles, grid_step, patch_auc, thumbnail_scale
from mil_jax.plots.style import BLACK, LIGHT_GREY, Pair, key, styled

Shown = Literal["rank", "weight"]

# Perceptually uniform, and readable by every common form of colour blindness; one map for values, one for their spread.
VALUE, SPREAD = matplotlib.colormaps["viridis"], matplotlib.colormaps["magma"]
DISAGREED = LIGHT_GREY

PANEL_WIDTH, TALLEST = 3.1, 4.4  # inches
PIXELS, MOST_PIXELS = 900, 2400  # of the longer side of a map: aimed at, and where the grid is finer
TILES_PER_LINE, TILE = 8, 0.95  # inches
CHARACTERS = 12  # of a heading in an inch


class Canvas(NamedTuple):
    """Layers of pixels [V, H, W], NaN where no patch lies, and their edges: left, right, bottom, top."""

    layers: np.ndarray
    extent: tuple[float, float, float, float]


class Scale(NamedTuple):
    """How numbers become colours, and what is written at the bar; `extend` as matplotlib has it."""

    colours: Colormap
    norm: Normalize
    label: str
    extend: Literal["neither", "max", "both"] = "neither"


def patch_colours(heat: Map) -> UInt8[np.ndarray, "K 3"]:
    """Red, green and blue of each patch by its rank, as `slide_map` paints it where no patch overlaps."""
    return (VALUE(heat.rank)[:, :3] * 255).round().astype(np.uint8)


@styled
def slide_map(
    heat: Map,
    thumbnail: UInt8[np.ndarray, "H W 3"] | None = None,
    scale: float | int | None = None,
    shown: Shown = "rank",
) -> Figure:
    """Draws the slide (where there is a thumbnail), its patches by their mean weight, and the spread over members.

    Grey patches are those on which members disagree; where patches overlap, a pixel is their mean; a line runs around
    truly positive patches, where these are known. By rank no map is flat or blank, however sharp the weights are; by
    weight one sees how sharp they are, and attention is in parts of the uniform weight.

    Args:
        heat: the map of one bag.
        thumbnail: the slide, beside the maps and, faintly, behind them.
        scale: pixels of the thumbnail per unit of the positions; `heatmaps.thumbnail_scale` where not given.
        shown: "rank" or "weight".

    Raises:
        InputError: a scale that is not positive, or another choice.
    """
    check_choice("shown", shown, get_args(Shown))
    if scale is not None and not scale > 0:
        raise InputError("scale", scale, "expected a number above 0, pixels of the thumbnail per unit")
    ranks, weights = (heat.rank, heat.rank_spread), (heat.weight / heat.uniform, heat.spread / heat.uniform)
    value, spread = ranks if shown == "rank" else weights
    truth = np.zeros(len(heat)) if heat.truth is None else (heat.truth == 1).astype(float)
    canvas = paint(heat, np.stack([value, spread, heat.masked.astype(float), truth]))
    slide = None if thumbnail is None else (thumbnail, _slide_extent(heat, thumbnail, scale))
    edges = canvas.extent if slide is None else slide[1]
    scales = _scales(heat, shown, value, spread)[: 2 if heat.members > 1 else 1]
    figure, panels, bars = _panels(edges, len(scales) + (slide is not None), slide is not None)
    for axes, bar, look, layer in zip(panels[-len(scales) :], bars, scales, canvas.layers, strict=False):
        _draw_panel(axes, canvas, layer, look, slide)
        if look is scales[0]:
            _cover(axes, canvas)
        _draw_bar(figure, bar, look, MOST_RANK_SPREAD if look is not scales[0] and shown == "rank" else None)
    if slide is not None:
        panels[0].imshow(slide[0], extent=slide[1])
    for axes in panels:
        _outline(axes, canvas)
        axes.set(xlim=edges[:2], ylim=edges[2:], aspect="equal", xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    _draw_scale_bar(panels[0], edges, heat.unit)
    _draw_heading(figure, _heading(heat))
    _draw_key(figure, heat, ", the white line" if shown == "rank" else "")
    return figure


def _scales(heat: Map, shown: Shown, value: np.ndarray, spread: np.ndarray) -> tuple[Scale, Scale]:
    """A fixed scale for ranks; for weights one that a few heavy patches do not stretch until the rest is dark."""
    if shown == "rank":
        return (
            Scale(VALUE, Normalize(0, 1), f"rank of the mean {heat.kind} in the bag (1: highest)"),
            Scale(SPREAD, Normalize(0, 0.4), "standard deviation of the members' ranks", "max"),
        )
    low, high = (float(np.percentile(value, at)) for at in (1, 99))
    what = f"{heat.kind}, in parts of the uniform 1/{len(heat)}" if heat.kind == "attention" else "score of the patch"
    norm = Normalize(0, max(high, 2.0)) if heat.kind == "attention" else Normalize(low, max(high, low + 1e-6))
    top = max(float(np.percentile(spread, 99)), 1e-6)
    extend: Literal["max", "both"] = "max" if heat.kind == "attention" else "both"
    return (
        Scale(VALUE, norm, f"mean {what}", extend),
        Scale(SPREAD, Normalize(0, top), "standard deviation over members", "max"),
    )


# ---- patches to pixels ----


def paint(heat: Map, values: np.ndarray) -> Canvas:
    """Means of the values [V, K] over the patches that lie on each pixel, the same in whatever order these come.

    A patch is written as its four corners, and running sums along both axes fill it: the work does not grow with the
    size or the overlap of patches. The grid falls on whole pixels.
    """
    low, extent = heat.position.min(axis=0), np.ptp(heat.position, axis=0) + heat.patch_size
    longest, step = float(extent.max()), min(grid_step(heat.position), heat.patch_size)
    pixel = max(step / max(1, round(PIXELS * step / longest)), longest / MOST_PIXELS)
    order = np.lexsort((*values, *heat.position.T))  # sums of floats depend on their order
    first = (heat.position[order] - low) / pixel
    # A little is added because neighbours' edges, equal up to rounding, must fall on the same pixel.
    first, last = (np.floor(edge + 0.5 + 1e-6).astype(int) for edge in (first, first + heat.patch_size / pixel))
    last = np.maximum(last, first + 1)
    width, height = last.max(axis=0) + 1
    corners = np.concatenate([y * width + x for y in (first[:, 1], last[:, 1]) for x in (first[:, 0], last[:, 0])])
    layers = []
    for layer in (np.ones(len(heat)), *values):
        signed = np.concatenate([sign * layer[order] for sign in (1, -1, -1, 1)])
        steps = np.bincount(corners, signed, minlength=width * height).reshape(height, width)
        layers.append(steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1])
    count = np.rint(layers[0])
    means = np.stack(layers[1:]) / np.where(count > 0, count, np.nan)
    (left, top), (right, bottom) = low, low + np.array([width - 1, height - 1]) * pixel
    return Canvas(means, (left, right, bottom, top))


def _slide_extent(heat: Map, thumbnail: np.ndarray, scale: float | None) -> tuple[float, float, float, float]:
    scale = thumbnail_scale(heat, thumbnail) if scale is None else scale
    height, width = thumbnail.shape[:2]
    return 0.0, width / scale, height / scale, 0.0


# ---- pixels to panels ----


def _panels(edges: tuple[float, ...], count: int, has_slide: bool) -> tuple[Figure, list[Axes], list[Axes]]:
    """Panels of the slide's shape in a row, and below each map the place of its colour bar."""
    aspect = abs(edges[3] - edges[2]) / abs(edges[1] - edges[0])
    width = min(PANEL_WIDTH, TALLEST / aspect)
    height = max(width * aspect, 0.8)
    cell = max(width, 2.7)  # a bar's label needs as much
    figure = Figure(figsize=(count * (cell + 0.12) + 0.1, height + 1.35), layout="constrained")
    grid = figure.subplots(2, count, squeeze=False, height_ratios=(height, 0.11))
    if has_slide:
        grid[1, 0].set_axis_off()
    return figure, list(grid[0]), list(grid[1, has_slide:])


def _draw_panel(axes: Axes, canvas: Canvas, layer: np.ndarray, scale: Scale, slide: Any) -> None:
    if slide is not None:
        grey = slide[0].mean(axis=2)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, alpha=0.35, extent=slide[1])
    _show(axes, canvas, scale.colours(scale.norm(layer)), ~np.isnan(layer))


def _cover(axes: Axes, canvas: Canvas) -> None:
    """Greys out where at least half of the patches on a pixel are ones that members disagree on."""
    masked = np.nan_to_num(canvas.layers[2]) >= 0.5
    if masked.any():
        grey = np.ones((*masked.shape, 4)) * to_rgba(DISAGREED)
        _show(axes, canvas, grey, masked)


def _show(axes: Axes, canvas: Canvas, colours: np.ndarray, where: np.ndarray) -> None:
    colours[..., 3] = where
    axes.imshow((colours * 255).round().astype(np.uint8), extent=canvas.extent, interpolation="antialiased")


def _outline(axes: Axes, canvas: Canvas) -> None:
    """A line around truly positive patches, dark on light so that it shows on any colour."""
    positive = np.pad(np.nan_to_num(canvas.layers[3]) >= 0.5, 1)
    if not positive.any():
        return
    left, right, bottom, top = canvas.extent
    height, width = (side - 2 for side in positive.shape)
    x, y = (
        start + (np.arange(-1, side + 1) + 0.5) * (stop - start) / side
        for start, stop, side in ((left, right, width), (top, bottom, height))
    )
    for colour, points in ((BLACK, 2.0), ("white", 0.9)):
        axes.contour(x, y, positive.astype(float), levels=[0.5], colors=[colour], linewidths=points)


def _draw_bar(figure: Figure, bar_axes: Axes, scale: Scale, threshold: float | None) -> None:
    mappable = ScalarMappable(scale.norm, scale.colours)
    bar = figure.colorbar(mappable, cax=bar_axes, orientation="horizontal", extend=scale.extend, label=scale.label)
    bar.ax.spines["outline"].set_visible(False)
    bar.ax.grid(False)
    if threshold is not None:
        bar.ax.axvline(threshold, color="white", linewidth=1.6)


def _draw_scale_bar(axes: Axes, edges: tuple[float, ...], unit: str) -> None:
    """A bar of 1, 2 or 5 times a power of ten below the panel, about a quarter of its width."""
    left, right = edges[:2]
    quarter = (right - left) / 4
    power = 10 ** math.floor(math.log10(quarter))
    length = max(step * power for step in (1, 2, 5) if step * power <= quarter)
    text = f"{length:g} px" if unit == "px" else f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm"
    place = axes.get_xaxis_transform()  # x in the slide's unit, y in parts of the panel's height
    axes.plot([left, left + length], [-0.035] * 2, transform=place, clip_on=False, color=BLACK, linewidth=2.2)
    axes.text(left + length * 1.1, -0.035, text, transform=place, va="center", size=8)


def _draw_heading(figure: Figure, text: str) -> None:
    """The heading, in as many lines as the figure's width needs."""
    wrapped = textwrap.fill(text, int(CHARACTERS * figure.get_figwidth()))
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=9, fontweight="bold")


def _heading(heat: Map) -> str:
    parts = [heat.name, f"{len(heat):,} patches", f"mean of {heat.members} members" if heat.members > 1 else ""]
    area = patch_auc(heat)
    return " · ".join([part for part in parts if part] + ([] if math.isnan(area) else [f"AUC of patches {area:.2f}"]))


def _draw_key(figure: Figure, heat: Map, line: str) -> None:
    handles: list[Any] = []
    if heat.members > 1:
        count = int(heat.masked.sum())
        why = f"ranks scatter more than {MOST_RANK_SPREAD:.2f}{line}"
        label = f"members disagree: {count:,} patches ({why})"
        handles.append(Patch(facecolor=DISAGREED, label=label))
    if heat.truth is not None and (heat.truth == 1).any():
        handles.append(key("truly positive", color=BLACK, linewidth=2.0))
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8, handlelength=1.2)


# ---- the outermost patches ----


@styled
def extreme_tiles(heat: Map, highest: Tiles, lowest: Tiles) -> Figure:
    """Patches as images, the heaviest first and the lightest below, with mean ± standard deviation over members.

    Attention is in parts of the uniform weight; frames have the colours of the map. See `heatmaps.extreme_patches`.

    Raises:
        InputError: there is no tile.
    """
    groups = [("highest", highest), ("lowest", lowest)]
    groups = [(name, tiles) for name, tiles in groups if len(tiles.rows)]
    if not groups:
        raise InputError("highest", 0, "expected at least one tile")
    columns = min(TILES_PER_LINE, max(len(tiles.rows) for _, tiles in groups))
    lines = [math.ceil(len(tiles.rows) / columns) for _, tiles in groups]
    size = (max(columns * (TILE + 0.12), 3.2) + 0.6, sum(lines) * (TILE + 0.3) + 0.75)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(sum(lines), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for first, (name, tiles) in zip((0, lines[0]), groups, strict=False):
        for place, (row, image) in enumerate(zip(tiles.rows, tiles.images, strict=True)):
            _draw_tile(grid[first + place // columns, place % columns], heat, int(row), image)
        grid[first, 0].text(-0.12, 0.5, name, transform=grid[first, 0].transAxes, rotation=90, va="center", ha="right")
    unit = f", in parts of the uniform 1/{len(heat)}" if heat.kind == "attention" else ""
    _draw_heading(figure, f"{heat.name} · {heat.kind} of patches{unit}")
    return figure


def _draw_tile(axes: Axes, heat: Map, row: int, image: np.ndarray) -> None:
    axes.imshow(image, aspect="equal")
    height, width = image.shape[:2]
    corner: Pair = (-0.5, -0.5)
    frame = Rectangle(corner, width, height, fill=False, edgecolor=VALUE(float(heat.rank[row])), linewidth=2.5)
    frame.set(clip_on=False)
    axes.add_patch(frame)
    mean, spread = (values[row] / heat.uniform for values in (heat.weight, heat.spread))
    axes.set_title(f"{mean:.2g} ± {spread:.1g}" if heat.members > 1 else f"{mean:.2g}", size=7.5, loc="center", pad=4)
