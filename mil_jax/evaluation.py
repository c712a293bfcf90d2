"""From predictions and true labels to numbers: bag metrics, and attention statistics by the bags' label.

Axes: S members, B bags, K slots, C classes.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mil_jax.attention import (
    AttentionStats,
    defined_where,
    member_agreement,
    stats_by_label,
    stats_of_bags,
)
from mil_jax.bags import Bags
from mil_jax.collapse import find_collapse
from mil_jax.errors import InputError, checked
from mil_jax.intervals import mean_intervals
from mil_jax.metrics import BagMetrics, bag_metrics
from mil_jax.model import Prediction
from mil_jax.record import record

# Statistics that mean something only where a bag holds positive instances.
NEEDS_POSITIVE = frozenset(
    ("positive_mass", "hit_at_1", "precision_at_positives", "instance_auc", "average_precision", "has_positive",
     "has_both")
)  # fmt: skip


@record
class Evaluation:
    """How well bags are classified, and where the attention went.

    Attributes:
        bags: metrics of the bags' classification; the loss is plain cross-entropy, without weights or L2.
        positive: attention statistics, mean over the positive bags.
        negative: the same over the negative bags.
    """

    bags: BagMetrics
    positive: AttentionStats
    negative: AttentionStats


@checked
def evaluate(predicted: Prediction, bags: Bags) -> Evaluation:
    """Judges one prediction, probability [B, C] and attention [B, K], of a member or of an ensemble.

    Places without a bag, of label -1, do not count. All is NaN where the prediction is not finite: the member diverged.

    Raises:
        InputError: a prediction of other bags.
    """
    check_predicted(predicted, bags, by_members=False)
    return judge(predicted, bags.label, bags.mask, bags.instance_label)


@checked
def evaluate_members(predicted: Prediction, bags: Bags) -> Evaluation:
    """Judges the predictions of S members, probability [S, B, C] and attention [S, B, K]; fields are [S].

    The bags are shared, or each member's own, with a leading axis S on all but the pool.

    Raises:
        InputError: predictions of other bags.
    """
    check_predicted(predicted, bags, by_members=True)
    return _evaluate_members(predicted, (bags.label, bags.mask, bags.instance_label))


def check_predicted(predicted: Prediction, bags: Bags, *, by_members: bool) -> None:
    """Refuses predictions of other bags than these, or of fewer classes.

    Args:
        predicted: probability [B, C] and attention [B, K], with a leading axis S where they are members'.
        bags: the bags predicted; each member's own, or shared.
        by_members: whether there is an axis S.

    Raises:
        InputError: as said.
    """
    given, count = np.shape(predicted.attention), np.shape(predicted.probability)
    members = given[:1] if by_members else ()
    expected = bags.mask.shape if bags.by_member else (*members, *bags.mask.shape)
    if given != expected or count[:-1] != given[:-1] or bags.by_member > by_members:
        shape = str([*(["S"] if by_members else []), *bags.mask.shape[-2:]]).replace("'", "")
        raise InputError("predicted.attention", given, f"expected {shape}, of these bags")
    largest = int(np.max(bags.label, initial=0))
    if largest >= count[-1]:
        raise InputError("bags.label", largest, f"expected 0 to {count[-1] - 1}, the classes predicted")


@jax.jit
def judge(predicted: Prediction, label: Array, mask: Array, instance_label: Array) -> Evaluation:
    """`evaluate` without its checks."""
    probability, attention = jnp.asarray(predicted.probability), jnp.asarray(predicted.attention)
    stats = stats_of_bags(attention, mask, instance_label)
    present = label >= 0
    by_label = stats_by_label(stats, label, present)
    bags = bag_metrics(probability, jnp.maximum(label, 0), present)
    known = jnp.isfinite(probability).all(-1) & jnp.isfinite(jnp.where(mask, attention, 0)).all(-1)
    is_finite = jnp.all(known | ~present)
    judged = Evaluation(bags, by_label.positive, by_label.negative)
    return jax.tree.map(lambda value: jnp.where(is_finite, value, jnp.nan), judged)


@jax.jit
def _evaluate_members(predicted: Prediction, truth: tuple[Array, Array, Array]) -> Evaluation:
    # One after the other: the memory of one member's statistics, however many members there are.
    if truth[0].ndim == 2:
        return jax.lax.map(lambda own: judge(own[0], *own[1]), (predicted, truth))
    return jax.lax.map(lambda member: judge(member, *truth), predicted)


@checked
def warnings_of(predicted: Prediction, bags: Bags) -> list[list[str]]:
    """For each of S members, what is wrong with its attention, as sentences; an empty list if nothing is.

    The bags are shared, or each member's own, with a leading axis S.

    Raises:
        InputError: predictions of other bags.
    """
    check_predicted(predicted, bags, by_members=True)
    attention = np.asarray(predicted.attention)
    mask = np.broadcast_to(np.asarray(bags.mask), attention.shape)
    label = np.broadcast_to(np.asarray(bags.label), attention.shape[:2])
    found = [find_collapse(*member) for member in zip(attention, mask, label, strict=True)]
    return [[sentence] if sentence else [] for sentence in found]


# ---- per bag, then mean with interval ----

STATISTICS = tuple(field.name for field in dataclasses.fields(AttentionStats) if not field.name.startswith("has_"))
AGREEMENTS = ("rank_agreement", "jensen_shannon", "top_stability", "spread")


def check_names(names: Iterable[str], known: Sequence[str], argument: str = "statistics") -> None:
    """Refuses the name of a statistic that nobody computes.

    Raises:
        InputError: names the first unknown one and lists those that are known.
    """
    if not list(names):
        raise InputError(argument, [], f"expected one or more of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise InputError(argument, name, f"expected names of statistics: {', '.join(known)}")


@checked
def attention_table(
    predicted: Prediction,
    bags: Bags,
    key: Key[Array, ""],
    statistics: Sequence[str] = STATISTICS,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """Mean of each attention statistic with its bootstrap interval over bags, by groups of bags.

    The groups are positive and negative bags, and bags that are classified right and wrong. A row holds the group,
    the statistic, the number of bags that define it, mean, low and high; these are NaN where no bag does.

    Args:
        predicted: of a member or of an ensemble, probability [B, C] and attention [B, K].
        bags: the bags predicted.
        key: draws the resamples of the bags.
        statistics: which of `STATISTICS`.
        level: probability that the interval is to cover.

    Raises:
        InputError: a prediction of other bags, an unknown statistic, or a level that is not between 0 and 1.
    """
    check_predicted(predicted, bags, by_members=False)
    check_names(statistics, STATISTICS)
    stats = _stats_of_bags(jnp.asarray(predicted.attention), bags.mask, bags.instance_label)
    values, known = flatten(stats), flatten(defined_where(stats))
    groups = bag_groups(predicted, bags)
    return _table({name: (values[name], known[name]) for name in statistics}, groups, key, level)


@checked
def agreement_table(
    predicted: Prediction, bags: Bags, key: Key[Array, ""], level: float = 0.95
) -> list[dict[str, Any]]:
    """How much S members agree on the weights of a bag: means with bootstrap intervals over bags, by groups of bags.

    Rows and groups as in `attention_table`, right and wrong being the ensemble's. The statistics are those of
    `MemberAgreement` that are one number per bag, and `spread`, the mean over instances of the standard deviation of
    their weight over members.

    Args:
        predicted: probability [S, B, C] and attention [S, B, K].
        bags: the bags predicted, shared by the members.
        key: draws the resamples of the bags.
        level: probability that the interval is to cover.

    Raises:
        InputError: predictions of other bags, or a level that is not between 0 and 1.
    """
    check_predicted(predicted, bags, by_members=True)
    agreement = _agreement_of_bags(jnp.moveaxis(jnp.asarray(predicted.attention), 0, 1), bags.mask)
    size = jnp.maximum(bags.mask.sum(axis=1), 1)
    values = {name: getattr(agreement, name) for name in AGREEMENTS[:-1]}
    values["spread"] = jnp.sum(agreement.std, axis=1, where=bags.mask) / size
    whole = jax.tree.map(lambda leaf: np.asarray(leaf).mean(axis=0), predicted)
    every = np.ones(len(bags.label), bool)
    return _table({name: (value, every) for name, value in values.items()}, bag_groups(whole, bags), key, level)


def bag_groups(predicted: Prediction, bags: Bags) -> dict[str, np.ndarray]:
    """Which bags [B] are positive, negative, classified right and classified wrong; places without a bag are none."""
    label = np.asarray(bags.label)
    present, right = label >= 0, np.asarray(predicted.probability).argmax(axis=-1) == label
    return {"positive": label > 0, "negative": label == 0, "correct": present & right, "wrong": present & ~right}


def _table(
    statistics: Mapping[str, tuple[Any, Any]], groups: Mapping[str, np.ndarray], key: Array, level: float
) -> list[dict[str, Any]]:
    names = [(group, name) for group in groups for name in statistics]
    values = np.stack([np.asarray(statistics[name][0], np.float32) for _, name in names])
    where = np.stack([groups[group] & np.asarray(statistics[name][1]) for group, name in names])
    means = _mean_intervals(values, where, key, level=level)
    return [
        {"bags": group, "statistic": name, "count": int(counted.sum()), "mean": mean, "low": low, "high": high}
        for (group, name), counted, mean, low, high in zip(names, where, *np.asarray(means).tolist(), strict=True)
    ]


_stats_of_bags = jax.jit(stats_of_bags)
_agreement_of_bags = jax.jit(lambda attention, mask: jax.lax.map(lambda bag: member_agreement(*bag), (attention, mask)))
_mean_intervals = jax.jit(mean_intervals, static_argnames=("level", "resamples"))


def flatten(record: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of nested records as one flat dict of NumPy values: {"positive_entropy": …}."""
    flat: dict[str, Any] = {}
    for name in record.__dataclass_fields__:
        value = getattr(record, name)
        if hasattr(value, "__dataclass_fields__"):
            flat |= flatten(value, f"{prefix}{name}_")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat


def where_known(stats: AttentionStats) -> AttentionStats:
    """Mean statistics with NaN for what no bag defines, where nobody knows which instances are positive."""
    defined = defined_where(stats)
    return jax.tree.map(lambda value, known: np.where(known, value, np.float32(np.nan)), stats, defined)


def attention_columns(positive: AttentionStats, negative: AttentionStats) -> dict[str, np.ndarray]:
    """Attention statistics of positive and negative bags by name, without those that a negative bag cannot have."""
    positive = where_known(positive)
    of_negative = {
        f"negative_bags_{name}": value for name, value in flatten(negative).items() if name not in NEEDS_POSITIVE
    }
    return flatten(positive, "positive_bags_") | of_negative


def mean_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation of the defined values; the deviation of one value is NaN."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return math.nan, math.nan
    spread = float(defined.std(ddof=1)) if len(defined) > 1 else math.nan
    return float(defined.mean()), spread
