"""Pictures of bags, curves and scores: arrays in, ``matplotlib.figure.Figure`` out.

Nothing here shows or saves a figure, and pyplot with its global state is never imported, so these
functions work the same in a script, a test and a notebook. One look, ``STYLE``, and one meaning per
colour hold for all figures; the same input gives the same pixels. ``figure.savefig(path)`` is the
caller's, and writes at 150 dots per inch unless told otherwise.

Axis letters: B bags, K slots per bag, S members, E epochs, C classes. Epochs count from 1.
Values that are not finite are never drawn: an epoch that a stopped member did not run is NaN.
"""

import functools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Num, UInt8
from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator, NullLocator

from mil_jax.errors import InputError

Values = np.ndarray | Array
Curve = tuple[Float[Values, " _"], Float[Values, " _"]]  # every curve has a length of its own

# The palette of Okabe and Ito, which stays apart under every common form of colour blindness.
BLACK, GREY, LIGHT_GREY = "#222222", "#6E6E6E", "#D4D4D4"
ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE = "#D55E00", "#CC79A7"

# One meaning per colour, in all figures.
TRAINING, VALIDATION = GREEN, ORANGE
POSITIVE, NEGATIVE = VERMILLION, BLUE
MEMBER, ENSEMBLE = SKY, BLUE
SERIES_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
SERIES_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

DOTTED, DASHED = (0, (1, 1.2)), (0, (4, 3))

WEIGHT_COLOURS = LinearSegmentedColormap.from_list("weight", [LIGHT_GREY, ORANGE, VERMILLION])
CELL_COLOURS = LinearSegmentedColormap.from_list("cell", ["#F6FAFD", SKY, BLUE, "#00395A"])

STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    # Comes with matplotlib, so that every machine draws the same letters.
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": BLACK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.formatter.useoffset": False,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": "#8C8C8C",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E9E9E9",
    "grid.linewidth": 0.7,
    "xtick.color": "#8C8C8C",
    "ytick.color": "#8C8C8C",
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.columnspacing": 1.8,
    "legend.handlelength": 1.8,
}

P = ParamSpec("P")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Makes a function draw in ``STYLE``, whatever the caller's own settings are."""
    settings: dict[Any, Any] = {**rcParamsDefault, **STYLE}
    del settings["backend"]

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(settings):
            figure = draw(*args, **kwargs)
            # Ticks are made when a figure is first drawn: after this context they would miss STYLE.
            figure.draw_without_rendering()
        return figure

    return styled


# --- Bags ---------------------------------------------------------------------------------------

# All in inches.
TILE, TILE_GAP = 0.78, 0.13
WEIGHT_LINE, MARK_LINE, LINE_GAP = 0.19, 0.14, 0.06
TITLE_LINE, HEADING_LINE, KEY_LINE = 0.26, 0.29, 0.32
CARD_GAP, MARGIN, PAGE = 0.42, 0.14, 9.6
TILES_PER_LINE = 10
TITLE_SIZE = 9  # points
MARK = {"marker": "^", "color": BLACK, "markersize": 4.5}


class _Tile(NamedTuple):
    """One instance as it is drawn: ``strength`` in 0..1 sets its frame; None draws a plain one."""

    image: np.ndarray
    caption: str
    strength: float | None
    positive: bool


class _Card(NamedTuple):
    """One bag as it is drawn; ``note`` takes the place of the instances that do not fit."""

    title: str
    tiles: list[_Tile]
    note: str

    @property
    def cells(self) -> int:
        return len(self.tiles) + bool(self.note)

    @property
    def lines(self) -> int:
        return max(1, math.ceil(self.cells / TILES_PER_LINE))


class _Sizes(NamedTuple):
    """Inches that all cards of a figure share."""

    tile_height: float
    head: float
    foot: float
    key: float
    card_width: float
    card_columns: int

    @property
    def line(self) -> float:
        return self.head + self.tile_height + self.foot + LINE_GAP


def bag_title(
    number: int | np.integer,
    label: object,
    prediction: object = None,
    probability: float | np.floating | None = None,
) -> str:
    """The line above a bag, for example ``bag 17 · label 1 · predicted 1 (0.98)``.

    Args:
        number: the bag's number in its set.
        label: its true class, a number or a name.
        prediction: the predicted class, where there is one.
        probability: the probability of the predicted class.
    """
    parts = [f"bag {number}", f"label {label}"]
    if prediction is not None:
        parts.append(f"predicted {prediction}")
        if probability is not None:
            parts[-1] += f" ({probability:.2f})"
    return " · ".join(parts)


