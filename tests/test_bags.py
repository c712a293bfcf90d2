"""Bags: how they are drawn, split, made of the reader's own arrays, looked up, taken and padded."""

import inspect
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.bags import (
    UNKNOWN,
    Bags,
    bags_from_arrays,
    gather,
    pad,
    positive_rate,
    sample_bags,
    sample_splits,
    split_pool,
    take,
)
from mil_jax.datasets import Dataset, Instances
from mil_jax.errors import InputError

SEEDS = st.integers(0, 2**31 - 1)
# A draw is compiled for its (pool, bags, slots): most tests here share the first of these shapes.
SHAPES = st.sampled_from([(40, 50, 3), (4, 4800, 4)])
# Rarer than this by chance is a broken sampler: the keys are fixed, so a pass stays a pass.
RARE = 1e-4


def sample(seed: int = 0, **changes: Any) -> Bags:
    """Bags of a pool in which instance i is the number i and its class is i modulo 10."""
    options: dict[str, Any] = {
        "instances": np.arange(40, dtype=np.float32)[:, None],
        "classes": np.arange(40) % 10,
        "bag_count": 50,
        "bag_size": 3,
        "positive_class": 1,
    }
    options |= changes
    return sample_bags(jax.random.key(seed), **options)


def blank(pool_size: int) -> np.ndarray:
    """A pool of which only the rows matter."""
    return np.zeros((pool_size, 1), np.float32)


def pool_and_classes(seed: int, pool_size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, pool_size)
    return rng.integers(0, 256, (pool_size, 2, 2)).astype(np.uint8), labels


def digits(train: int = 40, test: int = 80, classes: int = 4) -> Dataset:
    """A data set whose training and test images differ in every pixel."""

    def instances(count: int, first: int) -> Instances:
        x = np.arange(first, first + count, dtype=np.uint8)[:, None, None].repeat(2, axis=1)
        return Instances(x, np.arange(count, dtype=np.int32) % classes)

    names = tuple(str(i) for i in range(classes))
    return Dataset("digits", instances(train, 0), instances(test, 100), names, "", "made here")


def repeats_within_bags(rows: np.ndarray) -> bool:
    return bool((np.diff(np.sort(rows, axis=1), axis=1) == 0).any())


def assert_equal(a: Bags, b: Bags) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Drawing


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, shape=SHAPES, classes=st.integers(1, 5))
def test_a_bag_is_a_labelled_draw_without_repeats(seed, shape, classes):
    pool_size, bag_count, bag_size = shape
    x, labels = pool_and_classes(seed, pool_size, classes)
    positive = int(labels[0])
    bags = sample(
        seed,
        instances=x,
        classes=labels,
        bag_count=bag_count,
        bag_size=bag_size,
        positive_class=positive,
    )
    rows = np.asarray(bags.rows)
    assert rows.shape == (bag_count, bag_size)
    assert rows.min() >= 0
    assert rows.max() < pool_size
    assert not repeats_within_bags(rows)
    truth = labels[rows] == positive
    np.testing.assert_array_equal(bags.instance_label, truth)
    np.testing.assert_array_equal(bags.label, truth.any(axis=1))
    assert np.asarray(bags.mask).all()
    np.testing.assert_array_equal(bags.pool, x)
    numbers = (bags.pool, bags.rows, bags.label, bags.instance_label)
    assert [array.dtype for array in numbers] == [np.uint8, np.int32, np.int32, np.int32]


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, among_seed=SEEDS)
def test_bags_come_from_among_the_given_rows(seed, among_seed):
    among = np.random.default_rng(among_seed).permutation(60)[:40]
    classes, positive = np.arange(60) % 20, int(among[0]) % 20
    bags = sample(seed, instances=blank(60), classes=classes, among=among, positive_class=positive)
    rows = np.asarray(bags.rows)
    assert set(rows.ravel()) <= set(among)
    assert not repeats_within_bags(rows)
    np.testing.assert_array_equal(bags.instance_label, classes[rows] == positive)
    assert bags.pool.shape == (60, 1), "the pool stays whole"


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, other=SEEDS)
def test_the_key_decides_the_draw(seed, other):
    assert_equal(sample(seed), sample(seed))
    same = np.array_equal(sample(seed).rows, sample(other).rows)
    assert same == (seed == other)


