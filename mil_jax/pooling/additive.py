"""Poolings in which an instance's part in the logits can be read off: additive and conjunctive.

Axes: K slots of a bag, D embedding, A attention width, C classes.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mil_jax.encoders import MLPEncoder, glorot_uniform
from mil_jax.pooling.base import Pooled, attention_kernels, attention_scores, best_odds, masked_softmax, shares


class AdditivePooling(nn.Module):
    """Logits Σ_i ψ(a_i h_i), with attention a and a perceptron ψ (Javed et al. 2022, "Additive MIL").

    The scores are what each instance adds, so that those of two classes sum to the bag's log odds. ψ has biases, as in
    the paper, so that even instances without attention add to the logits: a bag's size can decide.
    """

    classes: int = 2
    """C."""
    units: int = 256
    """A."""
    gated: bool = True
    """Whether sigmoid(U h) gates the tanh."""
    hidden: tuple[int, ...] = (64,)
    """Widths of ψ's hidden layers; without any, ψ is linear."""
    attends = True

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Classifies the weighted embeddings [K, D] of the instances in `mask` [K], and adds."""
        kernels = attention_kernels(embeddings.shape[-1], self.units, self.gated)
        attention = masked_softmax(attention_scores(*kernels, embeddings), mask)
        weighted = attention[:, None] * embeddings
        hidden = MLPEncoder(self.hidden, name="hidden")(weighted)
        parts = nn.Dense(self.classes, kernel_init=glorot_uniform, name="classifier")(hidden)
        logits = jnp.sum(parts, axis=0, where=mask[:, None])
        return Pooled(weighted.sum(axis=0), attention, logits=logits, scores=best_odds(parts, mask))


class ConjunctivePooling(nn.Module):
    """Logits (1/n) Σ_i a_i ψ(h_i), with a_i = sigmoid(w · tanh(V h_i)) (Early et al. 2024, MILLET, ICLR).

    Attention and the classifier ψ judge an instance side by side; an instance counts where both say so. The scores are
    the log odds a_i ψ(h_i) of each; attention is a_i divided by its sum.
    """

    classes: int = 2
    """C."""
    units: int = 8
    """A, the width of the attention's hidden layer."""
    attends = True

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Classifies and weighs the embeddings [K, D] of the instances in `mask` [K], and takes the mean."""
        hidden = jnp.tanh(nn.Dense(self.units, kernel_init=glorot_uniform, name="V")(embeddings))
        weight = nn.sigmoid(nn.Dense(1, kernel_init=glorot_uniform, name="w")(hidden))
        parts = weight * nn.Dense(self.classes, kernel_init=glorot_uniform, name="classifier")(embeddings)
        filled, count = mask[:, None], jnp.maximum(mask.sum(), 1)
        logits, embedding = (jnp.sum(x, axis=0, where=filled) / count for x in (parts, weight * embeddings))
        return Pooled(embedding, shares(weight[:, 0], mask), logits=logits, scores=best_odds(parts, mask))