@_styled
def bags_figure(
    instances: Num[Values, "B K H W *channels"],
    mask: Bool[Values, "B K"],
    titles: Sequence[str],
    attention: Float[Values, "B K"] | None = None,
    spread: Float[Values, "B K"] | None = None,
    positive: Bool[Values, "B K"] | None = None,
    heading: str = "",
    limit: int = 20,
) -> Figure:
    """Bags as rows of images, side by side where they are small, weights above the images.

    A frame goes from thin and grey (no weight) to thick and red (all of it); a small triangle
    points at the instances that are truly positive. Instances stand in the order of the bag. Of a
    bag with more than ``limit`` instances the heaviest are shown (without weights the first), and
    a note says how many are not.

    Args:
        instances: images [B, K, H, W], [B, K, H, W, 1] or [B, K, H, W, 3]; integers in 0..255 or
            floats in 0..1 (other floats are stretched over the range of the figure).
        mask: True where a slot holds an instance; other slots are left out.
        titles: one line per bag, see ``bag_title``.
        attention: weight of each instance, in 0..1.
        spread: its standard deviation over members, printed after ±; needs ``attention``.
        positive: True for the instances that make a bag positive.
        heading: one line above all bags.
        limit: most images per bag, at least 2.

    Raises:
        InputError: instances are no images, there is no bag, ``titles`` are not one per bag, or
            ``limit`` is below 2.
    """
    instances, mask = np.asarray(instances), np.asarray(mask)
    _check_bags(instances, titles, limit)
    images = _grey_or_rgb(instances, mask)
    weights, spreads, marks = (None if given is None else np.asarray(given) for given in (attention, spread, positive))
    top = weight_scale(weights, mask)
    cards = [
        _card(
            title,
            images[bag],
            mask[bag],
            None if weights is None else weights[bag],
            None if spreads is None else spreads[bag],
            None if marks is None else marks[bag],
            top,
            limit,
        )
        for bag, title in enumerate(titles)
    ]
    figure = _lay_out(cards, _sizes(cards, images, weights is not None, marks is not None), heading)
    _draw_key(figure, None if weights is None else top, marks is not None)
    return figure


def _check_bags(instances: np.ndarray, titles: Sequence[str], limit: int) -> None:
    is_grey = instances.ndim == 4 or (instances.ndim == 5 and instances.shape[-1] == 1)
    is_rgb = instances.ndim == 5 and instances.shape[-1] == 3
    if not (is_grey or is_rgb) or len(instances) == 0:
        remedy = "give at least one bag of images, [B, K, H, W], [B, K, H, W, 1] or [B, K, H, W, 3]"
        raise InputError("instances.shape", instances.shape, remedy)
    if len(titles) != len(instances):
        raise InputError("titles", list(titles), f"give one title per bag, {len(instances)} in all")
    if limit < 2:
        raise InputError("limit", limit, "give 2 or more")


