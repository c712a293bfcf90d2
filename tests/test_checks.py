"""The contract of all poolings, by the library's own checks; and that each check catches what it is there for."""

import doctest
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from conftest import message_of

from mil_jax import checks, pooling
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
    masked_softmax,
)  # fmt: skip
from mil_jax.pooling.names import POOLINGS, Sizes

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# Every pooling that has a name, small, and the options that change what a method does.
SMALL = [
    AttentionPooling(5), AttentionPooling(5, gated=False), AttentionPooling(5, sparse=True), AEMPooling(5),
    MultiHeadAttentionPooling(2, 5), *(EmbeddingPooling(kind) for kind in ("mean", "max", "lse")),
    *(InstancePooling(kind, k=3) for kind in ("mean", "max", "noisy_or", "top_k", "lse")),
    AdditivePooling(3, 5, hidden=(4,)), ConjunctivePooling(3), DSMILPooling(3, 5),
    CLAMPooling(3, 5, k=3, subtyping=True), CLAMPooling(3, 5, branches=True, k=3), ACMILPooling(3, 5, 3, 4),
    DTFDPooling(3, 5, 2), DTFDPooling(3, 5, 3, "embedding"), SetTransformerPooling(8, 2, 3, 1),
    TransMILPooling(8, 2), TransMILPooling(8, 2, landmarks=4),
]  # fmt: skip


def failing(tried: nn.Module, **sizes: int) -> set[str]:
    return {check.name for check in checks.contract(tried, **sizes) if check.holds is False}


@pytest.mark.parametrize("tried", SMALL, ids=lambda tried: type(tried).__name__)
def test_the_contract_holds(tried):
    assert not failing(tried, classes=3)


def test_every_pooling_with_a_name_is_of_a_kind_that_is_tried():
    made = {type(make(Sizes(5, False, None, 3))) for make in POOLINGS.values()}
    assert made == {type(tried) for tried in SMALL}


# ---- what the checks catch ----


class Mean(nn.Module):
    """A mean over the instances, which holds to the contract, and which what follows breaks in one way each."""

    def __call__(self, embeddings: Any, mask: Any) -> Pooled:
        weights = self.weigh(embeddings, mask)
        return Pooled(weights @ embeddings, weights)

    def weigh(self, embeddings: Any, mask: Any) -> Any:
        return mask / jnp.maximum(mask.sum(), 1)


class OverSlots(Mean):
    """The sum over the instances, divided by the number of slots."""

    def __call__(self, embeddings: Any, mask: Any) -> Pooled:
        return Pooled(mask @ embeddings / len(mask), self.weigh(embeddings, mask))


class WithoutMask(Mean):
    def weigh(self, embeddings: Any, mask: Any) -> Any:
        return jax.nn.softmax(embeddings.sum(axis=1))


class CriticalFromPadding(Mean):
    """The instance that all are compared with is the first in a sort of all slots."""

    def weigh(self, embeddings: Any, mask: Any) -> Any:
        critical = embeddings[jnp.argmax(embeddings[:, 0])]
        return masked_softmax(embeddings @ critical / 1e3, mask)


class ByPlace(Mean):
    def weigh(self, embeddings: Any, mask: Any) -> Any:
        return masked_softmax(jnp.cos(jnp.arange(len(mask), dtype=jnp.float32)), mask)


class BySlots(Mean):
    """A bag of one is another bag when it has more slots."""

    def __call__(self, embeddings: Any, mask: Any) -> Pooled:
        pooled = super().__call__(embeddings, mask)
        return Pooled(pooled.embedding * jnp.where((mask.sum() == 1) & (len(mask) > 1), 2, 1), pooled.attention)


class NotNormalised(Mean):
    def weigh(self, embeddings: Any, mask: Any) -> Any:
        return mask * nn.sigmoid(embeddings[:, 0])


class DividesByNothing(Mean):
    def weigh(self, embeddings: Any, mask: Any) -> Any:
        exponential = jnp.where(mask, jnp.exp(embeddings[:, 0]), 0)
        return exponential / exponential.sum()


class NotANumberBackwards(Mean):
    """The length of a bag's embedding, whose gradient is not finite where that is 0."""

    def __call__(self, embeddings: Any, mask: Any) -> Pooled:
        pooled = super().__call__(embeddings, mask)
        return Pooled(jnp.sqrt(jnp.sum(pooled.embedding**2, keepdims=True)), pooled.attention)


class Leaks(Mean):
    """What lies in an empty slot has no value, but a gradient."""

    def __call__(self, embeddings: Any, mask: Any) -> Pooled:
        pooled = super().__call__(embeddings, mask)
        outside = jnp.sum(embeddings, axis=0, where=~mask[:, None])
        return Pooled(pooled.embedding + outside - jax.lax.stop_gradient(outside), pooled.attention)


class Constant(Mean):
    def __call__(self, embeddings: Any, mask: Any) -> Pooled:
        return Pooled(jnp.zeros(2), self.weigh(embeddings, mask))


class WrongInChunks(Mean):
    chunk: int | None = None

    def weigh(self, embeddings: Any, mask: Any) -> Any:
        scores = embeddings[:, 0] * (1 if self.chunk is None else 2)
        return masked_softmax(scores, mask)


class NoisyInSilence(Mean):
    def __call__(self, embeddings: Any, mask: Any) -> Pooled:
        pooled = super().__call__(embeddings, mask)
        noise = jax.random.normal(self.make_rng(NOISE)) if self.has_rng(NOISE) else 0
        return Pooled(pooled.embedding + noise, pooled.attention)


class QuietButCalledNoisy(Mean):
    noisy = True


class LossOverSlots(Mean):
    def loss(self, pooled: Pooled, label: Any) -> Any:
        return pooled.attention.mean()


@pytest.mark.parametrize(("broken", "caught"), [
    (Mean, set()),
    (OverSlots, {"padding", "one instance"}),
    (WithoutMask, {"padding", "empty slots", "one instance", "attention", "no instance", "gradient"}),
    (CriticalFromPadding, {"empty slots", "gradient"}),
    (ByPlace, {"order"}),
    (BySlots, {"one instance"}),
    (NotNormalised, {"attention"}),
    (DividesByNothing, {"no instance", "gradient"}),
    (NotANumberBackwards, {"no instance"}),
    (Leaks, {"gradient"}),
    (Constant, {"reach"}),
    (WrongInChunks, {"chunk"}),
    (NoisyInSilence, {"noise"}),
    (QuietButCalledNoisy, {"noise"}),
    (LossOverSlots, {"padding", "one instance"}),
])  # fmt: skip
def test_a_broken_pooling_is_caught(broken, caught):
    assert failing(broken()) == caught


def test_a_report_has_a_line_for_each_check(capsys):
    assert checks.report(Mean()) is True
    assert checks.report(ByPlace()) is False
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(checks.contract(Mean()))
    assert [line.split()[:2] for line in lines if "FAILS" in line] == [["FAILS", "order"]]


def test_the_example_of_a_pooling_of_ones_own_runs():
    result = doctest.testmod(pooling, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 8 and result.failed == 0


def test_what_leaves_nothing_to_try_is_refused():
    assert message_of(checks.contract, Mean(), count=8).startswith("count = 8: expected a whole number from 2 to 7")
    assert message_of(checks.contract, 3).startswith("pooling = 3: expected Module")
