"""The gallery of a report: bags as cards, each instance one small element, in orders that a click chooses.

Thousands of cards stay light because an instance is a single element whose image is a window on a sheet of all
images, because numbers stand in the page once, and because the browser lays out only the cards in view.

Axes: B bags, K slots per bag, S members, C classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mil_jax.attention import attention_stats, member_agreement
from mil_jax.plots import weight_frame, weight_scale
from mil_jax.record import Values
from mil_jax.report.parts import Gallery
from mil_jax.report.sprites import Sprites, are_images, make_sprites

MOST_TILES = 60_000  # instances in a gallery; fewer per bag are shown where there would be more
MOST_PER_BAG, FEWEST_PER_BAG = 24, 3
TILES_PER_LINE = 7  # at least, where the page is wide enough
TILE, LARGE = 64, 84  # CSS pixels for an image
FEW_TILES = 4  # up to so many in every bag, they are large
LEVELS = 20  # steps from no weight to the largest


class Facts(NamedTuple):
    """What is said of each bag ``[B]`` and of each slot ``[B, K]``; not a number where a weight is none."""

    prediction: np.ndarray
    """Class with the largest mean probability."""
    certainty: np.ndarray
    """Its mean probability."""
    certainty_spread: np.ndarray
    """Standard deviation of that over members, divided by S - 1; 0 for one member."""
    wrong: np.ndarray
    """Whether it is not the label."""
    entropy: np.ndarray
    """Normalised entropy of the mean weights."""
    disagreement: np.ndarray
    """Jensen-Shannon divergence of the members' weights, in nats."""
    weight: np.ndarray
    """Mean weight."""
    spread: np.ndarray
    """Its standard deviation over members."""


def show(gallery: Gallery) -> dict[str, Any]:
    """What the template writes: the bags with what is said of them, the instances that are shown, and the orders."""
    facts, mask = judge(gallery), np.asarray(gallery.mask)
    shown = shown_slots(facts.weight, mask)
    hidden, most_tiles = mask & ~shown, int(shown.sum(axis=1).max())
    sprites, truth = sprites_of(gallery, shown), np.asarray(gallery.instance_label)
    known = ((truth >= 0) & mask).any(axis=1, keepdims=True)  # others of such a bag are marked as unknown
    marks = np.where(truth == 1, "▲", np.where((truth == -1) & known, "?", ""))
    top = weight_scale(np.nan_to_num(facts.weight), mask)
    frames = [weight_frame(level / LEVELS) for level in range(LEVELS + 1)]  # as in the project's figures
    return {
        "gallery": gallery,
        "facts": facts,
        "sprites": sprites,
        "image_size": image_size(sprites, most_tiles),
        "tiles_per_line": min(most_tiles, TILES_PER_LINE),
        "frames": [(colour, points * 4 / 3) for colour, points in frames],
        "top": top,
        "marks": set(marks[mask].tolist()),
        "tiles": make_tiles(gallery, facts, sprites, marks, shown, top),
        "hidden": hidden.sum(axis=1).tolist(),
        "heaviest_hidden": np.where(hidden, np.nan_to_num(facts.weight), 0).max(axis=1, initial=0).tolist(),
        "orders": {name: order.tolist() for name, order in orders(facts).items()},
    }


def judge(gallery: Gallery) -> Facts:
    """What is said of each bag, by all members."""
    attention, probability = np.asarray(gallery.attention, np.float32), np.asarray(gallery.probability, np.float64)
    truth = np.asarray(gallery.instance_label, np.int32)
    entropy, disagreement, weight, spread = map(np.asarray, _judge_weights(attention, gallery.mask, truth))
    mean = probability.mean(axis=0)
    prediction = mean.argmax(axis=1)
    of_predicted = np.take_along_axis(probability, prediction[None, :, None], axis=2)[..., 0]
    return Facts(
        prediction=prediction,
        certainty=of_predicted.mean(axis=0),
        certainty_spread=of_predicted.std(axis=0, ddof=1) if len(probability) > 1 else np.zeros(len(prediction)),
        wrong=prediction != gallery.label,
        entropy=entropy,
        disagreement=disagreement,
        weight=weight,
        spread=spread,
    )


