"""Draws of bags: without repeats and uniform, of one size or of many, by chance or with a share; and splits."""

import inspect
import itertools
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats
from conftest import assert_same_bits, message_of, unchecked
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.bags import UNKNOWN, Bags
from mil_jax.buckets import sizes_of
from mil_jax.datasets import Dataset, Instances
from mil_jax.sampling import BagLaw, BagsConfig, sample_bags, sample_splits, split_pool

pytestmark = pytest.mark.usefixtures("quickly_compiled")
SEEDS = st.integers(0, 2**31 - 1)
# A draw is compiled for its (pool, bags, slots): most tests here share the first of these shapes.
SHAPES = st.sampled_from([(40, 50, 3), (4, 4800, 4)])
# Rarer than this by chance is a broken sampler: the keys are fixed, so a pass stays a pass.
RARE = 1e-4


def sample(seed: int = 0, **changes: Any) -> Bags:
    """Bags of a pool in which instance i is the number i and its class is i modulo 10."""
    options: dict[str, Any] = {"classes": np.arange(40) % 10, "count": 50, "bag_size": 3, "positive_class": 1} | changes
    law = {name: options.pop(name) for name in BagLaw.__dataclass_fields__ if name in options}
    instances = options.pop("instances", np.arange(len(options["classes"]), dtype=np.float32)[:, None])
    return sample_bags(jax.random.key(seed), instances, options.pop("classes"), BagLaw(**law), **options)


def repeats_within_bags(rows: np.ndarray) -> bool:
    return bool((np.diff(np.sort(rows, axis=1), axis=1) == 0).any())


# ---- bags of one size ----


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, shape=SHAPES, classes=st.integers(1, 5))
def test_a_bag_is_a_labelled_draw_without_repeats(seed, shape, classes):
    pool_size, count, bag_size = shape
    rng = np.random.default_rng(seed)
    labels, x = rng.integers(0, classes, pool_size), rng.integers(0, 256, (pool_size, 2, 2)).astype(np.uint8)
    positive = int(labels[0])
    bags = sample(seed, instances=x, classes=labels, count=count, bag_size=bag_size, positive_class=positive)
    rows = bags.rows
    assert rows.shape == (count, bag_size) and 0 <= rows.min() <= rows.max() < pool_size
    assert not repeats_within_bags(rows)
    truth = labels[rows] == positive
    np.testing.assert_array_equal(bags.instance_label, truth)
    np.testing.assert_array_equal(bags.label, truth.any(axis=1))
    assert bags.mask.all()
    np.testing.assert_array_equal(bags.pool, x)
    numbers = (bags.pool, bags.rows, bags.label, bags.instance_label)
    assert [array.dtype for array in numbers] == [np.uint8, np.int32, np.int32, np.int32]


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, among_seed=SEEDS)
def test_bags_come_from_among_the_given_rows(seed, among_seed):
    among = np.random.default_rng(among_seed).permutation(60)[:40]
    classes, positive = np.arange(60) % 20, int(among[0]) % 20
    bags = sample(seed, classes=classes, among=among, positive_class=positive)
    assert set(bags.rows.ravel()) <= set(among)
    assert not repeats_within_bags(bags.rows)
    np.testing.assert_array_equal(bags.instance_label, classes[bags.rows] == positive)
    assert bags.pool.shape == (60, 1), "the pool stays whole"


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, other=SEEDS)
def test_the_key_decides_the_draw(seed, other):
    assert_same_bits(sample(seed), sample(seed))
    assert np.array_equal(sample(seed).rows, sample(other).rows) == (seed == other)
    assert len(np.unique(sample(seed).rows, axis=0)) > 45, "the bags of one draw differ"


@pytest.mark.parametrize(("pool_size", "bag_size"), [(4, 4), (5, 3)])
def test_every_ordered_draw_is_equally_likely(pool_size, bag_size):
    """Uniformity in full: over all N! / (N - K)! sequences, hence over slots and instances too."""
    sequences = list(itertools.permutations(range(pool_size), bag_size))
    bags = sample(3, classes=np.ones(pool_size, int), count=200 * len(sequences), bag_size=bag_size)
    number = {sequence: i for i, sequence in enumerate(sequences)}
    counts = np.bincount([number[tuple(bag)] for bag in bags.rows.tolist()], minlength=len(sequences))
    assert scipy.stats.chisquare(counts).pvalue > RARE


