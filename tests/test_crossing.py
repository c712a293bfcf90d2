"""Members of several fits put together: every prediction in its place, and what nobody may look at without effect."""

import jax
import numpy as np
import pytest
from conftest import make_pool

from mil_jax.crossing import (
    as_members,
    choose_settings,
    ensemble_of,
    linear_probe,
    mean_features,
    members_of,
    out_of_fold,
    spread_of,
    thresholds,
    unlikeness,
)
from mil_jax.datasets.bag_sources import BagSource, Cohort, cohort_of_arrays
from mil_jax.folds import Plan, draw_plan, given_plan
from mil_jax.model import Prediction
from mil_jax.protocols import Folds, choose_threshold

BAGS, MEMBERS = 15, 2
LABEL = np.arange(BAGS) % 2


def draw(repeats: int = 2, holdout: float = 0.0) -> Plan:
    groups = [f"p{i}" for i in range(BAGS)]
    return draw_plan(jax.random.key(0), LABEL, groups, folds=3, repeats=repeats, holdout=holdout)


def marked(plan: Plan) -> Prediction:
    """Predictions [F * M, W, ...] that say who made them, and of which bag; an empty place says -1000."""
    who = np.arange(plan.fits * MEMBERS)[:, None] * 100.0
    value = np.where(plan.folds.test.repeat(MEMBERS, axis=0) < 0, -1000, who + plan.folds.test.repeat(MEMBERS, axis=0))
    two, three = value[..., None] + [0, 0.25], value[..., None] + [0, 0.25, 0.5]
    return Prediction(two.astype(np.float32), three.astype(np.float32))


def fit_of(plan: Plan, number: int, bag: int) -> int | None:
    """The fit of a round that judges a bag."""
    fits = [i for i, test in enumerate(plan.folds.test) if bag in test and plan.round[i] == number]
    return fits[0] if fits else None


def overlapping() -> Plan:
    """Three given splits, whose tests overlap: bags 0 to 3, 3 to 6, and 1 alone."""
    test = np.array([[0, 1, 2, 3], [3, 4, 5, 6], [1, -1, -1, -1]])
    return given_plan(Folds(np.array([[9, 10]] * 3), np.array([[11]] * 3), test))


@pytest.mark.parametrize("plan", [draw(), draw(1, holdout=0.2), overlapping()], ids=["rounds", "holdout", "given"])
def test_each_prediction_goes_where_it_belongs(plan: Plan) -> None:
    """By round, member and bag; NaN where a round does not judge a bag; then as members that judge every bag."""
    predicted = out_of_fold(marked(plan), plan, MEMBERS, BAGS)
    assert predicted.probability.shape == (plan.rounds, MEMBERS, BAGS, 2)
    assert predicted.attention.shape == (plan.rounds, MEMBERS, BAGS, 3)
    for number, member, bag in np.ndindex(plan.rounds, MEMBERS, BAGS):
        fit = fit_of(plan, number, bag)
        first = np.nan if fit is None else (fit * MEMBERS + member) * 100.0 + bag
        np.testing.assert_array_equal(predicted.probability[number, member, bag], first + np.array([0, 0.25]))
        np.testing.assert_array_equal(predicted.attention[number, member, bag], first + np.array([0, 0.25, 0.5]))
    tested = plan.tested()
    whole = as_members(predicted, tested)
    judged = np.isfinite(predicted.probability[:, 0, tested, 0])
    if judged.all():
        expected = predicted.probability[:, :, tested].reshape(-1, len(tested), 2)
    else:
        expected = np.nanmean(predicted.probability[:, :, tested], axis=0)
    np.testing.assert_array_equal(whole.probability, expected)
    assert whole.attention.shape == (*whole.probability.shape[:2], 3) and np.isfinite(whole.attention).all()


def test_a_member_that_diverged_is_in_no_mean_and_no_spread() -> None:
    pooled = np.array([[[[0.2, 0.8], [0.5, 0.5]], [[np.nan] * 2, [0.1, 0.9]], [[0.4, 0.6], [0.9, 0.1]]]])
    mean, spread = ensemble_of(pooled), spread_of(pooled)
    np.testing.assert_allclose(mean, [[[0.3, 0.7], [0.5, 0.5]]])
    np.testing.assert_allclose(spread[0, 0], np.std([0.2, 0.4], ddof=1))
    np.testing.assert_allclose(spread[0, 1], np.std([0.5, 0.1, 0.9], ddof=1))
    assert not spread_of(pooled[:, :1]).any()
    for gone in (ensemble_of, spread_of):
        assert np.isnan(gone(np.full((1, 2, 1, 2), np.nan))).all()


