"""From predictions and true labels to numbers: bag metrics, and attention statistics by the bags' label.

Axes: S members, B bags, K slots, C classes.
"""

import math
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from mil_jax.attention import AttentionStats, attention_stats, find_collapse, stats_by_label
from mil_jax.bags import Bags
from mil_jax.metrics import BagMetrics, bag_metrics
from mil_jax.model import Prediction

# Statistics that mean something only where a bag holds positive instances.
NEEDS_POSITIVE = frozenset(
    ("positive_mass", "hit_at_1", "precision_at_positives", "instance_auc", "average_precision", "has_positive",
     "has_both")
)  # fmt: skip


@no_type_check
@struct.dataclass
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


def evaluate(predicted: Prediction, bags: Bags) -> Evaluation:
    """Judges one prediction, probability [B, C] and attention [B, K], of a member or of an ensemble.

    Places without a bag, of label -1, do not count.
    """
    return _evaluate(predicted, bags.label, bags.mask, bags.instance_label)


def evaluate_members(predicted: Prediction, bags: Bags) -> Evaluation:
    """Judges the predictions of S members, probability [S, B, C] and attention [S, B, K]; fields are [S].

    The bags are shared, or each member's own, with a leading axis S on all but the pool.
    """
    return _evaluate_members(predicted, (bags.label, bags.mask, bags.instance_label))


def _judge(predicted: Prediction, label: Array, mask: Array, instance_label: Array) -> Evaluation:
    stats = jax.vmap(attention_stats)(predicted.attention, mask, instance_label)
    present = label >= 0
    by_label = stats_by_label(stats, label, present)
    bags = bag_metrics(predicted.probability, jnp.maximum(label, 0), present)
    return Evaluation(bags, by_label.positive, by_label.negative)


_evaluate = jax.jit(_judge)


@jax.jit
def _evaluate_members(predicted: Prediction, truth: tuple[Array, Array, Array]) -> Evaluation:
    # One after the other: the memory of one member's statistics, however many members there are.
    if truth[0].ndim == 2:
        return jax.lax.map(lambda own: _judge(own[0], *own[1]), (predicted, truth))
    return jax.lax.map(lambda member: _judge(member, *truth), predicted)


def warnings_of(predicted: Prediction, bags: Bags) -> list[list[str]]:
    """For each of S members, what is wrong with its attention, as sentences; an empty list if nothing is."""
    mask, label = np.asarray(bags.mask), np.asarray(bags.label)
    found = [find_collapse(weights, mask, label) for weights in np.asarray(predicted.attention)]
    return [[sentence] if sentence else [] for sentence in found]


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


def attention_columns(positive: AttentionStats, negative: AttentionStats) -> dict[str, np.ndarray]:
    """Attention statistics of positive and negative bags by name, without those that a negative bag cannot have."""
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
