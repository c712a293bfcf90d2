"""Pooling: masks, permutations and padding as properties; the paper's equations as reference."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from mil_jax.pooling import AttentionPooling, EmbeddingPooling, InstancePooling, Pooled, masked_softmax

K, D, A = 6, 4, 5
SEEDS = st.integers(0, 2**31 - 1)
MASKS = st.lists(st.booleans(), min_size=K, max_size=K).map(np.array)
MASKS_OF_SOME = MASKS.filter(np.any)
pytestmark = pytest.mark.usefixtures("quickly_compiled")
assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def every_kind(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test with and without the gate, concatenating and summing."""
    both = pytest.mark.parametrize("gated", [True, False])
    return both(pytest.mark.parametrize("concat", [True, False])(test))


@cache
def pooling(gated: bool, concat: bool) -> Callable[[Any, Any, Any], Pooled]:
    """One compiled pooling for each kind, shared by all examples."""
    module = AttentionPooling(units=A, gated=gated, concat=concat)
    return jax.jit(lambda params, h, mask: module.apply({"params": params}, h, mask))


def uneven_sum(out: Pooled) -> jax.Array:
    """Of all that a pooling gives."""
    both = jnp.concatenate([out.embedding, out.attention])
    return both @ jnp.cos(jnp.arange(1.0, 1 + len(both)))


def assert_nothing(out: Any) -> None:
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(out))


@cache
def gradients(gated: bool, concat: bool) -> Callable[[Any, Any, Any], tuple[Any, jax.Array]]:
    """Gradients of an uneven sum of all outputs by parameters and embeddings."""
    return jax.jit(jax.grad(lambda *given: uneven_sum(pooling(gated, concat)(*given)), argnums=(0, 1)))


def draw_params(seed: int, gated: bool) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    shapes = {"V": (D, A), "U": (D, A), "w": (A, 1)}
    names = shapes if gated else ("V", "w")
    return {name: {"kernel": rng.normal(size=shapes[name]).astype(np.float32)} for name in names}


def draw_embeddings(seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 1).normal(size=(K, D)).astype(np.float32)


def paper_attention(params: Any, embeddings: np.ndarray, gated: bool) -> np.ndarray:
    """Equations 8 and 9 as the paper writes them: one bag, instance by instance, float64."""
    V, U, w = (params[name]["kernel"].T.astype(float) if name in params else None for name in "VUw")
    exponentials = []
    for h in embeddings.astype(float):
        gate = 1 / (1 + np.exp(-(U @ h))) if gated else 1
        exponentials.append(np.exp((w @ (np.tanh(V @ h) * gate)).item()))
    return np.array(exponentials) / np.sum(exponentials)


@every_kind
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, mask=MASKS_OF_SOME)
def test_agrees_with_the_paper_on_the_instances_of_the_mask(gated, concat, seed, mask):
    params, h = draw_params(seed, gated), draw_embeddings(seed)
    out = pooling(gated, concat)(params, h, mask)
    attention = np.zeros(K)
    attention[mask] = paper_attention(params, h[mask], gated)
    assert_close(out.attention, attention)
    assert float(out.attention.sum()) == pytest.approx(1, abs=1e-6)
    assert (np.asarray(out.attention) > 0).tolist() == mask.tolist(), "0 elsewhere"
    weighted = attention[:, None] * h
    assert_close(out.embedding, weighted.ravel() if concat else weighted.sum(axis=0))


@every_kind
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, mask=MASKS, order=st.permutations(range(K)))
def test_attention_permutes_with_the_instances(gated, concat, seed, mask, order):
    params, h, order = draw_params(seed, gated), draw_embeddings(seed), np.array(order)
    before = pooling(gated, concat)(params, h, mask)
    after = pooling(gated, concat)(params, h[order], mask[order])
    assert_close(after.attention, before.attention[order])
    expected = before.embedding.reshape(K, D)[order].ravel() if concat else before.embedding
    assert_close(after.embedding, expected)


@every_kind
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, mask=MASKS, other=SEEDS)
def test_what_lies_in_an_empty_slot_does_not_matter(gated, concat, seed, mask, other):
    params, h = draw_params(seed, gated), draw_embeddings(seed)
    junk = np.where(mask[:, None], h, 1e3 * draw_embeddings(other))
    assert_same_bits(*(pooling(gated, concat)(params, x, mask) for x in (h, junk)))


@every_kind
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, mask=MASKS_OF_SOME)
def test_empty_slots_have_gradient_zero_and_the_others_have_not(gated, concat, seed, mask):
    _, by_embedding = gradients(gated, concat)(draw_params(seed, gated), draw_embeddings(seed), mask)
    np.testing.assert_array_equal(np.any(np.asarray(by_embedding) != 0, axis=1), mask)


@every_kind
def test_extra_padding_changes_nothing(gated, concat):
    params, h, mask = draw_params(3, gated), draw_embeddings(3), np.arange(K) != 2
    short = pooling(gated, concat)(params, h, mask)
    long_h = np.concatenate([h, np.full((7, D), 9, np.float32)])
    long = pooling(gated, concat)(params, long_h, np.pad(mask, (0, 7)))
    assert_close(long.attention, np.pad(short.attention, (0, 7)))
    assert_close(long.embedding, np.pad(short.embedding, (0, 7 * D if concat else 0)))


