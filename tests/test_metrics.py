"""Bag metrics: scikit-learn as reference, masks as relations, what undefined input gives."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from conftest import message_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax import metrics
from mil_jax.run.figures import confusion_counts

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CASES, BAGS = 200, 24
BAG_METRICS = jax.jit(metrics.bag_metrics)
AUC = jax.jit(metrics.roc_auc)
AVERAGE_PRECISION = jax.jit(metrics.average_precision)


def random_scores(seed: int):
    """Cases of tied scores, labels of both classes, and masks that leave some of each class."""
    rng = np.random.default_rng(seed)
    levels = rng.choice([2, 5, 1000], (CASES, 1))
    score = rng.integers(0, levels, (CASES, BAGS)) / 1000
    label = (rng.random((CASES, BAGS)) < rng.choice([0.1, 0.5, 0.9], (CASES, 1))).astype(int)
    where = rng.random((CASES, BAGS)) < 0.7
    label[:, :2], where[:, :2] = [0, 1], True
    return score, label, where


def random_probabilities(seed: int, bags: int, classes: int):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, bags)
    label[:classes] = np.arange(classes)
    score = rng.normal(size=(bags, classes)) + np.eye(classes)[label]
    return (np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)).astype(np.float32), label


def reference_calibration_error(probability, label, bins=15):
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == label
    gaps = 0
    for low, high in itertools.pairwise(np.linspace(0, 1, bins + 1)):
        inside = (confidence > low) & (confidence <= high)
        gaps += abs(right[inside].sum() - confidence[inside].sum())
    return gaps / len(label)


def assert_equals_reference(metric, reference, value, label, where, **tolerance):
    """Asserts that a metric of masked cases is the reference of what the mask leaves of each."""
    got = jax.jit(jax.vmap(metric))(*map(jnp.asarray, (value, label, where)))
    cases = zip(value, label, where, strict=True)
    wanted = [reference(y[counted], x[counted]) for x, y, counted in cases]
    np.testing.assert_allclose(got, wanted, **tolerance)


def test_rankings_and_decisions_equal_scikit_learn_on_random_masked_cases():
    with jax.enable_x64(True):
        assert_equals_reference(metrics.roc_auc, sk.roc_auc_score, *random_scores(0), rtol=0, atol=1e-9)
        given = random_scores(0)
        assert_equals_reference(metrics.average_precision, sk.average_precision_score, *given, rtol=0, atol=1e-9)
    score, label, where = random_scores(1)
    prediction = (score > np.median(score, axis=1, keepdims=True)).astype(int)
    prediction[0] = 0
    for name in ("precision", "recall", "f1"):
        metric, reference = getattr(metrics, name), partial(getattr(sk, f"{name}_score"), zero_division=0.0)
        assert_equals_reference(metric, reference, prediction, label, where, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_bag_metrics_equal_scikit_learn(classes):
    probability, label = random_probabilities(classes, 300, classes)
    got = jax.device_get(BAG_METRICS(jnp.asarray(probability), jnp.asarray(label)))
    prediction, exact = probability.argmax(axis=1), probability.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    one_hot = np.eye(classes)[label]
    average, score, truth = ("macro", exact, one_hot) if classes > 2 else ("binary", exact[:, 1], label)
    wanted = {
        "loss": sk.log_loss(label, exact), "accuracy": sk.accuracy_score(label, prediction),
        "auc": sk.roc_auc_score(truth, score), "average_precision": sk.average_precision_score(truth, score),
        "precision": sk.precision_score(label, prediction, average=average),
        "recall": sk.recall_score(label, prediction, average=average),
        "f1": sk.f1_score(label, prediction, average=average), "brier": np.mean(np.sum((exact - one_hot) ** 2, axis=1)),
        "calibration_error": reference_calibration_error(exact, label),
    }  # fmt: skip
    assert wanted.keys() == vars(got).keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(got, name), value, rtol=3e-6, err_msg=name)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_a_masked_call_equals_the_call_on_the_subset(seed):
    probability, label = random_probabilities(seed, 12, 3)
    # Ties, and a fixed size of the subset so that it compiles once.
    probability = np.round(probability, 1).astype(np.float32)
    kept = np.sort(np.random.default_rng(seed).permutation(12)[:7])
    where = np.isin(np.arange(12), kept)
    subset = BAG_METRICS(jnp.asarray(probability[kept]), jnp.asarray(label[kept]))
    probability[~where] = np.nan
    masked = BAG_METRICS(jnp.asarray(probability), jnp.asarray(label), jnp.asarray(where))
    for name, value in vars(subset).items():
        np.testing.assert_allclose(getattr(masked, name), value, rtol=1e-5, atol=1e-6, err_msg=name)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_auc_is_antisymmetric_and_blind_to_monotone_maps(seed):
    rng = np.random.default_rng(seed)
    score = jnp.asarray(rng.integers(0, 6, BAGS), jnp.float32)
    label = jnp.asarray(np.append([0, 1], rng.integers(0, 2, BAGS - 2)))
    auc = float(AUC(score, label))
    got = [AUC(-score, label), AUC(score, 1 - label), AUC(jnp.exp(score / 2), label)]
    np.testing.assert_allclose(got, [1 - auc, 1 - auc, auc], rtol=0, atol=1e-6)


def test_rankings_worked_out_by_hand():
    score, label = jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1])
    assert float(AUC(score, label)) == pytest.approx(3.5 / 4)
    assert float(AVERAGE_PRECISION(score, label)) == pytest.approx((1 + 2 / 3) / 2)


def test_undefined_metrics_are_nan_and_not_a_number_to_believe():
    score, ones, none = jnp.array([0.2, 0.4, 0.4, 0.7]), jnp.ones(4, int), jnp.zeros(4, bool)
    diverged, label = score.at[0].set(jnp.nan), jnp.array([0, 1, 0, 1])
    undefined = [AUC(score, ones), *(metric(*given) for metric in (AUC, AVERAGE_PRECISION)
                                     for given in ((score, 1 - ones), (diverged, label)))]  # fmt: skip
    assert np.isnan(undefined).all() and len(undefined) == 5
    assert float(AVERAGE_PRECISION(score, ones)) == 1
    nothing = jax.device_get(BAG_METRICS(jnp.stack([1 - score, score], axis=1), label, none))
    zero_by_custom = {"precision": 0, "recall": 0, "f1": 0}
    for name, value in vars(nothing).items():
        np.testing.assert_equal(float(value), zero_by_custom.get(name, np.nan), err_msg=name)


def test_classes_that_do_not_occur_leave_the_mean_auc_to_the_others():
    probability, label = random_probabilities(3, 300, 3)
    label[label == 2] = 0
    got = BAG_METRICS(jnp.asarray(probability), jnp.asarray(label))
    cases = [(label == c, probability[:, c]) for c in (0, 1)]
    assert float(got.auc) == pytest.approx(np.mean([sk.roc_auc_score(*case) for case in cases]), rel=1e-6)
    # Average precision of a class without bags is undefined as well; its recall counts as 0.
    wanted = np.mean([sk.average_precision_score(*case) for case in cases])
    assert float(got.average_precision) == pytest.approx(wanted, rel=1e-6)
    recall = sk.recall_score(label, probability.argmax(axis=1), average="macro", labels=[0, 1])
    assert float(got.recall) == pytest.approx(recall * 2 / 3, rel=1e-6)


def test_a_certain_mistake_costs_a_finite_loss_with_a_finite_gradient():
    probability, label = jnp.array([[1.0, 0.0], [0.25, 0.75]]), jnp.array([1, 1])
    loss_and_gradient = jax.jit(jax.value_and_grad(metrics.negative_log_likelihood))
    eps = float(np.finfo(np.float32).eps)
    for where, wanted in ((jnp.ones(2, bool), -(np.log(eps) + np.log(0.75)) / 2), (jnp.zeros(2, bool), np.nan)):
        loss, gradient = loss_and_gradient(probability, label, where)
        assert float(loss) == pytest.approx(wanted, nan_ok=True)
        assert np.isfinite(gradient).all()


def test_confusion_counts_equal_scikit_learn_and_skip_unknown_labels():
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 4, 60), rng.integers(-1, 4, 60)
    wanted = sk.confusion_matrix(label[label >= 0], prediction[label >= 0], labels=range(4))
    np.testing.assert_array_equal(confusion_counts(prediction, label, 4), wanted)


def test_reliability_worked_out_by_hand():
    confidence = np.array([0.55, 0.6, 0.95, 1.0, 1.0], np.float32)
    probability, label = jnp.asarray(np.stack([1 - confidence, confidence], axis=1)), jnp.array([1, 0, 1, 1, 0])
    got = metrics.reliability(probability, label, bins=10)
    np.testing.assert_array_equal(got.count, [0, 0, 0, 0, 0, 2, 0, 0, 0, 3])
    np.testing.assert_allclose([got.confidence[5], got.accuracy[5], got.accuracy[9]], [0.575, 0.5, 2 / 3], rtol=1e-6)
    error = metrics.expected_calibration_error(probability, label, bins=10)
    assert float(error) == pytest.approx((2 * 0.075 + 3 * (2.95 / 3 - 2 / 3)) / 5, rel=1e-5)


@pytest.mark.parametrize(("name", "reference"), [
    ("loss", lambda y, p: sk.log_loss(y, p, labels=[0, 1])),
    ("brier", lambda y, p: 2 * sk.brier_score_loss(y, p[:, 1])),
    ("calibration_error", lambda y, p: reference_calibration_error(p, y)),
])  # fmt: skip
def test_probabilities_and_calibration_equal_references_on_random_masked_cases(name, reference):
    _, label, where = random_scores(9)
    positive = np.random.default_rng(9).beta(1 + label, 2 - label).clip(1e-3, 1 - 1e-3)
    probability = np.stack([1 - positive, positive], axis=-1)
    with jax.enable_x64(True):
        assert_equals_reference(
            lambda *case: getattr(metrics.bag_metrics(*case), name), reference, probability, label, where, atol=1e-6
        )


@pytest.mark.parametrize(("call", "message"), [
    (lambda: metrics.bag_metrics(jnp.ones((3, 1)), jnp.zeros(3, int)), "probability = (3, 1)"),
    (lambda: metrics.reliability(jnp.ones((3, 2)), jnp.zeros(3, int), bins=0), "bins = 0: expected a whole number"),
])  # fmt: skip
def test_input_that_cannot_be_used_is_named(call, message):
    assert message_of(call).startswith(message)
