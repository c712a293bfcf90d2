"""Members of several fits put together: what each says of the bags that its fit has not seen.

Axes: B bags, C classes, K slots, F fits, G settings, M members of a fit, R rounds, W places for test bags.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from mil_jax.datasets.bag_sources import Cohort
from mil_jax.ensemble import Ensemble
from mil_jax.folds import Plan
from mil_jax.model import Prediction
from mil_jax.protocols import choose_threshold


def loss_of_settings(val_loss: Float[np.ndarray | Array, " S"], settings: int, fits: int) -> Float[np.ndarray, "G F"]:
    """The mean validation loss of the members of each setting and fit."""
    return np.asarray(val_loss).reshape(settings, fits, -1).mean(axis=2)


def choose_settings(val_loss: Float[np.ndarray | Array, " S"], settings: int, fits: int) -> Int[np.ndarray, " F"]:
    """For each fit the setting with the lowest mean validation loss of its members; one that diverged loses."""
    loss = loss_of_settings(val_loss, settings, fits)
    return np.where(np.isfinite(loss), loss, np.inf).argmin(axis=0)


def members_of(chosen: Int[np.ndarray, " F"], members: int) -> Int[np.ndarray, " FM"]:
    """The numbers, among all S = G * F * M, of the members of the chosen settings, fit by fit."""
    fits = len(chosen)
    return ((chosen * fits + np.arange(fits))[:, None] * members + np.arange(members)).reshape(-1)


def pick(trained: Ensemble, index: Int[np.ndarray, " M"]) -> Ensemble:
    """Some of the members of an ensemble."""
    return jax.tree.map(lambda leaf: leaf[index], trained)


def out_of_fold(predicted: Prediction, plan: Plan, members: int, bags: int) -> Prediction:
    """The members' predictions of their own test bags, [F * M, W, ...], by round and bag: [R, M, B, ...].

    NaN where a round does not judge a bag.
    """

    def by_bag(leaf: Any) -> np.ndarray:
        values = np.asarray(leaf).reshape(plan.fits, members, *np.shape(leaf)[1:])
        pooled = np.full((plan.rounds, members, bags, *values.shape[3:]), np.nan, np.float32)
        for fit, test in enumerate(plan.folds.test):
            pooled[plan.round[fit], :, test[test >= 0]] = np.moveaxis(values[fit][:, test >= 0], 1, 0)
        return pooled

    return jax.tree.map(by_bag, predicted)


def of_parts(predicted: Prediction, part: Int[np.ndarray, "FM T"]) -> Prediction:
    """Predictions of all bags [F * M, B, ...] as those of each member's own bags [F * M, T, ...]."""
    own = np.arange(len(part))[:, None], np.maximum(part, 0)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[own], predicted)


def as_members(pooled: Prediction, tested: Int[np.ndarray, " T"]) -> Prediction:
    """Predictions by round [R, M, B, ...] as those of members that judge all tested bags: [R * M, T, ...].

    Where no round judges all of them, the M members' means over the rounds that judge a bag.
    """
    judged = np.asarray(np.isfinite(pooled.probability[:, :, tested]).any(axis=(1, 3)))  # [R, T]
    if judged.all():
        return jax.tree.map(lambda leaf: leaf[:, :, tested].reshape(-1, len(tested), *leaf.shape[3:]), pooled)
    where = judged[:, None, :, None]

    def mean(leaf: np.ndarray) -> np.ndarray:
        return np.where(where, leaf[:, :, tested], 0).sum(axis=0) / where.sum(axis=0)

    return jax.tree.map(mean, pooled)


def ensemble_of(pooled: Float[np.ndarray | Array, "R M B C"]) -> Float[np.ndarray, "R B C"]:
    """The mean over members that have not diverged; NaN where a round does not judge a bag."""
    known = np.isfinite(pooled).all(axis=-1, keepdims=True)
    count = known.sum(axis=1)
    return np.where(known, pooled, 0).sum(axis=1) / np.where(count > 0, count, np.nan)


def spread_of(pooled: Float[np.ndarray | Array, "R M B C"]) -> Float[np.ndarray, "R B C"]:
    """The standard deviation over members that have not diverged, divided by their number - 1; 0 for one member."""
    known, mean = np.isfinite(pooled).all(axis=-1, keepdims=True), ensemble_of(pooled)
    squares = np.where(known, np.asarray(pooled, np.float64) - mean[:, None], 0) ** 2
    return np.where(np.isfinite(mean), np.sqrt(squares.sum(axis=1) / np.maximum(known.sum(axis=1) - 1, 1)), np.nan)


def thresholds(
    val: Float[np.ndarray | Array, "FM V C"], label: Int[np.ndarray | Array, "FM V"], members: int
) -> Float[np.ndarray, " F"]:
    """For each fit the threshold of its ensemble that classifies most of its validation bags right; of two classes."""
    by_fit = np.asarray(val).reshape(-1, members, *val.shape[1:])
    mean = np.nan_to_num(ensemble_of(by_fit)[..., 1])  # any threshold will do for a fit that has diverged
    return np.array([choose_threshold(p, truth) for p, truth in zip(mean, np.asarray(label)[::members], strict=True)])


def mean_features(cohort: Cohort) -> Float[np.ndarray, "B F"]:
    """The mean of the instances of each bag, flat; one pass over the files."""
    scale = 255 if cohort.dtype == np.uint8 else 1
    means = (bag.read()[0].mean(axis=0, dtype=np.float64).reshape(-1) / scale for bag in cohort.bags)
    return np.stack(list(means))


PENALTIES = tuple(10.0**power for power in range(-4, 3))


def linear_probe(
    features: Float[np.ndarray, "B F"], label: Int[np.ndarray, " B"], plan: Plan, classes: int
) -> Float[np.ndarray, "R B C"]:
    """What logistic regression on the bags' mean features says of each fit's test bags (scikit-learn's).

    Features are standardised by the training bags, and the strength of the L2 penalty is chosen by the loss on the
    validation bags. NaN where a round does not judge a bag. Every fit learns from bags of every class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    pooled = np.full((plan.rounds, len(label), classes), np.nan)
    for fit in range(plan.fits):
        train, val, test = (part[fit][part[fit] >= 0] for part in plan.folds)
        mean, deviation = features[train].mean(axis=0), features[train].std(axis=0)
        x = (features - mean) / np.where(deviation > 1e-9, deviation, 1)
        probes = [LogisticRegression(C=strength, max_iter=1000).fit(x[train], label[train]) for strength in PENALTIES]
        losses = [log_loss(label[val], probe.predict_proba(x[val]), labels=range(classes)) for probe in probes]
        pooled[plan.round[fit], test] = probes[int(np.argmin(losses))].predict_proba(x[test])
    return pooled


def unlikeness(
    features: Float[np.ndarray, "B F"], mean: Float[np.ndarray, " F"], deviation: Float[np.ndarray, " F"]
) -> Float[np.ndarray, " B"]:
    """How far bags' mean features lie from those of other bags [B]: the root mean square of the standard scores."""
    scores = (features - mean) / deviation
    return np.sqrt((scores**2).mean(axis=1))