@every_kind
def test_a_bag_with_no_instance_gives_zeros(gated, concat):
    params, h, mask = draw_params(0, gated), draw_embeddings(0), np.zeros(K, bool)
    out = pooling(gated, concat)(params, h, mask)
    assert (out.attention.shape, out.embedding.shape) == ((K,), (K * D if concat else D,))
    assert_nothing((out, gradients(gated, concat)(params, h, mask)))


def test_masked_softmax_of_large_scores_is_finite():
    scores = jnp.array([1e4, 1e4, -1e4, 3e38, -jnp.inf])
    mask = jnp.array([True, True, True, False, False])
    weights, pullback = jax.vjp(lambda s: masked_softmax(s, mask), scores)
    np.testing.assert_allclose(weights, [0.5, 0.5, 0, 0, 0])
    np.testing.assert_allclose(pullback(jnp.arange(5.0))[0], [-0.25, 0.25, 0, 0, 0])


def test_masked_softmax_by_hand():
    scores = jnp.log(jnp.array([1.0, 5.0, 3.0]))
    mask = jnp.array([True, False, True])
    np.testing.assert_allclose(masked_softmax(scores, mask), [0.25, 0, 0.75], rtol=1e-6)


@pytest.mark.parametrize(("gated", "concat"), [(True, False), (False, True)])
def test_gradients_agree_with_finite_differences(gated, concat):
    mask = jnp.array([True, False, True, True, False, True])
    module = AttentionPooling(units=A, gated=gated, concat=concat)
    with jax.enable_x64(True):
        params, h = jax.tree.map(jnp.float64, (draw_params(1, gated), draw_embeddings(1)))
        outputs = jax.jit(lambda params, h: jax.tree.leaves(module.apply({"params": params}, h, mask)))
        check_grads(outputs, (params, h), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


# ---- poolings without parameters, and attention in chunks ----

KINDS = [*(EmbeddingPooling(kind) for kind in ("mean", "max", "lse")),
         *(InstancePooling(kind) for kind in ("mean", "max", "noisy_or"))]  # fmt: skip
each_kind = pytest.mark.parametrize("module", KINDS, ids=lambda module: f"{type(module).__name__}-{module.kind}")


def by_definition(module: Any, h: np.ndarray) -> np.ndarray:
    """What a pooling makes of a bag of instances [n, D], in double precision."""
    h = h.astype(np.float64)
    if isinstance(module, EmbeddingPooling):
        return {"mean": h.mean(axis=0), "max": h.max(axis=0), "lse": np.log(np.exp(h).mean(axis=0))}[module.kind]
    p = 1 / (1 + np.exp(-h))
    joined = {"mean": p.mean(axis=0), "max": p.max(axis=0), "noisy_or": 1 - np.prod(1 - p, axis=0)}[module.kind]
    return np.log(joined / (1 - joined))


@cache
def without_parameters(module: Any) -> Callable[..., Any]:
    return jax.jit(lambda h, mask: module.apply({}, h, mask))


@each_kind
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, mask=MASKS_OF_SOME, order=st.permutations(range(K)))
def test_every_pooling_is_its_definition_whatever_the_order_and_the_empty_slots(module, seed, mask, order):
    h, order = draw_embeddings(seed), np.array(order)
    pool = without_parameters(module)
    out = pool(h, mask)
    np.testing.assert_allclose(out.embedding, by_definition(module, h[mask]), rtol=1e-4, atol=1e-4)
    assert_close(out.attention.sum(), 1)
    assert not np.asarray(out.attention)[~mask].any()
    junk = np.where(mask[:, None], h, 50.0).astype(np.float32)
    assert_close(pool(junk, mask).embedding, out.embedding)
    turned = pool(h[order], mask[order])
    assert_close(turned.embedding, out.embedding)
    assert_close(turned.attention, np.asarray(out.attention)[order])


@each_kind
def test_no_pooling_gives_nan(module):
    """Not for a bag with no instance, not for extreme log odds, and not in the gradient."""
    pool, mask = without_parameters(module), np.arange(K) < 4
    gradient_of = jax.jit(jax.grad(lambda h: pool(h, mask).embedding.sum()))
    assert_nothing(pool(np.ones((K, D), np.float32), np.zeros(K, bool)))
    for value in (-80, 0, 80):
        h = np.full((K, D), value, np.float32)
        gradient = np.asarray(gradient_of(h))
        assert np.isfinite(pool(h, mask).embedding).all() and np.isfinite(gradient).all()
        assert not gradient[4:].any()


@pytest.mark.parametrize(("gated", "chunk"), [(True, 1), (False, 4), (True, 100)])
def test_chunks_change_no_result_and_no_gradient(gated, chunk):
    params = jax.tree.map(jnp.asarray, draw_params(5, gated))
    h, mask = jnp.asarray(30 * draw_embeddings(5)), jnp.array([True, True, False, True, True, False])

    def both(module: AttentionPooling) -> Any:
        def sum_and_out(params: Any, h: Any) -> Any:
            out: Any = module.apply({"params": params}, h, mask)
            return uneven_sum(out), out

        return jax.jit(jax.grad(sum_and_out, argnums=(0, 1), has_aux=True))(params, h)

    dense, chunked = AttentionPooling(A, gated), AttentionPooling(A, gated, chunk=chunk)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), both(dense), both(chunked))
    assert_nothing(chunked.apply({"params": params}, h, jnp.zeros(K, bool)))