def test_the_bags_of_one_draw_differ():
    assert len(np.unique(sample().rows, axis=0)) > 45


@pytest.mark.parametrize("bag_size", [1, 4])
def test_a_bag_as_large_as_its_pool_is_a_permutation(bag_size):
    among = np.arange(40)[::-1][:bag_size].copy()
    bags = sample(among=among, bag_count=4800, bag_size=bag_size, positive_class=9)
    np.testing.assert_array_equal(np.sort(bags.rows, axis=1), np.tile(np.sort(among), (4800, 1)))
    assert (len(np.unique(bags.rows, axis=0)) > 1) == (bag_size > 1), "in changing order"


@pytest.mark.parametrize(("pool_size", "bag_size"), [(4, 4), (5, 3)])
def test_every_ordered_draw_is_equally_likely(pool_size, bag_size):
    """Uniformity in full: over all N! / (N - K)! sequences, hence over slots and instances too."""
    sequences = list(itertools.permutations(range(pool_size), bag_size))
    bags = sample(
        3,
        instances=blank(pool_size),
        classes=np.ones(pool_size, int),
        bag_count=200 * len(sequences),
        bag_size=bag_size,
    )
    number = {sequence: i for i, sequence in enumerate(sequences)}
    drawn = [number[tuple(bag)] for bag in np.asarray(bags.rows).tolist()]
    counts = np.bincount(drawn, minlength=len(sequences))
    assert scipy.stats.chisquare(counts).pvalue > RARE


def test_every_instance_is_equally_likely_in_every_slot():
    rows = np.asarray(sample(5, bag_count=8000, bag_size=6).rows)
    for slot in range(6):
        assert scipy.stats.chisquare(np.bincount(rows[:, slot], minlength=40)).pvalue > RARE
    # Draws without repeats vary less than independent ones: the corrected statistic is chi-square.
    counts = np.bincount(rows.ravel(), minlength=40)
    statistic = scipy.stats.chisquare(counts).statistic * (40 - 1) / (40 - 6)
    assert RARE < scipy.stats.chi2.sf(statistic, 39) < 1 - RARE


# The share of positive bags


@settings(deadline=None, max_examples=100)
@given(data=st.data(), pool_size=st.integers(1, 20_000))
def test_positive_rate_is_the_hypergeometric_tail(data, pool_size):
    positive_count = data.draw(st.integers(0, pool_size))
    bag_size = data.draw(st.integers(1, min(pool_size, 300)))
    expected = scipy.stats.hypergeom(pool_size, positive_count, bag_size).sf(0)
    assert positive_rate(pool_size, positive_count, bag_size) == pytest.approx(expected, abs=1e-9)


def test_positive_rate_of_a_case_by_hand():
    # 1 - (3 * 2) / (5 * 4)
    assert positive_rate(pool_size=5, positive_count=2, bag_size=2) == pytest.approx(0.7)
    assert positive_rate(pool_size=5, positive_count=0, bag_size=5) == 0
    assert positive_rate(pool_size=5, positive_count=3, bag_size=3) == 1


@pytest.mark.parametrize("positive_count", [1, 4, 12])
def test_share_of_positive_bags_agrees_with_its_closed_form(positive_count):
    classes = (np.arange(40) < positive_count).astype(int)
    bags = sample(7, classes=classes, bag_count=8000, bag_size=6)
    rate = positive_rate(pool_size=40, positive_count=positive_count, bag_size=6)
    standard_error = np.sqrt(rate * (1 - rate) / 8000)
    assert abs(np.mean(bags.label) - rate) < 4 * standard_error


