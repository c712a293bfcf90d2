"""Bags: looked up, standardised, taken, padded, stacked; and bags that are refused."""

import jax
import numpy as np
import pytest
from conftest import assert_parts, assert_same_bits, changed, draw_bags, message_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.arrays import bags_from_arrays
from mil_jax.bags import UNKNOWN, Bags, check_bags, fit_scaler, gather, of_member, pad, stack_bags, take

VIEW = ("rows", "mask", "label", "instance_label")


def ragged() -> Bags:
    arrays = [np.full((size, 2), 10 * size, np.float32) for size in (2, 1, 3)]
    return bags_from_arrays(arrays, [1, 0, 2], [np.array(t) for t in ([1, 0], [0], [1, 1, -1])])


# ---- instances ----


def test_gather_turns_bytes_into_unit_floats():
    pool, rows = np.arange(256, dtype=np.uint8)[:, None], np.array([[0, 255], [51, 7]])
    instances = jax.jit(gather)(pool, rows)
    assert instances.dtype == np.float32
    np.testing.assert_allclose(instances[..., 0], [[0, 1], [0.2, 7 / 255]], rtol=1e-6)


def test_gather_leaves_floats_as_they_are():
    pool = np.array([[-3.5, 1e4], [0.25, 255.0]], np.float32)
    np.testing.assert_array_equal(gather(pool, np.array([1, 0, 1])), pool[np.array([1, 0, 1])])
    assert gather(pool.astype(np.float16), np.array([0])).dtype == np.float32


def test_features_are_standardised_by_the_bags_and_constant_ones_stay_finite():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(5, 3, (1 + i % 4, 3)).astype(np.float32) for i in range(10)]
    for array in arrays:
        array[:, 1] = 0.1
    bags = bags_from_arrays(arrays, [i % 2 for i in range(10)])
    train = take(bags, np.arange(6))
    scaler = fit_scaler(train)
    seen = np.asarray(gather(bags.pool, train.rows, scaler))[train.mask]
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(seen[:, [0, 2]].std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(seen[:, 1], 0, atol=1e-6)
    own = fit_scaler(stack_bags([take(bags, np.arange(4, 10)), train]))
    assert_same_bits(jax.tree.map(lambda leaf: leaf[1], own), scaler)
    assert "pool = 'uint8 (23, 3)'" in message_of(fit_scaler, Bags(bags.pool.astype(np.uint8), bags.view))


# ---- other views of the same pool ----


@settings(deadline=None, max_examples=25)
@given(index=st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_take_chooses_bags_in_order(index):
    bags, chosen = ragged(), take(ragged(), index)
    np.testing.assert_array_equal(chosen.pool, bags.pool)
    for name in VIEW:
        np.testing.assert_array_equal(getattr(chosen, name), getattr(bags, name)[index], err_msg=name)


@pytest.mark.parametrize(("index", "message"), [
    ([119], "index = 119: expected 0 to 39"),
    ([0, -1], "index = -1: expected 0 to 39"),
    (np.array([40]), "index = 40: expected 0 to 39"),
])  # fmt: skip
def test_take_refuses_bags_that_there_are_not(index, message):
    assert message_of(take, draw_bags(1, 40), index) == message


@pytest.mark.parametrize("extra", [0, 4])
def test_pad_adds_empty_slots_at_the_end(extra):
    """Also to bags with a member axis."""
    for bags in (ragged(), stack_bags([ragged(), ragged()])):
        padded = pad(bags, 3 + extra)
        for name, blank in (("rows", 0), ("mask", False), ("instance_label", UNKNOWN)):
            longer = getattr(padded, name)
            np.testing.assert_array_equal(longer[..., :3], getattr(bags, name), err_msg=name)
            np.testing.assert_array_equal(longer[..., 3:], np.full((*bags.rows.shape[:-1], extra), blank), err_msg=name)
        np.testing.assert_array_equal(padded.pool, bags.pool)
        np.testing.assert_array_equal(padded.label, bags.label)
    assert "bag_size = 2: expected a whole number from 3" in message_of(pad, ragged(), 2)


def test_stacked_draws_are_members_bags():
    draws = [draw_bags(1, 5), take(draw_bags(1, 40), [39, 3, 7, 7, 0])]
    together = stack_bags(draws)
    assert together.by_member and together.rows.shape == (2, 5, 3)
    for i, draw in enumerate(draws):
        assert_same_bits(of_member(together, i), draw)
    assert of_member(draws[0], 1) is draws[0], "bags that all share are everyone's"
    assert "expected bags that all members share" in message_of(take, together, [0])
    assert "pad them" in message_of(stack_bags, [draws[0], pad(draws[1], 4)])
    assert "from one pool" in message_of(stack_bags, [draws[0], draw_bags(2, 5)])
    assert "at least one member" in message_of(stack_bags, [])


# ---- bags that would give a wrong result in silence ----


@pytest.mark.parametrize(("harm", "parts"), [
    (lambda bags: changed(bags, rows=bags.rows + 58), ("val.rows", "rows of the pool, 0 to 59")),
    (lambda bags: changed(bags, rows=bags.rows - 60), ("val.rows = -", "rows of the pool")),
    (lambda bags: changed(bags, mask=bags.mask & (np.arange(3) > 0)), ("val.mask", "the instances of a bag first")),
    (lambda bags: Bags(bags.pool * np.float32(np.nan), bags.view), ("val.pool", "expected finite values")),
    (lambda bags: take(bags, np.arange(0)), ("val = 'no bag'", "at least one bag")),
])  # fmt: skip
def test_bags_that_mean_nothing_are_refused(harm, parts):
    bags = draw_bags(2, 40)
    check_bags("val", bags)
    assert_parts(message_of(check_bags, "val", harm(bags)), *parts)


def test_what_an_empty_slot_holds_does_not_matter():
    bags = ragged()
    check_bags("bags", changed(bags, rows=np.where(bags.mask, bags.rows, 99)))
