"""Losses: by hand, against scikit-learn, and gradients against finite differences."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.utils.class_weight import compute_class_weight

from mil_jax.errors import InputError
from mil_jax.losses import class_weights, cross_entropy, l2_penalty

SEEDS = st.integers(0, 2**31 - 1)
LOSS_AND_GRADIENT = jax.jit(jax.value_and_grad(cross_entropy))


def test_class_weights_by_hand():
    # 10 bags: 7 of class 0, 3 of class 1; 10 / (2 * 7) and 10 / (2 * 3).
    weights = class_weights(np.array([0, 1, 0, 0, 1, 0, 0, 1, 0, 0]))
    np.testing.assert_allclose(weights, [10 / 14, 10 / 6], rtol=1e-6)
    assert weights.dtype == np.float32


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS, counts=st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_class_weights_are_scikit_learns_balanced_ones(counts, seed):
    label = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    weights = np.asarray(class_weights(label, classes=len(counts)))
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=label)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights[label].mean() == pytest.approx(1, rel=1e-5), "the mean weight of a bag is 1"
    shares = weights * counts
    np.testing.assert_allclose(shares, shares[0], rtol=1e-5, err_msg="each class counts the same")


def test_class_weights_take_labels_on_the_device():
    np.testing.assert_allclose(class_weights(jnp.array([1, 0, 1, 1])), [2, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("label", "classes", "message"),
    [
        ([0, 0, 0], 2, "no bag of class 1 among 3"),
        ([1, 1], 2, "no bag of class 0 among 2"),
        ([0, 2, 2, 0], 3, "no bag of class 1 among 4"),
        ([0, 1], 4, "no bag of class 2 among 2"),
    ],
)
def test_a_missing_class_is_an_error_that_says_so(label, classes, message):
    with pytest.raises(InputError) as caught:
        class_weights(np.array(label), classes)
    assert caught.value.argument == "label"
    assert message in str(caught.value)
    assert "switch the class weights off" in str(caught.value)


def test_a_class_too_many_is_an_error_that_says_so():
    with pytest.raises(InputError, match=r"label = 2: use classes from 0 to 1") as caught:
        class_weights(np.array([0, 1, 2]), classes=2)
    assert caught.value.argument == "label"


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    for label, probability in enumerate([0.2, 0.5, 0.3]):
        loss = cross_entropy(logits, jnp.array(label))
        assert float(loss) == pytest.approx(-math.log(probability), rel=1e-6)
    # -log(1 / (1 + e^2)) for logits 3 and 1 and the second class
    assert float(cross_entropy(jnp.array([3.0, 1.0]), jnp.array(1))) == pytest.approx(
        math.log(1 + math.exp(2)), rel=1e-6
    )


def test_cross_entropy_of_sure_predictions_is_finite():
    logits = jnp.array([500.0, -500.0])
    assert float(cross_entropy(logits, jnp.array(0))) == 0
    assert float(cross_entropy(logits, jnp.array(1))) == pytest.approx(1000)
    gradient = jax.grad(cross_entropy)(logits, jnp.array(1))
    np.testing.assert_array_equal(gradient, [1, -1])


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, shift=st.floats(-50, 50, width=32))
def test_cross_entropy_ignores_a_shift_and_its_gradient_is_softmax_minus_truth(seed, shift):
    logits = np.random.default_rng(seed).normal(size=3).astype(np.float32)
    label = jnp.array(seed % 3)
    loss, gradient = LOSS_AND_GRADIENT(jnp.array(logits), label)
    shifted, _ = LOSS_AND_GRADIENT(jnp.array(logits + shift), label)
    assert float(shifted) == pytest.approx(float(loss), abs=1e-4)
    softmax = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(gradient, softmax - np.eye(3)[seed % 3], atol=1e-6)


def test_l2_penalty_by_hand():
    params = {"V": {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]])}, "w": jnp.array([2.0])}
    assert float(l2_penalty(params)) == 1 + 4 + 9 + 0.25 + 4
    gradient: Any = jax.grad(l2_penalty)(params)
    np.testing.assert_array_equal(gradient["V"]["kernel"], [[2, -4], [6, 1]])


def test_l2_penalty_of_nothing_is_zero():
    assert float(l2_penalty({})) == 0


def test_gradients_of_the_weighted_loss_agree_with_finite_differences():
    """The training loss: mean of weight times cross-entropy, plus the penalty."""
    label = jnp.array([0, 1, 0, 0, 1])
    inputs = np.random.default_rng(0).normal(size=(5, 3))
    kernel = np.random.default_rng(1).normal(size=(3, 2))
    with jax.enable_x64(True):
        weights, x = class_weights(label), jnp.asarray(inputs)

        @jax.jit
        def loss(kernel: jax.Array) -> jax.Array:
            losses = jax.vmap(cross_entropy)(jnp.tanh(x @ kernel), label)
            return (weights[label] * losses).mean() + 0.01 * l2_penalty({"kernel": kernel})

        check_grads(loss, (jnp.asarray(kernel),), order=1, modes=("fwd", "rev"), rtol=1e-6)