def _grey_or_rgb(instances: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Images in 0..1, without a channel axis if they are grey; padding does not set the range."""
    if instances.ndim == 5 and instances.shape[-1] == 1:
        instances = instances[..., 0]
    if instances.dtype == bool or not np.issubdtype(instances.dtype, np.integer):
        low, high = 0.0, 1.0
        held = instances[mask]
        if held.size and (held.min() < 0 or held.max() > 1):
            low, high = float(held.min()), float(held.max())
    else:
        low, high = 0.0, 255.0
    return np.clip((instances.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)


def weight_scale(attention: np.ndarray | None, mask: np.ndarray) -> float:
    """The weight at the end of the colour scale: 1, or less where all weights are small."""
    heaviest = 1.0 if attention is None else attention[mask].max(initial=0.0)
    return next((top for top in (0.02, 0.05, 0.1, 0.2, 0.5) if heaviest <= top), 1.0)


def _card(
    title: str,
    images: np.ndarray,
    mask: np.ndarray,
    attention: np.ndarray | None,
    spread: np.ndarray | None,
    positive: np.ndarray | None,
    top: float,
    limit: int,
) -> _Card:
    """Chooses the slots of one bag to show and writes what stands above each."""
    slots = np.flatnonzero(mask)
    note = "" if len(slots) else "no\ninstance"
    if len(slots) > limit:
        if attention is not None:
            slots = slots[np.argsort(-attention[slots], kind="stable")]
        kept, hidden = slots[: limit - 1], slots[limit - 1 :]
        note = f"+{len(hidden)} more"
        if attention is not None:
            note += f"\n≤ {attention[hidden].max():.2g} each"
        slots = np.sort(kept)
    tiles = []
    for slot in slots:
        caption, strength = "", None
        if attention is not None:
            caption, strength = f"{attention[slot]:.2f}", min(float(attention[slot]) / top, 1.0)
            if spread is not None:
                caption += f" ± {spread[slot]:.2f}"
        tiles.append(_Tile(images[slot], caption, strength, positive is not None and bool(positive[slot])))
    return _Card(title, tiles, note)


def _sizes(cards: list[_Card], images: np.ndarray, has_weights: bool, has_marks: bool) -> _Sizes:
    """Widths and heights in inches, and how many cards stand side by side."""
    cells = min(max(card.cells for card in cards), TILES_PER_LINE)
    tiles_width = cells * (TILE + TILE_GAP) - TILE_GAP
    card_width = max([tiles_width, *(_text_width(card.title) for card in cards)])
    fitting = max(1, int((PAGE + CARD_GAP) / (card_width + CARD_GAP)))
    page_lines = math.ceil(len(cards) / fitting)
    return _Sizes(
        tile_height=TILE * images.shape[2] / images.shape[3],
        head=WEIGHT_LINE if has_weights else 0.0,
        foot=MARK_LINE if has_marks else 0.0,
        key=KEY_LINE if has_weights or has_marks else 0.0,
        card_width=card_width,
        card_columns=math.ceil(len(cards) / page_lines),
    )


def _text_width(text: str) -> float:
    """The width of a title in inches."""
    font = FontProperties(family="DejaVu Sans", size=TITLE_SIZE)
    return TextPath((0, 0), text, prop=font).get_extents().width / 72 if text.strip() else 0.0


def _lay_out(cards: list[_Card], sizes: _Sizes, heading: str) -> Figure:
    """A figure just as large as its cards, each card on axes whose unit is one inch."""
    rows = [cards[first : first + sizes.card_columns] for first in range(0, len(cards), sizes.card_columns)]
    row_heights = [TITLE_LINE + sizes.line * max(card.lines for card in row) for row in rows]
    heading_line = HEADING_LINE if heading else 0.0
    width = sizes.card_columns * (sizes.card_width + CARD_GAP) - CARD_GAP + 2 * MARGIN
    height = sum(row_heights) + heading_line + sizes.key + 2 * MARGIN
    # No layout engine: every position is known, and titles must not push images around.
    figure = Figure(figsize=(width, height))
    if heading:
        x, y = MARGIN / width, 1 - MARGIN / height
        figure.suptitle(heading, x=x, y=y, ha="left", va="top", weight="bold", size=11)
    row_top = height - MARGIN - heading_line
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, card in enumerate(row):
            card_height = sizes.line * card.lines
            left = MARGIN + column * (sizes.card_width + CARD_GAP)
            bottom = row_top - TITLE_LINE - card_height
            box = (left / width, bottom / height, sizes.card_width / width, card_height / height)
            _draw_card(figure.add_axes(box), card, sizes)
        row_top -= row_height
    return figure


def _draw_card(axes: Axes, card: _Card, sizes: _Sizes) -> None:
    axes.set_title(card.title, loc="left", pad=4, size=TITLE_SIZE)
    for cell, tile in enumerate(card.tiles):
        left, top = _corner(cell, sizes)
        _draw_tile(axes, tile, left, top, sizes.tile_height)
    if card.note:
        left, top = _corner(len(card.tiles), sizes)
        centre = (left + TILE / 2, top + sizes.tile_height / 2)
        axes.text(*centre, card.note, ha="center", va="center", size=7.5, color=GREY)
    # Last, because drawing an image resets the limits; y grows downwards.
    axes.set(xlim=(0, sizes.card_width), ylim=(sizes.line * card.lines, 0), aspect="equal")
    axes.axis("off")


def _corner(cell: int, sizes: _Sizes) -> tuple[float, float]:
    line, place = divmod(cell, TILES_PER_LINE)
    return place * (TILE + TILE_GAP), line * sizes.line + sizes.head


def _draw_tile(axes: Axes, tile: _Tile, left: float, top: float, height: float) -> None:
    right, bottom, centre = left + TILE, top + height, left + TILE / 2
    box = (left, right, bottom, top)
    axes.imshow(tile.image, extent=box, cmap="gray", vmin=0, vmax=1, aspect="auto", zorder=1)
    colour, width = weight_frame(tile.strength)
    frame = Rectangle((left, top), TILE, height, fill=False, edgecolor=colour, linewidth=width)
    frame.set(joinstyle="round", clip_on=False, zorder=2)
    axes.add_patch(frame)
    if tile.caption:
        weight = "bold" if tile.strength is not None and tile.strength >= 0.5 else "normal"
        axes.text(centre, top - 0.05, tile.caption, ha="center", va="bottom", size=8, weight=weight)
    if tile.positive:
        axes.plot(centre, bottom + 0.085, clip_on=False, **MARK)


def weight_frame(strength: float | None) -> tuple[str, float]:
    """Colour and width (points) of a frame."""
    if strength is None:
        return GREY, 0.8
    return to_hex(WEIGHT_COLOURS(strength)), 1.0 + 2.2 * strength


def _draw_key(figure: Figure, top: float | None, has_marks: bool) -> None:
    """Says at the bottom what frames and triangles mean."""
    handles: list[Patch | Line2D] = []
    if top is not None:
        for strength in (0.0, 0.5, 1.0):
            colour, width = weight_frame(strength)
            label = f"weight {strength * top:g}" if strength == 0 else f"{strength * top:g}"
            handles.append(Patch(facecolor="none", edgecolor=colour, linewidth=width, label=label))
    if has_marks:
        handles.append(Line2D([], [], linestyle="none", label="truly positive instance", **MARK))
    if handles:
        width, height = figure.get_size_inches()
        place = (MARGIN / width, MARGIN / height)
        look = {"handlelength": 1.0, "handleheight": 1.0, "borderaxespad": 0, "borderpad": 0.2}
        figure.legend(handles=handles, loc="lower left", bbox_to_anchor=place, ncols=4, fontsize=8, **look)


# --- Curves over epochs -------------------------------------------------------------------------


@_styled
def learning_curves(
    train_loss: Float[Values, "S E"],
    val_loss: Float[Values, "S E"],
    train_accuracy: Float[Values, "S E"],
    val_accuracy: Float[Values, "S E"],
    best_epoch: Int[Values, " S"],
) -> Figure:
    """Loss and accuracy over epochs, a thin line per member, the mean bold.

    The mean is solid while every member runs. From where some have stopped it is the mean of
    fewer members, so it is dotted, and it ends where fewer than half are left.

    Args:
        train_loss: nats per bag [S, E]; NaN after a member has stopped, here and below.
        val_loss: the same on the validation bags.
        train_accuracy: share of bags in 0..1 [S, E].
        val_accuracy: the same on the validation bags.
        best_epoch: [S], from 1; 0 where a member has none. Marked on the validation curves.

    Raises:
        InputError: there is no member or no epoch.
    """
    _check_curves("train_loss", np.asarray(train_loss))
    panels = (
        ("loss (nats per bag)", train_loss, val_loss, (0.0, None)),
        ("accuracy (share of bags)", train_accuracy, val_accuracy, (None, 1.0)),
    )
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    for axes, (label, *curves, bounds) in zip(figure.subplots(1, 2), panels, strict=True):
        train, val = (np.asarray(values) for values in curves)
        _draw_members(axes, train, TRAINING)
        _draw_members(axes, val, VALIDATION)
        _mark_best(axes, val, np.asarray(best_epoch), VALIDATION)
        _finish_epochs(axes, label, bounds, train, val)
    colours = {"training": TRAINING, "validation": VALIDATION}
    _curve_legend(figure, colours, np.asarray(val_loss))
    return figure


@_styled
def attention_curves(
    curves: Mapping[str, tuple[Float[Values, "S E"], Float[Values, "S E"]]],
    best_epoch: Int[Values, " S"],
) -> Figure:
    """Attention statistics over epochs, a panel each, positive against negative bags.

    Args:
        curves: the statistic's name, which becomes the y label, to its values on positive and on
            negative bags, [S, E] each; NaN where a member did not run, or where a statistic has no
            meaning (the mass on positive instances of a negative bag).
        best_epoch: [S], from 1; 0 where a member has none. Marked on both curves.

    Raises:
        InputError: there is no curve, no member or no epoch.
    """
    if not curves:
        raise InputError("curves", dict(curves), "give at least one statistic")
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(0.8 + 2.9 * columns, 0.5 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    every = []
    for (name, pair), axes in zip(curves.items(), panels, strict=False):
        positive, negative = (np.asarray(values) for values in pair)
        _check_curves(f"curves[{name!r}]", positive)
        for values, colour in ((negative, NEGATIVE), (positive, POSITIVE)):
            _draw_members(axes, values, colour)
            _mark_best(axes, values, np.asarray(best_epoch), colour)
            every.append(values)
        _finish_epochs(axes, name, _natural_bounds(positive, negative), positive, negative)
    for axes in panels:  # what the zip above has left over
        axes.remove()
    _curve_legend(figure, {"positive bags": POSITIVE, "negative bags": NEGATIVE}, *every)
    return figure


def _check_curves(argument: str, values: np.ndarray) -> None:
    if values.ndim != 2 or 0 in values.shape:
        remedy = "give [S, E] with at least one member and one epoch"
        raise InputError(f"{argument}.shape", values.shape, remedy)


def _draw_members(axes: Axes, values: np.ndarray, colour: str) -> None:
    """Members thin and translucent, their mean bold; a single member is its own mean."""
    epochs = np.arange(1, values.shape[1] + 1)
    finite = np.isfinite(values)
    if not finite.any():
        return
    # A line through one point is invisible: that point needs a dot.
    dot = "o" if (finite.sum(axis=1) == 1).any() else None
    if len(values) > 1:
        look = {"color": colour, "alpha": _member_alpha(len(values)), "linewidth": 0.8, "zorder": 2}
        thin = np.where(finite, values, np.nan).T
        axes.plot(epochs, thin, **look, marker=dot, markersize=2.5, gid="member")
    mean, running = _mean_of_running(values), finite.sum(axis=0)
    everybody, half = running == running.max(), running >= running.max() / 2
    bold = {"color": colour, "linewidth": 2.0, "zorder": 4, "gid": "mean"}
    if len(values) > 1:
        bold["path_effects"] = [withStroke(linewidth=3.6, foreground="white")]
    axes.plot(epochs, np.where(everybody, mean, np.nan), **bold, marker=dot, markersize=4)
    if _some_stopped(values):
        # From the last epoch with everybody, so that the two parts join.
        shown = half & (epochs >= epochs[everybody].max())
        axes.plot(epochs[shown], mean[shown], **bold | {"linestyle": DOTTED, "gid": "mean of some"})


def _member_alpha(members: int) -> float:
    return max(0.18, min(0.8, 1.2 / math.sqrt(max(members, 1))))


def _mean_of_running(values: np.ndarray) -> np.ndarray:
    """The mean over the members that ran an epoch, [E]; NaN where none did."""
    finite = np.isfinite(values)
    total, count = np.where(finite, values, 0).sum(axis=0), finite.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _some_stopped(values: np.ndarray) -> bool:
    """Whether an epoch was run by some members but not by as many as ran another."""
    running = np.isfinite(values).sum(axis=0)
    return bool((running[running > 0] < running.max()).any())


def _mark_best(axes: Axes, values: np.ndarray, best_epoch: np.ndarray, colour: str) -> None:
    """A dot on each member's curve at its best epoch."""
    members = np.flatnonzero((best_epoch >= 1) & (best_epoch <= values.shape[1]))
    epochs = best_epoch[members]
    heights = values[members, epochs - 1]
    seen = np.isfinite(heights)
    if seen.any():
        size = 6.5 if len(values) == 1 else 3.8 if len(values) <= 16 else 2.8
        look = {"markerfacecolor": colour, "markeredgecolor": BLACK, "markeredgewidth": size / 9}
        look |= {
            "color": colour,
            "linestyle": "none",
            "markersize": size,
            "zorder": 5,
            "gid": "best epoch",
        }
        axes.plot(epochs[seen], heights[seen], marker="o", **look)


def _natural_bounds(*curves: np.ndarray) -> tuple[float | None, float | None]:
    """Where a statistic can lie: in 0..1, from 1 (a number of instances), from 0 or anywhere."""
    values = np.concatenate(curves)
    held = values[np.isfinite(values)]
    low, high = held.min(initial=np.inf), held.max(initial=-np.inf)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return next((bound for bound in (1.0, 0.0) if low >= bound), None), None


def _finish_epochs(axes: Axes, y_label: str, bounds: tuple[float | None, float | None], *curves: np.ndarray) -> None:
    """Labels, whole epochs on the x axis up to the last one run, and y limits.

    ``bounds`` are ends of the y axis that hold wherever the values do not break them.
    """
    values = np.concatenate(curves)
    finite = np.isfinite(values)
    last = int(np.flatnonzero(finite.any(axis=0)).max(initial=0)) + 1
    axes.set(xlabel="epoch", ylabel=y_label, xlim=(0.5, last + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    if not finite.any():
        axes.set_ylim(0, 1)
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=GREY)
        return
    floor, ceiling = (np.nan if bound is None else bound for bound in bounds)
    low, high = np.fmin(values[finite].min(), floor), np.fmax(values[finite].max(), ceiling)
    room = 0.04 * max(high - low, 0.02)
    axes.set_ylim(low - room, high + room)


def _curve_legend(figure: Figure, colours: Mapping[str, str], *curves: np.ndarray) -> None:
    """One line above the panels, where no curve can be."""
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    if len(curves[0]) > 1:
        handles.append(Line2D([], [], color=GREY, alpha=0.6, linewidth=0.8, label="one member"))
        if any(_some_stopped(values) for values in curves):
            label = "mean of members still running"
            handles.append(Line2D([], [], color=GREY, linestyle=DOTTED, label=label))
    dot = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": BLACK, "markersize": 5}
    handles.append(Line2D([], [], linestyle="none", **dot, label="best epoch"))
    narrow = figure.get_size_inches()[0] < 5
    figure.legend(handles=handles, loc="outside upper center", ncols=2 if narrow else len(handles))


# --- Scores -------------------------------------------------------------------------------------


@_styled
def confusion_matrix(counts: Int[Values, "C C"], class_names: Sequence[str]) -> Figure:
    """Counts and row percentages; a row is a true class, a column a predicted one.

    Args:
        counts: [C, C], truth by prediction.
        class_names: one per class; long ones are wrapped.

    Raises:
        InputError: names are not one per class.
    """
    counts = np.asarray(counts)
    total = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(total, 1)
    texts = [[f"{count}" for count in row] for row in counts]
    for row, column in np.argwhere(np.broadcast_to(total > 0, counts.shape)):
        texts[row][column] += f"\n{100 * shares[row, column]:.1f} %"
    figure, axes = _cells_figure(len(counts), len(counts), colour_bar=False, roomy=True)
    _draw_cells(axes, shares, (0.0, 1.0), texts, class_names, class_names)
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


@_styled
def heat_map(
    values: Float[Values, "R C"],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    row_title: str,
    column_title: str,
    colour_label: str,
    annotate: bool = True,
    number_format: str = ".3g",
) -> Figure:
    """A table of numbers as colours, dark for large.

    Args:
        values: [R, C]; NaN cells stay empty.
        row_labels: one per row.
        column_labels: one per column.
        row_title: what the rows are, with units.
        column_title: what the columns are, with units.
        colour_label: what the values are, with units.
        annotate: whether to print each value in its cell.
        number_format: how, as after the colon of an f-string.

    Raises:
        InputError: labels are not one per row or column.
    """
    values = np.asarray(values, dtype=np.float64)
    texts = [[format(v, number_format) if np.isfinite(v) else "" for v in row] for row in values]
    held = values[np.isfinite(values)]
    limits = (float(held.min()), float(held.max())) if held.size else (0.0, 1.0)
    figure, axes = _cells_figure(*values.shape, colour_bar=True, roomy=annotate)
    mesh = _draw_cells(axes, values, limits, texts if annotate else None, row_labels, column_labels)
    axes.set(xlabel=column_title, ylabel=row_title)
    bar = figure.colorbar(mesh, ax=axes, label=colour_label, shrink=0.9, aspect=18)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def _cells_figure(rows: int, columns: int, colour_bar: bool, roomy: bool) -> tuple[Figure, Axes]:
    few = max(rows, columns) <= 6
    side = (0.85 if few else 0.6) if roomy else 0.35
    width = min(max(side * columns, 1.7), 11) + 1.3 + 0.9 * colour_bar
    figure = Figure(figsize=(width, min(max(side * rows, 1.7), 11) + 0.9), layout="constrained")
    return figure, figure.subplots()


def _draw_cells(
    axes: Axes,
    values: np.ndarray,
    limits: tuple[float, float],
    texts: list[list[str]] | None,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
):
    """Coloured cells, the first row on top, with a text in each."""
    rows, columns = values.shape
    for argument, labels, count in (("row", row_labels, rows), ("column", column_labels, columns)):
        if len(labels) != count:
            remedy = f"give {count}, one per {argument}"
            raise InputError(f"{argument} labels", list(labels), remedy)
    low, high = limits
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(values),
        cmap=CELL_COLOURS,
        vmin=low,
        vmax=high if high > low else low + 1,
        edgecolors="white",
        linewidth=1.2,
    )
    for row, column in np.ndindex(rows, columns) if texts else ():
        dark = np.isfinite(values[row, column]) and values[row, column] > low + 0.5 * (high - low)
        look = {"color": "white" if dark else BLACK, "size": 9 if max(rows, columns) <= 6 else 6.5}
        text = texts[row][column] if texts else ""
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", **look)
    # Long names lean, so that neighbours do not run into each other.
    lean = max(map(len, column_labels)) > (9 if columns <= 6 else 4)
    axes.set_xticks(
        np.arange(columns) + 0.5,
        [textwrap.fill(label, 22) for label in column_labels],
        rotation=35 if lean else 0,
        ha="right" if lean else "center",
        rotation_mode="anchor" if lean else "default",
    )
    axes.set_yticks(np.arange(rows) + 0.5, [textwrap.fill(label, 22) for label in row_labels])
    axes.set(ylim=(rows, 0), aspect="equal")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return mesh


@_styled
def roc_curves(members: Sequence[Curve], ensemble: Curve, auc_members: Sequence[float], auc_ensemble: float) -> Figure:
    """True against false positive rate; where the curves hug the corner, the corner is enlarged.

    Args:
        members: (false positive rate, true positive rate) of each member, rising, [points] each.
        ensemble: the same of the ensemble.
        auc_members: area under each member's curve.
        auc_ensemble: area under the ensemble's curve.
    """
    return _rates_figure(
        [(np.asarray(fpr), np.asarray(tpr)) for fpr, tpr in members],
        (np.asarray(ensemble[0]), np.asarray(ensemble[1])),
        _area_label("AUC", auc_members, auc_ensemble),
        names=(
            "false positive rate (share of negative bags)",
            "true positive rate (share of positive bags)",
        ),
        reference=("chance", (0.0, 1.0)),
        corner=0.0,
        draw_style="default",
    )


@_styled
def precision_recall_curves(
    members: Sequence[Curve],
    ensemble: Curve,
    ap_members: Sequence[float],
    ap_ensemble: float,
    prevalence: float,
) -> Figure:
    """Precision against recall, in steps; where the curves hug the corner, the corner is enlarged.

    The steps are those of average precision, AP = sum over n of (R_n - R_{n-1}) P_n: between two
    recalls the precision is that of the higher one.

    Args:
        members: (recall, precision) of each member, recall rising or falling, [points] each.
        ensemble: the same of the ensemble.
        ap_members: average precision of each member.
        ap_ensemble: average precision of the ensemble.
        prevalence: share of positive bags, the precision of guessing.
    """
    return _rates_figure(
        [_rising(*curve) for curve in members],
        _rising(*ensemble),
        _area_label("AP", ap_members, ap_ensemble),
        names=("recall (share of positive bags)", "precision (share of bags called positive)"),
        reference=(f"prevalence {prevalence:.3f}", (prevalence, prevalence)),
        corner=1.0,
        draw_style="steps-pre",
    )


def _rising(recall: Values, precision: Values) -> tuple[np.ndarray, np.ndarray]:
    recall, precision = np.asarray(recall), np.asarray(precision)
    return (recall, precision) if recall[0] <= recall[-1] else (recall[::-1], precision[::-1])


def _area_label(name: str, members: Sequence[float], ensemble: float) -> tuple[str, str]:
    """Legend texts of the members and of the ensemble."""
    if len(members) <= 1:
        return "", f"{'one member' if members else 'ensemble'}, {name} {ensemble:.4f}"
    low, mean, high = min(members), sum(members) / len(members), max(members)
    text = f"{len(members)} members, {name} {mean:.4f} on average ({low:.4f} to {high:.4f})"
    return text, f"ensemble, {name} {ensemble:.4f}"


def _rates_figure(
    members: list[tuple[np.ndarray, np.ndarray]],
    ensemble: tuple[np.ndarray, np.ndarray],
    labels: tuple[str, str],
    names: tuple[str, str],
    reference: tuple[str, tuple[float, float]],
    corner: float,
    draw_style: str,
) -> Figure:
    """Curves in the unit square, and beside it their corner at (``corner``, 1)."""
    size = _corner_size([*members, ensemble], corner)
    panels = 1 if size is None else 2
    figure = Figure(figsize=(4.1 * panels, 4.6 if panels == 1 else 4.3), layout="constrained")
    all_axes = list(figure.subplots(1, panels, squeeze=False).flat)
    for axes in all_axes:
        axes.plot((0, 1), reference[1], color=GREY, linewidth=1, linestyle=DASHED)
        look = {"color": MEMBER, "alpha": _member_alpha(len(members)), "linewidth": 0.9}
        for curve in members if len(members) > 1 else ():
            axes.plot(*curve, **look, drawstyle=draw_style, gid="member")
        look = {"color": ENSEMBLE, "linewidth": 2.0, "solid_joinstyle": "miter"}
        axes.plot(*ensemble, **look, drawstyle=draw_style, gid="ensemble")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=names[0], ylabel=names[1])
        axes.set_aspect("equal", adjustable="box")
    if size is not None:
        _enlarge_corner(all_axes[0], all_axes[1], corner, size)
    handles = [Line2D([], [], color=ENSEMBLE, linewidth=2.0, label=labels[1])]
    if len(members) > 1:
        handles.append(Line2D([], [], color=MEMBER, linewidth=0.9, label=labels[0]))
    handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle=DASHED, label=reference[0]))
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if panels == 2 else 1)
    return figure


