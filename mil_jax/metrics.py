"""How good predictions of bags are: ranking, decisions, probabilities and their calibration.

Pure functions of arrays over bags, which jit and vmap (over members), but for the two curves at the
end, which are drawn on the host. With `where`, a function returns what it would for the bags where
it is True alone. They sum first and divide last. A metric that its input leaves undefined, such as
the AUC of one class or the mean of nothing, is NaN, never a number that could be taken for a
result; write it as null. Precision, recall and F1 are the exception, by custom: they are 0.

Axes: B bags · C classes.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mil_jax.errors import InputError

Label = Int[Array, " B"] | Bool[Array, " B"]
Where = Bool[Array, " B"] | None


@no_type_check
@struct.dataclass
class BagMetrics:
    """The metrics of one set of predictions; scalars, vmapped ``[S]``.

    For two classes `auc`, `average_precision`, `precision`, `recall` and `f1` are those of class 1.
    For more they are means over classes, each against the rest: `auc` and `average_precision` over
    the classes that define them, the others over all classes.

    Attributes:
        loss: negative log-likelihood of the true class, in nats.
        accuracy: share of bags whose most probable class is the true one.
        auc: area under the ROC curve.
        precision: see `precision`.
        recall: see `recall`.
        f1: see `f1`.
        average_precision: see `average_precision`.
        brier: Brier score, from 0 to 2.
        calibration_error: expected calibration error with 15 bins.
    """

    loss: Array
    accuracy: Array
    auc: Array
    precision: Array
    recall: Array
    f1: Array
    average_precision: Array
    brier: Array
    calibration_error: Array


@no_type_check
@struct.dataclass
class Reliability:
    """A reliability diagram: how sure and how right predictions are, by bins of confidence.

    Attributes:
        confidence: mean probability of the predicted class in each bin ``[bins]``; 0 if empty.
        accuracy: share of right predictions in each bin ``[bins]``; 0 if empty.
        count: number of bags in each bin ``[bins]``.
    """

    confidence: Array
    accuracy: Array
    count: Array


def bag_metrics(probability: Float[Array, "B C"], label: Int[Array, " B"], where: Where = None) -> BagMetrics:
    """Compute all metrics of a set of predictions; the fields are described at `BagMetrics`.

    The predicted class is the most probable one, the first of them where several are.

    Args:
        probability: probability of each class ``[B, C]``, C at least 2.
        label: true class of each bag ``[B]``.
        where: the bags to count ``[B]``; all if left out.

    Raises:
        InputError: with fewer than two columns.
    """
    class_count = probability.shape[1]
    if class_count < 2:
        raise InputError("probability", probability.shape, "needs one column per class, at least two")
    prediction = jnp.argmax(probability, axis=-1)
    positive_classes = jnp.array([1]) if class_count == 2 else jnp.arange(class_count)

    def against_rest(positive: Array) -> tuple[Array, ...]:
        score, truth, decision = probability[:, positive], label == positive, prediction == positive
        ranked = roc_auc(score, truth, where), average_precision(score, truth, where)
        decided = (metric(decision, truth, where) for metric in (precision, recall, f1))
        return *ranked, *decided

    per_class = jax.vmap(against_rest)(positive_classes)
    return BagMetrics(
        loss=negative_log_likelihood(probability, label, where),
        accuracy=accuracy(prediction, label, where),
        auc=jnp.nanmean(per_class[0]),
        average_precision=jnp.nanmean(per_class[1]),
        precision=jnp.mean(per_class[2]),
        recall=jnp.mean(per_class[3]),
        f1=jnp.mean(per_class[4]),
        brier=brier_score(probability, label, where),
        calibration_error=expected_calibration_error(probability, label, where=where),
    )


def roc_auc(score: Float[Array, " B"], label: Label, where: Where = None) -> Float[Array, ""]:
    """Compute the area under the ROC curve: how often a positive bag outscores a negative one.

    Ties count one half. Exact, in O(B log B). NaN if a class is missing or a score is NaN.

    Args:
        score: higher for bags that are more likely positive ``[B]``.
        label: 1 or True for positive bags, 0 or False for negative ones ``[B]``.
        where: the bags to count ``[B]``; all if left out.
    """
    positive, negative = _split(label, where)
    above, at_or_above = _counts_above(score, negative)
    negatives = jnp.sum(negative).astype(score.dtype)
    share_below = (negatives - (above + at_or_above) / 2) / jnp.maximum(negatives, 1)
    undefined = (negatives == 0) | _any_nan(score, where)
    return jnp.where(undefined, jnp.nan, _mean(share_below, positive))


def average_precision(score: Float[Array, " B"], label: Label, where: Where = None) -> Float[Array, ""]:
    """Compute the average precision Σ (R_t - R_(t-1)) P_t over distinct scores t, high to low.

    P_t and R_t are precision and recall of calling positive what scores t or more; no
    interpolation, and tied bags enter together, as in scikit-learn. NaN if no bag is positive or a
    score is NaN.

    Args:
        score: higher for bags that are more likely positive ``[B]``.
        label: 1 or True for positive bags, 0 or False for negative ones ``[B]``.
        where: the bags to count ``[B]``; all if left out.
    """
    positive, negative = _split(label, where)
    _, true_positives = _counts_above(score, positive)
    _, false_positives = _counts_above(score, negative)
    # The sum over thresholds is a mean over positive bags: each adds 1 / positives to the recall at
    # its own score.
    precision_there = true_positives / jnp.maximum(true_positives + false_positives, 1)
    return jnp.where(_any_nan(score, where), jnp.nan, _mean(precision_there, positive))


def confusion_counts(
    prediction: Int[Array, " B"], label: Int[Array, " B"], class_count: int, where: Where = None
) -> Int[Array, "C C"]:
    """Count bags by true class (row) and predicted class (column).

    Args:
        prediction: predicted class ``[B]``.
        label: true class ``[B]``; a bag whose label is no class, such as -1, is not counted.
        class_count: the number of classes C.
        where: the bags to count ``[B]``; all if left out.
    """
    true = jax.nn.one_hot(label, class_count, dtype=jnp.int32) * _all(label, where)[:, None]
    return true.T @ jax.nn.one_hot(prediction, class_count, dtype=jnp.int32)


def accuracy(prediction: Label, label: Label, where: Where = None) -> Float[Array, ""]:
    """Compute the share of bags whose prediction ``[B]`` is their label ``[B]``; NaN for none."""
    return _mean((prediction == label).astype(jnp.float32), _all(label, where))


def precision(prediction: Label, label: Label, where: Where = None) -> Float[Array, ""]:
    """Compute the share of positive bags among those predicted positive; 0 if none is.

    Args:
        prediction: 1 or True where the bag is predicted positive ``[B]``.
        label: 1 or True where it is ``[B]``.
        where: the bags to count ``[B]``; all if left out.
    """
    both, predicted, _ = _overlap(prediction, label, where)
    return both / jnp.maximum(predicted, 1)


def recall(prediction: Label, label: Label, where: Where = None) -> Float[Array, ""]:
    """Compute the share of bags predicted positive among the positive ones; 0 if none is.

    Arguments as `precision`.
    """
    both, _, positive = _overlap(prediction, label, where)
    return both / jnp.maximum(positive, 1)


def f1(prediction: Label, label: Label, where: Where = None) -> Float[Array, ""]:
    """Compute the harmonic mean of precision and recall; 0 without a true positive.

    Arguments as `precision`.
    """
    both, predicted, positive = _overlap(prediction, label, where)
    return 2 * both / jnp.maximum(predicted + positive, 1)


def negative_log_likelihood(
    probability: Float[Array, "B C"], label: Int[Array, " B"], where: Where = None
) -> Float[Array, ""]:
    """Compute the mean of -log(probability of the true class), in nats; NaN without a bag.

    Probabilities below the machine epsilon count as that, so that one certain mistake costs at most
    15.9 in single precision, and value and gradient stay finite.

    Args:
        probability: probability of each class ``[B, C]``.
        label: true class of each bag ``[B]``.
        where: the bags to count ``[B]``; all if left out.
    """
    of_truth = jnp.take_along_axis(probability, label[:, None], axis=1)[:, 0]
    return _mean(-jnp.log(jnp.maximum(of_truth, jnp.finfo(probability.dtype).eps)), _all(label, where))


def brier_score(probability: Float[Array, "B C"], label: Int[Array, " B"], where: Where = None) -> Float[Array, ""]:
    """Compute the Brier score: squared errors summed over classes, mean over bags.

    NaN without a bag. From 0 to 2, as Brier (1950) defined it. For two classes it is twice the mean
    of (p_1 - y)², the form that scikit-learn and many papers give for the binary case.

    Args:
        probability: probability of each class ``[B, C]``.
        label: true class of each bag ``[B]``.
        where: the bags to count ``[B]``; all if left out.
    """
    target = jax.nn.one_hot(label, probability.shape[1], dtype=probability.dtype)
    return _mean(jnp.sum((probability - target) ** 2, axis=-1), _all(label, where))


def reliability(
    probability: Float[Array, "B C"], label: Int[Array, " B"], bins: int = 15, where: Where = None
) -> Reliability:
    """Sort bags into equal bins of confidence, the probability of the predicted class.

    As Guo et al. (2017): bin m holds the confidences in (m / bins, (m + 1) / bins]. With C classes
    none is below 1 / C, so the first bins stay empty.

    Args:
        probability: probability of each class ``[B, C]``.
        label: true class of each bag ``[B]``.
        bins: number of bins.
        where: the bags to count ``[B]``; all if left out.

    Raises:
        InputError: with fewer than one bin.
    """
    count, confidence, right = _bin_sums(probability, label, bins, where)
    held = jnp.maximum(count, 1)
    return Reliability(confidence=confidence / held, accuracy=right / held, count=count.astype(jnp.int32))


def expected_calibration_error(
    probability: Float[Array, "B C"], label: Int[Array, " B"], bins: int = 15, where: Where = None
) -> Float[Array, ""]:
    """Compute the mean gap between confidence and accuracy over the bags' bins of `reliability`.

    Σ_m (n_m / n) |accuracy_m - confidence_m| (Naeini et al. 2015, Guo et al. 2017); NaN without a
    bag. Arguments and errors as `reliability`.
    """
    count, confidence, right = _bin_sums(probability, label, bins, where)
    return _divide(jnp.sum(jnp.abs(right - confidence)), jnp.sum(count))


def bootstrap_interval(
    values: Float[Array, " B"],
    key: PRNGKeyArray,
    level: float = 0.95,
    resamples: int = 1000,
    where: Where = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute the percentile bootstrap interval (low, high) of the mean (Efron 1979).

    NaN without a value. The same key gives the same interval for a masked call and for the subset.
    Holds B x resamples numbers.

    Args:
        values: one value per bag or per member ``[B]``.
        key: draws the resamples.
        level: probability that the interval is to cover, between 0 and 1.
        resamples: number of resamples.
        where: the values to count ``[B]``; all if left out.

    Raises:
        InputError: for a level that is not between 0 and 1, or fewer than one resample.
    """
    if not 0 < level < 1:
        raise InputError("level", level, "must be between 0 and 1, for example 0.95")
    if resamples < 1:
        raise InputError("resamples", resamples, "must be at least 1, for example 1000")
    where = _all(values, where)
    place, count = jnp.arange(values.shape[0]), jnp.sum(where)
    counted_first = jnp.where(where, values, 0)[jnp.argsort(~where, stable=True)]

    def draw(nth: Array) -> Array:
        # A key for each draw: what the first `count` draws give does not depend on how many follow.
        return jax.random.randint(jax.random.fold_in(key, nth), (resamples,), 0, jnp.maximum(count, 1))

    drawn = counted_first[jax.vmap(draw)(place)]
    means = _divide(jnp.sum(jnp.where((place < count)[:, None], drawn, 0), axis=0), count)
    low, high = jnp.quantile(means, jnp.array([(1 - level) / 2, (1 + level) / 2]))
    return low, high


