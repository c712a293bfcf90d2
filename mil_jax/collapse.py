"""When to doubt attention weights: the ways in which one member's attention collapses, and what to try.

Runs on the host. Axes: K slots per bag · B bags.
"""

import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Fewer bags than this may put their weight on one slot by chance: nothing is concluded from them.
FEWEST_BAGS_FOR_ONE_SLOT = 10

WHAT_TO_TRY = "a weaker L2 penalty, another number of epochs, more bags, or another seed"


def find_collapse(
    attention: Float[np.ndarray | Array, "B K"],
    mask: Bool[np.ndarray | Array, "B K"],
    label: Int[np.ndarray | Array, " B"],
    *,
    uniform_above: float = 0.99,
    one_slot_above: float = 0.95,
) -> str | None:
    """Say whether one member's attention has collapsed and what to try, or return None.

    Runs on the host. A collapse is weights that are not numbers; weights that are uniform on positive bags; or all
    weight on one slot whatever the bag. The last takes for granted that instances stand in random order in their bags.
    Bags of one instance tell nothing and are left out. Mean pooling is uniform by definition: do not ask.

    Args:
        attention: weights of every bag, 1 in sum over the mask ``[B, K]``.
        mask: True where a slot holds an instance ``[B, K]``.
        label: label of every bag, positive where above 0 ``[B]``.
        uniform_above: mean normalised entropy on positive bags above which attention counts as uniform.
        one_slot_above: mean weight of a slot above which all the weight counts as being on it.
    """
    held = np.asarray(mask)
    weight = np.where(held, np.asarray(attention, np.float64), 0)
    if not np.isfinite(weight).all():
        return "Attention holds weights that are not finite: training has diverged. Try a lower learning rate."
    several = held.sum(axis=1) > 1
    positive = several & (np.asarray(label) > 0)
    return _find_uniform(weight[positive], held[positive], uniform_above) or _find_one_slot(
        weight[several], one_slot_above
    )


def _find_uniform(weight: np.ndarray, held: np.ndarray, threshold: float) -> str | None:
    if not len(weight):
        return None
    entropy = -np.sum(weight * np.log(np.where(weight > 0, weight, 1)), axis=1)
    normalized = float(np.mean(entropy / np.log(held.sum(axis=1))))
    if normalized <= threshold:
        return None
    return (
        f"Attention has collapsed to uniform: on {len(weight)} positive bags its normalised "
        f"entropy is {normalized:.3f} (above {threshold:g}), so it pools like a plain mean and "
        f"does not tell which instance matters. Try {WHAT_TO_TRY}; a model that overfits can also "
        f"weigh all instances equally."
    )


def _find_one_slot(weight: np.ndarray, threshold: float) -> str | None:
    if len(weight) < FEWEST_BAGS_FOR_ONE_SLOT:
        return None
    share = weight.mean(axis=0)
    slot = int(share.argmax())
    if share[slot] <= threshold:
        return None
    return (
        f"Attention has collapsed to one slot: over {len(weight)} bags, slot {slot} gets "
        f"{share[slot]:.3f} of the weight on average (above {threshold:g}), so it follows the "
        f"place in the bag and not what is there. Check that instances stand in random order in "
        f"their bags; if they do, try {WHAT_TO_TRY}."
    )
