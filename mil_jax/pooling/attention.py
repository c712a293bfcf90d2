"""Attention pooling (Ilse, Tomczak, Welling 2018), its chunks for large bags, and what differs from it by a line.

Axes: K slots of a bag, D embedding, A attention width, H heads.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mil_jax.errors import InputError
from mil_jax.pooling.base import (
    Kernel,
    Pooled,
    attention_kernels,
    attention_scores,
    filled_rows,
    masked_softmax,
    sparsemax,
)
from mil_jax.products import Precision, product, weighted_sum


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
    axis: str | None = None
    """The mesh axis over which the instances of a bag are spread (see `mil_jax.spread`); None on one device."""
    sparse: bool = False
    """Weights by sparsemax instead of softmax: exactly 0 for what scores far below the best; not in chunks."""
    attends = True

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Weighs the embeddings [K, D] of the instances in `mask` [K] and joins them."""
        kernels = attention_kernels(embeddings.shape[-1], self.units, self.gated)
        scores = partial(attention_scores, *kernels, precision=self.precision)
        if self.chunk is not None or self.axis is not None:
            if self.sparse:
                raise InputError("chunk", self.chunk, "expected none with sparsemax, which needs all scores at once")
            return pool_in_chunks(scores, embeddings, mask, self.chunk or len(embeddings), self.axis)
        attention = (sparsemax if self.sparse else masked_softmax)(scores(embeddings), mask)
        if not self.concat:
            return Pooled(weighted_sum(attention, embeddings), attention, alone=filled_rows(embeddings, mask))
        weighted = attention[:, None] * embeddings
        own_slot = jnp.eye(len(embeddings))[:, :, None] * filled_rows(embeddings, mask)
        return Pooled(weighted.reshape(-1), attention, alone=own_slot.reshape(len(embeddings), -1))


class MultiHeadAttentionPooling(nn.Module):
    """H heads of attention, gated or not, whose embeddings are concatenated, [H * D].

    Each head has V, U [D, A] and w [A] of its own and weighs whole embeddings, so that H = 1 is `AttentionPooling`;
    attention is the heads' mean. The matrices of all heads are drawn as one, Glorot-uniform.
    """

    heads: int = 4
    """H."""
    units: int = 256
    """A, of each head."""
    gated: bool = True
    """Whether sigmoid(U h) gates the tanh."""
    attends = True

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Weighs the embeddings [K, D] of the instances in `mask` [K] once for each head."""
        count, width = embeddings.shape
        shape = (count, self.heads, self.units)
        hidden = jnp.tanh(product(embeddings, Kernel(self.heads * self.units, name="V")(width))).reshape(shape)
        if self.gated:
            hidden *= nn.sigmoid(product(embeddings, Kernel(self.heads * self.units, name="U")(width))).reshape(shape)
        scores = jnp.einsum("kha,ah->kh", hidden, Kernel(self.heads, name="w")(self.units))
        attention = masked_softmax(scores, mask[:, None])
        embedding = (attention.T @ embeddings).reshape(-1)
        return Pooled(embedding, attention.mean(axis=1), alone=jnp.tile(filled_rows(embeddings, mask), self.heads))


class AEMPooling(AttentionPooling):
    """Attention pooling whose loss rewards a high entropy of the attention (AEM, Zhang et al. 2024, arXiv 2406.15303).

    L = bag loss - lambda * H(attention), against attention that rests on few instances. The paper tunes lambda for
    each data set; there is no other difference from `AttentionPooling`.
    """

    entropy_weight: float = 0.1
    """lambda, per nat."""

    def loss(self, pooled: Pooled, label: Int[Array, ""]) -> Float[Array, ""]:
        """What training adds to the bag's loss."""
        return -self.entropy_weight * entropy(pooled.attention)


def entropy(weights: Float[Array, " K"]) -> Float[Array, ""]:
    """The entropy of weights of sum 1, in nats; weights of 0 add nothing, nor to the gradient."""
    positive = jnp.where(weights > 0, weights, 1)
    return -jnp.sum(positive * jnp.log(positive))


def pool_in_chunks(
    scores_of: Callable[[Array], Array],
    embeddings: Float[Array, "K D"],
    mask: Bool[Array, " K"],
    chunk: int,
    axis: str | None = None,
) -> Pooled:
    """Softmax-weighted sum of the embeddings, `chunk` of them at a time, forwards and backwards; 0 without an instance.

    An online softmax (Milakov and Gimelshein 2018): the largest score so far, the sum of exponentials and the weighted
    sum are carried along and rescaled where a larger score comes. What lies between embeddings and scores is computed
    again on the way back (`jax.checkpoint`), so that memory does not grow with it. Along a mesh axis the three are
    put together in the same way, so that every device has the bag's embedding, and the weights of its own instances.
    """
    (count, width), alone = embeddings.shape, filled_rows(embeddings, mask)
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
    if axis is not None:
        highest = lax.pmax(lax.stop_gradient(top), axis)
        shrink = jnp.exp(top - highest)
        top, (total, weighted) = highest, lax.psum((total * shrink, weighted * shrink), axis)
    total = jnp.where(total > 0, total, 1)
    return Pooled(weighted / total, (jnp.exp(scores.reshape(-1) - top) / total)[:count], alone=alone)
