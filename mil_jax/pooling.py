"""MIL pooling: from the instances of a bag to the bag.

Every pooling has one signature, `(embeddings [K, D], mask [K]) -> Pooled`, so that a model can swap them. Poolings of
embeddings stand before the classifier; those of instances stand behind it, and what they pool are log odds.

Axes: K slots of a bag, D embedding, A attention width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from mil_jax.encoders import glorot_uniform
from mil_jax.products import Precision, product, weighted_sum
from mil_jax.record import record


@record
class Pooled:
    """What pooling makes of one bag."""

    embedding: Float[Array, " D"]
    """Of the bag, [D] (or [K * D] where the instances are concatenated)."""
    attention: Float[Array, " K"]
    """Each instance's part in it: sums to 1 over the mask, 0 elsewhere."""


def masked_softmax(scores: Float[Array, "K ..."], mask: Bool[Array, "K ..."]) -> Float[Array, "K ..."]:
    """Softmax over the slots of the mask, exactly 0 elsewhere; all 0 for a bag with no instance."""
    return jax.nn.softmax(scores, axis=0, where=mask)


class AttentionPooling(nn.Module):
    """Attention pooling, gated or not (Ilse, Tomczak, Welling 2018, equations 8 and 9).

    Scores are w · (tanh(V h) * sigmoid(U h)), or w · tanh(V h) without the gate; the weights are their softmax
    over the bag. V, U [D, A] and w [A] have no biases. The bag's embedding is the sum of the weighted
    embeddings, for bags of any size, or their concatenation, which depends on the order of the instances
    and on their number, as in the Keras example.
    """

    units: int = 256
    """A, the attention width."""
    gated: bool = True
    """Whether sigmoid(U h) gates the tanh."""
    concat: bool = False
    """Concatenate the weighted embeddings instead of summing them."""
    chunk: int | None = None
    """Instances at a time, for bags so large that their hidden layers [K, A] do not fit into memory; the backward pass
    computes them again. All at once where not given."""
    precision: Precision = "float32"
    """Of the factors of the products with V and U; sums are always float32."""

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Weighs the embeddings [K, D] of the instances in `mask` [K] and joins them."""
        width = embeddings.shape[-1]
        V = Kernel(self.units, name="V")(width)
        U = Kernel(self.units, name="U")(width) if self.gated else None
        scores = partial(attention_scores, V, U, Kernel(1, name="w")(self.units), precision=self.precision)
        if self.chunk is not None:
            return pool_in_chunks(scores, embeddings, mask, self.chunk)
        attention = masked_softmax(scores(embeddings), mask)
        if self.concat:
            return Pooled((attention[:, None] * embeddings).reshape(-1), attention)
        return Pooled(weighted_sum(attention, embeddings), attention)


class Kernel(nn.Module):
    """The matrix of a dense layer without bias, as a parameter."""

    features: int

    @nn.compact
    def __call__(self, width: int) -> Float[Array, "width features"]:
        """The kernel for inputs of the given width."""
        return self.param("kernel", glorot_uniform, (width, self.features))


def attention_scores(
    V: Float[Array, "D A"],
    U: Float[Array, "D A"] | None,
    w: Float[Array, "A 1"],
    embeddings: Float[Array, "K D"],
    precision: Precision = "float32",
) -> Float[Array, " K"]:
    """The scores before the softmax, w · (tanh(V h) * sigmoid(U h)), or w · tanh(V h) without U."""
    hidden = jnp.tanh(product(embeddings, V, precision))
    if U is not None:
        hidden = hidden * nn.sigmoid(product(embeddings, U, precision))
    return (hidden @ w)[:, 0]


def pool_in_chunks(
    scores_of: Callable[[Array], Array], embeddings: Float[Array, "K D"], mask: Bool[Array, " K"], chunk: int
) -> Pooled:
    """Softmax-weighted sum of the embeddings, `chunk` of them at a time, forwards and backwards; 0 without an instance.

    An online softmax (Milakov and Gimelshein 2018): the largest score so far, the sum of exponentials and the weighted
    sum are carried along and rescaled where a larger score comes. What lies between embeddings and scores is computed
    again on the way back (`jax.checkpoint`), so that memory does not grow with it.
    """
    count, width = embeddings.shape
    extra = -count % chunk
    if extra:
        embeddings, mask = jnp.pad(embeddings, ((0, extra), (0, 0))), jnp.pad(mask, (0, extra))
    lowest = jnp.finfo(embeddings.dtype).min / 2  # finite, for the difference of two of them is 0

    @jax.checkpoint
    def add(carry: tuple[Array, Array, Array], part: tuple[Array, Array]) -> tuple[Any, Array]:
        (top, total, weighted), (h, filled) = carry, part
        scores = jnp.where(filled, scores_of(h), -jnp.inf)
        # The result does not depend on the shift, so neither does its gradient.
        higher = lax.stop_gradient(jnp.maximum(top, scores.max()))
        shrink, weight = jnp.exp(top - higher), jnp.exp(scores - higher)
        return (higher, total * shrink + weight.sum(), weighted * shrink + weight @ h), scores

    start = (lowest, jnp.zeros(()), jnp.zeros(width))
    parts = embeddings.reshape(-1, chunk, width), mask.reshape(-1, chunk)
    (top, total, weighted), scores = lax.scan(add, start, parts)
    total = jnp.where(total > 0, total, 1)
    return Pooled(weighted / total, (jnp.exp(scores.reshape(-1) - top) / total)[:count])


class EmbeddingPooling(nn.Module):
    """Mean, maximum or log-sum-exp of each coordinate of the embeddings over the bag, without parameters.

    The embedding-level approach of the MI-Nets (Wang et al. 2018). Log-sum-exp is log((1/n) Σ exp h): between the
    mean and the maximum. An instance's attention is its part in the bag's embedding, the mean over the D coordinates
    of: 1/n; the share of the maximum, which instances that reach it divide; its share of the sum of exponentials.
    """

    kind: Literal["mean", "max", "lse"]
    """Which of them."""

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Joins the embeddings [K, D] of the instances in `mask` [K]."""
        filled, count = mask[:, None], jnp.maximum(mask.sum(), 1)
        if self.kind == "mean":
            return Pooled(jnp.sum(embeddings, axis=0, where=filled) / count, mask / count)
        if self.kind == "lse":
            # Where there is no instance, neither the value nor the gradient may be infinite.
            some = jnp.where(filled | ~mask.any(), embeddings, -jnp.inf)
            joined = jax.nn.logsumexp(some, axis=0) - jnp.log(count)
            return Pooled(jnp.where(mask.any(), joined, 0), masked_softmax(embeddings, filled).mean(axis=1))
        joined = jnp.max(embeddings, axis=0, where=filled, initial=-jnp.inf)
        reached = filled & (embeddings == joined)
        share = reached / jnp.maximum(reached.sum(axis=0), 1)
        return Pooled(jnp.where(mask.any(), joined, 0), share.mean(axis=1))


