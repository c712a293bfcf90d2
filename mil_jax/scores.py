"""Scores of predicted bags with intervals over groups: many resamples at once, as weights of the bags.

A resample of groups with replacement is a weight for every bag, the number of times that its group was drawn; a score
of a resample is the weighted score. Host side, NumPy.

Axes: B bags, C classes, R rounds, W weightings.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mil_jax.errors import InputError, checked

SCORES = ("auc", "average_precision", "balanced_accuracy", "accuracy", "f1", "loss", "calibration_error")
BINS = 15
Weights = Float[np.ndarray, "W B"]


@dataclasses.dataclass(frozen=True)
class Score:
    """One score over rounds.

    Attributes:
        mean: over rounds.
        standard_error: of that mean over rounds; NaN for one round.
        low: of the 95 % bootstrap interval over groups (percentiles).
        high: its other end.
    """

    mean: float
    standard_error: float
    low: float
    high: float


@checked
def group_scores(
    probability: Float[np.ndarray, "R B C"],
    label: Int[np.ndarray, " B"],
    groups: Sequence[str],
    key: Key[Array, ""],
    resamples: int = 1000,
) -> dict[str, Score]:
    """Each of `SCORES`: its mean over rounds, the standard error of that, and an interval over groups.

    For two classes they are those of class 1, for more the mean over classes, each against the rest. A round counts
    the bags that it predicts; one where a score is not defined is not in its mean.

    Args:
        probability: of each class; NaN for a bag that a round does not predict.
        label: the class of each bag.
        groups: what belongs together.
        key: draws the resamples.
        resamples: their number.

    Raises:
        InputError: no bag is predicted.
    """
    names, number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    counts = draw.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    weight = np.concatenate([np.ones((1, len(label))), counts[:, number]])
    rounds = []
    for of_round in np.asarray(probability, np.float64):
        known = np.isfinite(of_round).all(axis=-1)
        if known.any():
            rounds.append(weighted_scores(of_round[known], np.asarray(label)[known], weight[:, known]))
    if not rounds:
        raise InputError("probability", "NaN", "expected predictions of at least one bag")
    return {name: _score(np.stack([scores[name] for scores in rounds])) for name in SCORES}


def _score(values: Float[np.ndarray, "R W"]) -> Score:
    """The first weighting is that of the bags as they are, the others are resamples."""
    points, resampled = values[np.isfinite(values[:, 0]), 0], _mean(values[:, 1:])
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.quantile(resampled, (0.025, 0.975)) if resampled.size else (np.nan, np.nan)
    error = points.std(ddof=1) / np.sqrt(len(points)) if len(points) > 1 else np.nan
    return Score(float(points.mean()) if len(points) else np.nan, float(error), float(low), float(high))


def weighted_scores(
    probability: Float[np.ndarray, "B C"], label: Int[np.ndarray, " B"], weight: Weights
) -> dict[str, Float[np.ndarray, " W"]]:
    """`SCORES` for each weighting of the bags; NaN where a weighting leaves one undefined."""
    classes = range(probability.shape[1])
    positive = [1] if len(classes) == 2 else list(classes)
    called, total = probability.argmax(axis=1), weight.sum(axis=1)
    hit = [weight @ ((label == c) & (called == c)) for c in classes]
    true, predicted = ([weight @ (values == c) for c in classes] for values in (label, called))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.stack([np.where(true[c] > 0, hit[c] / true[c], np.nan) for c in classes])
        f1 = [np.where(hit[c] > 0, 2 * hit[c] / (true[c] + predicted[c]), 0.0) for c in positive]
        ranked = [ranking_scores(probability[:, c], label == c, weight) for c in positive]
        of_true = np.take_along_axis(probability, label[:, None], axis=1)[:, 0]
        return {
            "auc": _mean([area for area, _ in ranked]),
            "average_precision": _mean([precision for _, precision in ranked]),
            "balanced_accuracy": _mean(recall),
            "accuracy": sum(hit) / total,
            "f1": np.mean(f1, axis=0),
            "loss": weight @ -np.log(np.maximum(of_true, np.finfo(np.float32).tiny)) / total,
            "calibration_error": _calibration_error(probability.max(axis=1), called == label, weight),
        }


def _mean(values: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The mean of those that are defined; NaN where none is."""
    stacked = np.stack(list(values))
    known = np.isfinite(stacked)
    return np.where(known, stacked, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def ranking_scores(
    score: Float[np.ndarray, " B"], positive: np.ndarray, weight: Weights
) -> tuple[Float[np.ndarray, " W"], Float[np.ndarray, " W"]]:
    """Area under the ROC curve (ties count half) and average precision, for each weighting of the bags."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # of each run of equal scores, from high to low
    down = lambda part: np.cumsum(weight[:, order] * part[order], axis=1)[:, ends]  # noqa: E731
    true, false = down(positive), down(~positive)
    new_true, new_false = (np.diff(part, axis=1, prepend=0) for part in (true, false))
    area = (new_false * (true - new_true / 2)).sum(axis=1) / (true[:, -1] * false[:, -1])
    called = np.where(true + false > 0, true + false, 1)
    precision = (new_true * true / called).sum(axis=1) / true[:, -1]
    return area, precision


def _calibration_error(confidence: np.ndarray, right: np.ndarray, weight: Weights) -> Float[np.ndarray, " W"]:
    """Expected calibration error (Guo et al. 2017): mean gap between confidence and accuracy over equal bins."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    member = bins == np.arange(BINS)[:, None]
    gap = np.abs(weight @ (member * (right - confidence)).T)
    return gap.sum(axis=1) / weight.sum(axis=1)
