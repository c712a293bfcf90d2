"""ACMIL: several branches of attention that are kept apart, and training without some of the heaviest instances.

Axes: K slots of a bag, D embedding, A attention width, C classes, T branches of attention.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mil_jax.encoders import glorot_uniform
from mil_jax.pooling.base import (
    NOISE,
    Pooled,
    attention_kernels,
    branch_scores,
    cross_entropy,
    filled_rows,
    masked_softmax,
)
from mil_jax.record import record


@record
class Branches:
    """What each branch of ACMIL says and looks at."""

    logits: Float[Array, "T C"]
    """By the branch's own classifier."""
    attention: Float[Array, "K T"]
    """Each column sums to 1 over the mask."""


class ACMILPooling(nn.Module):
    """Attention-challenging pooling (Zhang et al. 2024, ECCV, arXiv 2311.07125).

    T branches of gated attention; the bag's embedding is by the mean of their attentions. In training a share of each
    branch's k highest scores is masked out, drawn anew each step, and the loss adds the mean cross-entropy of the
    branches' own classifiers and the mean pairwise cosine of their attentions.

    Differs from the authors' code: no biases in the attention; a bag of fewer than k instances has the share of its own
    number masked; draws come from the step's key.
    """

    classes: int = 2
    """C."""
    units: int = 256
    """A, shared by the branches."""
    branches: int = 5
    """T."""
    k: int = 10
    """The highest scores, of which some are masked."""
    masked_share: float = 0.6
    """Of the k."""
    attends = True
    noisy = True

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Weighs the embeddings [K, D] of the instances in `mask` [K] once for each branch."""
        scores = branch_scores(*attention_kernels(embeddings.shape[-1], self.units, True, self.branches), embeddings)
        seen = jnp.broadcast_to(mask[:, None], scores.shape)
        if self.has_rng(NOISE):
            seen &= ~self.heaviest(self.make_rng(NOISE), scores, mask)
        attention = masked_softmax(scores, seen)
        joined, together = attention.T @ embeddings, attention.mean(axis=1)
        own = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})
        logits = own(self.classes, kernel_init=glorot_uniform, name="branch")(joined)
        return Pooled(
            together @ embeddings, together, alone=filled_rows(embeddings, mask), aux=Branches(logits, attention)
        )

    def heaviest(self, key: Key[Array, ""], scores: Float[Array, "K T"], mask: Bool[Array, " K"]) -> Bool[Array, "K T"]:
        """Which of the highest scores of each branch are masked out; never all of a bag."""
        top = jnp.minimum(self.k, mask.sum())
        high = ranks(jnp.where(mask[:, None], -scores, jnp.inf)) < top
        drawn = ranks(jnp.where(high, jax.random.uniform(key, scores.shape), jnp.inf))
        return high & (drawn < jnp.floor(self.masked_share * top))

    def loss(self, pooled: Pooled, label: Int[Array, ""]) -> Float[Array, ""]:
        """What training adds to the bag's loss."""
        return branches_loss(pooled, label)


def branches_loss(pooled: Pooled, label: Int[Array, ""]) -> Float[Array, ""]:
    """The mean cross-entropy of ACMIL's branches, and the mean pairwise cosine of their attentions."""
    branches: Branches = pooled.aux
    return cross_entropy(branches.logits, label).mean() + mean_cosine(branches.attention)


def mean_cosine(columns: Float[Array, "K T"]) -> Float[Array, ""]:
    """The mean cosine of the angles between all pairs of columns; 0 for columns of zeros or a single one."""
    squares = jnp.sum(columns**2, axis=0)
    unit = columns / jnp.sqrt(jnp.where(squares > 0, squares, 1))
    count = columns.shape[1]
    total = jnp.sum(jnp.triu(unit.T @ unit, 1))
    return total / max(count * (count - 1) / 2, 1)


def ranks(values: Float[Array, "K T"]) -> Int[Array, "K T"]:
    """The place of each value in its column, from the smallest, 0."""
    return jnp.argsort(jnp.argsort(values, axis=0), axis=0)