def mean_intervals(
    values: Float[Array, "R B"],
    where: Bool[Array, "R B"],
    key: PRNGKeyArray,
    level: float = 0.95,
    resamples: int = 1000,
) -> tuple[Float[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """Compute mean and bootstrap interval of several statistics, one after the other: (mean, low, high).

    NaN without a value. All use the same resamples, so that equal values get equal intervals.

    Args:
        values: R statistics of B bags or members ``[R, B]``.
        where: the values to count ``[R, B]``; what the others hold does not matter.
        key: draws the resamples.
        level: as `bootstrap_interval`.
        resamples: as `bootstrap_interval`.

    Raises:
        InputError: as `bootstrap_interval`.
    """

    def one(row: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        held, counted = row
        return _mean(held, counted), *bootstrap_interval(held, key, level, resamples, counted)

    return jax.lax.map(one, (values, where))


def roc_curve(
    score: Float[np.ndarray | Array, " B"], label: Int[np.ndarray | Array, " B"]
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Compute the points (false positive rate, true positive rate) of the ROC curve, on the host.

    One point per distinct score, from high to low, after the point (0, 0); the last is (1, 1).

    Args:
        score: higher for bags that are more likely positive ``[B]``.
        label: 1 for positive bags, 0 for negative ones ``[B]``.

    Raises:
        InputError: if the labels are not of both classes.
    """
    true_positives, false_positives = _counts_down_the_scores(score, label)
    if true_positives[-1] == 0 or false_positives[-1] == 0:
        raise InputError("label", sorted(set(np.asarray(label).tolist())), "needs positive and negative bags")
    return false_positives / false_positives[-1], true_positives / true_positives[-1]


def precision_recall_curve(
    score: Float[np.ndarray | Array, " B"], label: Int[np.ndarray | Array, " B"]
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Compute the points (recall, precision) of the precision-recall curve, on the host.

    One point per distinct score, from high to low, so that recall rises to 1, after the point (0,
    1).

    Args:
        score: higher for bags that are more likely positive ``[B]``.
        label: 1 for positive bags, 0 for negative ones ``[B]``.

    Raises:
        InputError: if no bag is positive.
    """
    true_positives, false_positives = _counts_down_the_scores(score, label)
    if true_positives[-1] == 0:
        raise InputError("label", sorted(set(np.asarray(label).tolist())), "needs positive bags")
    called = true_positives + false_positives
    return true_positives / true_positives[-1], np.append(1.0, true_positives[1:] / called[1:])


def _all(like: Array, where: Array | None) -> Array:
    return jnp.ones(like.shape, bool) if where is None else where


def _split(label: Array, where: Array | None) -> tuple[Array, Array]:
    return (label > 0) & _all(label, where), (label <= 0) & _all(label, where)


def _any_nan(score: Array, where: Array | None) -> Array:
    return jnp.any(jnp.isnan(score) & _all(score, where))


def _divide(total: Array, count: Array) -> Array:
    # The inner `maximum` keeps 0 / 0 out of the gradient.
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def _mean(values: Array, where: Array) -> Array:
    return _divide(jnp.sum(jnp.where(where, values, 0)), jnp.sum(where))


def _counts_above(score: Array, member: Array) -> tuple[Array, Array]:
    """Count the members ``[B]`` above, and at or above, each score ``[B]``."""
    order = jnp.argsort(score)
    total = jnp.pad(jnp.cumsum(member[order].astype(jnp.int32)), (1, 0))
    above = total[-1] - total[jnp.searchsorted(score[order], score, side="right")]
    at_or_above = total[-1] - total[jnp.searchsorted(score[order], score, side="left")]
    return above.astype(score.dtype), at_or_above.astype(score.dtype)


def _overlap(prediction: Array, label: Array, where: Array | None) -> tuple[Array, Array, Array]:
    """Count bags that are positive and predicted so, predicted positive, and positive."""
    positive, _ = _split(label, where)
    predicted, _ = _split(prediction, where)
    return jnp.sum(positive & predicted), jnp.sum(predicted), jnp.sum(positive)


def _bin_sums(probability: Array, label: Array, bins: int, where: Array | None) -> tuple[Array, Array, Array]:
    """Sum over each bin's bags: one, confidence, one where the prediction is right ``[bins]``."""
    if bins < 1:
        raise InputError("bins", bins, "must be at least 1, for example 15")
    confidence = jnp.max(probability, axis=-1)
    right = (jnp.argmax(probability, axis=-1) == label).astype(probability.dtype)
    index = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    # Sums under a mask and not a matrix product, which an accelerator may round to fewer digits.
    here = (index == jnp.arange(bins)[:, None]) & _all(label, where)
    of_one, of_confidence, of_right = (
        jnp.sum(jnp.where(here, value, 0), axis=-1) for value in (jnp.ones_like(right), confidence, right)
    )
    return of_one, of_confidence, of_right


def _counts_down_the_scores(score: object, label: object) -> tuple[np.ndarray, np.ndarray]:
    """Count true and false positives at each distinct score from high to low, after a zero."""
    values, positive = np.asarray(score), np.asarray(label) > 0
    order = np.argsort(-values, kind="stable")
    last_of_tie = np.append(np.diff(values[order]) != 0, True)[: len(values)]
    true = np.append(0, np.cumsum(positive[order])[last_of_tie])
    false = np.append(0, np.cumsum(~positive[order])[last_of_tie])
    return true, false