def _corner_size(curves: list[tuple[np.ndarray, np.ndarray]], corner: float) -> float | None:
    """The side of the square to enlarge, or None where most curves stay away from the corner."""
    distances = [np.maximum(np.abs(x - corner), 1 - y).min(initial=1.0) for x, y in curves]
    return next((size for size in (0.05, 0.1, 0.2, 0.3) if np.median(distances) <= size / 3), None)


def _enlarge_corner(whole: Axes, enlarged: Axes, corner: float, size: float) -> None:
    room = 0.03 * size
    left, bottom = corner * (1 - size), 1 - size
    x_limits = (-room, size) if corner == 0 else (left, 1 + room)
    enlarged.set(xlim=x_limits, ylim=(bottom, 1 + room), title="the corner, enlarged")
    frame = {"fill": False, "edgecolor": GREY, "linewidth": 0.8, "zorder": 1.5}
    whole.add_patch(Rectangle((left, bottom), size, size, **frame))


@_styled
def reliability_diagram(
    confidence: Float[Values, " bins"],
    accuracy: Float[Values, " bins"],
    count: Num[Values, " bins"],
    ece: float,
) -> Figure:
    """How often predictions of a confidence are right, and how many there are of each.

    Bars of one standard error, sqrt(p (1 - p) / n), tell a gap from noise (Guo et al. 2017).

    Args:
        confidence: mean probability of the predicted class in each bin.
        accuracy: share of right predictions in each bin.
        count: bags in each bin; empty bins are left out, whatever their other values.
        ece: expected calibration error, printed.
    """
    count = np.asarray(count)
    held = count > 0
    x, y, n = np.asarray(confidence)[held], np.asarray(accuracy)[held], count[held]
    error = np.sqrt(np.clip(y * (1 - y), 0, None) / n)
    lowest = min(x.min(initial=0.9), (y - error).min(initial=0.9))
    low = max(0.0, math.floor(10 * lowest) / 10)
    limits = (low - 0.02 * (1 - low), 1 + 0.02 * (1 - low))
    figure = Figure(figsize=(4.2, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DASHED, label="calibrated")
    upper.vlines(x, x, y, color=ORANGE, alpha=0.5, linewidth=6, label=f"gap (ECE {ece:.3f})")
    look = {"fmt": "o", "color": BLUE, "markersize": 5, "elinewidth": 1}
    upper.errorbar(x, y, error, **look, label="± std. error")
    upper.set(ylabel="accuracy (share of bags)", xlim=limits, ylim=limits)
    upper.tick_params(labelbottom=False)
    lower.vlines(x, 0.5, n, color=BLUE, linewidth=4)
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="bags in bin")
    decades = 10 ** np.arange(math.ceil(math.log10(max(n.max(initial=1), 2))) + 1)
    lower.set(yscale="log", ylim=(0.5, 1.5 * decades[-1]))
    lower.set_yticks(decades, [f"{decade}" for decade in decades])
    lower.yaxis.set_minor_locator(NullLocator())
    handles, names = upper.get_legend_handles_labels()
    spacing = {"columnspacing": 1.2, "handletextpad": 0.5}
    figure.legend(handles, names, loc="outside upper center", ncols=3, **spacing)
    return figure


