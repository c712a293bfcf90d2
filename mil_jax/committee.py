"""What an ensemble is worth: what more members bring, where they disagree, and whether that predicts errors.

Axes: S members, B bags, C classes, R subsets of the members.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from mil_jax import metrics
from mil_jax.bags import Bags
from mil_jax.errors import check_whole, checked
from mil_jax.evaluation import Evaluation, check_predicted, flatten, judge
from mil_jax.model import Prediction
from mil_jax.record import Values, record

# What `gains` tells of each size, as `flatten` names it.
GAINS = ("bags_loss", "bags_accuracy", "bags_auc", "bags_brier", "bags_calibration_error", "positive_hit_at_1")


@record
class Disagreement:
    """How much the members disagree on each bag, and whether the ensemble errs where they do.

    Attributes:
        votes: share of members whose class is not the one of most members [B].
        information: H(mean over members of p) - mean over members of H(p), in nats [B]: what the bag's label would
            tell about the members (Houlsby et al. 2011); 0 where all say the same.
        wrong: 1 where the ensemble's class is not the true one [B]; a place without a bag, of label -1, counts nowhere.
        votes_auc: how often `votes` is higher for a wrong bag than for a right one, ties counting half []; NaN where
            the ensemble errs on no bag or on all.
        information_auc: the same of `information` [].
        uncertainty_auc: the same of 1 - the ensemble's largest probability [], which needs no members to be told apart.
    """

    votes: Values
    information: Values
    wrong: Values
    votes_auc: Values
    information_auc: Values
    uncertainty_auc: Values


@checked
def disagreement(
    predicted: Prediction, bags: Bags, members: Bool[np.ndarray | Array, " S"] | None = None
) -> Disagreement:
    """Compares the members' predictions of the same bags; the fields are described at `Disagreement`.

    Args:
        predicted: probability [S, B, C].
        bags: the bags predicted, shared by the members.
        members: True for the members that form the ensemble [S]; all where not given.

    Raises:
        InputError: predictions of other bags.
    """
    check_predicted(predicted, bags, by_members=True)
    chosen = np.ones(len(predicted.probability), bool) if members is None else members
    return _disagreement(jnp.asarray(predicted.probability), bags.label, jnp.asarray(chosen))


def mutual_information(probability: Float[np.ndarray | Array, "S B C"]) -> Float[np.ndarray, " B"]:
    """The `information` of `Disagreement`, in nats: what a bag's label would tell about the members."""
    values = jnp.asarray(probability)
    return np.asarray(jnp.maximum(_entropy(values.mean(axis=0)) - _entropy(values).mean(axis=0), 0))


@jax.jit
def _disagreement(probability: Float[Array, "S B C"], label: Array, members: Array) -> Disagreement:
    mean_of = partial(jnp.mean, axis=0)
    mean = mean_of(probability, where=members[:, None, None])
    voted = jax.nn.one_hot(probability.argmax(axis=-1), probability.shape[-1])
    votes = 1 - mean_of(voted, where=members[:, None, None]).max(axis=-1)
    known = mean_of(_entropy(probability), where=members[:, None])
    information = jnp.maximum(_entropy(mean) - known, 0)
    present = label >= 0
    wrong = ((mean.argmax(axis=-1) != label) & present).astype(jnp.int32)
    scores = (votes, information, 1 - mean.max(axis=-1))
    return Disagreement(votes, information, wrong, *(metrics.roc_auc(score, wrong, present) for score in scores))


def _entropy(probability: Array) -> Array:
    return -jnp.sum(jax.scipy.special.xlogy(probability, probability), axis=-1)


def random_subsets(key: Key[Array, ""], members: int, size: int, count: int) -> Bool[np.ndarray, "R S"]:
    """Draws `count` subsets of `size` of S members, without repeats inside a subset, each independent of the others.

    Raises:
        InputError: a size that is not from 1 to S.
    """
    check_whole("size", size, 1, members)
    order = jax.vmap(lambda each: jax.random.permutation(each, members))(jax.random.split(key, count))
    return np.asarray(order) < size


def disjoint_subsets(members: int, size: int) -> Bool[np.ndarray, "R S"]:
    """Cuts S members into ensembles of `size` that share no member; members that are left over are in none.

    Raises:
        InputError: a size that is not from 1 to S.
    """
    check_whole("size", size, 1, members)
    return np.arange(members) // size == np.arange(members // size)[:, None]


@checked
def judge_subsets(predicted: Prediction, bags: Bags, subsets: Bool[np.ndarray | Array, "R S"]) -> Evaluation:
    """Judges the ensembles that subsets of the members form; fields are [R].

    Args:
        predicted: probability [S, B, C] and attention [S, B, K].
        bags: the bags predicted, shared by the members.
        subsets: True for the members of each ensemble [R, S].

    Raises:
        InputError: predictions of other bags.
    """
    check_predicted(predicted, bags, by_members=True)
    return _judge_subsets(jax.tree.map(jnp.asarray, predicted), bags, jnp.asarray(subsets))


@jax.jit
def _judge_subsets(predicted: Prediction, bags: Bags, subsets: Array) -> Evaluation:
    # Sums under a mask and not a matrix product: a member that is not in it may hold anything, and no digit is lost.
    def one(chosen: Array) -> Evaluation:
        mean = partial(jnp.mean, axis=0, where=chosen[:, None, None])
        return judge(jax.tree.map(mean, predicted), bags.label, bags.mask, bags.instance_label)

    return jax.lax.map(one, subsets)


def sizes_up_to(members: int) -> tuple[int, ...]:
    """The sizes 1, 2, 4, … and the number of members itself."""
    return (*(2**i for i in range(members.bit_length()) if 2**i < members), members)


@checked
def gains(
    predicted: Prediction,
    bags: Bags,
    key: Key[Array, ""],
    sizes: Sequence[int] | None = None,
    subsets: int = 50,
) -> list[dict[str, Any]]:
    """What an ensemble of 1 … S of the members scores: a row for each size and score.

    A row holds the size, the score's name, the mean over random subsets of that size, and low and high, between which
    95 % of the subsets lie; for the size S there is only one subset. Subsets share members, so the range tells how
    much the choice among these members matters, and not what other members would score.

    Args:
        predicted: probability [S, B, C] and attention [S, B, K].
        bags: the bags predicted, shared by the members.
        key: draws the subsets.
        sizes: numbers of members; `sizes_up_to(S)` where not given.
        subsets: random subsets of each size.

    Raises:
        InputError: a size that is not from 1 to S, or fewer than one subset.
    """
    members = len(predicted.probability)
    check_whole("subsets", subsets, 1)
    rows = []
    for size in sizes_up_to(members) if sizes is None else sizes:
        check_whole("size", size, 1, members)
        drawn = random_subsets(jax.random.fold_in(key, size), members, size, subsets)
        scores = flatten(judge_subsets(predicted, bags, drawn))
        for name in GAINS:
            low, high = np.quantile(scores[name], (0.025, 0.975)).tolist()
            rows.append({"size": size, "score": name, "mean": float(scores[name].mean()), "low": low, "high": high})
    return rows