def test_every_instance_is_equally_likely_in_every_slot():
    rows = sample(5, count=8000, bag_size=6).rows
    for slot in range(6):
        assert scipy.stats.chisquare(np.bincount(rows[:, slot], minlength=40)).pvalue > RARE
    # Draws without repeats vary less than independent ones: the corrected statistic is chi-square.
    statistic = scipy.stats.chisquare(np.bincount(rows.ravel(), minlength=40)).statistic * (40 - 1) / (40 - 6)
    assert RARE < scipy.stats.chi2.sf(statistic, 39) < 1 - RARE


@pytest.mark.parametrize("positive_count", [1, 4, 12])
def test_the_share_of_positive_bags_is_the_hypergeometric_tail(positive_count):
    bags = sample(7, classes=(np.arange(40) < positive_count).astype(int), count=8000, bag_size=6)
    rate = scipy.stats.hypergeom(40, positive_count, 6).sf(0)
    assert abs(np.mean(bags.label) - rate) < 4 * np.sqrt(rate * (1 - rate) / 8000)


# ---- sizes by a law, and a share of positive bags ----


def by_size(seed: int = 0, **changes: Any) -> Bags:
    """Bags of a pool of 300 of which each tenth is positive; 6 on average."""
    return sample(
        seed, **({"classes": np.arange(300) % 10, "count": 400, "bag_size": 6, "size_variance": 4.0} | changes)
    )


def test_sizes_follow_the_normal_law():
    sizes = sizes_of(by_size(bag_size=10, size_variance=2.0, count=8000))
    assert sizes.mean() == pytest.approx(10, abs=0.08)
    assert sizes.var() == pytest.approx(2 + 1 / 12, abs=0.15), "rounding adds a twelfth"
    assert sizes_of(by_size(bag_size=1, size_variance=25.0)).min() == 1


@pytest.mark.parametrize("share", [None, 0.5])
def test_ragged_bags_hold_what_they_say(share):
    bags = by_size(positive_class=0, positive_share=share)
    sizes = sizes_of(bags)
    assert len(set(sizes.tolist())) > 1 and bags.slots == sizes.max()
    for rows, size, label, truth in zip(bags.rows, sizes, bags.label, bags.instance_label, strict=True):
        assert len(set(rows[:size].tolist())) == size, "no instance twice"
        np.testing.assert_array_equal(truth[:size], rows[:size] % 10 == 0)
        assert (truth[size:] == UNKNOWN).all()
        assert label == (rows[:size] % 10 == 0).any()
    assert share is None or bags.label.sum() == 200


def test_bags_of_a_label_are_uniform_over_all_bags_of_that_label():
    """Pairs of a pool of six, of which two are positive: 9 pairs hold a positive one, 6 do not."""
    bags = sample(1, classes=np.array([1, 0, 0, 1, 0, 0]), count=6000, bag_size=2, positive_share=0.5)
    for label in (0, 1):
        drawn = [tuple(sorted(rows)) for rows in bags.rows[bags.label == label].tolist()]
        possible = [pair for pair in itertools.combinations(range(6), 2) if bool({0, 3} & set(pair)) == bool(label)]
        counts = [drawn.count(pair) for pair in possible]
        assert sum(counts) == 3000
        assert scipy.stats.chisquare(counts).pvalue > RARE


# ---- what cannot be drawn ----


