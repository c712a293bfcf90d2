"""What attention weights say: per bag, over bags, and between members.

The statistics are pure functions of one bag, to be vmapped over bags and members. They are exact under masks (padding
changes nothing), do not depend on the order of the instances, and are finite, with finite gradients, for finite
weights: a statistic that a bag does not define is 0, and a flag says so. Attention is taken as the pooling gives it:
not negative, 1 in sum over the mask. A weight that is not a number stays one in the entropy.

Axes: K slots per bag · B bags · S members.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mil_jax.ranks import counts_above
from mil_jax.record import Values, record

# Slots of the bags that `stats_of_bags` takes at a time.
SLOTS_AT_A_TIME = 2048


@record
class AttentionStats:
    """How one bag's attention is spread, and how well it finds the positive instances.

    Each field is a scalar for one bag; vmapped ``[B]`` or ``[S, B]``. Below, a_i are the weights of the bag's n
    instances, P of them known to be positive and N known to be negative. Instances of unknown label take part in every
    ranking but those of `instance_auc` and `average_precision`, and count as not positive.
    """

    entropy: Values
    """H = -Σ a_i log a_i, in nats."""
    normalized_entropy: Values
    """H / log n, from 0 (one instance has it all) to 1 (uniform); 0 for a bag of one."""
    effective_instances: Values
    """exp(H), the number of equally weighted instances with the same entropy."""
    largest_weight: Values
    """max a_i."""
    gini: Values
    """Σ_i Σ_j |a_i - a_j| / (2 n), from 0 (uniform) to 1 - 1/n."""
    positive_mass: Values
    """Σ a_i over the positive instances."""
    hit_at_1: Values
    """1 if the largest weight is a positive instance's; if several share the largest weight, the share of positive
    instances among them."""
    precision_at_positives: Values
    """Share of positive instances among the P largest weights; ties at the edge are broken in expectation, (places
    left) / (instances tied) to each."""
    instance_auc: Values
    """(1 / (P N)) Σ over pairs of a positive i and a negative j of [a_i > a_j] + [a_i = a_j] / 2."""
    average_precision: Values
    """(1 / P) Σ over positive i of the share of positive instances among the known ones with a_j >= a_i, which is
    scikit-learn's definition."""
    kl_uniform: Values
    """KL(a || uniform) = log n - H, in nats."""
    has_positive: Values
    """1 where P > 0: where `positive_mass`, `hit_at_1`, `precision_at_positives` mean something."""
    has_both: Values
    """1 where P > 0 and N > 0: where `instance_auc` and `average_precision` mean something."""


@record
class StatsByLabel:
    """Mean statistics of the positive bags (label > 0) and of the negative ones (label 0)."""

    positive: AttentionStats
    negative: AttentionStats


@record
class MemberAgreement:
    """How much the S members of an ensemble agree on the weights of one bag."""

    mean: Values
    """Mean weight of each slot over members ``[K]``."""
    std: Values
    """Standard deviation of each slot's weight over members ``[K]``, divided by S - 1; 0 for one member."""
    rank_agreement: Values
    """Spearman's rank correlation, with midranks for ties, averaged over all pairs of members. A member whose weights
    are all equal has no order: it agrees fully (1) with another such member and not at all (0) with any other. Hence 1
    for a bag of one instance; 1 for one member."""
    jensen_shannon: Values
    """H(mean over members of a) - mean over members of H(a), in nats: 0 where all members give the same weights, at
    most log min(S, n)."""
    top_stability: Values
    """Share of members whose top instance is the one that most members put on top. A member with several top instances
    splits its vote equally."""


