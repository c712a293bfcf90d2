"""Widths: the best of their number; and that neither they nor empty slots or places change a result."""

import dataclasses
from itertools import combinations
from typing import Any

import jax
import numpy as np
import pytest
from conftest import assert_close, hyper_of, message_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.bags import ABSENT, UNKNOWN, Bags, View, pad
from mil_jax.buckets import bucket_widths, empty_share, sizes_of, with_widths
from mil_jax.ensemble import Ensemble, Execution, fit_ensemble, member_keys, predict
from mil_jax.evaluation import evaluate
from mil_jax.model import MIL, Prediction
from mil_jax.placement import Placement
from mil_jax.training import FitConfig

pytestmark = pytest.mark.usefixtures("quickly_compiled")
SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(np.array)


def brute_force_share(sizes: np.ndarray, count: int) -> float:
    """The least share of empty slots of all choices of at most `count` widths."""
    values = np.unique(sizes)
    below = values[:-1].tolist()
    choices = [c for n in range(min(count, len(values))) for c in combinations(below, n)]
    return min(empty_share(sizes, (*choice, int(values[-1]))) for choice in choices)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 3))
def test_widths_are_the_best_of_their_number(sizes, most):
    sizes = np.minimum(sizes, 12)
    widths = bucket_widths(sizes, empty=0.0, most=most)
    assert list(widths) == sorted(set(widths))
    assert widths[-1] == sizes.max()
    assert len(widths) <= most
    assert empty_share(sizes, widths) == pytest.approx(brute_force_share(sizes, most))


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_no_more_widths_than_needed(sizes):
    widths = bucket_widths(sizes, empty=0.25)
    assert empty_share(sizes, widths) <= 0.25 or len(widths) == 8
    if len(widths) > 1:
        assert empty_share(sizes, bucket_widths(sizes, empty=0.0, most=len(widths) - 1)) > 0.25


def test_bags_keep_the_widths_that_cut_anything(train_bags, ragged_bags):
    assert bucket_widths(sizes_of(train_bags)) == (3,)
    assert with_widths(train_bags, (3,)).view.widths == ()
    assert with_widths(ragged_bags, (1, 4, 5, 9)).view.widths == (1, 4)
    for widths in ((3, 1), (0, 2), (2, 2)):
        assert "expected whole numbers from 1, ascending" in message_of(with_widths, ragged_bags, widths)


def fit(model: MIL, train: Bags, val: Bags) -> Ensemble:
    keys, config = member_keys(jax.random.key(0), 2), FitConfig(epochs=3, batch_size=4)
    return fit_ensemble(model, keys, train, val, config, hyper_of(weights=(0.8, 1.5)), Execution(Placement(1, 1)))


@pytest.fixture(scope="module")
def with_places(ragged_bags: Bags) -> Bags:
    """The ragged bags, and two places without a bag."""
    empty = np.zeros((2, 5), np.int32)
    absent = View(empty, empty > 0, np.full(2, ABSENT, np.int32), np.full((2, 5), UNKNOWN, np.int32))
    return Bags(ragged_bags.pool, jax.tree.map(lambda *parts: np.concatenate(parts), ragged_bags.view, absent))


def test_neither_widths_nor_places_nor_empty_slots_change_a_result(sum_model, ragged_bags, with_places):
    whole = fit(sum_model, with_widths(ragged_bags, (5,)), with_widths(pad(with_places, 7), (7,)))
    cut = fit(sum_model, with_widths(ragged_bags, (1, 3)), with_widths(ragged_bags, (2,)))
    assert_close(whole.curves, cut.curves)
    assert_close(whole.members.params, cut.members.params)
    assert bucket_widths(sizes_of(ragged_bags)) != (5,), "predicting cuts, too"
    wide, narrow = (predict(sum_model, whole.members, bags) for bags in (pad(ragged_bags, 30), ragged_bags))
    first = jax.tree.map(lambda leaf: leaf[..., :5], wide)
    assert_close(dataclasses.replace(first, probability=wide.probability), narrow)
    assert wide.scores is not None and not wide.attention[..., 5:].any() and not wide.scores[..., 5:].any()


def test_a_place_without_a_bag_is_not_judged(ragged_bags, with_places, sum_model):
    rng = np.random.default_rng(0)
    attention = rng.random((21, 5)) * with_places.mask
    attention /= np.maximum(attention.sum(axis=1, keepdims=True), 1e-9)
    every = Prediction(rng.dirichlet([1, 1], 21).astype(np.float32), attention.astype(np.float32))
    some: Any = jax.tree.map(lambda leaf: leaf[:19], every)
    assert_close(evaluate(every, with_places), evaluate(some, ragged_bags))
    assert "label = -1: expected 0 to 1" in message_of(fit, sum_model, with_places, ragged_bags)
