"""Bags that differ in size: how they are drawn, cut to widths, standardised; and that none of it changes a result."""

import dataclasses
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax import augment
from mil_jax.bags import (
    ABSENT,
    UNKNOWN,
    Bags,
    NormalSize,
    bags_from_arrays,
    bags_from_set,
    bucket_widths,
    empty_share,
    fit_scaler,
    gather,
    pad,
    sample_bags,
    sizes_of,
    take,
)
from mil_jax.datasets import BagSet
from mil_jax.ensemble import Placement, fit_ensemble, member_keys, predict_ensemble
from mil_jax.errors import InputError
from mil_jax.evaluation import evaluate
from mil_jax.model import MIL, ModelConfig, Prediction, build
from mil_jax.training import FitConfig, Hyper

pytestmark = pytest.mark.usefixtures("quickly_compiled")
SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(np.array)


# ---- drawing ----


def draw(seed: int = 0, **changes: Any) -> Bags:
    """Bags of a pool of 300 in which instance i is the number i, and positive where i is a multiple of 10."""
    options: dict[str, Any] = {"bag_count": 400, "bag_size": NormalSize(6, 4), "positive_class": 0} | changes
    return sample_bags(jax.random.key(seed), np.arange(300, dtype=np.float32)[:, None], np.arange(300) % 10, **options)


def test_sizes_follow_the_normal_law():
    sizes = NormalSize(10, 2).draw(jax.random.key(0), 20_000)
    assert sizes.mean() == pytest.approx(10, abs=0.05)
    assert sizes.var() == pytest.approx(2 + 1 / 12, abs=0.1), "rounding adds a twelfth"
    assert NormalSize(1, 25).draw(jax.random.key(0), 1000).min() == 1


@pytest.mark.parametrize("share", [None, 0.5])
def test_ragged_bags_hold_what_they_say(share: float | None):
    bags = draw(positive_share=share)
    sizes = sizes_of(bags)
    assert len(set(sizes.tolist())) > 1
    assert bags.rows.shape[1] == sizes.max()
    for rows, size, label, truth in zip(
        *map(np.asarray, (bags.rows, sizes, bags.label, bags.instance_label)), strict=True
    ):
        held = rows[:size]
        assert len(set(held.tolist())) == size, "no instance twice"
        np.testing.assert_array_equal(truth[:size], held % 10 == 0)
        assert (truth[size:] == UNKNOWN).all()
        assert label == (held % 10 == 0).any()
    if share is not None:
        assert bags.label.sum() == 200


def test_bags_of_a_label_are_uniform_over_all_bags_of_that_label():
    """Pairs of a pool of six, of which two are positive: 9 pairs hold a positive one, 6 do not."""
    bags = sample_bags(
        jax.random.key(1), np.zeros((6, 1), np.float32), np.array([1, 0, 0, 1, 0, 0]),
        bag_count=6000, bag_size=2, positive_class=1, positive_share=0.5,
    )  # fmt: skip
    for label in (0, 1):
        drawn = [tuple(sorted(rows)) for rows in np.asarray(bags.rows)[np.asarray(bags.label) == label].tolist()]
        possible = [pair for pair in combinations(range(6), 2) if bool({0, 3} & set(pair)) == bool(label)]
        counts = [drawn.count(pair) for pair in possible]
        assert sum(counts) == 3000
        assert scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive_share": 1.5}, "positive_share = 1.5: use 0 to 1"),
        ({"positive_share": 0.5, "bag_size": 280}, "bag_size = 280: there are 270 negative instances"),
        ({"bag_size": NormalSize(400, 0)}, "bag_size = 400: take from 1 to 300"),
    ],
)
def test_a_draw_that_cannot_be_made_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        draw(**change)
    with pytest.raises(InputError, match="mean = 0"):
        NormalSize(0, 1)
    with pytest.raises(InputError, match="variance = -1"):
        NormalSize(3, -1)


# ---- widths ----


def brute_force_share(sizes: np.ndarray, count: int) -> float:
    """The least share of empty slots of all choices of at most `count` widths."""
    values = np.unique(sizes)
    below = values[:-1].tolist()
    choices = [c for n in range(min(count, len(values))) for c in combinations(below, n)]
    return min(empty_share(sizes, (*choice, int(values[-1]))) for choice in choices)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 3))
