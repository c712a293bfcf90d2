"""Judging predictions: against scikit-learn and NumPy, and by two routes that must agree."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, guesses, member, message_of
from sklearn import metrics as sk

from mil_jax import evaluation
from mil_jax.bags import Bags, pad, stack_bags, take
from mil_jax.evaluation import Evaluation, evaluate, evaluate_members
from mil_jax.model import Prediction

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def predicted(bags: Bags) -> Prediction:
    """Two members [S, B, …] that guess the label better than chance but not surely."""
    return guesses(bags, 2, 1.5)


@pytest.fixture(scope="module")
def judged(predicted: Prediction, bags: Bags) -> Evaluation:
    return evaluate_members(predicted, bags)


def test_one_member_is_judged_as_among_others_and_on_bags_of_its_own(predicted, judged, bags):
    turned = take(bags, np.arange(40)[::-1])
    own = evaluate_members(predicted, stack_bags([bags, turned]))
    for i, part in enumerate((bags, turned)):
        assert_close(evaluate(member(predicted, i), part), member(own, i))
    assert_close(member(judged, 0), member(own, 0))


# ---- what is no result ----


@pytest.mark.parametrize(("field", "place"), [("probability", (1, 7, 0)), ("attention", (1, 7, 2))])
def test_a_prediction_that_is_not_finite_has_no_metric(field, place, predicted, judged, bags):
    """Alone or among others, all of its numbers are NaN, and the others' are what they were."""
    values = np.array(getattr(predicted, field))
    values[place] = np.nan
    spoilt: Any = Prediction(**{**vars(predicted), field: values})
    assert np.isnan(jax.tree.leaves(evaluate(member(spoilt, 1), bags))).all()
    together = evaluate_members(spoilt, bags)
    assert np.isnan(jax.tree.leaves(member(together, 1))).all()
    assert_close(member(together, 0), member(judged, 0))


def test_what_a_place_without_a_bag_holds_does_not_matter(predicted, bags):
    absent = Bags(bags.pool, jax.tree.map(np.copy, bags.view))
    absent.label[7] = -1
    spoilt: Any = jax.tree.map(lambda leaf: leaf.at[:, 7].set(jnp.nan), predicted)
    assert_close(evaluate_members(spoilt, absent), evaluate_members(predicted, absent))


OTHER_BAGS: list[Callable[[Bags], Bags]] = [
    lambda bags: take(bags, np.arange(20)), lambda bags: pad(bags, 5), lambda bags: stack_bags([bags] * 3),
    lambda bags: Bags(bags.pool, jax.tree.map(lambda leaf: leaf + 2, bags.view)),
]  # fmt: skip


@pytest.mark.parametrize("other", OTHER_BAGS, ids=["fewer bags", "more slots", "of 3 members", "of more classes"])
def test_a_prediction_of_other_bags_is_refused(other, predicted, bags):
    whole, key = member(predicted, 0), jax.random.key(0)
    for call in (
        lambda: evaluate(whole, other(bags)),
        lambda: evaluate_members(predicted, other(bags)),
        lambda: evaluation.warnings_of(predicted, other(bags)),
        lambda: evaluation.attention_table(whole, other(bags), key),
        lambda: evaluation.agreement_table(predicted, other(bags), key),
        lambda: evaluate(predicted, bags),
        lambda: evaluate_members(whole, bags),
    ):
        message = message_of(call)
        assert "of these bags" in message or "the classes predicted" in message


# ---- as records, tables and sentences ----


@pytest.mark.parametrize("i", [0, 1])
def test_bag_metrics_are_those_of_scikit_learn(i, predicted, judged, bags):
    label, probability = np.asarray(bags.label), np.asarray(predicted.probability[i], np.float64)
    probability /= probability.sum(axis=1, keepdims=True)
    score, decision = probability[:, 1], probability.argmax(axis=1)
    expected = {
        "loss": sk.log_loss(label, probability), "accuracy": sk.accuracy_score(label, decision),
        "auc": sk.roc_auc_score(label, score), "precision": sk.precision_score(label, decision),
        "recall": sk.recall_score(label, decision), "f1": sk.f1_score(label, decision),
        "average_precision": sk.average_precision_score(label, score), "brier": 2 * sk.brier_score_loss(label, score),
    }  # fmt: skip
    assert 0.6 < expected["auc"] < 1, "a case in which metrics differ from their limits"
    for name, value in expected.items():
        assert float(getattr(judged.bags, name)[i]) == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("i", [0, 1])
def test_attention_is_judged_by_label(i, predicted, judged, bags):
    label, truth = np.asarray(bags.label), np.asarray(bags.instance_label)
    weights = np.asarray(predicted.attention[i], np.float64)
    entropy = -(weights * np.log(weights)).sum(axis=1)
    hits = truth[np.arange(40), weights.argmax(axis=1)] == 1
    mass = (weights * truth).sum(axis=1)
    mixed = np.flatnonzero((truth.sum(axis=1) > 0) & (truth.sum(axis=1) < 3))
    auc = np.mean([sk.roc_auc_score(truth[bag], weights[bag]) for bag in mixed])
    for value, expected in (
        (judged.positive.entropy, entropy[label == 1].mean()),
        (judged.negative.entropy, entropy[label == 0].mean()),
        (judged.positive.hit_at_1, hits[label == 1].mean()),
        (judged.positive.positive_mass, mass[label == 1].mean()),
        (judged.positive.instance_auc, auc),
        (judged.negative.hit_at_1, 0.0),
        (judged.negative.has_positive, 0.0),
    ):
        assert float(value[i]) == pytest.approx(float(expected), rel=1e-5)