def test_each_fit_keeps_the_setting_with_the_lowest_loss_and_one_that_diverged_loses() -> None:
    """Three settings, four fits, two members: [G, F, M]."""
    loss = np.array([
        [[0.5, 0.5], [0.1, np.nan], [0.3, 0.1], [np.nan, np.nan]],
        [[0.2, 0.6], [0.9, 0.9], [0.1, 0.4], [np.inf, 1.0]],
        [[0.6, 0.6], [0.8, 1.1], [0.1, 0.2], [5.0, 5.0]],
    ])  # fmt: skip
    assert choose_settings(loss.reshape(-1), 3, 4).tolist() == [1, 1, 2, 2]
    assert choose_settings(np.full(4, np.nan), 2, 1).tolist() == [0]


def test_the_members_of_the_chosen_settings_are_those_of_the_repeated_plan() -> None:
    plan, chosen = draw(1), np.array([2, 0, 1])
    index = members_of(chosen, MEMBERS)
    who = np.stack(np.unravel_index(index, (3, plan.fits, MEMBERS)), axis=1).tolist()
    assert who == [[chosen[fit], fit, member] for fit in range(3) for member in range(MEMBERS)]
    for all_members, of_fits in zip(plan.repeated(3, MEMBERS), plan.repeated(1, MEMBERS), strict=True):
        np.testing.assert_array_equal(all_members[index], of_fits)


def test_a_threshold_is_that_of_the_fits_ensemble_on_its_own_validation_bags() -> None:
    """Two fits of two members; a member that diverged, and a place without a bag, do not count."""
    positive = np.array([[0.1, 0.2, 0.6], [0.3, 0.4, 0.8], [0.3, 0.7, 0.9], [np.nan] * 3])
    label = np.array([[0, 1, 1], [0, 1, 1], [0, 0, -1], [0, 0, -1]])
    found = thresholds(np.stack([1 - positive, positive], axis=-1), label, 2)
    expected = [choose_threshold(np.array([0.2, 0.3, 0.7]), label[0]), choose_threshold(positive[2], label[2])]
    np.testing.assert_allclose(found, expected)
    assert 0.2 < found[0] <= 0.3 and found[1] > 0.7


def cohort_of(arrays: list[np.ndarray]) -> Cohort:
    sources = [BagSource(name=str(i), group=str(i), label=0, arrays=(x, None)) for i, x in enumerate(arrays)]
    return cohort_of_arrays("made up", sources, ("negative", "positive"))


def test_mean_features_are_of_the_instances_alone() -> None:
    instances, _ = make_pool(0)
    parts = [instances[:1], instances[1:5], instances[5:8]]
    means = mean_features(cohort_of(parts))
    np.testing.assert_allclose(means, [part.mean(axis=0) for part in parts], rtol=1e-6)
    pixels = [np.full((2, 2, 2), 255, np.uint8), np.zeros((1, 2, 2), np.uint8)]
    np.testing.assert_allclose(mean_features(cohort_of(pixels)), [[1] * 4, [0] * 4])


def test_the_linear_probe_ranks_and_never_sees_test_bags() -> None:
    """Whatever a test bag and its label become, what is said of the fit's other test bags stays."""
    rng, label = np.random.default_rng(0), np.arange(60) % 3
    features = rng.normal(size=(60, 4)) + 2.0 * np.eye(4)[label]
    plan = draw_plan(jax.random.key(0), label, [str(i) for i in range(60)], folds=2)
    said = linear_probe(features, label, plan, 3)
    assert said.shape == (1, 60, 3) and (said.argmax(axis=-1) == label).mean() > 0.7
    np.testing.assert_allclose(said.sum(axis=-1), 1)
    first = given_plan(Folds(*(part[:1] for part in plan.folds)))
    changed, lied = features.copy(), label.copy()
    changed[first.tested()[0]] = 1e3
    lied[first.tested()] = 0
    again = linear_probe(changed, lied, first, 3)
    np.testing.assert_array_equal(again[0, first.tested()[1:]], said[0, first.tested()[1:]])
    np.testing.assert_array_equal(np.isnan(again[0, :, 0]), ~np.isin(np.arange(60), first.tested()))


def test_unlikeness_is_the_root_mean_square_of_standard_scores() -> None:
    features = np.array([[1.0, 2.0], [1.0 + 3 * 0.5, 2.0 - 4 * 2.0]])
    np.testing.assert_allclose(unlikeness(features, np.array([1.0, 2.0]), np.array([0.5, 2.0])), [0, (12.5) ** 0.5])