@pytest.mark.parametrize(
    ("changes", "argument", "message"),
    [
        ({"bag_count": 0}, "bag_count", "bag_count = 0: ask for at least 1 bag"),
        ({"bag_count": -2}, "bag_count", "bag_count = -2: ask for at least 1 bag"),
        ({"bag_size": 0}, "bag_size", "bag_size = 0: take from 1 to 40, the size of the pool"),
        ({"bag_size": -3}, "bag_size", "bag_size = -3: take from 1 to 40"),
        ({"bag_size": 41}, "bag_size", "bag_size = 41: take from 1 to 40"),
        ({"among": np.arange(5), "bag_size": 6}, "bag_size", "take from 1 to 5"),
        ({"positive_class": 12}, "positive_class", "= 12: the data has the classes 0, 1, 2, 3,"),
        ({"positive_class": -1}, "positive_class", "= -1: the data has the classes 0, 1"),
        ({"among": np.arange(3, 6)}, "positive_class", "= 1: the data has the classes 3, 4, 5"),
    ],
)
def test_sample_bags_refuses(changes, argument, message):
    with pytest.raises(InputError) as caught:
        sample(**changes)
    assert caught.value.argument == argument
    assert message in str(caught.value)


def test_sample_bags_refuses_classes_of_another_length():
    # The tests' own type checker would refuse them first; a user has none.
    unchecked = inspect.unwrap(sample_bags)
    with pytest.raises(InputError, match="classes = 39: give one for each of the 40 instances"):
        unchecked(
            jax.random.key(0),
            blank(40),
            np.ones(39, int),
            bag_count=1,
            bag_size=1,
            positive_class=1,
        )


# Splits


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, pool_size=st.sampled_from([2, 9, 40]), share=st.floats(0.01, 0.99))
def test_split_pool_parts_the_pool(seed, pool_size, share):
    first_size = round(pool_size * share)
    if first_size in (0, pool_size):
        with pytest.raises(InputError, match=r"share = .*: leave both parts of the .* non-empty"):
            split_pool(jax.random.key(seed), pool_size, share)
        return
    first, second = split_pool(jax.random.key(seed), pool_size, share)
    assert len(first) == first_size
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(pool_size))
    again, _ = split_pool(jax.random.key(seed), pool_size, share)
    np.testing.assert_array_equal(first, again)


def test_split_pool_is_random():
    firsts = [split_pool(jax.random.key(seed), 20, 0.5)[0].tolist() for seed in range(4)]
    assert len(set(map(tuple, firsts))) == 4


@settings(deadline=None, max_examples=15)
@given(seed=SEEDS)
def test_validation_and_test_bags_share_no_instance(seed):
    data = digits()
    splits = sample_splits(jax.random.key(seed), data, train_bags=50, val_bags=50, test_bags=50, positive_class=2)
    rows = [np.asarray(bags.rows) for bags in splits]
    assert not set(rows[1].ravel()) & set(rows[2].ravel())
    assert not np.array_equal(rows[0], rows[1])
    for bags, source in zip(splits, (data.train, data.test, data.test), strict=True):
        np.testing.assert_array_equal(bags.pool, source.x)
        np.testing.assert_array_equal(bags.instance_label, source.label[np.asarray(bags.rows)] == 2)


def test_splits_depend_on_the_key_and_each_on_its_own_count():
    data, key = digits(), jax.random.key(1)
    first = sample_splits(key, data, train_bags=50, val_bags=50, test_bags=300)
    second = sample_splits(key, data, train_bags=50, val_bags=300, test_bags=300)
    assert [len(bags.label) for bags in first] == [50, 50, 300]
    assert [len(bags.label) for bags in second] == [50, 300, 300]
    assert_equal(first.train, second.train)
    assert_equal(first.test, second.test)
    assert len(np.unique(second.val.rows)) == len(np.unique(second.test.rows)) == 40, "halves"
    other = sample_splits(jax.random.key(2), data, train_bags=50, val_bags=50, test_bags=300)
    assert not np.array_equal(first.train.rows, other.train.rows)