def test_flatten_names_every_number(judged):
    flat = evaluation.flatten(judged)
    assert len(flat) == len(jax.tree.leaves(judged))
    assert {"bags_auc", "positive_entropy", "negative_entropy", "positive_hit_at_1"} <= set(flat)
    assert all(isinstance(value, np.ndarray) and value.shape == (2,) for value in flat.values())
    np.testing.assert_array_equal(flat["positive_entropy"], judged.positive.entropy)
    assert "epoch_bags_auc" in evaluation.flatten(judged, "epoch_")


def test_warnings_name_the_member_whose_attention_is_uniform(bags):
    truth = np.asarray(bags.instance_label, np.float32)
    sharp = (truth + 0.1) / (truth + 0.1).sum(axis=1, keepdims=True)
    on_first_slot = np.tile(np.array([1.0, 0.0, 0.0], np.float32), (40, 1))
    attention = np.stack([sharp, np.full_like(sharp, 1 / 3), on_first_slot, sharp * np.nan])
    predicted = Prediction(jnp.full((4, 40, 2), 0.5), jnp.asarray(attention))
    healthy, uniform, one_slot, diverged = evaluation.warnings_of(predicted, bags)
    assert healthy == []
    assert len(uniform) == 1 and "uniform" in uniform[0]
    assert len(one_slot) == 1 and "slot 0" in one_slot[0]
    assert len(diverged) == 1 and "not finite" in diverged[0]
    own = stack_bags([bags] * 4)
    assert evaluation.warnings_of(predicted, own) == evaluation.warnings_of(predicted, bags)


def test_mean_and_spread():
    assert evaluation.mean_and_spread(np.array([1.0, 2.0, 6.0])) == pytest.approx((3, math.sqrt(7)))
    assert evaluation.mean_and_spread(np.array([1.0, np.nan, 2.0])) == pytest.approx((1.5, math.sqrt(0.5)))
    mean, spread = evaluation.mean_and_spread(np.array([np.nan, 4.0]))
    assert mean == 4 and math.isnan(spread)
    assert all(math.isnan(value) for value in evaluation.mean_and_spread(np.array([])))


# ---- per bag, then mean with interval ----


def test_attention_by_groups_of_bags(predicted, judged, bags):
    one = member(predicted, 0)
    rows = {(row["bags"], row["statistic"]): row for row in evaluation.attention_table(one, bags, jax.random.key(0))}
    assert len(rows) == 4 * len(evaluation.STATISTICS)
    label, right = np.asarray(bags.label), np.asarray(one.probability).argmax(axis=1) == np.asarray(bags.label)
    entropy = np.array([-(w * np.log(w)).sum() for w in np.asarray(one.attention, np.float64)])
    groups = {"positive": label == 1, "negative": label == 0, "correct": right, "wrong": ~right}
    for group, chosen in groups.items():
        row = rows[group, "entropy"]
        assert row["count"] == chosen.sum() > 0
        assert row["mean"] == pytest.approx(entropy[chosen].mean(), rel=1e-5)
        assert row["low"] < row["mean"] < row["high"]
    # An interval covers about what the normal distribution says: twice 1.96 standard errors.
    row, chosen = rows["negative", "entropy"], entropy[label == 0]
    width = 2 * 1.96 * chosen.std(ddof=1) / math.sqrt(len(chosen))
    assert row["high"] - row["low"] == pytest.approx(width, rel=0.2)
    for name in ("hit_at_1", "positive_mass", "instance_auc"):
        assert rows["positive", name]["mean"] == pytest.approx(float(getattr(judged.positive, name)[0]), rel=1e-5)
        assert rows["negative", name]["count"] == 0 and math.isnan(rows["negative", name]["mean"])


def test_only_the_statistics_asked_for_and_no_unknown_one(predicted, bags):
    rows = evaluation.attention_table(member(predicted, 0), bags, jax.random.key(0), ("gini",))
    assert [row["statistic"] for row in rows] == ["gini"] * 4
    message = message_of(evaluation.attention_table, member(predicted, 0), bags, jax.random.key(0), ("gini", "ginny"))
    assert message.startswith("statistics = 'ginny': expected names of statistics: entropy, ")


def test_agreement_by_groups_of_bags(predicted, bags):
    same = jax.tree.map(lambda leaf: leaf[jnp.array([0, 0, 0])], predicted)
    for rows, agrees in ((evaluation.agreement_table(same, bags, jax.random.key(0)), True),
                         (evaluation.agreement_table(predicted, bags, jax.random.key(0)), False)):  # fmt: skip
        found = {row["statistic"]: row for row in rows if row["bags"] == "negative"}
        assert set(found) == {"rank_agreement", "jensen_shannon", "top_stability", "spread"}
        assert (found["rank_agreement"]["mean"] > 0.999) == agrees
        assert (found["top_stability"]["mean"] > 0.999) == agrees
        assert (found["jensen_shannon"]["mean"] < 1e-5) == agrees
        assert (found["spread"]["mean"] < 1e-5) == agrees
