"""A problem whose best possible AUC is known: three neighbours of a bag are shifted in one feature.

A bag has 15 to 45 instances of 768 features N(0, 1). In a positive one, the first feature of 3 instances that stand
next to each other, at a place that is drawn, is larger by delta. (Harvey, Loevlie and Hughes 2025, arXiv 2510.25759;
their Bayes estimator knows which feature it is, and so does ours.)

The likelihood ratio of a bag is a mean over the places where the three may stand of a product over the three, and its
AUC is the highest that there is. A pooling that does not look at the order of instances cannot reach it: its ceiling is
the AUC of the ratio whose mean goes over all sets of three.

Axes: B bags, K slots per bag, F features, S members.
"""

import dataclasses

import numpy as np
from jaxtyping import Array, Bool, Float, Key

from mil_jax.errors import InputError, check_number, check_whole, checked
from mil_jax.known_answers.records import KnownBags, generator, make_known, paired_labels
from mil_jax.scores import ranking_scores

KINDS = ("background", "shifted")


@dataclasses.dataclass(frozen=True)
class ShiftedMean:
    """The law of the bags."""

    delta: float = 2.0
    """By how many standard deviations the feature is shifted."""
    features: int = 768
    """F."""
    shifted: int = 3
    """Neighbours that are shifted in a positive bag."""
    fewest: int = 15
    """Instances in the smallest bag."""
    most: int = 45
    """Instances in the largest bag."""

    def __post_init__(self) -> None:
        check_number("delta", self.delta, 0)
        check_whole("features", self.features, 1)
        check_whole("shifted", self.shifted, 1)
        check_whole("fewest", self.fewest, self.shifted)
        check_whole("most", self.most, self.fewest)


@checked
def shifted_mean(
    key: Key[Array, ""], law: ShiftedMean = ShiftedMean(), *, count: int, members: int | None = None
) -> KnownBags:
    """Draws bags; of each two, one is positive. The instances of a bag keep their order, which is part of the problem.

    With `members`, each has bags of its own, [S, B, K], of one pool: members share instances, in other bags, and no
    instance is in two bags of a member.

    Args:
        key: decides the draw.
        law: of the bags.
        count: B.
        members: S; bags without a member axis where not given.

    Raises:
        InputError: a number below 1.
    """
    check_whole("count", count, 1)
    of_each = 1 if members is None else members
    check_whole("members", of_each, 1)
    draw = generator(key)
    label = np.stack([paired_labels(draw, count) for _ in range(of_each)])
    shifted, mask = draw_places(draw, law, label)
    at = shifted & mask
    plain, moved = (int(part.sum(axis=(1, 2)).max()) for part in (mask & ~at, at))
    pool = draw.standard_normal((plain + moved, law.features), dtype=np.float32)
    pool[plain:, 0] += np.float32(law.delta)
    rows = np.zeros(mask.shape, int)
    for member in range(of_each):
        for part, first, size in ((mask & ~at, 0, plain), (at, plain, moved)):
            rows[member, part[member]] = first + draw.permutation(size)[: part[member].sum()]
    positive = at.astype(int)
    leaves = (rows, label, np.where(mask, positive, -1), np.stack([-positive, positive], axis=-1))
    rows, label, kind, evidence = leaves if members is not None else (leaf[0] for leaf in leaves)
    return make_known(pool, rows, label, kind, evidence, KINDS)


def draw_places(
    draw: np.random.Generator, law: ShiftedMean, label: np.ndarray
) -> tuple[Bool[np.ndarray, "*members B K"], Bool[np.ndarray, "*members B K"]]:
    """Which slots of bags with these labels are shifted, and which hold an instance."""
    sizes = draw.integers(law.fewest, law.most, label.shape, endpoint=True)
    start = draw.integers(0, sizes - law.shifted, endpoint=True)[..., None]
    slot = np.arange(law.most)
    shifted = (slot >= start) & (slot < start + law.shifted) & (label > 0)[..., None]
    return shifted, slot < sizes[..., None]


# ---- the best that there is ----


def log_ratio(
    feature: Float[np.ndarray, "B K"], mask: Bool[np.ndarray, "B K"], law: ShiftedMean
) -> Float[np.ndarray, " B"]:
    """The log likelihood ratio of each bag, positive against negative, given its shifted feature.

    log (1 / (n - 2)) Σ_u exp Σ_(u <= j < u + 3) (delta h_j - delta² / 2), the sum over the n - 2 places u.
    """
    single, sizes = law.delta * feature - law.delta**2 / 2, mask.sum(axis=1)
    total = np.pad(np.cumsum(np.where(mask, single, 0), axis=1), [(0, 0), (1, 0)])
    windows = total[:, law.shifted :] - total[:, : -law.shifted]
    places = sizes - law.shifted + 1
    inside = np.arange(windows.shape[1]) < places[:, None]
    return np.logaddexp.reduce(np.where(inside, windows, -np.inf), axis=1) - np.log(places)


def order_blind_log_ratio(
    feature: Float[np.ndarray, "B K"], mask: Bool[np.ndarray, "B K"], law: ShiftedMean
) -> Float[np.ndarray, " B"]:
    """The same where the order of the instances is not known: the mean over all sets of 3 instances.

    The sum over sets is an elementary symmetric polynomial e_3 of the instances' ratios, by the recurrence
    e_r <- e_r + e_(r - 1) w_j over the instances j, in logarithms.
    """
    single = np.where(mask, law.delta * feature - law.delta**2 / 2, -np.inf)
    zeros = np.where(mask, 0.0, -np.inf)
    return _log_symmetric(single, law.shifted) - _log_symmetric(zeros, law.shifted)


def _log_symmetric(log_weight: Float[np.ndarray, "B K"], degree: int) -> Float[np.ndarray, " B"]:
    """The logarithm of the elementary symmetric polynomial of a degree of each row of weights."""
    sums = np.full((degree + 1, len(log_weight)), -np.inf)
    sums[0] = 0
    for column in log_weight.T:
        sums[1:] = np.logaddexp(sums[1:], sums[:-1] + column)
    return sums[degree]


@checked
def bayes_auc(
    key: Key[Array, ""], law: ShiftedMean = ShiftedMean(), *, ordered: bool = True, count: int = 100_000
) -> float:
    """The highest AUC that any model can reach, or any that does not look at the order, by a draw of `count` bags.

    The ratio is exact and only its AUC is drawn, with a standard error below 0.6 / sqrt(count).

    Raises:
        InputError: fewer than two bags.
    """
    check_whole("count", count, 2)
    if law.delta == 0:
        raise InputError("delta", law.delta, "expected a shift: without one, no bag differs from another")
    draw = generator(key)
    label = paired_labels(draw, count)
    shifted, mask = draw_places(draw, law, label)
    feature = draw.standard_normal(mask.shape) + law.delta * shifted
    ratio = (log_ratio if ordered else order_blind_log_ratio)(feature, mask, law)
    (area,), _ = ranking_scores(ratio, label > 0, np.ones((1, count)))
    return float(area)
