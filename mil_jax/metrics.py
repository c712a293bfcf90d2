"""How good predictions of bags are: ranking, decisions, probabilities and their calibration.

Pure functions of arrays over bags, which jit and vmap (over members). With `where`, a function returns what it would
for the bags where it is True alone. They sum first and divide last. A metric that its input leaves undefined, such as
the AUC of one class or the mean of nothing, is NaN, never a number that could be taken for a result; write it as null.
Precision, recall and F1 are the exception, by custom: they are 0.

Axes: B bags · C classes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mil_jax.errors import InputError, check_whole
from mil_jax.ranks import counts_above
from mil_jax.record import Values, record

Label = Int[Array, " B"] | Bool[Array, " B"]
Where = Bool[Array, " B"] | None


@record
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

    loss: Values
    accuracy: Values
    auc: Values
    precision: Values
    recall: Values
    f1: Values
    average_precision: Values
    brier: Values
    calibration_error: Values


@record
class Reliability:
    """A reliability diagram: how sure and how right predictions are, by bins of confidence.

    Attributes:
        confidence: mean probability of the predicted class in each bin ``[bins]``; 0 if empty.
        accuracy: share of right predictions in each bin ``[bins]``; 0 if empty.
        count: number of bags in each bin ``[bins]``.
    """

    confidence: Values
    accuracy: Values
    count: Values


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
        raise InputError("probability", probability.shape, "expected a column for each of at least two classes")
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
    (above,), (at_or_above,) = counts_above(score, negative[None])
    negatives = jnp.sum(negative).astype(score.dtype)
    share_below = (negatives - (above + at_or_above) / 2) / jnp.maximum(negatives, 1)
    undefined = (negatives == 0) | _any_nan(score, where)
    return jnp.where(undefined, jnp.nan, mean_where(share_below, positive))


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
    _, (true_positives, false_positives) = counts_above(score, jnp.stack([positive, negative]))
    # The sum over thresholds is a mean over positive bags: each adds 1 / positives to the recall at
    # its own score.
    precision_there = true_positives / jnp.maximum(true_positives + false_positives, 1)
    return jnp.where(_any_nan(score, where), jnp.nan, mean_where(precision_there, positive))


def accuracy(prediction: Label, label: Label, where: Where = None) -> Float[Array, ""]:
    """Compute the share of bags whose prediction ``[B]`` is their label ``[B]``; NaN for none."""
    return mean_where((prediction == label).astype(jnp.float32), all_or(label, where))


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
    return mean_where(-jnp.log(jnp.maximum(of_truth, jnp.finfo(probability.dtype).eps)), all_or(label, where))


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
    return mean_where(jnp.sum((probability - target) ** 2, axis=-1), all_or(label, where))


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
    return divide(jnp.sum(jnp.abs(right - confidence)), jnp.sum(count))


def all_or(like: Array, where: Array | None) -> Array:
    """The mask, or one that is True everywhere."""
    return jnp.ones(like.shape, bool) if where is None else where


def _split(label: Array, where: Array | None) -> tuple[Array, Array]:
    return (label > 0) & all_or(label, where), (label <= 0) & all_or(label, where)


def _any_nan(score: Array, where: Array | None) -> Array:
    return jnp.any(jnp.isnan(score) & all_or(score, where))


def divide(total: Array, count: Array) -> Array:
    """A mean from a total and a count; NaN of nothing."""
    # The inner `maximum` keeps 0 / 0 out of the gradient.
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def mean_where(values: Array, where: Array) -> Array:
    """The mean of the values in the mask; NaN of none."""
    return divide(jnp.sum(jnp.where(where, values, 0)), jnp.sum(where))


def _overlap(prediction: Array, label: Array, where: Array | None) -> tuple[Array, Array, Array]:
    """Count bags that are positive and predicted so, predicted positive, and positive."""
    positive, _ = _split(label, where)
    predicted, _ = _split(prediction, where)
    return jnp.sum(positive & predicted), jnp.sum(predicted), jnp.sum(positive)


def _bin_sums(probability: Array, label: Array, bins: int, where: Array | None) -> tuple[Array, Array, Array]:
    """Sum over each bin's bags: one, confidence, one where the prediction is right ``[bins]``."""
    check_whole("bins", bins, 1)
    confidence = jnp.max(probability, axis=-1)
    right = (jnp.argmax(probability, axis=-1) == label).astype(probability.dtype)
    index = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    # Sums under a mask and not a matrix product, which an accelerator may round to fewer digits.
    here = (index == jnp.arange(bins)[:, None]) & all_or(label, where)
    of_one, of_confidence, of_right = (
        jnp.sum(jnp.where(here, value, 0), axis=-1) for value in (jnp.ones_like(right), confidence, right)
    )
    return of_one, of_confidence, of_right