@_styled
def attention_histogram(
    attention_positive_instances: Float[Values, " positives"],
    attention_negative_instances: Float[Values, " negatives"],
) -> Figure:
    """How weights are spread over the positive and over the negative instances of positive bags.

    Args:
        attention_positive_instances: weights in 0..1 of the instances that make a bag positive.
        attention_negative_instances: weights of the other instances of the same bags.
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    groups = (
        ("negative instances", np.asarray(attention_negative_instances), NEGATIVE),
        ("positive instances", np.asarray(attention_positive_instances), POSITIVE),
    )
    edges = np.linspace(0, 1, 41)
    for name, weights, colour in groups:
        counts, _ = np.histogram(np.clip(weights, 0, 1), edges)
        shares = 100 * counts / max(len(weights), 1)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.3)
        label = f"{name} (n = {len(weights)})"
        axes.stairs(shares, edges, color=colour, linewidth=1.4, label=label)
    axes.set(xlabel="attention weight", ylabel="instances of the group (%)", xlim=(-0.01, 1.01))
    axes.set_ylim(bottom=0)
    handles, texts = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], texts[::-1], loc="outside upper center", ncols=2)
    return figure


@_styled
def patch_map(
    patches: UInt8[np.ndarray, "K h w 3"],
    position: Float[Values, "K 2"],
    weight: Float[Values, " K"],
    truth: Bool[Values, " K"],
    heading: str,
) -> Figure:
    """An image as its patches at their places: all, the truly positive ones, and all weighted by attention.

    As in the figures of Ilse et al. 2018: a patch is multiplied by its weight, rescaled to 0 … 1 over the image.

    Args:
        patches: [K, h, w, 3].
        position: [K, 2] of the patches' centres, x before y, in pixels.
        weight: [K] attention.
        truth: [K] which instances are positive.
        heading: above everything.
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
    half = np.array(patches.shape[1:3]) // 2
    corner = np.rint(position[:, ::-1]).astype(int) - half
    corner -= corner.min(axis=0)
    canvas = np.zeros((*(corner.max(axis=0) + patches.shape[1:3]), 3), np.uint8)
    for i in np.argsort(strength, kind="stable"):
        (top, left), (height, width) = corner[i], patches.shape[1:3]
        canvas[top : top + height, left : left + width] = patches[i] * strength[i]
    return canvas