@pytest.mark.parametrize(("changes", "message"), [
    ({"count": 0}, "count = 0: expected a whole number from 1"),
    ({"bag_size": 0}, "bag_size = 0: expected a whole number from 1"),
    ({"bag_size": 41}, "bag_size = 41: expected 1 to 40, the size of the pool"),
    ({"among": np.arange(5), "bag_size": 6}, "bag_size = 6: expected 1 to 5"),
    ({"size_variance": -1.0}, "size_variance = -1.0: expected a number, at least 0"),
    ({"size_variance": float("nan")}, "size_variance = nan: expected a number"),
    ({"positive_share": 1.5}, "positive_share = 1.5: expected a number, at least 0 and at most 1"),
    ({"positive_share": 0.5, "bag_size": 37}, "bag_size = 37: expected 1 to 36, the negative instances"),
    ({"positive_class": 12}, "positive_class = 12: expected one of the classes of the data, 0, 1, 2, 3,"),
    ({"positive_class": -1}, "positive_class = -1: expected a whole number from 0"),
    ({"among": np.arange(3, 6)}, "positive_class = 1: expected one of the classes of the data, 3, 4, 5"),
    ({"among": np.array([1, 2, 1, 11])}, "among = '1 repeated rows': expected each row once"),
    ({"among": np.array([1, -1, 2])}, "among = -1: expected rows 0 to 39"),
    ({"among": np.array([1, 40, 2])}, "among = 40: expected rows 0 to 39"),
    ({"instances": np.zeros((41, 1)), "among": np.arange(5)}, "classes = (40,): expected one for each of the 41"),
])  # fmt: skip
def test_a_draw_that_cannot_be_made_is_refused(changes, message):
    # The tests' own type checker would refuse some first; a user has none.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sample.__globals__, "sample_bags", inspect.unwrap(sample_bags))
        assert message in message_of(sample, **changes)


@pytest.mark.parametrize("size", [3.7, 3.0, "3", True, None])
def test_a_size_that_is_no_whole_number_is_refused(size):
    expected = f"bag_size = {size!r}: expected a whole number from 1"
    assert message_of(unchecked, BagLaw, bag_size=size) == expected


# ---- splits ----


def digits(train: int = 40, test: int = 80, classes: int = 4) -> Dataset:
    """A data set whose training and test images differ in every pixel."""

    def instances(count: int, first: int) -> Instances:
        x = np.arange(first, first + count, dtype=np.uint8)[:, None, None].repeat(2, axis=1)
        return Instances(x, np.arange(count, dtype=np.int32) % classes)

    return Dataset("digits", instances(train, 0), instances(test, 100), tuple("0123"[:classes]), "", "made here")


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, pool_size=st.sampled_from([2, 9, 40]), share=st.floats(0.01, 0.99))
def test_split_pool_parts_the_pool(seed, pool_size, share):
    first_size = round(pool_size * share)
    if first_size in (0, pool_size):
        assert "expected a share that leaves neither part" in message_of(
            split_pool, jax.random.key(0), pool_size, share
        )
        return
    first, second = split_pool(jax.random.key(seed), pool_size, share)
    assert len(first) == first_size
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(pool_size))
    np.testing.assert_array_equal(first, split_pool(jax.random.key(seed), pool_size, share)[0])


def test_validation_and_test_bags_share_no_instance():
    data, halves = digits(), set()
    for seed in range(6):
        splits = sample_splits(jax.random.key(seed), data, BagsConfig(3, 0.0, 2, None, 50, 50, 50))
        _, val, test = (set(bags.rows.ravel().tolist()) for bags in splits)
        assert not val & test
        halves.add(tuple(sorted(val)))
        for bags, source in zip(splits, (data.train, data.test, data.test), strict=True):
            np.testing.assert_array_equal(bags.pool, source.x)
            np.testing.assert_array_equal(bags.instance_label, source.label[bags.rows] == 2)
    assert len(halves) == 6


def test_splits_depend_on_the_key_and_each_on_its_own_count():
    first, second, other = (
        sample_splits(jax.random.key(seed), digits(), BagsConfig(3, 0.0, 1, None, 50, val_bags, 300))
        for seed, val_bags in ((1, 50), (1, 300), (2, 50))
    )
    assert [len(bags.label) for bags in second] == [50, 300, 300]
    assert_same_bits((first.train, first.test), (second.train, second.test))
    assert len(np.unique(second.val.rows)) == len(np.unique(second.test.rows)) == 40, "halves"
    assert not np.array_equal(first.train.rows, other.train.rows)


def test_splits_that_cannot_be_drawn_are_refused():
    for name in ("train_bags", "val_bags", "test_bags"):
        assert message_of(BagsConfig, **{name: 0}) == f"{name} = 0: expected a whole number from 1"
    few = BagsConfig(train_bags=50)
    assert "bag_size = 3: expected 1 to 2" in message_of(sample_splits, jax.random.key(0), digits(test=4), few)