def attention_stats(
    attention: Float[Array, " K"], mask: Bool[Array, " K"], instance_label: Int[Array, " K"]
) -> AttentionStats:
    """Compute the statistics of one bag's attention; the formulas are at `AttentionStats`.

    The weights are 1 in sum over the mask; a bag without an instance gets zeros everywhere.
    """
    weight = _weights(attention, mask)
    positive, negative = mask & (instance_label == 1), mask & (instance_label == 0)
    groups = jnp.stack([mask, positive, negative])
    above, at_or_above = counts_above(jnp.where(mask, weight, -jnp.inf), groups)
    size, positives, negatives = jnp.sum(groups, axis=-1).astype(weight.dtype)
    entropy = _entropy(weight)
    log_size = jnp.log(jnp.maximum(size, 1))
    rank = _below_minus_above(above[0], at_or_above[0], mask)
    has_positive, has_both = positives > 0, (positives > 0) & (negatives > 0)

    def over_positives(value: Array) -> Array:
        return jnp.sum(jnp.where(positive, value, 0)) / jnp.maximum(positives, 1)

    negatives_below = (negatives - (above[2] + at_or_above[2]) / 2) / jnp.maximum(negatives, 1)
    precision = at_or_above[1] / jnp.maximum(at_or_above[1] + at_or_above[2], 1)
    in_first = _chance_among_top(above[0], at_or_above[0], 1)
    in_top = _chance_among_top(above[0], at_or_above[0], positives)
    return AttentionStats(
        entropy=entropy,
        normalized_entropy=jnp.minimum(entropy / jnp.where(size > 1, log_size, 1), 1),
        effective_instances=jnp.where(size > 0, jnp.exp(entropy), 0),
        largest_weight=jnp.max(weight, initial=0),
        gini=jnp.sum(weight * rank) / jnp.maximum(size, 1),
        positive_mass=jnp.sum(jnp.where(positive, weight, 0)),
        hit_at_1=jnp.sum(jnp.where(positive, in_first, 0)),
        precision_at_positives=over_positives(in_top),
        instance_auc=jnp.where(has_both, over_positives(negatives_below), 0),
        average_precision=jnp.where(has_both, over_positives(precision), 0),
        kl_uniform=jnp.maximum(log_size - entropy, 0),
        has_positive=has_positive.astype(weight.dtype),
        has_both=has_both.astype(weight.dtype),
    )