class InstancePooling(nn.Module):
    """Mean, maximum or noisy-or of the probabilities of the instances, without parameters.

    The instance-level approach (mi-Net, Wang et al. 2018; noisy-or, Maron and Lozano-Pérez 1998): the classifier judges
    every instance, and a bag's probability of a class is the mean of those of its instances, the largest, or
    1 - Π (1 - p_k). All in log odds, which keeps them finite. An instance's attention is its share of the sum of
    the probabilities of not being of class 0 (for several classes, of the most probable one besides).
    """

    kind: Literal["mean", "max", "noisy_or"]
    """Which of them."""

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Joins log odds [K, C - 1] of the instances in `mask` [K], of each class against class 0."""
        filled, some = mask[:, None], mask.any()
        odds = jnp.where(filled | ~some, embeddings, -jnp.inf if self.kind == "max" else 0)
        if self.kind == "max":
            joined = odds.max(axis=0)
        elif self.kind == "mean":
            log = [jnp.where(filled | ~some, nn.log_sigmoid(x), -jnp.inf) for x in (odds, -odds)]
            joined = jax.nn.logsumexp(log[0], axis=0) - jax.nn.logsumexp(log[1], axis=0)
        else:
            # -log Π (1 - p_k), and log odds of 1 - exp(-that).
            evidence = jnp.maximum(jnp.sum(nn.softplus(odds), axis=0, where=filled | ~some), jnp.finfo(odds.dtype).tiny)
            joined = evidence + jnp.log(-jnp.expm1(-evidence))
        score = jnp.where(mask, nn.sigmoid(embeddings).max(axis=1), 0)
        return Pooled(jnp.where(some, joined, 0), score / jnp.maximum(score.sum(), jnp.finfo(score.dtype).tiny))