@pytest.mark.parametrize(
    ("changes", "argument", "message"),
    [
        ({"train_bags": 0}, "train_bags", "train_bags = 0: ask for at least 1 bag"),
        ({"val_bags": -1}, "val_bags", "val_bags = -1: ask for at least 1 bag"),
        ({"test_bags": 0}, "test_bags", "test_bags = 0: ask for at least 1 bag"),
        ({"bag_size": 0}, "bag_size", "bag_size = 0: take from 1 to 40"),
        ({"bag_size": 41}, "bag_size", "bag_size = 41: take from 1 to 40"),
        ({"positive_class": 11}, "positive_class", "= 11: the data has the classes 0, 1, 2, 3"),
    ],
)
def test_sample_splits_refuses(changes, argument, message):
    with pytest.raises(InputError) as caught:
        sample_splits(jax.random.key(0), digits(), **changes)
    assert caught.value.argument == argument
    assert message in str(caught.value)


def test_half_of_the_test_pool_must_fill_a_bag():
    with pytest.raises(InputError, match="bag_size = 3: take from 1 to 2, the size of the pool"):
        sample_splits(jax.random.key(0), digits(test=4), train_bags=50)


# The reader's own arrays


@settings(deadline=None, max_examples=60)
@given(
    seed=SEEDS,
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    shape=st.sampled_from([(3,), (2, 2), (1, 2, 3)]),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int64"]),
    known=st.booleans(),
)
def test_ragged_arrays_come_back(seed, sizes, shape, dtype, known):
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 256, (size, *shape)).astype(dtype) for size in sizes]
    labels = rng.integers(0, 3, len(sizes))
    truths = [rng.integers(-1, 2, size) for size in sizes] if known else None
    bags = bags_from_arrays(arrays, labels.tolist(), truths)
    bags = jax.tree.map(np.asarray, bags)  # NumPy compiles nothing for the many shapes

    assert bags.pool.dtype == ("uint8" if dtype == "uint8" else "float32")
    assert bags.pool.shape == (sum(sizes), *shape), "an instance is stored once, and none is padding"
    assert bags.rows.shape == bags.mask.shape == (len(sizes), max(sizes))
    np.testing.assert_array_equal(bags.label, labels)
    for i, size in enumerate(sizes):
        np.testing.assert_array_equal(bags.mask[i], np.arange(max(sizes)) < size)
        np.testing.assert_array_equal(bags.pool[bags.rows[i]][:size], arrays[i])
        expected = np.full(size, UNKNOWN) if truths is None else truths[i]
        np.testing.assert_array_equal(bags.instance_label[i, :size], expected)
    np.testing.assert_array_equal(bags.rows[~bags.mask], 0)
    np.testing.assert_array_equal(bags.instance_label[~bags.mask], UNKNOWN)


def test_labels_may_be_truth_values():
    bags = bags_from_arrays([np.ones((1, 2)), np.ones((2, 2))], np.array([True, False]))
    np.testing.assert_array_equal(bags.label, [1, 0])
    assert bags.label.dtype == np.int32


