"""CLAM: attention that also teaches a classifier of instances, by those that it weighs most and least.

Axes: K slots of a bag, D embedding, A attention width, C classes, T branches of attention; k instances at either end.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mil_jax.encoders import glorot_uniform
from mil_jax.pooling.base import (
    Pooled,
    attention_kernels,
    best_odds,
    branch_scores,
    cross_entropy,
    filled_rows,
    masked_softmax,
    where_any,
)
from mil_jax.record import record


@record
class Evidence:
    """What the classifiers of instances say of those that attention weighs most and least."""

    most: Float[Array, "C k 2"]
    """Logits of "not of the class" and "of the class", by the classifier of each class."""
    least: Float[Array, "C k 2"]
    """The same of the least attended instances."""
    chosen: Bool[Array, " k"]
    """Of the k, those that there are: no instance stands at both ends."""


class CLAMPooling(nn.Module):
    """Clustering-constrained attention (Lu et al. 2021, Nature Biomedical Engineering), CLAM-SB and CLAM-MB.

    Gated attention with one branch, whose embedding the model classifies (SB), or one for each class, whose embedding
    gives that class's logit (MB). In training the k most and k least attended instances of the bag's class are
    pseudo-labelled 1 and 0 for that class's classifier of instances, and L = 0.7 * bag loss + 0.3 * their mean
    cross-entropy.

    Differs from the paper: cross-entropy in place of the smooth SVM loss; no biases in the attention; a bag of fewer
    than 2 k instances uses half of them at each end. Empty slots have attention 0 and would be the least attended: only
    instances are. MB's attention is the mean of its branches.
    """

    classes: int = 2
    """C."""
    units: int = 256
    """A."""
    branches: bool = False
    """A branch of attention for each class (MB), instead of one for all (SB)."""
    k: int = 8
    """Instances at either end."""
    instance_weight: float = 0.3
    """Of the instances' loss; the bag's has the rest."""
    subtyping: bool = False
    """Classes exclude each other even by instance: the most attended ones are labelled 0 for all other classes."""
    attends = True

    @property
    def bag_share(self) -> float:
        """Of the bag's loss in the sum."""
        return 1 - self.instance_weight

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Weighs the embeddings [K, D] of the instances in `mask` [K] and judges those at both ends."""
        width = embeddings.shape[-1]
        kernels = attention_kernels(width, self.units, True, self.classes if self.branches else 1)
        attention = masked_softmax(branch_scores(*kernels, embeddings), mask[:, None])
        evidence = self.judge(embeddings, attention, mask)
        joined = attention.T @ embeddings
        if not self.branches:
            return Pooled(joined[0], attention[:, 0], alone=filled_rows(embeddings, mask), aux=evidence)
        kernel = self.param("kernel", glorot_uniform, (width, self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        logits = where_any(mask, jnp.sum(joined.T * kernel, axis=0) + bias)
        scores = best_odds(embeddings @ kernel + bias, mask)
        return Pooled(joined.reshape(-1), attention.mean(axis=1), logits=logits, scores=scores, aux=evidence)

    def judge(
        self, embeddings: Float[Array, "K D"], attention: Float[Array, "K T"], mask: Bool[Array, " K"]
    ) -> Evidence:
        """What the instances' classifiers say of those at both ends of each class's attention."""
        both = nn.Dense(2 * self.classes, kernel_init=glorot_uniform, name="instance")(embeddings)
        verdicts = both.reshape(-1, self.classes, 2)
        weights = jnp.broadcast_to(attention, (len(mask), self.classes)).T
        k = min(self.k, len(mask))
        ends = [jax.lax.top_k(jnp.where(mask, weight, -jnp.inf), k)[1] for weight in (weights, -weights)]
        most, least = (verdicts[end, jnp.arange(self.classes)[:, None]] for end in ends)
        return Evidence(most, least, jnp.arange(k) < mask.sum() // 2)

    def loss(self, pooled: Pooled, label: Int[Array, ""]) -> Float[Array, ""]:
        """What training adds to the bag's part of the loss."""
        return self.instance_weight * instance_loss(pooled, label, self.subtyping)


def instance_loss(pooled: Pooled, label: Int[Array, ""], subtyping: bool = False) -> Float[Array, ""]:
    """The mean cross-entropy of CLAM's pseudo-labels; with subtyping, the mean over the classes' classifiers."""
    evidence: Evidence = pooled.aux
    count = jnp.maximum(evidence.chosen.sum(), 1)
    inside = cross_entropy(evidence.most[label], jnp.int32(1)) + cross_entropy(evidence.least[label], jnp.int32(0))
    own = jnp.sum(inside, where=evidence.chosen) / (2 * count)
    if not subtyping:
        return own
    outside = jnp.sum(cross_entropy(evidence.most, jnp.int32(0)), axis=1, where=evidence.chosen) / count
    classes = jnp.arange(len(outside))
    return (own + jnp.sum(outside, where=classes != label)) / len(classes)