def test_widths_are_the_best_of_their_number(sizes: np.ndarray, most: int):
    sizes = np.minimum(sizes, 12)
    widths = bucket_widths(sizes, empty=0.0, most=most)
    assert list(widths) == sorted(set(widths))
    assert widths[-1] == sizes.max()
    assert len(widths) <= most
    assert empty_share(sizes, widths) == pytest.approx(brute_force_share(sizes, most))


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_no_more_widths_than_needed(sizes: np.ndarray):
    widths = bucket_widths(sizes, empty=0.25)
    assert empty_share(sizes, widths) <= 0.25 or len(widths) == 8
    if len(widths) > 1:
        assert empty_share(sizes, bucket_widths(sizes, empty=0.0, most=len(widths) - 1)) > 0.25


def test_full_bags_have_one_width(train_bags: Bags):
    assert bucket_widths(sizes_of(train_bags)) == (3,)


def test_an_instance_behind_an_empty_slot_is_refused(ragged_bags: Bags):
    turned = dataclasses.replace(ragged_bags, mask=ragged_bags.mask[:, ::-1])
    with pytest.raises(InputError, match="mask"):
        sizes_of(turned)


# ---- training and prediction ----


@pytest.fixture(scope="module")
def noisy_model() -> MIL:
    """A model whose training steps draw dropout."""
    return build(ModelConfig(hidden=(8, 4), attention_units=5, head="sum", output="sigmoid", dropout=0.3))


def fit(model: MIL, bags: Bags, widths: tuple[int, ...], batch_size: int = 4) -> Any:
    config = FitConfig(epochs=3, batch_size=batch_size, patience=3, widths=widths)
    hyper = Hyper(jnp.float32(0.02), jnp.float32(0.01), jnp.array([0.8, 1.5]), jnp.float32(1e-3))
    return fit_ensemble(model, member_keys(jax.random.key(0), 2), bags, bags, config, hyper, Placement(1, 1))


def test_widths_change_no_result(sum_model: MIL, ragged_bags: Bags):
    whole, cut = (fit(sum_model, ragged_bags, widths) for widths in ((5,), (1, 3)))
    assert_close(whole.curves, cut.curves)
    assert_close(whole.params, cut.params)
    wide = predict_ensemble(sum_model, whole.params, pad(ragged_bags, 30))
    narrow = predict_ensemble(sum_model, whole.params, ragged_bags)
    assert bucket_widths(sizes_of(ragged_bags)) != (5,), "the test cuts in predicting, too"
    assert_close(wide.probability, narrow.probability)
    assert_close(wide.attention[..., :5], narrow.attention)
    assert wide.scores is not None
    assert_close(wide.scores[..., :5], narrow.scores)
    assert not wide.attention[..., 5:].any()
    assert not wide.scores[..., 5:].any()


