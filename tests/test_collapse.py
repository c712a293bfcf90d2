"""Attention that has collapsed is called so, and healthy attention is not."""

import jax.numpy as jnp
import numpy as np

from mil_jax.collapse import find_collapse


def bags_of_attention(rng, count=30, slots=4, sharpness=3.0):
    score = sharpness * rng.normal(size=(count, slots))
    weight = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    return weight.astype(np.float32), np.ones((count, slots), bool), np.arange(count) % 2


def test_healthy_attention_is_no_collapse():
    """Neither is sharp attention on changing slots, and bags of one instance tell nothing."""
    assert find_collapse(*bags_of_attention(np.random.default_rng(0))) is None
    sharp = np.eye(4, dtype=np.float32)[np.random.default_rng(0).integers(0, 4, 30)]
    assert find_collapse(sharp, np.ones((30, 4), bool), np.ones(30, int)) is None
    alone = np.tile(np.array([1.0, 0.0], np.float32), (30, 1))
    assert find_collapse(alone, alone > 0, np.ones(30, int)) is None


def test_uniform_attention_on_positive_bags_is_a_collapse():
    weight, mask, label = bags_of_attention(np.random.default_rng(0))
    weight[label == 1] = bags_of_attention(np.random.default_rng(1), sharpness=0.01)[0][label == 1]
    found = find_collapse(weight, mask, label)
    assert found is not None and "uniform" in found and "L2" in found and "15 positive bags" in found
    assert find_collapse(weight, mask, 1 - label) is None
    weight[label == 1] = bags_of_attention(np.random.default_rng(1), sharpness=0.5)[0][label == 1]
    assert find_collapse(weight, mask, label) is None, "an entropy below the threshold"


def test_uniform_is_measured_against_the_instances_that_a_bag_holds():
    _, mask, label = bags_of_attention(np.random.default_rng(0))
    mask[:, 2:] = False
    found = find_collapse(jnp.asarray(mask / 2.0), jnp.asarray(mask), jnp.asarray(label))
    assert found is not None and "entropy is 1.000" in found


def test_all_weight_on_one_slot_is_a_collapse():
    weight, mask, label = bags_of_attention(np.random.default_rng(0))
    weight[:] = np.array([0.01, 0.01, 0.97, 0.01], np.float32)
    found = find_collapse(weight, mask, label)
    assert found is not None and "slot 2" in found and "0.970" in found
    few = slice(0, 5)
    assert find_collapse(weight[few], mask[few], label[few]) is None
    weight[:] = np.array([0.02, 0.02, 0.94, 0.02], np.float32)
    assert find_collapse(weight, mask, label) is None, "a share below the threshold"


def test_weights_that_are_not_numbers_are_a_collapse():
    weight, mask, label = bags_of_attention(np.random.default_rng(0))
    weight[3, 1] = np.nan
    assert "not finite" in (find_collapse(weight, mask, label) or "")
