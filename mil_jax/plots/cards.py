"""Bags as cards: where each instance stands on the page, and how it is drawn. All lengths are in inches."""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.textpath import TextPath

from mil_jax.plots.style import BLACK, GREY, LIGHT_GREY, Pair, key, weight_frame

TILE, BAR_WIDTH, BAR_HEIGHT = 0.78, 0.36, 0.66
BARS_KEY = 5.6  # the least width of a figure of bars, whose key is long
WEIGHT_LINE, MARK_LINE, LINE_GAP = 0.19, 0.14, 0.06
TITLE_LINE, HEADING_LINE, KEY_LINE = 0.26, 0.29, 0.32
CARD_GAP, MARGIN, PAGE = 0.42, 0.14, 9.6
TITLE_SIZE = 9  # points
MARK = {"marker": "^", "color": BLACK, "markersize": 4.5}


class Instances(NamedTuple):
    """What is known of the instances, [B, K, ...] each or None; ``top`` is the weight at the end of the scale."""

    images: np.ndarray | None
    weight: np.ndarray | None
    spread: np.ndarray | None
    positive: np.ndarray | None
    top: float


class Card(NamedTuple):
    """One bag as it is drawn: the slots that are shown, -1 where the note stands."""

    title: str
    bag: int
    slots: list[int]
    note: str


class Sizes(NamedTuple):
    """What all cards of a figure share; ``head`` is the room above a tile, ``line`` its height with all around it."""

    tile: Pair
    gap: float
    per_line: int
    head: float
    line: float
    least_width: float


def draw_cards(cards: list[Card], instances: Instances, heading: str) -> Figure:
    """A figure just as large as its cards, each card on axes whose unit is one inch."""
    sizes = _sizes(instances)
    card_width, columns = _columns(cards, sizes)
    rows = [cards[first : first + columns] for first in range(0, len(cards), columns)]
    row_heights = [TITLE_LINE + max(_height(card, sizes) for card in row) for row in rows]
    heading_line = HEADING_LINE if heading else 0.0
    key_line = 0.0 if instances.weight is None and instances.positive is None else KEY_LINE
    width = max(columns * (card_width + CARD_GAP) - CARD_GAP + 2 * MARGIN, sizes.least_width)
    height = sum(row_heights) + heading_line + key_line + 2 * MARGIN
    # No layout engine: every position is known, and titles must not push images around.
    figure = Figure(figsize=(width, height))
    if heading:
        figure.suptitle(heading, x=MARGIN / width, y=1 - MARGIN / height, ha="left", va="top", weight="bold", size=11)
    row_top = height - MARGIN - heading_line
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, card in enumerate(row):
            left, card_height = MARGIN + column * (card_width + CARD_GAP), _height(card, sizes)
            bottom = row_top - TITLE_LINE - card_height
            axes = figure.add_axes((left / width, bottom / height, card_width / width, card_height / height))
            _draw_card(axes, card, instances, sizes)
            # Last, because drawing an image resets the limits; y grows downwards.
            axes.set(xlim=(0, card_width), ylim=(card_height, 0), aspect="equal")
        row_top -= row_height
    _draw_key(figure, instances)
    return figure


def _sizes(instances: Instances) -> Sizes:
    """Images have their own shape; bars are narrow, so that more stand in a line, and squares without weights."""
    images, has_weight = instances.images, instances.weight is not None
    if images is None:
        tile, gap, per_line, width = (BAR_WIDTH, BAR_HEIGHT if has_weight else BAR_WIDTH), 0.1, 20, BARS_KEY
    else:
        tile, gap, per_line, width = (TILE, TILE * images.shape[2] / images.shape[3]), 0.13, 10, 0.0
    head = WEIGHT_LINE if has_weight else 0.0
    foot = 0.0 if instances.positive is None else MARK_LINE
    return Sizes(tile, gap, per_line, head, head + tile[1] + foot + LINE_GAP, width)


def _height(card: Card, sizes: Sizes) -> float:
    return sizes.line * math.ceil(len(card.slots) / sizes.per_line)


