"""The gallery of a report: bags as cards, each instance one small element, in orders that a click chooses.

Thousands of cards stay light because an instance is a single element whose image is a window on a sheet of all
images, because numbers stand in the page once, and because the browser lays out only the cards in view.

Axes: B bags, K slots per bag, S members, C classes.
"""

import dataclasses
import json
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from mil_jax.attention import attention_stats, member_agreement
from mil_jax.plots import weight_frame, weight_scale
from mil_jax.report.parts import Gallery
from mil_jax.report.sprites import Sprites, are_images, make_sprites

MOST_TILES = 60_000  # instances in a gallery; fewer per bag are shown where there would be more
MOST_PER_BAG, FEWEST_PER_BAG = 24, 3
TILES_PER_LINE = 7  # at least, where the page is wide enough
TILE, LARGE, GAP, NARROWEST = 64, 84, 8, 264  # CSS pixels
FEW_TILES = 4  # up to so many in every bag, they are large
LEVELS = 20  # steps from no weight to the largest
BAGS_AT_ONCE = 64


class Facts(NamedTuple):
    """What is said of each bag ``[B]`` and of each slot ``[B, K]``; not a number where a weight is none.

    Attributes:
        prediction: class with the largest mean probability.
        certainty: its mean probability.
        certainty_spread: standard deviation of that over members, divided by S - 1; 0 for one member.
        wrong: whether it is not the label.
        entropy: normalised entropy of the mean weights.
        disagreement: Jensen-Shannon divergence of the members' weights, in nats.
        weight: mean weight.
        spread: its standard deviation over members.
    """

    prediction: np.ndarray
    certainty: np.ndarray
    certainty_spread: np.ndarray
    wrong: np.ndarray
    entropy: np.ndarray
    disagreement: np.ndarray
    weight: np.ndarray
    spread: np.ndarray


def on_host(gallery: Gallery) -> Gallery:
    """The gallery with NumPy's arrays: reading single bags from JAX's would take long."""
    values = {field.name: getattr(gallery, field.name) for field in dataclasses.fields(gallery)}
    arrays = {name: np.asarray(value) for name, value in values.items() if not isinstance(value, str)}
    return dataclasses.replace(gallery, **arrays)


def gallery_facts(gallery: Gallery) -> Facts:
    """Judges each bag by all members."""
    mask, label = np.asarray(gallery.mask), np.asarray(gallery.label)
    attention, probability = np.asarray(gallery.attention, np.float32), np.asarray(gallery.probability, np.float64)
    of_bags = _judge(attention.swapaxes(0, 1), mask, np.asarray(gallery.instance_label, np.int32))
    entropy, disagreement, weight, spread = map(np.asarray, of_bags)
    mean = probability.mean(axis=0)
    prediction = mean.argmax(axis=1)
    of_predicted = np.take_along_axis(probability, prediction[None, :, None], axis=2)[..., 0]
    return Facts(
        prediction=prediction,
        certainty=of_predicted.mean(axis=0),
        certainty_spread=of_predicted.std(axis=0, ddof=1) if len(probability) > 1 else np.zeros(len(label)),
        wrong=prediction != label,
        entropy=entropy,
        disagreement=disagreement,
        weight=weight,
        spread=spread,
    )


