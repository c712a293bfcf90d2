"""When to doubt attention weights: the ways in which one member's attention collapses, and what to try.

Runs on the host. Axes: K slots per bag · B bags.
"""

import numpy as np
from jaxtyping import Array, Bool, Float, Int

UNIFORM_ABOVE = 0.99  # mean normalised entropy on positive bags
ONE_SLOT_ABOVE = 0.95  # mean weight of a slot
# Fewer bags than this may put their weight on one slot by chance: nothing is concluded from them.
FEWEST_BAGS_FOR_ONE_SLOT = 10

WHAT_TO_TRY = "a weaker L2 penalty, another number of epochs, more bags, or another seed"


def find_collapse(
    attention: Float[np.ndarray | Array, "B K"],
    mask: Bool[np.ndarray | Array, "B K"],
    label: Int[np.ndarray | Array, " B"],
) -> str | None:
    """Say whether one member's attention, 1 in sum over the mask, has collapsed and what to try, or return None.

    A collapse is weights that are not numbers; weights that are uniform on positive bags; or all weight on one slot
    whatever the bag. The last takes for granted that instances stand in random order in their bags. Bags of one
    instance tell nothing and are left out. Mean pooling is uniform by definition: do not ask.
    """
    sizes = np.asarray(mask).sum(axis=1)
    weight = np.where(mask, np.asarray(attention, np.float64), 0)
    if not np.isfinite(weight).all():
        return "Attention holds weights that are not finite: training has diverged. Try a lower learning rate."
    several = sizes > 1
    positive = several & (np.asarray(label) > 0)
    return _find_uniform(weight[positive], sizes[positive]) or _find_one_slot(weight[several])


def _find_uniform(weight: np.ndarray, sizes: np.ndarray) -> str | None:
    if not len(weight):
        return None
    entropy = -np.sum(weight * np.log(np.where(weight > 0, weight, 1)), axis=1)
    normalized = float(np.mean(entropy / np.log(sizes)))
    if normalized <= UNIFORM_ABOVE:
        return None
    return (
        f"Attention has collapsed to uniform: on {len(weight)} positive bags its normalised "
        f"entropy is {normalized:.3f} (above {UNIFORM_ABOVE:g}), so it pools like a plain mean and does not tell which "
        f"instance matters. Try {WHAT_TO_TRY}; a model that overfits can also weigh all instances equally."
    )


def _find_one_slot(weight: np.ndarray) -> str | None:
    if len(weight) < FEWEST_BAGS_FOR_ONE_SLOT:
        return None
    share = weight.mean(axis=0)
    slot = int(share.argmax())
    if share[slot] <= ONE_SLOT_ABOVE:
        return None
    return (
        f"Attention has collapsed to one slot: over {len(weight)} bags, slot {slot} gets {share[slot]:.3f} of the "
        f"weight on average (above {ONE_SLOT_ABOVE:g}), so it follows the place in the bag and not what is there. "
        f"Check that instances stand in random order in their bags; if they do, try {WHAT_TO_TRY}."
    )
