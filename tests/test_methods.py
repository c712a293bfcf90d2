"""The methods behind `mil_jax.pooling`: their definitions and losses in double precision, sizes, and noise."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import hyper_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.encoders import MLPEncoder
from mil_jax.losses import Classes
from mil_jax.model import MIL, ModelConfig, apply, attention_kernels, build, count_params, init_params, is_noisy
from mil_jax.pooling import (
    NOISE,
    ACMILPooling,
    AdditivePooling,
    AEMPooling,
    AttentionPooling,
    CLAMPooling,
    ConjunctivePooling,
    DSMILPooling,
    DTFDPooling,
    EmbeddingPooling,
    InstancePooling,
    MultiHeadAttentionPooling,
    Pooled,
    SetTransformerPooling,
    TransMILPooling,
    draws_noise,
    sparsemax,
)  # fmt: skip
from mil_jax.pooling.heads import nystrom, weights_of
from mil_jax.pooling.transmil import square_of
from mil_jax.states import Batch
from mil_jax.training import batch_loss

pytestmark = pytest.mark.usefixtures("quickly_compiled")
D, K, COUNT, C = 4, 7, 5, 3
MASK = np.arange(K) < COUNT
SEEDS = st.integers(0, 2**31 - 1)
MASKS = st.lists(st.booleans(), min_size=K, max_size=K).map(np.array)
assert_close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes_of(pooling: nn.Module, slots: int = K) -> Any:
    return jax.eval_shape(
        lambda key: pooling.init(key, jnp.zeros((slots, D)), jnp.ones(slots, bool)), jax.random.key(0)
    )


def with_params(pooling: nn.Module, slots: int = K) -> tuple[Any, Any]:
    """The pooling as a compiled function, with parameters of which no bias is 0; and these in double precision."""
    shapes = jax.eval_shape(
        lambda key: pooling.init(key, jnp.zeros((slots, D)), jnp.ones(slots, bool)), jax.random.key(0)
    )
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes.get("params", {}))
    apply = jax.jit(lambda h, mask, **rngs: pooling.apply({"params": params}, h, mask, rngs=rngs))
    return apply, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def softmax(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    exponential = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return exponential / exponential.sum(axis=axis, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def dense(params: Any, x: np.ndarray) -> np.ndarray:
    return x @ params["kernel"] + params["bias"]


def scores_by(params: Any, h: np.ndarray) -> np.ndarray:
    """W · (tanh(V h) * sigmoid(U h)), [n, T]."""
    V, U, w = (params[name]["kernel"] for name in "VUw")
    return (np.tanh(h @ V) * sigmoid(h @ U)) @ w


def cross_entropy(logits: np.ndarray, label: int) -> float:
    return float(-np.log(softmax(logits)[label]))


def odds_of(parts: np.ndarray) -> np.ndarray:
    return (parts[:, 1:] - parts[:, :1]).max(axis=1)


# ---- by definition: embedding, attention, logits, scores of instances [n, D] in double precision ----


def additive(params: Any, h: np.ndarray) -> tuple[np.ndarray, ...]:
    attention = softmax(scores_by(params, h))
    parts = dense(params["classifier"], np.maximum(dense(params["hidden"]["Dense_0"], attention * h), 0))
    return (attention * h).sum(axis=0), attention[:, 0], parts.sum(axis=0), odds_of(parts)


def conjunctive(params: Any, h: np.ndarray) -> tuple[np.ndarray, ...]:
    weight = sigmoid(dense(params["w"], np.tanh(dense(params["V"], h))))
    parts = weight * dense(params["classifier"], h)
    return (weight * h).mean(axis=0), weight[:, 0] / weight.sum(), parts.mean(axis=0), odds_of(parts)


def dsmil(params: Any, h: np.ndarray) -> tuple[np.ndarray, ...]:
    odds = dense(params["instance"], h)
    queries = np.tanh(dense(params["query_1"], np.maximum(dense(params["query_0"], h), 0)))
    by_class = [softmax(queries @ queries[m] / np.sqrt(5)) for m in odds.argmax(axis=0)]
    embedding = np.concatenate([weights @ h for weights in by_class])
    logits = np.append(0, (odds.max(axis=0) + dense(params["bag"], embedding)) / 2)
    return embedding, np.mean(by_class, axis=0), logits, odds.max(axis=1)


def clam_mb(params: Any, h: np.ndarray) -> tuple[np.ndarray, ...]:
    attention = softmax(scores_by(params, h))
    joined = attention.T @ h
    logits = np.array([joined[c] @ params["kernel"][:, c] + params["bias"][c] for c in range(C)])
    return joined.ravel(), attention.mean(axis=1), logits, odds_of(dense(params, h))


def acmil(params: Any, h: np.ndarray) -> tuple[np.ndarray, ...]:
    attention = softmax(scores_by(params, h)).mean(axis=1)
    return attention @ h, attention


def multi_head(params: Any, h: np.ndarray) -> tuple[np.ndarray, ...]:
    V, U, w = (params[name]["kernel"] for name in "VUw")
    heads = [softmax((np.tanh(h @ V[:, at]) * sigmoid(h @ U[:, at])) @ w[:, i])
             for i, at in enumerate((slice(0, 5), slice(5, 10)))]  # fmt: skip
    return np.concatenate([weights @ h for weights in heads]), np.mean(heads, axis=0)


def dtfd(params: Any, h: np.ndarray) -> tuple[np.ndarray, ...]:
    scores = scores_by(params["tier_1"], h)[:, 0]
    order, features, where = np.argsort(-scores), [], []
    parts = [order[part::2] for part in range(2)]
    for largest in (True, False):
        for part in parts:
            activation = odds_of(dense(params["classifier"], softmax(scores[part])[:, None] * h[part]))
            where.append(part[activation.argmax() if largest else activation.argmin()])
            features.append(h[where[-1]])
    outer = softmax(scores_by(params["tier_2"], np.array(features))[:, 0])
    attention = np.zeros(len(h))
    np.add.at(attention, where, outer)
    return outer @ np.array(features), attention


def top_k(params: Any, h: np.ndarray) -> tuple[np.ndarray, ...]:
    return (np.sort(h, axis=0)[::-1][:3].mean(axis=0),)


def lse(params: Any, h: np.ndarray) -> tuple[np.ndarray, ...]:
    return (np.log(np.exp(5 * h).mean(axis=0)) / 5,)


@pytest.mark.parametrize(("pooling", "definition"), [
    (AdditivePooling(C, 5, hidden=(6,)), additive), (ConjunctivePooling(C, 5), conjunctive),
    (DSMILPooling(C, 5), dsmil),
    (CLAMPooling(C, 5, branches=True), clam_mb), (ACMILPooling(C, 5, 3), acmil), (DTFDPooling(C, 5, 2), dtfd),
    (MultiHeadAttentionPooling(2, 5), multi_head), (InstancePooling("top_k", k=3), top_k),
    (InstancePooling("lse"), lse),
], ids=lambda value: getattr(value, "__name__", ""))  # fmt: skip
def test_a_method_is_its_definition(pooling, definition):
    apply, params = with_params(pooling)
    for seed in range(4):
        h = draw(K, D, seed=seed)
        out = apply(h, MASK)
        expected = definition(params, h[:COUNT].astype(np.float64))
        for name, value in zip(("embedding", "attention", "logits", "scores"), expected, strict=False):
            given = np.asarray(getattr(out, name))
            assert_close(given[:COUNT] if name in ("attention", "scores") else given, value, err_msg=name)


# ---- sparsemax ----


@settings(deadline=None, max_examples=30)
@given(
    seed=SEEDS, scale=st.sampled_from([0.1, 1, 10]), mask=st.lists(st.booleans(), min_size=K, max_size=K).map(np.array)
)
def test_sparsemax_is_the_nearest_point_of_the_simplex(seed, scale, mask):
    """By its conditions: on the simplex; score - weight is one threshold where positive, and below it elsewhere."""
    scores = scale * draw(K, seed=seed)
    weights = np.asarray(jax.jit(sparsemax)(scores, mask))
    assert (weights >= 0).all() and not weights[~mask].any()
    if mask.any():
        assert weights.sum() == pytest.approx(1, abs=1e-5)
        threshold = (scores - weights)[weights > 0]
        assert np.ptp(threshold) < 1e-5 * (1 + scale)
        assert (scores[mask & (weights == 0)] <= threshold.min() + 1e-5 * scale).all()


def test_sparsemax_by_hand():
    """Threshold (1.2 + 0.8 - 1) / 2 = 0.5; the Jacobian is that of a mean over the support."""
    scores, mask = jnp.array([1.2, 0.8, 0.1, 9.0]), jnp.array([True, True, True, False])
    np.testing.assert_allclose(sparsemax(scores, mask), [0.7, 0.3, 0, 0], atol=1e-6)
    jacobian = jax.jacobian(sparsemax)(scores, mask)
    np.testing.assert_allclose(jacobian, np.array([[1, -1, 0, 0], [-1, 1, 0, 0], [0] * 4, [0] * 4]) / 2, atol=1e-6)


# ---- losses ----


def of_streams(out: Pooled, label: int) -> float:
    return (cross_entropy(out.aux.instance, label) + cross_entropy(out.aux.bag, label)) / 2


def of_entropy(out: Pooled, label: int) -> float:
    weights = np.asarray(out.attention, np.float64)[:COUNT]
    return 0.1 * float(np.sum(weights * np.log(weights)))


def of_branches(out: Pooled, label: int) -> float:
    columns = np.asarray(out.aux.attention, np.float64).T
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for i, a in enumerate(columns) for b in columns[i + 1 :]]
    return float(np.mean([cross_entropy(logits, label) for logits in out.aux.logits]) + np.mean(cosines))


def of_parts(out: Pooled, label: int) -> float:
    return float(np.mean([cross_entropy(logits, label) for logits in np.asarray(out.aux.logits)]))


@pytest.mark.parametrize(("pooling", "reference"), [
    (DSMILPooling(C, 5), of_streams), (AEMPooling(5), of_entropy), (ACMILPooling(C, 5, 3), of_branches),
    (DTFDPooling(C, 5, 2), of_parts),
], ids=lambda value: getattr(value, "__name__", ""))  # fmt: skip
def test_a_loss_is_its_definition(pooling, reference):
    apply_to, _ = with_params(pooling)
    out = apply_to(draw(K, D), MASK)
    doubled = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), out)
    for label in range(C):
        assert float(pooling.loss(out, jnp.int32(label))) == pytest.approx(reference(doubled, label), rel=1e-5)


@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("count", [1, 3, K])
def test_clam_labels_the_instances_at_both_ends_and_none_twice(subtyping, branches, count):
    """By sorting attention: of 3 instances 1 stands at either end, of 1 none; empty slots, which weigh 0, never do."""
    pooling = CLAMPooling(C, 5, branches, k=2, subtyping=subtyping)
    apply, params = with_params(pooling)
    h = draw(K, D)
    out = apply(h, np.arange(K) < count)
    x = h[:count].astype(np.float64)
    verdicts = dense(params["instance"], x).reshape(count, C, 2)
    weights, k = np.broadcast_to(softmax(scores_by(params, x)), (count, C)), min(2, count // 2)
    for label in range(C):
        expected = 0.0
        for c in range(C if k else 0):
            order = np.argsort(weights[:, c])
            most, least = ([verdicts[i, c] for i in ends] for ends in (order[-k:], order[:k]))
            inside = [cross_entropy(v, 1) for v in most] + [cross_entropy(v, 0) for v in least]
            outside = np.mean([cross_entropy(v, 0) for v in most]) if subtyping else 0
            expected += np.mean(inside) if c == label else outside
        expected *= 0.3 / (C if subtyping else 1)
        assert float(pooling.loss(out, jnp.int32(label))) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_training_adds_a_poolings_loss_to_its_share_of_the_bags():
    """One generic way: the step sees any pooling's `loss` and `bag_share`; a class's weight counts for both."""

    class Rigged(EmbeddingPooling):
        bag_share = 0.25

        def loss(self, pooled: Pooled, label: Any) -> Any:
            return 10 * pooled.embedding.sum() + label

    rows, label = draw(2, K, D), np.array([0, 1], np.int32)
    batch = Batch(jnp.asarray(rows), jnp.stack([MASK, MASK]), label, jnp.ones(2, bool))
    losses = []
    for pooling in (EmbeddingPooling("mean"), Rigged("mean")):
        model = MIL(MLPEncoder((D,)), pooling)
        params = init_params(model, jax.random.key(0), K, (D,))
        hyper = hyper_of(l2=None, weights=(2, 3))
        per_bag = jax.vmap(partial(apply, model, params))(batch.instances, batch.mask)
        losses.append(float(batch_loss(params, model, hyper, batch)[0]))
    own = 10 * np.asarray(per_bag.embedding).sum(axis=1) + label
    assert losses[1] == pytest.approx(0.25 * losses[0] + float(np.mean(np.array([2, 3]) * own)), rel=1e-5)


# ---- sizes, and what is penalised ----

GATED = 2 * D * 5 + 5  # V, U [D, 5] and w


@pytest.mark.parametrize(("pooling", "count"), [
    (MultiHeadAttentionPooling(3, 5), 3 * GATED),
    (AdditivePooling(C, 5, hidden=(6,)), GATED + (D + 1) * 6 + (6 + 1) * C),
    (ConjunctivePooling(C, 8), (D + 1) * 8 + 8 + 1 + (D + 1) * C),
    # Two classes are one output; queries D to 5 to 5, the values are the embeddings.
    (DSMILPooling(2, 5), (D + 1) + (D + 1) * 5 + (5 + 1) * 5 + (D + 1)),
    # The paper's numbers less the biases of its attention.
    (CLAMPooling(C, 5), GATED + (D + 1) * 2 * C),
    (CLAMPooling(C, 5, branches=True), GATED + 5 * (C - 1) + (D + 1) * 2 * C + (D + 1) * C),
    (ACMILPooling(C, 5, 4), GATED + 5 * 3 + 4 * (D + 1) * C),
    (DTFDPooling(C, 5), 2 * GATED + (D + 1) * C),
    # Two ISABs of two MABs each, inducing points, the feed-forward layer, the seed and its MAB.
    (SetTransformerPooling(8, 2, 3, 2), 2 * 3 * 8 + 5 * (4 * 9 * 8 + 2 * 16) - 2 * (8 - D) * 8 - (8 - D) * 8
     + 9 * 8 + 8),
    # The published model has 2,672,146 with its 1024 features and two classes: fc1 524,800, and 1,026 of fc2.
    (TransMILPooling(), 2_672_146 - 524_800 + 512 * (D + 1) - 1_026),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_parameter_counts(pooling, count):
    assert count_params(shapes_of(pooling)["params"]) == count


def test_l2_is_of_the_attention_alone():
    made: Any = jax.eval_shape(
        lambda key: build(ModelConfig(head="sum", pooling="dtfd", hidden=(D,), attention_units=5)).init(
            key, jnp.zeros((K, D)), jnp.ones(K, bool)), jax.random.key(0))  # fmt: skip
    assert sum(leaf.size for leaf in attention_kernels(made["params"])) == 2 * GATED
    assert attention_kernels({}) == []


# ---- TransMIL: the square is that of the instances, not of the slots ----


@pytest.mark.parametrize(("landmarks", "counts"), [(None, (1, 5, 10, 16)), (4, (5, 10))])
def test_a_bag_among_many_slots_is_that_bag(landmarks, counts):
    """For squares of side 1 to 4, full or not, in one of 6 and in their own."""
    apply_to, _ = with_params(TransMILPooling(8, 2, landmarks))
    for count in counts:
        h = draw(30, D, seed=count)
        out, lone = apply_to(h, np.arange(30) < count), apply_to(h[:count], np.ones(count, bool))
        assert_close(out.embedding, lone.embedding, rtol=1e-4, atol=1e-4)
        assert_close(out.attention[:count], lone.attention, rtol=1e-4, atol=1e-5)
        assert not np.asarray(out.attention[count:]).any()


@pytest.mark.parametrize("slots", [1, 7, 16, 30])
def test_a_square_repeats_the_first_instances(slots):
    counts = np.arange(slots + 1)
    squares = jax.jit(jax.vmap(square_of))(np.arange(slots) < counts[:, None])
    for count, square_side, source, valid in zip(counts, squares.side, squares.source, squares.valid, strict=True):
        side = max(1, int(np.ceil(np.sqrt(count))))
        assert int(square_side) == side
        np.testing.assert_array_equal(valid, np.arange(len(valid)) <= side**2)
        if count:
            np.testing.assert_array_equal(source[: side**2], np.r_[np.arange(count), np.arange(side**2 - count)])


def test_nystrom_with_a_landmark_for_each_token_is_exact_attention():
    q, k = (jnp.asarray(draw(2, 6, 4, seed=seed)) for seed in (0, 1))
    mask = jnp.arange(6) < 5
    left, right = jax.jit(partial(nystrom, landmarks=5, iterations=20))(q, k, mask)
    assert_close((left @ right)[:, :5], weights_of(q, k, mask)[:, :5], rtol=1e-2, atol=1e-3)


# ---- noise ----


def test_acmil_masks_some_of_the_heaviest_and_never_all():
    pooling = ACMILPooling(C, 5, 3, k=4, masked_share=0.5)
    apply, _ = with_params(pooling)
    h, hidden = draw(K, D), set()
    whole = np.asarray(apply(h, MASK).aux.attention)
    for seed in range(6):
        attention = np.asarray(apply(h, MASK, **{NOISE: jax.random.key(seed)}).aux.attention)
        gone = (attention == 0) & MASK[:, None]
        assert (gone.sum(axis=0) == 2).all(), "half of the 4"
        for branch in range(3):
            assert set(np.flatnonzero(gone[:, branch])) <= set(np.argsort(-whole[:, branch])[:4])
            assert attention[:, branch].sum() == pytest.approx(1, abs=1e-6)
        hidden.add(gone.tobytes())
    assert len(hidden) > 1
    assert np.asarray(apply(h, np.arange(K) < 1, **{NOISE: jax.random.key(0)}).attention)[0] == pytest.approx(1)


def test_dtfd_draws_other_parts_in_training():
    """Their logits differ by key; more parts than instances leave some out, which are in no loss."""
    apply, _ = with_params(DTFDPooling(C, 5, 2))
    h = draw(K, D)
    drawn = [np.asarray(apply(h, MASK, **{NOISE: jax.random.key(seed)}).aux.logits).tobytes() for seed in range(4)]
    assert len(set(drawn)) > 1
    few = with_params(pooling := DTFDPooling(C, 5, 4))[0](h, np.arange(K) < 2)
    assert np.asarray(few.aux.present).tolist() == [True, True, False, False]
    expected = np.mean([cross_entropy(np.asarray(logits, np.float64), 1) for logits in few.aux.logits[:2]])
    assert float(pooling.loss(few, jnp.int32(1))) == pytest.approx(expected, rel=1e-5)


def test_a_model_asks_its_modules_for_noise():
    class Wrapped(nn.Module):
        inner: nn.Module

    noisy = (ACMILPooling(), DTFDPooling(), TransMILPooling(), MLPEncoder(dropout=0.1), Wrapped(DTFDPooling()),
             nn.Sequential([nn.Dense(3), nn.Dropout(0.5)]))  # fmt: skip
    quiet = (AttentionPooling(), TransMILPooling(dropout=0.0), MLPEncoder(), Wrapped(DSMILPooling()),
             nn.Sequential([nn.Dense(3), nn.Dropout(0.0)]))  # fmt: skip
    assert all(map(draws_noise, noisy)) and not any(map(draws_noise, quiet))
    assert is_noisy(MIL(MLPEncoder(), DTFDPooling())) and not is_noisy(MIL(MLPEncoder(), DSMILPooling()))
    assert is_noisy(build(ModelConfig(pooling="transmil", head="sum"), Classes(3)))
