"""Folds, thresholds and estimates: nothing is judged on what it was chosen on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.arrays import bags_from_arrays
from mil_jax.bags import ABSENT, Bags
from mil_jax.errors import InputError
from mil_jax.protocols import choose_threshold, cross_validation, estimate, own_bags, pool_repeats, split_bags

CASES = st.tuples(st.integers(3, 40), st.integers(3, 40), st.integers(2, 10), st.integers(1, 3), st.floats(0.05, 0.5))


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 1}, "folds = 1: use 2 to 3"),
        ({"folds": 4}, "folds = 4: use 2 to 3"),
        ({"repeats": 0}, "repeats = 0"),
        ({"val_share": 1.0}, "val_share = 1.0"),
        ({"label": np.zeros(9, int)}, "label"),
    ],
)
def test_folds_that_cannot_be_are_refused(change, message):
    options = {"label": np.repeat([0, 1], [6, 3]), "folds": 3, "repeats": 1} | change
    with pytest.raises(InputError, match=message):
        cross_validation(jax.random.key(0), options.pop("label"), **options)


@pytest.fixture(scope="module")
def feature_bags() -> Bags:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(i, 1, (1 + i % 3, 2)).astype(np.float32) for i in range(9)]
    return bags_from_arrays(arrays, [i % 2 for i in range(9)])


def test_members_see_their_own_bags_and_their_own_scale(feature_bags: Bags):
    folds = cross_validation(jax.random.key(0), feature_bags.label, folds=4, repeats=1)
    splits = split_bags(feature_bags, folds, standardize=True)
    assert splits.test.rows.ndim == 3
    assert splits.test.scaler is not None and splits.val.scaler is not None
    for member in range(4):
        index = folds.train[member]
        np.testing.assert_array_equal(splits.train.rows[member], feature_bags.rows[index])
        mine = np.asarray(feature_bags.pool)[np.asarray(feature_bags.rows[index])[np.asarray(feature_bags.mask[index])]]
        np.testing.assert_allclose(splits.test.scaler.mean[member], mine.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(splits.val.scaler.factor[member], 1 / mine.std(axis=0), rtol=1e-4)


def test_what_a_test_bag_holds_does_not_reach_training(feature_bags: Bags):
    """Other values in the test bags change neither the training bags nor how they are scaled."""
    folds = cross_validation(jax.random.key(0), feature_bags.label, folds=4, repeats=1)
    before = split_bags(feature_bags, folds, standardize=True).train
    rows = np.asarray(feature_bags.rows[folds.test[0][folds.test[0] >= 0]])
    mask = np.asarray(feature_bags.mask[folds.test[0][folds.test[0] >= 0]])
    spoilt = dataclasses.replace(feature_bags, pool=feature_bags.pool.at[rows[mask]].set(1e6))
    after = split_bags(spoilt, folds, standardize=True).train
    assert before.scaler is not None and after.scaler is not None
    np.testing.assert_array_equal(before.scaler.mean[0], after.scaler.mean[0])
    np.testing.assert_array_equal(before.scaler.factor[0], after.scaler.factor[0])


def test_a_missing_bag_leaves_an_empty_place(feature_bags: Bags):
    mine = own_bags(feature_bags, np.array([[2, 5], [7, -1]]))
    assert mine.label.tolist() == [[0, 1], [1, ABSENT]]
    assert not mine.mask[1, 1].any()
    assert (np.asarray(mine.instance_label[1, 1]) == -1).all()


def test_the_threshold_that_classifies_most_validation_bags_right():
    score, label = np.array([0.1, 0.2, 0.3, 0.9]), np.array([0, 1, 1, 1])
    threshold = choose_threshold(score, label)
    assert 0.1 < threshold < 0.2
    assert choose_threshold(np.array([0.4, 0.6]), np.array([0, 1])) == 0.5, "nearest to a half"
    assert choose_threshold(np.append(score, 0.99), np.append(label, ABSENT)) == threshold
    assert choose_threshold(np.array([0.2, 0.3]), np.array([0, 0])) == 0.5


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
    assert jnp.isfinite(found.high)