def test_dropout_is_decided_by_the_member_and_the_step(noisy_model: MIL, ragged_bags: Bags):
    once, again = (fit(noisy_model, ragged_bags, (5,)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    quiet = fit(build(dataclasses.replace(NOISY, dropout=0.0)), ragged_bags, (5,))
    assert not np.allclose(once.curves.train_loss, quiet.curves.train_loss)
    predicted = [predict_ensemble(noisy_model, once.params, ragged_bags).probability for _ in range(2)]
    np.testing.assert_array_equal(predicted[0], predicted[1])


NOISY = ModelConfig(hidden=(8, 4), attention_units=5, head="sum", output="sigmoid", dropout=0.3)


def test_weight_decay_shrinks_and_augmentation_reaches_the_step(sum_model: MIL):
    rng = np.random.default_rng(0)
    patches = [rng.integers(0, 256, (1 + i % 3, 3, 3, 3), np.uint8) for i in range(8)]
    bags = bags_from_arrays(patches, [i % 2 for i in range(8)])
    keys, ends = member_keys(jax.random.key(0), 1), []
    for decay, change in ((None, None), (0.5, None), (None, augment.augment_bag)):
        hyper = Hyper(jnp.float32(0.02), jnp.float32(0), jnp.ones(2), None if decay is None else jnp.float32(decay))
        config = FitConfig(epochs=2, patience=2, widths=(3,), augment=change)
        ends.append(fit_ensemble(sum_model, keys, bags, bags, config, hyper, Placement(1, 1)))
    norms = [sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(end.params)) for end in ends]
    assert norms[1] < 0.8 * norms[0]
    assert not np.allclose(ends[0].curves.train_loss, ends[2].curves.train_loss)


# ---- places without a bag ----


def test_a_place_without_a_bag_does_not_count(sum_model: MIL, ragged_bags: Bags):
    empty = Bags(
        ragged_bags.pool, jnp.zeros((2, 5), jnp.int32), jnp.zeros((2, 5), bool), jnp.full(2, ABSENT),
        jnp.full((2, 5), UNKNOWN),
    )  # fmt: skip
    views = ("rows", "mask", "label", "instance_label")
    joined = {name: jnp.concatenate([getattr(ragged_bags, name), getattr(empty, name)]) for name in views}
    more = dataclasses.replace(ragged_bags, **joined)
    rng = np.random.default_rng(0)
    probability = rng.dirichlet([1, 1], 21).astype(np.float32)
    attention = np.array(rng.random((21, 5)) * np.asarray(more.mask), np.float32)
    attention /= np.maximum(attention.sum(axis=1, keepdims=True), 1e-9)
    some = Prediction(jnp.asarray(probability[:19]), jnp.asarray(attention[:19]))
    assert_close(
        evaluate(Prediction(jnp.asarray(probability), jnp.asarray(attention)), more), evaluate(some, ragged_bags)
    )
    config = FitConfig(epochs=1, widths=(5,))
    hyper = Hyper(jnp.float32(0.02), jnp.float32(0.01), jnp.ones(2))
    keys = member_keys(jax.random.key(0), 1)
    curves = [
        fit_ensemble(sum_model, keys, ragged_bags, val, config, hyper, Placement(1, 1)).curves
        for val in (ragged_bags, more)
    ]
    assert_close(curves[0], curves[1])
    with pytest.raises(InputError, match="label = -1"):
        fit_ensemble(sum_model, keys, more, ragged_bags, config, hyper, Placement(1, 1))


# ---- features ----


def test_features_are_standardised_by_the_bags_and_constant_ones_stay_finite():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(5, 3, (1 + i % 4, 3)).astype(np.float32) for i in range(10)]
    for array in arrays:
        array[:, 1] = 0.1
    bags = bags_from_arrays(arrays, [i % 2 for i in range(10)])
    train = take(bags, np.arange(6))
    scaler = fit_scaler(train)
    seen = np.asarray(gather(bags.pool, train.rows, scaler))[np.asarray(train.mask)]
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(seen[:, [0, 2]].std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(seen[:, 1], 0, atol=1e-6)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), train, train)
    own = fit_scaler(dataclasses.replace(stacked, pool=bags.pool))
    jax.tree.map(lambda one, two: np.testing.assert_array_equal(two[1], one), scaler, own)
    with pytest.raises(InputError, match="pool"):
        fit_scaler(dataclasses.replace(bags, pool=bags.pool.astype(jnp.uint8)))


def test_bags_of_a_set_are_its_instances_in_order():
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    truth = np.array([0, 1, -1, 0, 0, 1], np.int32)
    sizes, label = np.array([1, 3, 2], np.int32), np.array([0, 1, 1], np.int32)
    about = {"name": "s", "bag_names": ("a", "b", "c"), "source": "here"}
    bags = bags_from_set(BagSet(x=x, sizes=sizes, label=label, instance_label=truth, **about))
    assert bags.rows.shape == (3, 3)
    np.testing.assert_array_equal(np.asarray(bags.pool)[np.asarray(bags.rows)[np.asarray(bags.mask)]], x)
    np.testing.assert_array_equal(np.asarray(bags.instance_label)[np.asarray(bags.mask)], truth)
    assert sizes_of(bags).tolist() == [1, 3, 2]