def stats_of_bags(
    attention: Float[Array, "B K"], mask: Bool[Array, "B K"], instance_label: Int[Array, "B K"]
) -> AttentionStats:
    """Compute `attention_stats` of every bag, fields ``[B]``; memory is bounded, however many there are."""
    parts = -(-mask.size // SLOTS_AT_A_TIME)  # of one size: the program of another, for the rest, is seldom needed
    given = (attention, mask, instance_label)
    return lax.map(lambda bag: attention_stats(*bag), given, batch_size=-(-mask.shape[0] // max(parts, 1)))


def mean_stats(stats: AttentionStats, where: Bool[Array, " B"] | None = None) -> AttentionStats:
    """Average statistics [B] over the bags of `where`, each over those that define it; over no bag, it is 0.

    See `defined_where`; the flags become shares of bags.
    """
    if where is None:
        where = jnp.ones(stats.entropy.shape, bool)
    return jax.tree.map(lambda total, count: total / jnp.maximum(count, 1), *sum_stats(stats, where))


def sum_stats(stats: AttentionStats, where: Bool[Array, " B"]) -> tuple[AttentionStats, AttentionStats]:
    """The sum of each statistic over the bags that define it, and the number of these bags; see `mean_stats`."""
    known = jax.tree.map(lambda defined: where & defined, defined_where(stats))
    sums = jax.tree.map(lambda field, counts: jnp.sum(jnp.where(counts, field, 0)), stats, known)
    return sums, jax.tree.map(jnp.sum, known)


def defined_where(stats: AttentionStats) -> AttentionStats:
    """For each statistic of bags [B], True where the bag defines it.

    `instance_auc` and `average_precision` need `has_both`, `positive_mass`, `hit_at_1` and
    `precision_at_positives` need `has_positive`, all others nothing.
    """
    always = jax.tree.map(lambda field: np.ones(np.shape(field), bool), stats)
    with_positive, with_both = stats.has_positive > 0, stats.has_both > 0
    return dataclasses.replace(
        always,
        positive_mass=with_positive,
        hit_at_1=with_positive,
        precision_at_positives=with_positive,
        instance_auc=with_both,
        average_precision=with_both,
    )


def stats_by_label(
    stats: AttentionStats, label: Int[Array, " B"], where: Bool[Array, " B"] | None = None
) -> StatsByLabel:
    """Average statistics [B] over the positive bags (label > 0) and over the others, of the bags of `where`."""
    where = jnp.ones(label.shape, bool) if where is None else where
    return StatsByLabel(
        positive=mean_stats(stats, where & (label > 0)), negative=mean_stats(stats, where & (label <= 0))
    )


def member_agreement(attention: Float[Array, "S K"], mask: Bool[Array, " K"]) -> MemberAgreement:
    """Compare the weights that members give the instances of one bag; the formulas are at `MemberAgreement`.

    The weights are 1 in sum over the mask; a bag without an instance gets zeros everywhere. Memory grows with S K,
    not with pairs of members: for unit vectors z_s of centred ranks, the mean of z_s · z_t over all pairs is
    (|Σ z_s|² - S) / (S (S - 1)).
    """
    weight = jax.vmap(_weights, (0, None))(attention, mask)
    mean, members = jnp.mean(weight, axis=0), weight.shape[0]
    top = mask & (weight == jnp.max(weight, axis=-1, keepdims=True, initial=0))
    votes = jnp.mean(top / jnp.maximum(jnp.sum(top, axis=-1, keepdims=True), 1), axis=0)
    divergence = _entropy(mean) - jnp.mean(jax.vmap(_entropy)(weight))
    return MemberAgreement(
        mean=mean,
        std=_safe_sqrt(jnp.sum((weight - mean) ** 2, axis=0) / max(members - 1, 1)),
        rank_agreement=jnp.where(jnp.any(mask), _mean_spearman(weight, mask), 0),
        jensen_shannon=jnp.maximum(divergence, 0) if members > 1 else jnp.zeros_like(divergence),
        top_stability=jnp.max(votes, initial=0).astype(weight.dtype),
    )


def _weights(attention: Array, mask: Array) -> Array:
    # Counts of instances share the weights' type, and half precision cannot count far.
    return jnp.where(mask, attention, 0).astype(jnp.promote_types(attention.dtype, jnp.float32))


def _entropy(weight: Array) -> Array:
    # Two `where`s keep log(0) out of the gradient too. `<=` and not `>`: a weight that is not a
    # number stays one.
    negligible = weight <= jnp.finfo(weight.dtype).tiny
    return -jnp.sum(jnp.where(negligible, 0, weight * jnp.log(jnp.where(negligible, 1, weight))))


def _chance_among_top(above: Array, at_or_above: Array, count: Array | int) -> Array:
    # The places left by those above are shared equally by those that are tied.
    return jnp.clip((count - above) / jnp.maximum(at_or_above - above, 1), 0, 1)


def _below_minus_above(above: Array, at_or_above: Array, mask: Array) -> Array:
    """Twice the centred midrank of each instance ``[K]``: those below it minus those above."""
    return jnp.where(mask, jnp.sum(mask) - at_or_above - above, 0)


def _safe_sqrt(value: Array) -> Array:
    some = value > 0  # the root of 0 has no finite gradient
    return jnp.where(some, jnp.sqrt(jnp.where(some, value, 1)), 0)


def _mean_spearman(weight: Array, mask: Array) -> Array:
    def unit_ranks(row: Array) -> Array:
        above, at_or_above = counts_above(jnp.where(mask, row, -jnp.inf), mask[None])
        rank = _below_minus_above(above[0], at_or_above[0], mask).astype(row.dtype)
        return rank / jnp.sqrt(jnp.maximum(jnp.sum(rank**2), 1))

    members = weight.shape[0]
    if members == 1:
        return jnp.ones((), weight.dtype)
    unit = jax.vmap(unit_ranks)(weight)
    # A member without an order has the zero vector: its pairs with others of its kind are added.
    ordered = jnp.any(unit != 0, axis=-1).sum()
    unordered = members - ordered
    of_pairs = jnp.sum(jnp.sum(unit, axis=0) ** 2) - ordered + unordered * (unordered - 1)
    return jnp.clip(of_pairs / (members * (members - 1)), -1, 1)
