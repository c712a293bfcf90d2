"""Poolings without parameters: statistics of the embeddings, before the classifier, or of what it says, behind it.

Axes: K slots of a bag, D embedding, C classes.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mil_jax.pooling.base import Pooled, filled_rows, largest, masked_softmax, shares, where_any, with_class_0


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
            return Pooled(
                jnp.sum(embeddings, axis=0, where=filled) / count, mask / count, alone=filled_rows(embeddings, mask)
            )
        if self.kind == "lse":
            # Where there is no instance, neither the value nor the gradient may be infinite.
            some = jnp.where(filled | ~mask.any(), embeddings, -jnp.inf)
            joined = jax.nn.logsumexp(some, axis=0) - jnp.log(count)
            attention = masked_softmax(embeddings, filled).mean(axis=1)
            return Pooled(where_any(mask, joined), attention, alone=filled_rows(embeddings, mask))
        joined = jnp.max(embeddings, axis=0, where=filled, initial=-jnp.inf)
        reached = filled & (embeddings == joined)
        share = reached / jnp.maximum(reached.sum(axis=0), 1)
        return Pooled(where_any(mask, joined), share.mean(axis=1), alone=filled_rows(embeddings, mask))


class InstancePooling(nn.Module):
    """The probabilities or the log odds of the instances, joined without parameters.

    The instance-level approach (mi-Net, Wang et al. 2018; noisy-or, Maron and Lozano-Pérez 1998): the classifier judges
    every instance, and a bag's probability of a class is the mean of those of its instances, the largest, or
    1 - Π (1 - p_k), in log odds, which keeps them finite. Or the log odds s_k themselves are joined, by the mean of the
    k largest or by (1/β) log (1/n) Σ exp(β s_k), between their mean and their maximum (Pinheiro and Collobert 2015).
    An instance's attention is its share of the sum of the probabilities of not being of class 0 (for several classes,
    of the most probable one besides).
    """

    kind: Literal["mean", "max", "noisy_or", "top_k", "lse"]
    """Which of them."""
    k: int = 5
    """Of the k largest; a smaller bag gives the mean of all."""
    beta: float = 5.0
    """β."""
    of_instances = True

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Joins log odds [K, C - 1] of the instances in `mask` [K], of each class against class 0."""
        filled, some = mask[:, None], mask.any()
        odds = jnp.where(filled | ~some, embeddings, -jnp.inf if self.kind in ("max", "top_k", "lse") else 0)
        if self.kind == "max":
            joined = odds.max(axis=0)
        elif self.kind == "top_k":
            joined = mean_of_largest(odds, jnp.maximum(mask.sum(), 1), self.k)
        elif self.kind == "lse":
            total = jax.nn.logsumexp(self.beta * odds, axis=0)
            joined = (total - jnp.log(jnp.maximum(mask.sum(), 1))) / self.beta
        elif self.kind == "mean":
            log = [jnp.where(filled | ~some, nn.log_sigmoid(x), -jnp.inf) for x in (odds, -odds)]
            joined = jax.nn.logsumexp(log[0], axis=0) - jax.nn.logsumexp(log[1], axis=0)
        else:
            # -log Π (1 - p_k), and log odds of 1 - exp(-that).
            evidence = jnp.maximum(jnp.sum(nn.softplus(odds), axis=0, where=filled | ~some), jnp.finfo(odds.dtype).tiny)
            joined = evidence + jnp.log(-jnp.expm1(-evidence))
        joined = where_any(mask, joined)
        attention = shares(largest(nn.sigmoid(embeddings)), mask)
        scores = jnp.where(mask, largest(embeddings), 0)
        return Pooled(joined, attention, logits=with_class_0(joined), scores=scores)


def mean_of_largest(values: Float[Array, "K N"], count: Int[Array, ""], k: int) -> Float[Array, " N"]:
    """The mean of the k largest of each column, or of all `count` of them that are finite where there are fewer."""
    largest = jax.lax.top_k(values.T, min(k, len(values)))[0]
    used = jnp.arange(largest.shape[1]) < count
    return jnp.sum(largest, axis=1, where=used) / jnp.minimum(count, k)
