"""DTFD: attention pooling of random parts of a bag, and attention pooling of what is distilled from them.

Axes: K slots of a bag, D embedding, A attention width, C classes, M pseudo-bags, F features distilled of all of them.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mil_jax.encoders import glorot_uniform
from mil_jax.pooling.base import (
    NOISE,
    Pooled,
    attention_kernels,
    attention_scores,
    cross_entropy,
    filled_rows,
    masked_softmax,
)
from mil_jax.record import record


@record
class Parts:
    """What the first tier of DTFD says of the pseudo-bags."""

    logits: Float[Array, "M C"]
    """Of each."""
    present: Bool[Array, " M"]
    """Those that have an instance."""


class DTFDPooling(nn.Module):
    """Double-tier feature distillation (Zhang et al. 2022, CVPR, arXiv 2203.12081).

    The bag is cut at random into M pseudo-bags, each pooled by attention and classified (tier 1). Of each, the
    instances of the largest and smallest class activation, or the embedding, are the instances of tier 2, a second
    attention pooling, whose embedding the model classifies. The loss adds the mean cross-entropy of tier 1.

    Class activation is the first tier's log odds of not being of class 0 for a_i h_i. Outside training nothing is
    drawn: instances are dealt to the pseudo-bags in the order of their attention scores, so that neither a random
    state nor the order of the bag decides a prediction, and each pseudo-bag is a sample of the whole.
    """

    classes: int = 2
    """C."""
    units: int = 128
    """A, of each tier."""
    pseudo_bags: int = 5
    """M."""
    distilled: Literal["max_min", "max", "embedding"] = "max_min"
    """What a pseudo-bag hands on."""
    attends = True
    noisy = True

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Pools the embeddings [K, D] of the instances in `mask` [K] in two tiers."""
        scores = Scores(self.units, name="tier_1")(embeddings)
        order = jax.random.uniform(self.make_rng(NOISE), scores.shape) if self.has_rng(NOISE) else -scores
        rank = jnp.argsort(jnp.argsort(jnp.where(mask, order, jnp.inf)))
        member = mask[:, None] & (rank[:, None] % self.pseudo_bags == jnp.arange(self.pseudo_bags))
        inner = masked_softmax(jnp.broadcast_to(scores[:, None], member.shape), member)
        joined, classify = inner.T @ embeddings, nn.Dense(self.classes, kernel_init=glorot_uniform, name="classifier")
        parts = Parts(classify(joined), member.any(axis=0))
        activation = classify(inner.sum(axis=1)[:, None] * embeddings)
        chosen = self.distil(inner, (activation[:, 1:] - activation[:, :1]).max(axis=1), member)
        present = jnp.tile(parts.present, chosen.shape[1] // self.pseudo_bags)
        features = chosen.T @ embeddings
        outer = masked_softmax(Scores(self.units, name="tier_2")(features), present)
        return Pooled(outer @ features, chosen @ outer, alone=filled_rows(embeddings, mask), aux=parts)

    def distil(
        self, inner: Float[Array, "K M"], activation: Float[Array, " K"], member: Bool[Array, "K M"]
    ) -> Float[Array, "K F"]:
        """The weights of the instances in each distilled feature."""
        if self.distilled == "embedding":
            return inner
        signs = (1, -1) if self.distilled == "max_min" else (1,)
        ends = [jnp.argmax(jnp.where(member, sign * activation[:, None], -jnp.inf), axis=0) for sign in signs]
        picked = jnp.concatenate([jax.nn.one_hot(end, len(inner), axis=0) for end in ends], axis=1)
        return picked * jnp.tile(member.any(axis=0), len(ends))

    def loss(self, pooled: Pooled, label: Int[Array, ""]) -> Float[Array, ""]:
        """What training adds to the bag's loss."""
        return parts_loss(pooled, label)


class Scores(nn.Module):
    """The scores of gated attention, with V, U and w of its own."""

    units: int
    """A."""

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"]) -> Float[Array, " K"]:
        """Before the softmax."""
        return attention_scores(*attention_kernels(embeddings.shape[-1], self.units, True), embeddings)


def parts_loss(pooled: Pooled, label: Int[Array, ""]) -> Float[Array, ""]:
    """The mean cross-entropy of DTFD's pseudo-bags, each with the bag's label."""
    parts: Parts = pooled.aux
    return jnp.sum(cross_entropy(parts.logits, label), where=parts.present) / jnp.maximum(parts.present.sum(), 1)
