"""A bag over several devices gives what it gives on one, forwards and backwards."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_parts, message_of

from mil_jax.model import ModelConfig, apply, build, init_params
from mil_jax.products import MANY
from mil_jax.spread import apply_spread, spread_bag

FEATURES = 5


def model_of(**more: Any) -> Any:
    config = {"hidden": (7,), "attention_units": 4, "head": "sum", "dropout": 0.5} | more
    model = build(ModelConfig(**config))
    return model, init_params(model, jax.random.key(0), 4, (FEATURES,))


def draw(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, FEATURES)).astype(np.float32)


@pytest.mark.parametrize(("count", "chunk"), [(1, None), (1, 3), (2, None), (11, None), (11, 3), (2 * MANY + 3, None)])
def test_outputs_and_gradients_are_those_of_one_device(count, chunk):
    model, params = model_of(chunk=chunk)
    x = draw(count)

    def loss(params: Any, run: Any, *bag: Any) -> Any:
        out = run(params, *bag)
        return jnp.sin(out.logits).sum() + (out.embedding**2).sum(), out

    def whole(params: Any, *bag: Any) -> Any:
        return apply(model, params, *bag)

    def spread(params: Any, *bag: Any) -> Any:
        return apply_spread(model, params, *bag)

    expected = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, whole, x, np.ones(count, bool))
    gradient, out = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, spread, *spread_bag(x))
    assert {len(part.data) for part in spread_bag(x)[0].addressable_shards} == {-(-count // jax.device_count())}
    for got, one in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-5)
    for name in ("logits", "embedding"):
        np.testing.assert_allclose(getattr(out, name), getattr(expected[1], name), rtol=1e-5, atol=1e-6)
    for name in ("attention", "scores"):
        values = np.asarray(getattr(out, name))
        np.testing.assert_allclose(values[:count], getattr(expected[1], name), rtol=1e-5, atol=1e-6)
        assert not values[count:].any(), "in slots that were filled up"


def test_what_cannot_be_spread_is_refused():
    model, params = model_of(pooling="embedding_mean")
    assert_parts(message_of(apply_spread, model, params, *spread_bag(draw(4))), "EmbeddingPooling", "attention pooling")
    model, params = model_of()
    odd = jnp.asarray(draw(3)), jnp.ones(3, bool)
    assert_parts(message_of(apply_spread, model, params, *odd), "mask", "3", "a multiple of 2")
    assert_parts(message_of(spread_bag, draw(4), 99), "devices", "99", "1 to 2")