@jax.jit
def _judge_weights(attention: Array, mask: Array, truth: Array) -> tuple[Values, Values, Values, Values]:
    agreement = jax.vmap(member_agreement, (1, 0))(attention, mask)
    stats = jax.vmap(attention_stats)(jnp.asarray(agreement.mean), mask, truth)
    return stats.normalized_entropy, agreement.jensen_shannon, agreement.mean, agreement.std


def orders(facts: Facts) -> dict[str, np.ndarray]:
    """Orders of the bags, by the name of what they are sorted by; the first is the one that the page opens with.

    Wrong first: the surest of the wrong ones, then from the least sure of the right ones. By prediction: the largest
    class first, the surest of a class first, and in the lowest class the surest last, so that in two classes the
    probability of class 1 falls.
    """
    number = np.arange(len(facts.wrong))
    rising = np.where(facts.prediction == 0, facts.certainty, -facts.certainty)
    names = {
        "wrong first": np.lexsort((number, np.where(facts.wrong, -facts.certainty, facts.certainty), ~facts.wrong)),
        "prediction": np.lexsort((number, rising, -facts.prediction)),
        "attention entropy": np.lexsort((number, -facts.entropy)),
        "members differ in attention": np.lexsort((number, -facts.disagreement)),
        "members differ in prediction": np.lexsort((number, -facts.certainty_spread)),
        "bag number": number,
    }
    if not (facts.spread.any() or facts.certainty_spread.any()):
        del names["members differ in attention"], names["members differ in prediction"]
    return names


def shown_slots(weight: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """True at the slots that are shown ``[B, K]``: all that hold an instance, or of a long bag the heaviest."""
    limit = int(np.clip(MOST_TILES // len(mask), FEWEST_PER_BAG, MOST_PER_BAG))
    heaviest = np.argsort(np.where(mask, -np.nan_to_num(weight), np.inf), axis=1, kind="stable")[:, :limit]
    shown = np.zeros_like(mask)
    np.put_along_axis(shown, heaviest, True, axis=1)
    return shown & mask


def sprites_of(gallery: Gallery, shown: np.ndarray) -> Sprites | None:
    """The images of the slots that are shown; None where the instances are no images."""
    if gallery.pool is None or not are_images(np.asarray(gallery.pool)) or not shown.any():
        return None
    return make_sprites(np.asarray(gallery.pool), np.unique(np.asarray(gallery.rows)[shown]))


def image_size(sprites: Sprites | None, most_tiles: int) -> tuple[int, int]:
    """Width and height of the images in CSS pixels, for at most so many in a bag."""
    if sprites is None:
        return 0, -10  # the bar moves up
    room = LARGE if most_tiles <= FEW_TILES else TILE
    # Whole multiples of a small image keep all of its pixels alike.
    scale = max(room // sprites.width, 1) if sprites.width <= room else room / sprites.width
    return round(sprites.width * scale), round(sprites.height * scale)


def make_tiles(
    gallery: Gallery, facts: Facts, sprites: Sprites | None, marks: np.ndarray, shown: np.ndarray, top: float
) -> list[list[tuple[Any, ...]]]:
    """The instances of each bag that are shown.

    Of each: level, share of the bar, spread as such a share, weight, its spread, mark, and place on the sheets.
    """
    share = np.minimum(np.nan_to_num(facts.weight.astype(np.float64)) / top, 1)
    level, rows = np.round(share * LEVELS).astype(int), np.where(gallery.mask, gallery.rows, 0)
    place = np.empty((*rows.shape, 0)) if sprites is None else sprites.place[rows]
    columns = (level, share, facts.spread / top, facts.weight, facts.spread, marks, place)
    return [list(zip(*(c[bag][slots].tolist() for c in columns), strict=True)) for bag, slots in enumerate(shown)]
