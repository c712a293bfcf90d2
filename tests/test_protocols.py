"""Folds, thresholds and estimates: nothing is judged on what it was chosen on."""

import inspect

import jax
import numpy as np
import pytest
from conftest import assert_same_bits, member, message_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.arrays import bags_from_arrays
from mil_jax.bags import ABSENT, Bags, fit_scaler
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.protocols import choose_threshold, cross_validation, estimate, own_bags, pool_repeats, split_bags

CASES = st.tuples(st.integers(3, 40), st.integers(3, 40), st.integers(2, 10), st.integers(1, 3), st.floats(0.05, 0.3))


def held(places: np.ndarray) -> set[int]:
    return set(places[places >= 0].tolist())


@settings(max_examples=60, deadline=None)
@given(CASES, st.integers(0, 99))
def test_every_bag_is_judged_once_in_a_repeat_and_never_by_a_member_that_saw_it(case, seed):
    positive, negative, folds, repeats, share = case
    folds = min(folds, positive, negative)
    label = np.random.default_rng(seed).permutation(np.repeat([0, 1], [negative, positive]))
    drawn = cross_validation(jax.random.key(seed), label, folds=folds, repeats=repeats, val_share=share)
    assert len(drawn.test) == folds * repeats
    for train, val, test in zip(*drawn, strict=True):
        parts = [held(train), held(val), held(test)]
        assert sum(map(len, parts)) == len(label) == len(set.union(*parts)), "disjoint, and all"
        assert all(parts)
        assert (train >= 0).all(), "training sets are of one size"
    for repeat in np.split(drawn.test, repeats):
        assert sorted(repeat[repeat >= 0]) == list(range(len(label)))
        counts = [np.bincount(label[own[own >= 0]], minlength=2) for own in repeat]
        assert (np.ptp(counts, axis=0) <= 1).all(), "stratified"


def test_a_draw_follows_its_key():
    label = np.repeat([0, 1], [20, 13])
    one, same, other = (cross_validation(jax.random.key(seed), label, folds=5, repeats=2).test for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[:5], one[5:]), "repeats differ"


@pytest.mark.parametrize(("change", "message"), [
    ({"folds": 1}, "folds = 1: expected a whole number from 2 to 3"),
    ({"folds": 4}, "folds = 4: expected a whole number from 2 to 3"),
    ({"repeats": 0}, "repeats = 0: expected a whole number from 1"),
    ({"val_share": 1.0}, "val_share = 1.0: expected a number, more than 0 and less than 1"),
    ({"label": np.zeros(9, int)}, "label = [9]: expected at least two classes of three bags"),
    ({"label": np.repeat([-1, 1], 5)}, "label = [-1, -1, -1, -1, -1]: expected a class 0, 1"),
])  # fmt: skip
def test_folds_that_cannot_be_are_refused(change, message):
    options = {"label": np.repeat([0, 1], [6, 3]), "folds": 3, "repeats": 1} | change
    assert message in message_of(cross_validation, jax.random.key(0), options.pop("label"), **options)


@pytest.fixture(scope="module")
def feature_bags() -> Bags:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(i, 1, (1 + i % 3, 2)).astype(np.float32) for i in range(9)]
    return bags_from_arrays(arrays, [i % 2 for i in range(9)])


def test_members_see_their_own_bags_and_their_own_scale(feature_bags):
    """What the test bags hold changes neither."""
    folds = cross_validation(jax.random.key(0), feature_bags.label, folds=4, repeats=1)
    splits = split_bags(feature_bags, folds)
    assert splits.test.by_member
    hyper = make_hyper(splits.train, HyperConfig(standardize=True))
    for i in range(4):
        index, test = folds.train[i], folds.test[i][folds.test[i] >= 0]
        np.testing.assert_array_equal(splits.train.rows[i], feature_bags.rows[index])
        mine = feature_bags.pool[feature_bags.rows[index][feature_bags.mask[index]]]
        assert hyper.scaler is not None
        np.testing.assert_allclose(hyper.scaler.mean[i], mine.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(hyper.scaler.factor[i], 1 / mine.std(axis=0), rtol=1e-4)
        pool = feature_bags.pool.copy()
        pool[feature_bags.rows[test][feature_bags.mask[test]]] = 1e6
        spoilt = split_bags(Bags(pool, feature_bags.view), folds).train
        assert_same_bits(member(fit_scaler(spoilt), i), member(hyper.scaler, i))


def test_a_missing_bag_leaves_an_empty_place(feature_bags):
    mine = own_bags(feature_bags, np.array([[2, 5], [7, -1]]))
    assert mine.label.tolist() == [[0, 1], [1, ABSENT]]
    assert not mine.mask[1, 1].any()
    assert (mine.instance_label[1, 1] == -1).all()


@pytest.mark.parametrize(("index", "wrong"), [([[0, 9]], 9), ([[0, -2]], -2)])
def test_folds_of_other_bags_are_refused(feature_bags, index, wrong):
    message = message_of(own_bags, feature_bags, np.array(index))
    assert message == f"index = {wrong}: expected folds of these 9 bags: 0 to 8, or -1 for no bag"


def test_the_threshold_that_classifies_most_validation_bags_right():
    score, label = np.array([0.1, 0.2, 0.3, 0.9]), np.array([0, 1, 1, 1])
    threshold = choose_threshold(score, label)
    assert 0.1 < threshold < 0.2
    assert choose_threshold(np.array([0.4, 0.6]), np.array([0, 1])) == 0.5, "nearest to a half"
    assert choose_threshold(np.append(score, 0.99), np.append(label, ABSENT)) == threshold
    assert choose_threshold(np.array([0.2, 0.3]), np.array([0, 0])) == 0.5


@pytest.mark.parametrize(("probability", "part"), [
    (np.full((4, 3), 1 / 3), "(4, 3)': expected a list of numbers"),
    (np.full(5, 0.5), "(5,): expected the positive class alone, (4,)"),
    (np.array([0.5, np.nan, 0.1, 0.2]), "expected probabilities"),
    (np.array([0.5, 1.5, 0.1, 0.2]), "expected probabilities"),
])  # fmt: skip
def test_a_threshold_of_what_is_no_probability_is_refused(probability, part):
    # The tests' own type checker would refuse some first; a user has none.
    assert part in message_of(inspect.unwrap(choose_threshold), probability, np.array([0, 1, 1, 1]))


def test_repeats_are_pooled_in_the_order_of_the_bags():
    test = np.array([[2, 0], [1, -1], [0, 1], [2, -1]])
    values = np.array([[20, 0], [10, 99], [0, 10], [20, 99]])
    np.testing.assert_array_equal(pool_repeats(values, test, 2), [[0, 10, 20], [0, 10, 20]])


def test_an_estimate_knows_what_it_does_not_know():
    found = estimate(np.array([0.8, 0.9]), np.array([1.0, 1.0, 0.0, 1.0] * 25))
    assert found.mean == pytest.approx(0.85)
    assert found.standard_error == pytest.approx(0.05)
    assert 0.6 < found.low < 0.75 < found.high < 0.9
    assert np.isnan(estimate(np.array([0.8])).standard_error)
    assert np.isnan(estimate(np.array([0.8])).low)