# --- Series for any experiment ------------------------------------------------------------------


@_styled
def lines_with_band(
    x: Num[Values, " X"],
    series: Mapping[str, tuple[Num[Values, " X"], Num[Values, " X"], Num[Values, " X"]]],
    x_label: str,
    y_label: str,
    log_x: bool = False,
) -> Figure:
    """Lines, each in a band of its colour.

    Args:
        x: [X].
        series: name to (middle, low, high), [X] each; a gap where the middle is not finite.
        x_label: with units.
        y_label: with units.
        log_x: whether x is on a logarithmic scale, with a tick for each value if they are few.
    """
    x = np.asarray(x)
    figure, axes = _series_figure(x_label, y_label)
    for number, (name, (middle, low, high)) in enumerate(series.items()):
        _draw_band(axes, number, name, x, middle, low, high)
    if log_x:
        _log_x(axes, x)
    _series_legend(figure, axes)
    return figure


@_styled
def panels_with_band(
    x: Num[Values, " X"],
    panels: Mapping[str, Mapping[str, tuple[Num[Values, " X"], Num[Values, " X"], Num[Values, " X"]]]],
    x_label: str,
    log_x: bool = False,
) -> Figure:
    """`lines_with_band` for several quantities of the same things, a panel each, under one legend.

    Args:
        x: [X].
        panels: the y label, with units, to its series; a series is a name to (middle, low, high), [X] each. A name
            has one look in all panels.
        x_label: with units.
        log_x: whether x is on a logarithmic scale, with a tick for each value if they are few.

    Raises:
        InputError: there is no panel.
    """
    figure, grid = _panel_grid(panels)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    for (y_label, series), axes in zip(panels.items(), grid, strict=True):
        axes.set(xlabel=x_label, ylabel=y_label)
        for name, (middle, low, high) in series.items():
            _draw_band(axes, names.index(name), name, np.asarray(x), middle, low, high)
        if log_x:
            _log_x(axes, np.asarray(x))
    if len(names) > 1:
        handles = [Line2D([], [], **_series_look(number), label=name) for number, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(names), 5))
    return figure


