"""Bags with the weights of their instances: which instances are shown, and what is said of the others."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Num
from matplotlib.figure import Figure

from mil_jax.errors import InputError
from mil_jax.plots.cards import Card, Instances, draw_cards
from mil_jax.plots.style import Values, styled, weight_scale

MOST_SHOWN = 20  # of a bag's instances


def bag_title(
    number: object, label: object, prediction: object = None, probability: float | np.floating | None = None
) -> str:
    """The line above a bag, for example ``bag 17 · label 1 · predicted 1 (0.98)``.

    Label and prediction are numbers or names of classes; the probability is that of the predicted class.
    """
    parts = [f"bag {number}", f"label {label}"]
    if prediction is not None:
        parts.append(f"predicted {prediction}" + ("" if probability is None else f" ({probability:.2f})"))
    return " · ".join(parts)


@styled
def bags_figure(
    instances: Num[Values, "B K *instance"] | None,
    mask: Bool[Values, "B K"],
    titles: Sequence[str],
    attention: Float[Values, "B K"] | None = None,
    spread: Float[Values, "B K"] | None = None,
    positive: Bool[Values, "B K"] | None = None,
    heading: str = "",
) -> Figure:
    """Bags as rows of images or bars, side by side where they are small, weights above.

    A frame goes from thin and grey (no weight) to thick and red (all of it); a small triangle points at the instances
    that are truly positive. Instances stand in the order of the bag. Of a bag with more than 20 the heaviest 19 are
    shown (without weights the first), and a note says how many are not.

    Args:
        instances: images [B, K, H, W], [B, K, H, W, 1] or [B, K, H, W, 3]; integers in 0..255 or floats in 0..1 (other
            floats are stretched over the range of the figure). Others, or None, are drawn as bars, high as the weights.
        mask: True where a slot holds an instance; other slots are left out.
        titles: one line per bag, see ``bag_title``.
        attention: weight of each instance, in 0..1.
        spread: its standard deviation over members, printed after ±, or a bar's whisker; needs ``attention``.
        positive: True for the instances that make a bag positive.
        heading: one line above all bags.

    Raises:
        InputError: there is no bag, or ``titles`` are not one per bag.
    """
    mask = np.asarray(mask)
    if len(mask) == 0:
        raise InputError("mask.shape", mask.shape, "expected [B, K] with at least one bag")
    if len(titles) != len(mask):
        raise InputError("titles", list(titles), f"expected one title per bag, {len(mask)} in all")
    images = None if instances is None else _images(np.asarray(instances), mask)
    weight, spread, positive = (None if given is None else np.asarray(given) for given in (attention, spread, positive))
    highest = weight if images is not None or weight is None or spread is None else weight + spread
    shown = Instances(images, weight, spread, positive, top=weight_scale(highest, mask))
    cards = [
        Card(title, bag, *_shown_slots(mask[bag], None if weight is None else weight[bag]))
        for bag, title in enumerate(titles)
    ]
    return draw_cards(cards, shown, heading)


def _images(instances: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """Images in 0..1, without a channel axis if they are grey; padding does not set the range. None if not images."""
    if instances.ndim == 5 and instances.shape[-1] == 1:
        instances = instances[..., 0]
    if instances.ndim != 4 and not (instances.ndim == 5 and instances.shape[-1] == 3):
        return None
    low, high = (0.0, 255.0) if np.issubdtype(instances.dtype, np.integer) else (0.0, 1.0)
    pixels = instances[mask]
    if high == 1 and pixels.size and (pixels.min() < 0 or pixels.max() > 1):
        low, high = float(pixels.min()), float(pixels.max())
    return np.clip((instances.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)


def _shown_slots(mask: np.ndarray, weight: np.ndarray | None) -> tuple[list[int], str]:
    """The slots of one bag to show, in order, and a note on the others, with -1 for its place."""
    slots = np.flatnonzero(mask)
    if len(slots) <= MOST_SHOWN:
        return (slots.tolist(), "") if len(slots) else ([-1], "no\ninstance")
    if weight is not None:
        slots = slots[np.argsort(-weight[slots], kind="stable")]
    shown, hidden = np.split(slots, [MOST_SHOWN - 1])
    note = "" if weight is None else f"\n≤ {weight[hidden].max():.2g} each"
    return [*sorted(shown.tolist()), -1], f"+{len(hidden)} more{note}"
