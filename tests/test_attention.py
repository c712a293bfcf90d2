"""Attention statistics: their properties, and scipy, scikit-learn and loops as references."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import member
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from mil_jax.attention import AttentionStats, attention_stats, mean_stats, member_agreement, stats_by_label
from mil_jax.ranks import PAIRWISE_SLOTS

pytestmark = pytest.mark.usefixtures("quickly_compiled")
STATS = jax.jit(attention_stats)
STATS_OF_BAGS = jax.jit(jax.vmap(attention_stats))
MEAN_STATS = jax.jit(mean_stats)
AGREEMENT = jax.jit(member_agreement)
CASES = 200
FEW, MANY = 6, 70
assert FEW <= PAIRWISE_SLOTS < MANY, "the two sizes take the two routes"
# Both to 1e-6 of the reference; single precision relative to values above 1.
TOLERANCE = {"float64": {"rtol": 0, "atol": 1e-9}, "float32": {"rtol": 4e-6, "atol": 1e-6}}


def random_bags(seed: int, slots: int, dtype: str = "float32", levels: int = 4):
    """Weights with ties, holes in the mask, empty and one-instance bags, unknown labels."""
    rng = np.random.default_rng(seed)
    mask = rng.random((CASES, slots)) < rng.choice([0.0, 0.2, 0.8, 1.0], (CASES, 1), p=[0.05, 0.15, 0.5, 0.3])
    raw = np.where(mask, rng.integers(0, levels, (CASES, slots)) + 0.1, 0)
    weight = (raw / np.maximum(raw.sum(axis=1, keepdims=True), 1e-9)).astype(dtype)
    label = rng.choice([1, 0, -1], (CASES, slots), p=[0.4, 0.5, 0.1])
    return weight, mask, np.where(mask, label, -1)


def expected_share_of_top(weight, positive):
    """Mean share of positives among the largest weights, over every way to break the ties."""
    count = int(positive.sum())
    edge = np.sort(weight)[::-1][count - 1]
    sure, tied = np.flatnonzero(weight > edge), np.flatnonzero(weight == edge)
    choices = itertools.combinations(tied, count - len(sure))
    return np.mean([positive[[*sure, *choice]].mean() for choice in choices])


def reference_stats(weight, mask, label) -> dict[str, Any]:
    fields: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(AttentionStats)), 0.0)
    weight, label = weight[mask].astype(np.float64), label[mask]
    n, positive, known = len(weight), label == 1, label >= 0
    if n == 0:
        return fields
    entropy = float(scipy.stats.entropy(weight))
    fields |= {
        "entropy": entropy, "normalized_entropy": entropy / np.log(n) if n > 1 else 0.0,
        "effective_instances": np.prod([w**-w for w in weight if w > 0]), "largest_weight": max(weight),
        "gini": np.abs(weight[:, None] - weight).sum() / (2 * n * sum(weight)),
        "kl_uniform": float(scipy.stats.entropy(weight, np.full(n, 1 / n))),
    }  # fmt: skip
    if positive.any():
        fields |= {
            "has_positive": 1.0,
            "positive_mass": sum(weight[positive]),
            "hit_at_1": positive[weight == max(weight)].mean(),
            "precision_at_positives": expected_share_of_top(weight, positive),
        }
    if positive.any() and (label == 0).any():
        fields |= {
            "has_both": 1.0,
            "instance_auc": roc_auc_score(label[known], weight[known]),
            "average_precision": average_precision_score(label[known], weight[known]),
        }
    return fields


def assert_agrees(got, cases, reference, dtype):
    """Asserts that a record of arrays holds, case by case, what a reference says of the fields it knows."""
    expected = [reference(*case) for case in zip(*cases, strict=True)]
    for name in expected[0]:
        wanted = np.array([fields[name] for fields in expected])
        np.testing.assert_allclose(getattr(got, name), wanted, err_msg=name, **TOLERANCE[dtype])


def assert_values(got, **wanted):
    values = {name: float(getattr(got, name)) for name in wanted}
    assert values == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def assert_same(got, wanted, **tolerance):
    for name, value in vars(got).items():
        np.testing.assert_allclose(value, getattr(wanted, name), err_msg=name, **tolerance)


@pytest.mark.parametrize(
    ("slots", "levels", "dtype"), [(FEW, 4, "float64"), (FEW, 4, "float32"), (MANY, 30, "float64")]
)
def test_statistics_equal_the_references_on_random_masked_bags(slots, levels, dtype):
    bags = random_bags(slots, slots, dtype, levels)
    with jax.enable_x64(dtype == "float64"):
        stats = jax.device_get(STATS_OF_BAGS(*map(jnp.asarray, bags)))
    assert stats.entropy.dtype == dtype
    assert 0 < sum(stats.has_both) < CASES
    assert_agrees(stats, bags, reference_stats, dtype)


@st.composite
def bags(draw):
    """One bag of up to FEW instances: integer weights (many ties) made to sum to one."""
    mask, raw, label = (
        np.array(draw(st.lists(values, min_size=FEW, max_size=FEW)))
        for values in (st.booleans(), st.integers(0, 5), st.sampled_from([1, 0, -1]))
    )
    weight = raw * mask if (raw * mask).sum() else mask
    return (weight / max(weight.sum(), 1)).astype(np.float32), mask, np.where(mask, label, -1)


@settings(deadline=None, max_examples=60)
@given(bags(), st.permutations(range(FEW)))
def test_order_of_instances_does_not_matter(bag, order):
    permuted = STATS(*(jnp.asarray(part[list(order)]) for part in bag))
    assert_same(permuted, STATS(*map(jnp.asarray, bag)), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(bags(), st.randoms(use_true_random=False))
def test_padding_changes_nothing_whatever_it_holds_and_both_routes_agree(bag, random):
    place = sorted(random.sample(range(MANY), FEW))
    weight, mask, label = np.full(MANY, 0.7, np.float32), np.zeros(MANY, bool), np.ones(MANY, int)
    weight[place], mask[place], label[place] = bag
    padded = STATS(*map(jnp.asarray, (weight, mask, label)))
    assert_same(padded, STATS(*map(jnp.asarray, bag)), rtol=1e-5, atol=1e-6)


SUM_OF_GRADIENT = jax.jit(jax.grad(lambda *bag: sum(map(jnp.sum, jax.tree.leaves(attention_stats(*bag))))))


@settings(deadline=None, max_examples=60)
@given(bags())
def test_everything_is_finite_and_in_range(bag):
    weight, mask, label = map(jnp.asarray, bag)
    stats = jax.device_get(STATS(weight, mask, label))
    n = int(mask.sum())
    assert np.isfinite(jax.tree.leaves(stats)).all()
    assert np.isfinite(SUM_OF_GRADIENT(weight, mask, label)).all()
    assert all(value >= -1e-6 for value in jax.tree.leaves(stats))
    unit = vars(stats).keys() - {"entropy", "effective_instances", "kl_uniform"}
    assert all(getattr(stats, name) <= 1 + 1e-6 for name in unit)
    assert stats.effective_instances <= n + 1e-5
    assert stats.gini <= 1 - 1 / max(n, 1) + 1e-6
    assert stats.has_both <= stats.has_positive


def test_a_bag_worked_out_by_hand():
    stats = STATS(jnp.array([0.5, 0.25, 0.25]), jnp.ones(3, bool), jnp.array([0, 1, 0]))
    wanted = {
        "entropy": 1.5 * np.log(2), "normalized_entropy": 1.5 * np.log(2) / np.log(3), "effective_instances": 2**1.5,
        "largest_weight": 0.5, "gini": 1 / 6, "kl_uniform": np.log(3) - 1.5 * np.log(2), "positive_mass": 0.25,
        "hit_at_1": 0, "precision_at_positives": 0, "instance_auc": 0.25, "average_precision": 1 / 3,
        "has_positive": 1, "has_both": 1,
    }  # fmt: skip
    assert_values(stats, **wanted)
    assert len(wanted) == len(dataclasses.fields(stats))


def test_uniform_attention_finds_positives_as_often_as_chance_does():
    stats = STATS(jnp.full(4, 0.25), jnp.ones(4, bool), jnp.array([0, 0, 1, 0]))
    assert_values(stats, gini=0, kl_uniform=0, normalized_entropy=1, instance_auc=0.5)
    assert_values(stats, hit_at_1=0.25, precision_at_positives=0.25, average_precision=0.25)


def test_one_instance_has_all_the_weight_and_no_spread():
    stats = STATS(jnp.array([0.0, 1.0, 0.0]), jnp.array([False, True, False]), jnp.array([-1, 1, -1]))
    assert_values(stats, entropy=0, normalized_entropy=0, gini=0, effective_instances=1, largest_weight=1)
    assert_values(stats, hit_at_1=1, precision_at_positives=1, has_positive=1, has_both=0)


def test_a_bag_without_instances_is_all_zeros():
    stats = STATS(jnp.zeros(3), jnp.zeros(3, bool), jnp.full(3, -1))
    assert not np.any(jax.tree.leaves(stats))
    agreement = AGREEMENT(jnp.zeros((2, 3)), jnp.zeros(3, bool))
    assert not np.any(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(agreement)]))


def test_weights_that_are_not_numbers_do_not_pass_for_low_entropy():
    stats = STATS(jnp.full(3, jnp.nan), jnp.ones(3, bool), jnp.zeros(3, int))
    assert np.isnan(stats.entropy) and np.isnan(stats.largest_weight)


def test_half_precision_counts_large_bags_right():
    stats = STATS(jnp.full(300, 1 / 300, jnp.bfloat16), jnp.ones(300, bool), jnp.arange(300) % 2)
    assert stats.entropy.dtype == jnp.float32
    assert_values(stats, gini=0, instance_auc=0.5, precision_at_positives=0.5)


def test_means_count_only_the_bags_that_define_a_statistic():
    stats = jax.device_get(STATS_OF_BAGS(*map(jnp.asarray, random_bags(1, FEW))))
    where = np.random.default_rng(2).random(CASES) < 0.5
    mean = MEAN_STATS(stats, jnp.asarray(where))
    both, positive = stats.has_both > 0, stats.has_positive > 0
    assert both.sum() < positive.sum() < CASES
    defined: dict[str, Any] = dict.fromkeys(("instance_auc", "average_precision"), both)
    defined |= dict.fromkeys(("positive_mass", "hit_at_1", "precision_at_positives"), positive)
    for name, values in vars(stats).items():
        counted = values[where & defined.get(name, True)]
        np.testing.assert_allclose(getattr(mean, name), counted.mean(), rtol=1e-5)


def test_means_by_label_are_means_of_the_subsets():
    stats = STATS_OF_BAGS(*map(jnp.asarray, random_bags(3, FEW)))
    bag_label, where = jnp.arange(CASES) % 3, jnp.arange(CASES) < 120
    split = stats_by_label(stats, bag_label, where)
    for got, counted in ((split.positive, where & (bag_label > 0)), (split.negative, where & (bag_label == 0))):
        assert_same(got, MEAN_STATS(member(stats, counted)), rtol=1e-5)
    assert not np.any(jax.tree.leaves(MEAN_STATS(stats, jnp.zeros(CASES, bool))))


def reference_spearman(one, other) -> Any:
    flat = [np.ptp(ranks) == 0 for ranks in (one, other)]
    return float(all(flat)) if any(flat) else scipy.stats.spearmanr(one, other)[0]


def reference_agreement(weight, mask) -> dict[str, Any]:
    weight = weight[:, mask].astype(np.float64)
    if not mask.any():
        return {"rank_agreement": 0.0, "jensen_shannon": 0.0, "top_stability": 0.0}
    votes = np.zeros(mask.sum())
    for row in weight:
        top = np.flatnonzero(row == row.max())
        votes[top] += 1 / len(top) / len(weight)
    pairs = itertools.combinations(weight, 2)
    entropies = [scipy.stats.entropy(row) for row in weight]
    return {
        "rank_agreement": np.mean([reference_spearman(*pair) for pair in pairs]),
        "jensen_shannon": scipy.stats.entropy(weight.mean(axis=0)) - np.mean(entropies),
        "top_stability": votes.max(),
    }


@pytest.mark.parametrize(("slots", "dtype"), [(4, "float32"), (20, "float64")])
def test_agreement_equals_the_references_on_random_masked_bags(slots, dtype):
    rng = np.random.default_rng(slots)
    mask = rng.random((CASES, slots)) < rng.choice([0.3, 0.8, 1.0], (CASES, 1))
    # Few levels in half of the cases, so that some of the four members have weights that are all equal.
    levels = np.where(np.arange(CASES) % 2, 2, 20)[:, None, None]
    raw = (rng.integers(0, levels, (CASES, 4, slots)) + 0.5) * mask[:, None]
    weight = (raw / np.maximum(raw.sum(axis=-1, keepdims=True), 0.1)).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        got = jax.device_get(jax.jit(jax.vmap(member_agreement))(jnp.asarray(weight), jnp.asarray(mask)))
    assert got.rank_agreement.dtype == got.top_stability.dtype == got.std.dtype == dtype
    exact = weight.astype(np.float64)
    np.testing.assert_allclose(got.mean, exact.mean(axis=1), **TOLERANCE[dtype])
    np.testing.assert_allclose(got.std, exact.std(axis=1, ddof=1), **TOLERANCE[dtype])
    assert_agrees(got, (weight, mask), reference_agreement, dtype)


AGREE = [
    ([[0.2, 0.7, 0.1, 0.0]] * 5, [1, 1, 1, 0], (1, 0, 1)), ([[1.0, 0.0], [0.0, 1.0]], [1, 1], (-1, np.log(2), 0.5)),
    ([[0.0, 1.0]] * 3, [0, 1], (1, 0, 1)), ([[0.3, 0.7]], [1, 1], (1, 0, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("weights", "mask", "wanted"), AGREE, ids=["same", "opposite", "one instance", "one member"])
def test_agreement_by_hand(weights, mask, wanted):
    got = AGREEMENT(jnp.array(weights), jnp.array(mask, bool))
    assert_values(got, **dict(zip(("rank_agreement", "jensen_shannon", "top_stability"), wanted, strict=True)))
    assert np.allclose(got.std, 0, atol=1e-7) == (wanted[1] == 0)


def test_gradient_of_agreement_is_finite_where_members_coincide():
    def disagreement(attention):
        got = member_agreement(attention, jnp.array([True, True, False]))
        return jnp.sum(got.std) + got.jensen_shannon

    gradient = jax.jit(jax.grad(disagreement))(jnp.tile(jnp.array([1.0, 0.0, 0.0]), (3, 1)))
    assert np.isfinite(gradient).all()


def test_memory_of_agreement_does_not_grow_with_pairs_of_members():
    members, slots = 128, 100
    memory = AGREEMENT.lower(jnp.zeros((members, slots)), jnp.ones(slots, bool)).compile().memory_analysis()
    pairs_times_slots = members**2 * slots * 4
    assert memory is not None and memory.temp_size_in_bytes < pairs_times_slots / 3
