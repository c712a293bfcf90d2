"""The target of classes and the penalty: by hand, against scikit-learn, and gradients against finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import message_of, unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.utils.class_weight import compute_class_weight

from mil_jax.losses import Classes, l2_penalty

LOSS_AND_GRADIENT = jax.jit(jax.value_and_grad(Classes(3).loss))


def test_class_weights_by_hand():
    # 10 bags: 7 of class 0, 3 of class 1; 10 / (2 * 7) and 10 / (2 * 3).
    weights = Classes().weights(np.array([0, 1, 0, 0, 1, 0, 0, 1, 0, 0]))
    np.testing.assert_allclose(weights, [10 / 14, 10 / 6], rtol=1e-6)
    assert weights.dtype == np.float32


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 99), counts=st.lists(st.integers(1, 50), min_size=2, max_size=5))
def test_class_weights_are_scikit_learns_balanced_ones(counts, seed):
    label = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    weights = np.asarray(Classes(len(counts)).weights(label))
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=label)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights[label].mean() == pytest.approx(1, rel=1e-5), "the mean weight of a bag is 1"


@pytest.mark.parametrize(
    ("label", "classes", "missing"), [([0, 0, 0], 2, 1), ([1, 1], 2, 0), ([0, 2, 2, 0], 3, 1), ([0, 1], 4, 2)]
)
def test_a_missing_class_has_no_weight(label, classes, missing):
    message = message_of(Classes(classes).weights, np.array(label))
    assert f"no bag of class {missing} among {len(label)}" in message and "class weights switched off" in message


def test_labels_that_are_no_class_are_refused():
    Classes(3).check(np.array([0, 1, 2]))
    Classes().check(np.array([0, -1]), least=-1)
    assert message_of(Classes().check, np.array([0, 2])) == "label = 2: expected 0 to 1, or a model of more classes"
    assert message_of(Classes().check, np.array([[1, -1]])).startswith("label = -1: expected 0 to 1")
    for count in (1, 2.0):
        assert message_of(unchecked, Classes, count=count) == f"classes = {count}: expected a whole number from 2"


def test_the_loss_by_hand():
    loss = Classes(3).loss
    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    for label, probability in enumerate([0.2, 0.5, 0.3]):
        assert float(loss(logits, jnp.array(label))) == pytest.approx(-math.log(probability), rel=1e-6)
    np.testing.assert_allclose(Classes(3).prediction(logits), [0.2, 0.5, 0.3], rtol=1e-6)
    assert Classes(3).is_right(logits, jnp.array(1)) and not Classes(3).is_right(logits, jnp.array(0))
    # -log(1 / (1 + e^2)) for logits 3 and 1 and the second class
    two = Classes().loss(jnp.array([3.0, 1.0]), jnp.array(1))
    assert float(two) == pytest.approx(math.log(1 + math.exp(2)), rel=1e-6)


def test_the_loss_of_sure_predictions_is_finite():
    logits = jnp.array([500.0, -500.0])
    loss = Classes().loss
    assert float(loss(logits, jnp.array(0))) == 0
    assert float(loss(logits, jnp.array(1))) == pytest.approx(1000)
    np.testing.assert_array_equal(jax.grad(loss)(logits, jnp.array(1)), [1, -1])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), shift=st.floats(-50, 50, width=32))
def test_the_loss_ignores_a_shift_and_its_gradient_is_softmax_minus_truth(seed, shift):
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
    np.testing.assert_array_equal(jax.grad(l2_penalty)(params)["V"]["kernel"], [[2, -4], [6, 1]])
    assert float(l2_penalty({})) == 0


def test_gradients_of_the_weighted_loss_agree_with_finite_differences():
    """The training loss: mean of weight times cross-entropy, plus the penalty."""
    label = jnp.array([0, 1, 0, 0, 1])
    inputs = np.random.default_rng(0).normal(size=(5, 3))
    kernel = np.random.default_rng(1).normal(size=(3, 2))
    with jax.enable_x64(True):
        weights, x = Classes().weights(label), jnp.asarray(inputs)

        @jax.jit
        def loss(kernel: jax.Array) -> jax.Array:
            losses = jax.vmap(Classes().loss)(jnp.tanh(x @ kernel), label)
            return (weights[label] * losses).mean() + 0.01 * l2_penalty({"kernel": kernel})

        check_grads(loss, (jnp.asarray(kernel),), order=1, modes=("fwd", "rev"), rtol=1e-6)
