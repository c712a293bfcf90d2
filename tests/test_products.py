"""Products of many instances: those of NumPy in double precision, at every size, forwards and backwards."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.products import BLOCK, MANY, product, weighted_sum

pytestmark = pytest.mark.usefixtures("quickly_compiled")
COUNTS = (1, BLOCK - 1, BLOCK, MANY - 1, MANY, MANY + 1, 3 * BLOCK + 7)


def draw(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in ((count, 5), (5, 3), (count, 3)))  # type: ignore[return-value]


def pulled_back(precision: Any, x: np.ndarray, w: np.ndarray, d: np.ndarray) -> Any:
    """The product, and what a gradient `d` of it becomes."""

    def all_of(x: Any, w: Any, d: Any) -> Any:
        out, pull = jax.vjp(lambda x, w: product(x, w, precision), x, w)
        return out, *pull(d)

    return jax.jit(all_of)(x, w, d)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-7)])
def test_product_and_gradients_are_those_of_double_precision(count, precision, tolerance):
    x, w, d = draw(count)
    exact = x.astype(float) @ w, d.astype(float) @ w.T, x.astype(float).T @ d
    sizes = np.abs(x) @ np.abs(w), np.abs(d) @ np.abs(w.T), np.abs(x.T) @ np.abs(d)
    for name, got, expected, size in zip(("out", "x", "w"), pulled_back(precision, x, w, d), exact, sizes, strict=True):
        assert (np.abs(np.asarray(got) - expected) <= 2 * tolerance * size).all(), name


def test_bfloat16_rounds_and_sums_in_single_precision():
    x, w = jnp.full((MANY, 5), 1 + 2**-9, jnp.float32), jnp.ones((5, 3))
    np.testing.assert_array_equal(product(x, w, "bfloat16"), 5)
    assert product(jnp.ones((1, 1000)), jnp.ones((1000, 1)), "bfloat16").item() == 1000, (
        "which bfloat16 cannot count to"
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("bags", "count"), [(1, BLOCK), (1, MANY + 40), (3, MANY), (3, 30)])
def test_with_an_axis_of_bags_it_is_the_product_of_each(bags, count, precision):
    x, w, d = (np.stack(parts) for parts in zip(*(draw(count, seed) for seed in range(bags)), strict=True))

    def gradients(x: Any, w: Any, d: Any) -> Any:
        return jax.vjp(lambda x, w: product(x, w, precision), x, w)[1](d)

    together = jax.jit(jax.vmap(gradients))(x, w, d)
    for i in range(bags):
        for got, alone in zip(together, jax.jit(gradients)(x[i], w[i], d[i]), strict=True):
            np.testing.assert_allclose(got[i], alone, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(count=st.sampled_from(COUNTS), seed=st.integers(0, 2**31 - 1))
def test_a_weighted_sum_is_the_same_for_few_and_for_many(count, seed):
    rng = np.random.default_rng(seed)
    weights, x = rng.random(count).astype(np.float32), rng.normal(size=(count, 4)).astype(np.float32)
    expected = weights.astype(float) @ x
    assert (
        np.abs(np.asarray(weighted_sum(jnp.asarray(weights), jnp.asarray(x))) - expected)
        <= 1e-6 * (weights @ np.abs(x))
    ).all()
