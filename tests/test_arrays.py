"""Bags of the reader's own arrays, and of a set; and arrays that are no bags."""

import numpy as np
import pytest
from conftest import message_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.arrays import bags_from_arrays, bags_from_set
from mil_jax.bags import UNKNOWN
from mil_jax.buckets import sizes_of
from mil_jax.datasets import BagSet


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    shape=st.sampled_from([(3,), (2, 2), (1, 2, 3)]),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int64"]),
    known=st.booleans(),
)
def test_ragged_arrays_come_back(seed, sizes, shape, dtype, known):
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 256, (size, *shape)).astype(dtype) for size in sizes]
    labels = rng.integers(0, 3, len(sizes))
    truths = [rng.integers(-1, 2 if label else 1, size) for label, size in zip(labels, sizes, strict=True)]
    bags = bags_from_arrays(arrays, labels.tolist(), truths if known else None)

    assert bags.pool.dtype == ("uint8" if dtype == "uint8" else "float32")
    assert bags.pool.shape == (sum(sizes), *shape), "an instance is stored once, and none is padding"
    assert bags.rows.shape == bags.mask.shape == (len(sizes), max(sizes))
    np.testing.assert_array_equal(bags.label, labels)
    for i, size in enumerate(sizes):
        np.testing.assert_array_equal(bags.mask[i], np.arange(max(sizes)) < size)
        np.testing.assert_array_equal(bags.pool[bags.rows[i]][:size], arrays[i])
        np.testing.assert_array_equal(bags.instance_label[i, :size], truths[i] if known else UNKNOWN)
    np.testing.assert_array_equal(bags.rows[~bags.mask], 0)
    np.testing.assert_array_equal(bags.instance_label[~bags.mask], UNKNOWN)
    assert (bags.kind.shape, bags.kind.pixels) == (shape, dtype == "uint8")


def test_labels_may_be_truth_values():
    bags = bags_from_arrays([np.ones((1, 2)), np.ones((2, 2))], np.array([True, False]))
    np.testing.assert_array_equal(bags.label, [1, 0])
    assert bags.label.dtype == np.int32


def test_bags_of_a_set_are_its_instances_in_order():
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    truth = np.array([0, 1, -1, 0, 0, 1], np.int32)
    sizes, label = np.array([1, 3, 2], np.int32), np.array([0, 1, 1], np.int32)
    data = BagSet(name="s", x=x, sizes=sizes, label=label, bag_names=tuple("abc"), source="here", instance_label=truth)
    bags = bags_from_set(data)
    assert bags.rows.shape == (3, 3) and sizes_of(bags).tolist() == [1, 3, 2]
    np.testing.assert_array_equal(bags.pool[bags.rows[bags.mask]], x)
    np.testing.assert_array_equal(bags.instance_label[bags.mask], truth)


ONES = np.ones((2, 3), np.float32)
NAN = np.array([[1.0, np.nan, 0.0]], np.float32)


@pytest.mark.parametrize(("arrays", "labels", "message"), [
    ([], [], "bags = []: expected at least one bag"),
    ([ONES, ONES[:0]], [0, 1], "bags[1] = (0, 3): expected an array [instances"),
    ([ONES[0]], [0], "bags[0] = (3,): expected an array [instances, ...]"),
    ([ONES, np.ones((2, 4))], [0, 1], "bags[1] = (2, 4): expected instances of shape (3,), as bags[0]"),
    ([ONES, ONES.astype(np.uint8)], [0, 1], "bags[1] = 'uint8': expected float32, as bags[0]"),
    ([ONES, NAN], [0, 1], "bags[1] = 'NaN or infinite': expected finite values"),
    ([ONES, 1e300 * np.ones((2, 3))], [0, 1], "bags[1] = 'NaN or infinite': expected finite values"),
    ([ONES.astype(str)], [0], "bags[0] = '<U32': expected numbers"),
    ([ONES, ONES], np.array([0.0, 1.0]), "labels = 'float64 (2,)': expected a list of whole numbers"),
    ([ONES, ONES], [1, -1], "labels = [1, -1]: expected whole numbers"),
    ([ONES, ONES], [0, 2**31], "labels = [0, 2147483648]: expected whole numbers"),
    ([ONES, ONES], [1], "labels = (1,): expected one for each of the 2 bags"),
    ([ONES], np.array([[1]]), "labels = 'int64 (1, 1)': expected a list of whole numbers"),
])  # fmt: skip
def test_arrays_that_are_no_bags_are_refused(arrays, labels, message):
    assert message in message_of(bags_from_arrays, arrays, labels)


@pytest.mark.parametrize(("truths", "message"), [
    ([[0, 1]], "instance_labels = [(2,)]: expected the bags' sizes [(2,), (2,)]"),
    ([[0, 1], [1]], "instance_labels = [(2,), (1,)]: expected the bags' sizes"),
    ([[0, 0], [0, 2]], "instance_labels = [0, 2]: expected 1, 0, or -1"),
    ([[0.0, 0.0], [0.0, 0.5]], "instance_labels = [0.0, 0.5]: expected 1, 0, or -1"),
    ([[-1, 1], [0, 1]], "instance_labels[0] = [-1, 1]: expected no 1 in a bag of class 0"),
])  # fmt: skip
def test_instance_labels_that_do_not_fit_are_refused(truths, message):
    assert message in message_of(bags_from_arrays, [ONES, ONES], [0, 1], [np.array(part) for part in truths])
