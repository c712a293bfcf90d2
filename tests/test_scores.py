"""Scores of weighted bags against the metrics of training and scikit-learn's; intervals that mean what they say."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_parts, message_of
from sklearn import metrics as sklearn_metrics

from mil_jax import metrics
from mil_jax.scores import SCORES, group_scores, weighted_scores

KEY = jax.random.key(0)


def draw_case(seed: int, classes: int, bags: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [B, C] of few different values, so that many are equal, and labels of every class."""
    draw = np.random.default_rng(seed)
    label = np.concatenate([np.arange(classes), draw.integers(0, classes, bags - classes)])
    raw = draw.integers(1, 5, (bags, classes)) + 2.0 * np.eye(classes)[label] * draw.integers(0, 2, (bags, 1))
    return raw / raw.sum(axis=1, keepdims=True), label


def one_weighting(probability: np.ndarray, label: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    return {name: float(value[0]) for name, value in weighted_scores(probability, label, weight[None]).items()}


def references(probability: np.ndarray, label: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """scikit-learn's; of class 1 for two classes, else the mean over classes, each against the rest."""
    classes = probability.shape[1]
    positive = [1] if classes == 2 else range(classes)
    called, w = probability.argmax(axis=1), cast(Any, {"sample_weight": weight})
    mean = lambda score: float(np.mean([score(label == c, probability[:, c], **w) for c in positive]))  # noqa: E731
    how: Any = {"average": "binary" if classes == 2 else "macro", "zero_division": 0.0}
    return {
        "auc": mean(sklearn_metrics.roc_auc_score),
        "average_precision": mean(sklearn_metrics.average_precision_score),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(label, called, **w),
        "accuracy": sklearn_metrics.accuracy_score(label, called, **w),
        "f1": sklearn_metrics.f1_score(label, called, **how, **w),
        "loss": sklearn_metrics.log_loss(label, probability, **w),
    }


@pytest.mark.parametrize("classes", [2, 3])
def test_weighted_scores_equal_scikit_learns_with_ties_and_any_weights(classes: int) -> None:
    for seed in range(20):
        probability, label = draw_case(seed, classes)
        weight = np.random.default_rng(seed).uniform(0.1, 3, len(label))
        ours = one_weighting(probability, label, weight)
        assert set(ours) == set(SCORES)
        for name, value in references(probability, label, weight).items():
            assert ours[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("classes", [2, 3])
def test_with_weights_of_one_they_are_the_metrics_of_training(classes: int) -> None:
    for seed in range(5):
        probability, label = draw_case(seed, classes)
        ours = one_weighting(probability, label, np.ones(len(label)))
        judged = metrics.bag_metrics(jnp.asarray(probability, jnp.float32), jnp.asarray(label))
        for field in set(SCORES) & {field.name for field in dataclasses.fields(judged)}:
            assert ours[field] == pytest.approx(float(getattr(judged, field)), abs=2e-6), field


@pytest.mark.parametrize("classes", [2, 3])
def test_a_whole_weight_is_that_many_copies_of_the_bag(classes: int) -> None:
    probability, label = draw_case(0, classes)
    count = np.random.default_rng(1).integers(0, 4, (6, len(label)))
    together = weighted_scores(probability, label, count.astype(float))
    for i, repeats in enumerate(count):
        copies = one_weighting(probability.repeat(repeats, axis=0), label.repeat(repeats), np.ones(repeats.sum()))
        for name, value in copies.items():
            np.testing.assert_allclose(together[name][i], value, atol=1e-9, err_msg=name)


def test_what_a_weighting_leaves_undefined_is_nan() -> None:
    probability, label = np.array([[0.8, 0.2], [0.3, 0.7], [0.1, 0.9]]), np.array([0, 1, 1])
    scores = weighted_scores(probability, label, np.array([[1.0, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(np.isnan(scores["auc"]), [False, True, True, True])
    np.testing.assert_array_equal(scores["accuracy"], [1, 1, 1, np.nan])
    np.testing.assert_array_equal(scores["balanced_accuracy"], [1, 1, 1, np.nan])


def test_mean_and_standard_error_over_rounds_by_hand() -> None:
    """Three rounds right on 3, 2 and 1 of 4 bags: mean 1/2, standard deviation 1/4, standard error 1/(4 sqrt 3)."""
    label, right = np.array([0, 0, 1, 1]), np.array([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0]])
    called = np.where(right, label, 1 - label)
    probability = np.where(called[..., None] == np.arange(2), 0.9, 0.1)
    score = group_scores(probability, label, list("abcd"), KEY, resamples=20)["accuracy"]
    assert score.mean == pytest.approx(0.5) and score.standard_error == pytest.approx(0.25 / 3**0.5)
    one = group_scores(probability[:1], label, list("abcd"), KEY, resamples=20)["accuracy"]
    assert one.mean == pytest.approx(0.75) and np.isnan(one.standard_error)


def test_a_round_counts_the_bags_that_it_predicts_and_the_scores_that_it_has() -> None:
    """Two folds as rounds; the second has one class alone, and so no AUC, but an accuracy."""
    probability = np.full((2, 5, 2), np.nan)
    probability[0, :3] = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]
    probability[1, 3:] = [[0.9, 0.1], [0.2, 0.8]]
    scores = group_scores(probability, np.array([0, 1, 0, 0, 0]), list("abcde"), KEY, resamples=200)
    assert scores["accuracy"].mean == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["auc"].mean == 1 and np.isnan(scores["auc"].standard_error) and scores["auc"].low == 1
    assert_parts(message_of(group_scores, probability * np.nan, np.zeros(5, int), list("abcde"), KEY), "at least one")


def test_the_key_decides_the_interval() -> None:
    probability, label = draw_case(3, 2)
    groups = [str(i) for i in range(len(label))]
    one, same, other = (group_scores(probability[None], label, groups, jax.random.key(i), 200) for i in (0, 0, 1))
    assert repr(one) == repr(same) and repr(one) != repr(other)
    for name in SCORES:
        assert one[name].low <= one[name].mean <= one[name].high or name == "calibration_error"


def test_intervals_are_over_groups_and_cover_the_truth() -> None:
    """Accuracy 0.7 of 50 patients with four slides that are right or wrong together: 95 % of intervals hold it.

    Over bags that are taken for independent they are about half as wide, and too few hold it.
    """
    draw, hits, widths = np.random.default_rng(0), {"groups": 0, "bags": 0}, {"groups": [], "bags": []}
    patients, slides, cases = 50, 4, 60
    names = {"groups": [str(i // slides) for i in range(patients * slides)],
             "bags": [str(i) for i in range(patients * slides)]}  # fmt: skip
    label = np.arange(patients).repeat(slides) % 2
    for case in range(cases):
        right = (draw.uniform(size=patients) < 0.7).repeat(slides)
        probability = np.where(right[:, None] == (label[:, None] == np.arange(2)), 0.8, 0.2)
        for kind, groups in names.items():
            score = group_scores(probability[None], label, groups, jax.random.key(case), 200)["accuracy"]
            hits[kind] += score.low <= 0.7 <= score.high
            widths[kind].append(score.high - score.low)
    assert np.mean(widths["groups"]) == pytest.approx(2 * np.mean(widths["bags"]), rel=0.1)
    assert 0.88 <= hits["groups"] / cases <= 0.99 and hits["bags"] / cases < 0.8