def _columns(cards: list[Card], sizes: Sizes) -> tuple[float, int]:
    """The width of a card, and how many stand side by side."""
    font = FontProperties(family="DejaVu Sans", size=TITLE_SIZE)
    titles = [TextPath((0, 0), card.title, prop=font).get_extents() for card in cards if card.title.strip()]
    cells = min(max(len(card.slots) for card in cards), sizes.per_line)
    card_width = max([cells * (sizes.tile[0] + sizes.gap) - sizes.gap, *(title.width / 72 for title in titles)])
    fitting = max(1, int((PAGE + CARD_GAP) / (card_width + CARD_GAP)))
    page_lines = math.ceil(len(cards) / fitting)
    return card_width, math.ceil(len(cards) / page_lines)


def _draw_card(axes: Axes, card: Card, instances: Instances, sizes: Sizes) -> None:
    axes.axis("off")
    # With y given, matplotlib does not make ticks only to see whether they are in the title's way.
    axes.set_title(card.title, loc="left", pad=4, y=1.0, size=TITLE_SIZE)
    for cell, slot in enumerate(card.slots):
        line, place = divmod(cell, sizes.per_line)
        left, top = place * (sizes.tile[0] + sizes.gap), line * sizes.line + sizes.head
        if slot < 0:
            centre = (left + sizes.tile[0] / 2, top + sizes.tile[1] / 2)
            note = card.note if instances.images is not None else card.note.replace(" ", "\n")
            axes.text(*centre, note, ha="center", va="center", size=7.5, color=GREY)
        else:
            _draw_tile(axes, instances, (card.bag, slot), (left, top), sizes.tile)


def _draw_tile(axes: Axes, shown: Instances, at: tuple[int, int], corner: Pair, size: Pair) -> None:
    """One instance: an image in its frame or a bar in its box, the weight above and the mark below."""
    (left, top), (width, height) = corner, size
    centre, bottom = left + width / 2, top + height
    weight = None if shown.weight is None else float(shown.weight[at])
    strength = None if weight is None else min(weight / shown.top, 1.0)
    spread = None if shown.spread is None else float(shown.spread[at])
    caption = "" if weight is None else f"{weight:.2f}"
    colour, points = weight_frame(strength)
    if shown.images is not None:
        box = (left, left + width, bottom, top)
        axes.imshow(shown.images[at], extent=box, cmap="gray", vmin=0, vmax=1, aspect="auto", zorder=1)
        caption += "" if spread is None else f" ± {spread:.2f}"
    elif weight is not None and strength is not None:
        axes.add_patch(Rectangle((left, bottom), width, -strength * height, color=colour, linewidth=0))
        colour, points = LIGHT_GREY, 0.8
        if spread is not None:
            ends = bottom - height * np.clip([(weight - spread) / shown.top, (weight + spread) / shown.top], 0, 1)
            axes.plot([centre, centre], ends, color=BLACK, linewidth=1.1, solid_capstyle="butt")
    frame = Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=points)
    frame.set(joinstyle="round", clip_on=False, zorder=2)
    axes.add_patch(frame)
    if caption:
        face = "bold" if strength is not None and strength >= 0.5 else "normal"
        axes.text(centre, top - 0.05, caption, ha="center", va="bottom", size=8, weight=face)
    if shown.positive is not None and shown.positive[at]:
        axes.plot(centre, bottom + 0.085, clip_on=False, **MARK)


def _draw_key(figure: Figure, shown: Instances) -> None:
    """Says at the bottom what colours, whiskers and triangles mean."""
    handles: list[Patch | Line2D] = []
    for strength in (0.0, 0.5, 1.0) if shown.weight is not None else ():
        colour, points = weight_frame(strength)
        label = f"{strength * shown.top:g}" if strength else "weight 0"
        fill = "none" if shown.images is not None else colour
        handles.append(Patch(facecolor=fill, edgecolor=colour, linewidth=points, label=label))
    if shown.images is None and shown.spread is not None:
        handles.append(key("± standard deviation", linestyle="none", marker="|", markersize=9, color=BLACK))
    if shown.positive is not None:
        handles.append(key("truly positive instance", linestyle="none", **MARK))
    if handles:
        width, height = figure.get_size_inches()
        place = (MARGIN / width, MARGIN / height)
        look = {"handlelength": 1.0, "handleheight": 1.0, "borderaxespad": 0, "borderpad": 0.2}
        figure.legend(handles=handles, loc="lower left", bbox_to_anchor=place, ncols=5, fontsize=8, **look)
