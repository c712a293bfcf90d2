"""What seeds say of a pooling, in words: a rule for one seed, and an interval over seeds.

A seed has learned where its AUC on its own training bags is at least 0.7. It passes where it has learned and its test
AUC reaches what the problem asks for. It is trapped where it has learned and its test AUC is below 0.5. A word is said
where the Wilson interval of 95 % of the share of such seeds lies above one half, and `undecided` where none does.
"""

import dataclasses
import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float

from mil_jax.errors import InputError, check_number, check_whole, checked

LEARNED, CHANCE = 0.7, 0.5
PASSES, NO_START, SHORT, UNDECIDED = "passes", "does not learn", "falls short", "undecided"
RULE = (
    f"A seed passes if its training AUC is at least {LEARNED} and its test AUC at least what is asked for (0.75 in the "
    "tests with a trap, 0.9 of digits, 0.05 below the order-blind ceiling of the shifted mean); it is trapped (looks "
    f"at the poison, counts) if it has learned as much and its test AUC is below {CHANCE}. A word is said if the "
    "Wilson interval (95 %) of the share of such seeds lies above one half"
)


@checked
def wilson_interval(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The interval (low, high) of a share, which holds for few trials and shares near 0 or 1 (Wilson 1927).

    Raises:
        InputError: no trial, more successes than trials, or a level that is not between 0 and 1.
    """
    check_whole("count", count, 1)
    check_whole("successes", successes, 0, count)
    check_number("level", level, 0, 1, ends="()")
    z2, share = NormalDist().inv_cdf((1 + level) / 2) ** 2, successes / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count) / (1 + z2 / count)
    # At the ends the bound is exactly 0 or 1, which rounding would miss.
    return (middle - half if successes else 0.0), (middle + half if successes < count else 1.0)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the seeds say of a pooling on one problem."""

    word: str
    """`passes`, the name of the trap, `does not learn`, `falls short`, or `undecided`."""
    passes: float
    """Share of the seeds that pass."""
    low: float
    """Lower end of its Wilson interval."""
    high: float
    """Upper end of it."""
    learned: float
    """Share of the seeds that have learned their training bags."""
    trapped: float
    """Share of the seeds that have learned, and rank the test bags the wrong way round."""


@checked
def judge_seeds(
    train_auc: Float[np.ndarray, " S"], test_auc: Float[np.ndarray, " S"], asked: float, trap: str = ""
) -> Verdict:
    """The verdict over S seeds.

    Args:
        train_auc: of each seed's own training bags.
        test_auc: of the test bags.
        asked: the test AUC from which on a seed passes.
        trap: what it means if it is learned and turned round; empty for a problem without one.

    Raises:
        InputError: no seed.
    """
    if not len(test_auc):
        raise InputError("test_auc", np.shape(test_auc), "expected one or more seeds")
    learned = train_auc >= LEARNED
    passes, trapped = learned & (test_auc >= asked), learned & (test_auc < CHANCE)
    low, high = _interval(passes)
    rules = (
        (low > CHANCE, PASSES),
        (bool(trap) and _interval(trapped)[0] > CHANCE, trap),
        (_interval(learned)[1] < CHANCE, NO_START),
        (not trap and high < CHANCE, SHORT),
    )
    word = next((word for holds, word in rules if holds), UNDECIDED)
    return Verdict(word, float(passes.mean()), low, high, float(learned.mean()), float(trapped.mean()))


def _interval(flags: Bool[np.ndarray, " S"]) -> tuple[float, float]:
    return wilson_interval(int(flags.sum()), len(flags))