@jax.jit
def _judge(attention: Array, mask: Array, instance_label: Array) -> tuple[Array, Array, Array, Array]:
    def judge_bag(bag: tuple[Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        weights, held, truth = bag
        agreement = member_agreement(weights, held)
        stats = attention_stats(agreement.mean, held, truth)
        return stats.normalized_entropy, agreement.jensen_shannon, agreement.mean, agreement.std

    # Some bags at a time: comparing all slots of all bags with each other would take the memory of a large run.
    return jax.lax.map(judge_bag, (attention, mask, instance_label), batch_size=BAGS_AT_ONCE)


def orders(facts: Facts) -> dict[str, np.ndarray]:
    """Orders of the bags, by the name of what they are sorted by; the first is the one that the page opens with.

    Wrong first: the surest of the wrong ones, then from the least sure of the right ones. By prediction: the largest
    class first, the surest of a class first, and in the lowest class the surest last, so that in two classes the
    probability of class 1 falls.
    """
    number = np.arange(len(facts.wrong))
    rising = np.where(facts.prediction == 0, facts.certainty, -facts.certainty)
    found = {
        "wrong first": np.lexsort((number, np.where(facts.wrong, -facts.certainty, facts.certainty), ~facts.wrong)),
        "prediction": np.lexsort((number, rising, -facts.prediction)),
        "attention entropy": np.lexsort((number, -facts.entropy)),
        "members differ in attention": np.lexsort((number, -facts.disagreement)),
        "members differ in prediction": np.lexsort((number, -facts.certainty_spread)),
        "bag number": number,
    }
    if not (facts.spread.any() or facts.certainty_spread.any()):
        del found["members differ in attention"], found["members differ in prediction"]
    return found


# ---- HTML ----


def gallery_html(gallery: Gallery, name: str) -> str:
    """The gallery: what the marks mean, the buttons, the cards, and the orders for the script.

    Args:
        gallery: the bags.
        name: its id in the page.
    """
    gallery = on_host(gallery)
    facts, mask = gallery_facts(gallery), np.asarray(gallery.mask)
    slots = shown_slots(facts.weight, mask)
    sprites = sprites_of(gallery, slots)
    sorted_by, top = orders(facts), weight_scale(np.nan_to_num(facts.weight), mask)
    first = next(iter(sorted_by.values()))
    data = json.dumps({order: index.tolist() for order, index in sorted_by.items()}, separators=(",", ":"))
    return "".join(
        (
            f"<style>\n{frames_css()}{style_css(name, sprites, max(map(len, slots)))}</style>\n",
            f'<div id="{name}" class="bags">\n',
            legend_html(gallery, sprites, top),
            tools_html(name, list(sorted_by), facts, gallery),
            '<div class="cards">\n',
            *(card_html(gallery, facts, sprites, name, int(bag), slots[bag], top) for bag in first),
            f'</div>\n<script type="application/json">{data}</script>\n</div>',
        )
    )


def shown_slots(weight: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """The slots of each bag that are shown, in the order of the bag: all, or of a long bag the heaviest."""
    limit = int(np.clip(MOST_TILES // len(mask), FEWEST_PER_BAG, MOST_PER_BAG))
    ranked = np.argsort(np.where(mask, -np.nan_to_num(weight), np.inf), axis=1, kind="stable")[:, :limit]
    return [np.sort(kept[mask[bag, kept]]) for bag, kept in enumerate(ranked)]


def sprites_of(gallery: Gallery, slots: Sequence[np.ndarray]) -> Sprites | None:
    """The images of the slots that are shown; None where the instances are no images."""
    pool, rows = np.asarray(gallery.pool), np.asarray(gallery.rows)
    shown = np.unique(np.concatenate([rows[bag, kept] for bag, kept in enumerate(slots)]))
    return make_sprites(pool, shown) if are_images(pool) and len(shown) else None


def card_html(
    gallery: Gallery, facts: Facts, sprites: Sprites | None, name: str, bag: int, slots: np.ndarray, top: float
) -> str:
    """One bag: its number, truth, prediction and numbers, and the instances at `slots`."""
    weight, spread = facts.weight[bag].tolist(), facts.spread[bag].tolist()
    marks = truth_marks(np.asarray(gallery.instance_label)[bag], np.asarray(gallery.mask)[bag])
    rows = np.asarray(gallery.rows)[bag]
    places = [None] * len(slots) if sprites is None else sprites.place[rows[slots]].tolist()
    tiles = [
        tile_html(place, weight[slot], spread[slot], marks[slot], top)
        for place, slot in zip(places, slots.tolist(), strict=True)
    ]
    hidden = np.setdiff1d(np.flatnonzero(np.asarray(gallery.mask)[bag]), slots)
    if len(hidden):
        tiles.append(f"<em>+{len(hidden):,} more, at most {facts.weight[bag][hidden].max():.2g} each</em>")
    label = int(np.asarray(gallery.label)[bag])
    kind = f"card l{label} wrong" if facts.wrong[bag] else f"card l{label}"
    return (
        f'<article class="{kind}" id="{name}-{bag}">{head_html(gallery, facts, bag, label)}'
        f'<div class="bag">{"".join(tiles) or "<em>no instance</em>"}</div></article>\n'
    )


def head_html(gallery: Gallery, facts: Facts, bag: int, label: int) -> str:
    """The lines above the instances of a bag."""
    classes = gallery.probability.shape[-1]
    predicted = class_name(int(facts.prediction[bag]), classes)
    certainty = number_text(facts.certainty[bag])
    numbers = f"entropy {number_text(facts.entropy[bag])}"
    if len(gallery.attention) > 1:
        certainty += f" ± {number_text(facts.certainty_spread[bag])}"
        numbers += f" · differ {number_text(facts.disagreement[bag], 3)}"
    verdict = " ✗" if facts.wrong[bag] else ""
    return (
        f"<h4>Bag {bag:,}<small>{numbers}</small></h4>"
        f"<p>{class_name(label, classes)} → {predicted} {certainty}{verdict}</p>"
    )


def class_name(number: int, classes: int) -> str:
    """What a class is called: of two, 0 is negative and 1 is positive."""
    return ("negative", "positive")[number] if classes == 2 and number in (0, 1) else f"class {number}"


def number_text(value: float | np.floating, digits: int = 2) -> str:
    """A number with two digits, a dash where it is none."""
    # The zero makes a zero of a small negative number, without its sign.
    return f"{round(float(value), digits) + 0.0:.{digits}f}" if np.isfinite(value) else "–"


def truth_marks(instance_label: np.ndarray, mask: np.ndarray) -> list[str]:
    """The mark of each slot: a triangle where it is positive, a question mark where that is known of others only."""
    known = (instance_label[mask] >= 0).any()
    names = {1: "<b>▲</b>", -1: "<b>?</b>" if known else ""}
    return [names.get(int(value), "") for value in instance_label]


def tile_html(place: list[int] | None, weight: float, spread: float, mark: str, top: float) -> str:
    """One instance in one element: the style sheet draws its image, frame and bar."""
    share = min(weight / top, 1) if weight == weight else 0
    kind, style = f"f{round(share * LEVELS)}", f"--w:{share:.3g}"
    if spread > 0:
        style += f";--s:{spread / top:.2g}"
    if place:
        kind, style = f"{kind} s{place[0]}", f"--x:{place[1]};--y:{place[2]};{style}"
    plus_minus = f"<small>±{number_text(spread)}</small>" if spread > 0 else ""
    return f'<i class="{kind}" style="{style}">{number_text(weight)}{plus_minus}{mark}</i>'


def style_css(name: str, sprites: Sprites | None, most_tiles: int) -> str:
    """The style that depends on the images: their windows on the sheets, and the width of a card."""
    tile, height = TILE, -10  # without an image the bar moves up
    rules = []
    if sprites is None:
        rules.append(f"#{name} i::before{{display:none}}\n")
    else:
        width = LARGE if most_tiles <= FEW_TILES else TILE
        # Whole multiples of a small image keep all of its pixels alike.
        scale = max(width // sprites.width, 1) if sprites.width <= width else width / sprites.width
        shown_width, height = round(sprites.width * scale), round(sprites.height * scale)
        tile = max(tile, shown_width)
        for number, (sheet, lines) in enumerate(zip(sprites.sheets, sprites.lines, strict=True)):
            size = f"{sprites.columns * shown_width}px {lines * height}px"
            rules.append(f"#{name} .s{number}::before{{background-image:url({sheet});background-size:{size}}}\n")
        rules.append(f"#{name}{{--iw:{shown_width}px}}\n")
    tiles = min(max(most_tiles, 1), TILES_PER_LINE)
    card = max(tiles * (tile + GAP) - GAP, NARROWEST) + 18  # its padding and border
    rules.append(f"#{name}{{--tile:{tile}px;--ih:{height}px;--gap:{GAP}px;--card:{card}px}}\n")
    return "".join(rules)


def frames_css() -> str:
    """The frames of the levels, the same as in the project's figures."""
    found = []
    for level in range(LEVELS + 1):
        colour, points = weight_frame(level / LEVELS)
        found.append(f".f{level}{{--c:{colour};--f:{points * 4 / 3:.1f}px}}")
    return "\n".join(found) + "\n"


def legend_html(gallery: Gallery, sprites: Sprites | None, top: float) -> str:
    """What the marks mean; only those that occur."""
    several = len(gallery.attention) > 1
    items = [frames_key(top)] if sprites else [f"bar and number: weight of an instance; a full bar is {top:g}"]
    if several:
        items.append('<span class="whisker"></span>± standard deviation over members')
    truth = np.asarray(gallery.instance_label)[np.asarray(gallery.mask)]
    if (truth == 1).any():
        items.append("▲ truly positive instance")
    if (truth >= 0).any() and (truth < 0).any():
        items.append("? instance of unknown label")
    items.append("label → prediction and its probability; ✗ wrong")
    items.append("entropy of the weights: 0, one instance has all; 1, all have the same")
    if several:
        items.append("differ: Jensen-Shannon divergence of the members' weights, in nats")
    if sprites and sprites.shrunk > 1:
        items.append(f"images at 1/{sprites.shrunk} of their size")
    return f'<ul class="legend">{"".join(f"<li>{item}</li>" for item in items)}</ul>\n'


def frames_key(top: float) -> str:
    """The frames of three weights."""
    keys = (f'<span class="key f{round(share * LEVELS)}"></span>{share * top:g}' for share in (0.0, 0.5, 1.0))
    return f"{''.join(keys)} weight of an instance"


def tools_html(name: str, names: Sequence[str], facts: Facts, gallery: Gallery) -> str:
    """Which bags are shown, which needs no script, and the buttons that sort, which the script brings to light."""
    label, classes = np.asarray(gallery.label), gallery.probability.shape[-1]
    choices = {"all": len(label), "wrong": int(facts.wrong.sum())}
    if classes == 2:
        choices |= {class_name(value, 2): int((label == value).sum()) for value in (1, 0)}
    radios = "".join(
        f'<label><input type="radio" name="{name}" value="{choice}"{" checked" if choice == "all" else ""}>'
        f"{choice} <small>{count:,}</small></label>"
        for choice, count in choices.items()
    )
    buttons = "".join(
        f'<button type="button" data-order="{escape(order)}" aria-pressed="{"true" if not i else "false"}">'
        f"{escape(order)}</button>"
        for i, order in enumerate(names)
    )
    return (
        f'<div class="tools"><fieldset class="show"><legend>Show</legend>{radios}</fieldset>'
        f'<fieldset class="sort" hidden><legend>Sort by</legend>{buttons}</fieldset></div>\n'
    )