@_styled
def seeds_by_group(
    panels: Mapping[str, Mapping[str, tuple[Float[Values, " S"], float, float]]], join: bool = False
) -> Figure:
    """What each seed scored in each group, and the mean with its interval, a panel for each score.

    Args:
        panels: the score, which becomes the y label, to its groups; a group is a name to the values of its seeds [S]
            and the ends of the interval of their mean. Values that are not finite are left out.
        join: whether a thin line joins the values of the same seed, which stand at the same place in all groups.

    Raises:
        InputError: there is no panel.
    """
    figure, grid = _panel_grid(panels)
    for (y_label, groups), axes in zip(panels.items(), grid, strict=True):
        columns = [np.asarray(values, np.float64) for values, _, _ in groups.values()]
        if join:
            axes.plot(np.arange(len(columns)), np.stack(columns), color=LIGHT_GREY, linewidth=0.7, zorder=1)
        for place, (values, (_, low, high)) in enumerate(zip(columns, groups.values(), strict=True)):
            # Spread over a narrow strip in a fixed order: the same input gives the same pixels.
            strip = place + (0 if join else 0.3) * (np.arange(len(values)) / max(len(values) - 1, 1) - 0.5)
            axes.plot(strip, values, "o", color=MEMBER, alpha=0.6, markersize=3, markeredgewidth=0, zorder=2)
            held = values[np.isfinite(values)]
            mean = held.mean() if held.size else np.nan
            axes.vlines(place, low, high, color=BLUE, linewidth=2.2, zorder=3)
            axes.plot(place, mean, "D", color=BLUE, markersize=5, markeredgecolor="white", zorder=4)
        axes.set(ylabel=y_label, xlim=(-0.5, len(columns) - 0.5))
        axes.set_xticks(np.arange(len(columns)), [textwrap.fill(name, 14) for name in groups])
    dot = Line2D([], [], linestyle="none", marker="o", color=MEMBER, markersize=4, label="one seed")
    mark = Line2D([], [], color=BLUE, marker="D", markeredgecolor="white", label="mean with its 95 % interval")
    figure.legend(handles=[dot, mark], loc="outside upper center", ncols=2)
    return figure