ONES = np.ones((2, 3), np.float32)
NO_INSTANCE = np.ones((0, 3), np.float32)
WIDER = np.ones((2, 4), np.float32)
NAN = np.array([[1.0, np.nan, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("arrays", "labels", "argument", "message"),
    [
        ([], [], "bags", "bags = []: give at least one bag"),
        (
            [ONES, NO_INSTANCE],
            [0, 1],
            "bags[1]",
            "(0, 3): give an array [instances",
        ),
        ([np.ones(3, np.float32)], [0], "bags[0]", "(3,): give an array [instances, ...]"),
        (
            [ONES, WIDER],
            [0, 1],
            "bags[1]",
            "use instances of shape (3,), as bags[0]",
        ),
        ([ONES, ONES.astype(np.uint8)], [0, 1], "bags[1]", "'uint8': use float32, as bags[0]"),
        ([ONES, NAN], [0, 1], "bags[1]", "'NaN or infinite': give finite values"),
        (
            [ONES, np.float32(np.inf) * ONES],
            [0, 1],
            "bags[1]",
            "'NaN or infinite': give finite values",
        ),
        ([ONES, ONES], np.array([0.0, 0.5]), "labels", "[0.0, 0.5]: use whole numbers from 0"),
        ([ONES, ONES], np.array([0.0, 1.0]), "labels", "[0.0, 1.0]: use whole numbers from 0"),
        ([ONES, ONES], [1, -1], "labels", "[1, -1]: use whole numbers from 0"),
        ([ONES, ONES], [1], "labels", "(1,): give one for each of the 2 bags"),
        ([ONES], np.array([[1]]), "labels", "(1, 1): give one for each of the 1 bags"),
    ],
)
def test_bags_from_arrays_refuses(arrays, labels, argument, message):
    with pytest.raises(InputError) as caught:
        bags_from_arrays(arrays, labels)
    assert caught.value.argument == argument
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("truths", "message"),
    [
        ([np.array([0, 1])], "[2]: match the bags' sizes [2, 2]"),
        ([np.array([0, 1]), np.array([1])], "[2, 1]: match the bags' sizes [2, 2]"),
        ([np.array([0, 2]), np.array([0, 0])], "[0, 2]: use 1, 0, or -1 for unknown"),
        ([np.array([0.0, 0.5]), np.array([0.0, 0.0])], "[0.0, 0.5]: use 1, 0, or -1 for unknown"),
    ],
)
def test_bags_from_arrays_refuses_instance_labels(truths, message):
    with pytest.raises(InputError) as caught:
        bags_from_arrays([ONES, ONES], [0, 1], truths)
    assert caught.value.argument == "instance_labels"
    assert message in str(caught.value)


# Views of bags


def test_gather_turns_bytes_into_unit_floats():
    pool = jnp.arange(256, dtype=jnp.uint8)[:, None]
    rows = jnp.array([[0, 255], [51, 7]])
    instances = jax.jit(gather)(pool, rows)
    assert instances.dtype == np.float32
    np.testing.assert_allclose(instances[..., 0], [[0, 1], [0.2, 7 / 255]], rtol=1e-6)
    everything = gather(pool, jnp.arange(256))
    assert (everything.min(), everything.max()) == (0, 1)


def test_gather_leaves_floats_as_they_are():
    pool = jnp.array([[-3.5, 1e6], [0.25, 255.0]], jnp.float32)
    np.testing.assert_array_equal(gather(pool, jnp.array([1, 0, 1])), pool[np.array([1, 0, 1])])
    assert gather(pool.astype(jnp.float16), jnp.array([0])).dtype == np.float32


def ragged() -> Bags:
    arrays = [np.full((size, 2), 10 * size, np.float32) for size in (2, 1, 3)]
    return bags_from_arrays(arrays, [1, 0, 2], [np.array(t) for t in ([1, 0], [0], [1, 1, -1])])


@settings(deadline=None, max_examples=25)
@given(index=st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_take_chooses_bags_in_order(index):
    bags, chosen = ragged(), take(ragged(), np.array(index))
    np.testing.assert_array_equal(chosen.pool, bags.pool)
    for name in ("rows", "mask", "label", "instance_label"):
        expected = [np.asarray(getattr(bags, name))[i] for i in index]
        np.testing.assert_array_equal(getattr(chosen, name), expected, err_msg=name)


@pytest.mark.parametrize("extra", [0, 1, 4])
def test_pad_adds_empty_slots_at_the_end(extra):
    bags, padded = ragged(), pad(ragged(), 3 + extra)
    for name in ("rows", "mask", "instance_label"):
        longer, before = np.asarray(getattr(padded, name)), getattr(bags, name)
        assert longer.shape == (3, 3 + extra)
        np.testing.assert_array_equal(longer[:, :3], before, err_msg=name)
    np.testing.assert_array_equal(padded.pool, bags.pool)
    np.testing.assert_array_equal(padded.label, bags.label)
    assert not np.asarray(padded.mask)[:, 3:].any()
    np.testing.assert_array_equal(padded.rows[:, 3:], 0)
    np.testing.assert_array_equal(padded.instance_label[:, 3:], UNKNOWN)


def test_pad_keeps_leading_axes():
    """Draws that differ by member have a further axis in front."""
    draws = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), ragged())
    padded = pad(draws, 5)
    np.testing.assert_array_equal(padded.mask[1], pad(ragged(), 5).mask)
    assert padded.instance_label.shape == (2, 3, 5)


def test_pad_does_not_cut():
    with pytest.raises(InputError, match="bag_size = 2: use at least 3, the bags' slots"):
        pad(ragged(), 2)