def _panel_grid(panels: Mapping[str, Any]) -> tuple[Figure, list[Axes]]:
    """A figure with an axes for each panel, at most three side by side."""
    if not panels:
        raise InputError("panels", dict(panels), "give at least one")
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(0.6 + 3.1 * columns, 0.5 + 2.6 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure, grid[: len(panels)]


@_styled
def loglog_lines(x: Num[Values, " X"], series: Mapping[str, Num[Values, " X"]], x_label: str, y_label: str) -> Figure:
    """Lines on logarithmic scales, where a power law is straight.

    Args:
        x: [X], positive.
        series: name to values [X]; values that are not positive are left out.
        x_label: with units.
        y_label: with units.
    """
    x = np.asarray(x)
    figure, axes = _series_figure(x_label, y_label)
    for number, (name, values) in enumerate(series.items()):
        heights = np.asarray(values, dtype=np.float64)
        axes.plot(x, np.where(heights > 0, heights, np.nan), **_series_look(number), label=name)
    axes.set_yscale("log")
    _log_x(axes, x)
    _series_legend(figure, axes)
    return figure


def _series_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes


def _draw_band(axes: Axes, number: int, name: str, x: np.ndarray, middle: Values, low: Values, high: Values) -> None:
    """The line of the n-th series, in a band of its colour."""
    look = _series_look(number)
    axes.plot(x, np.asarray(middle), **look, label=name)
    axes.fill_between(x, np.asarray(low), np.asarray(high), color=look["color"], alpha=0.18, linewidth=0)


def _series_look(number: int) -> dict:
    """A colour and a marker; after all colours are used, the line is dashed."""
    turn, place = divmod(number, len(SERIES_COLOURS))
    style = "-" if turn % 2 == 0 else DASHED
    colour, marker = SERIES_COLOURS[place], SERIES_MARKERS[place]
    return {"color": colour, "marker": marker, "linestyle": style, "markersize": 4.5}


def _log_x(axes: Axes, x: np.ndarray) -> None:
    axes.set_xscale("log")
    if len(x) <= 8:
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.xaxis.set_minor_locator(NullLocator())


def _series_legend(figure: Figure, axes: Axes) -> None:
    """Above the axes while it is short, else beside them; never on a line."""
    handles, names = axes.get_legend_handles_labels()
    short = len(names) <= 4 and sum(map(len, names)) <= 44
    if short:
        figure.legend(handles, names, loc="outside upper center", ncols=4)
    else:
        figure.legend(handles, names, loc="outside right upper")
