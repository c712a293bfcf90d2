"""The Set Transformer: attention of instances to one another through a few inducing points, then to seeds.

Axes: K slots of a bag, D embedding, W width inside, m inducing points.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mil_jax.encoders import glorot_uniform
from mil_jax.pooling.base import Pooled, where_any
from mil_jax.pooling.heads import join_heads, split_heads, weights_of


class SetTransformerPooling(nn.Module):
    """Induced set attention, then pooling by attention to learned seeds (Lee et al. 2019, ICML, equations 6 to 12).

    ISAB(X) = MAB(X, MAB(I, X)) with m inducing points I, in O(K m); PMA(Z) = MAB(S, rFF(Z)) with seeds S, whose
    embeddings are concatenated. Attention is that of the seeds, the mean of heads and seeds. Layer normalisation is as
    in the paper, where the authors' code has it as an option.
    """

    width: int = 128
    """W."""
    heads: int = 4
    """That the width is cut into."""
    inducing: int = 32
    """m."""
    layers: int = 2
    """ISABs."""
    seeds: int = 1
    """Embeddings that the bag has in the end."""
    attends = True

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Lets the instances in `mask` [K] see one another, and pools them."""
        hidden = embeddings
        for layer in range(self.layers):
            points = self.param(f"inducing_{layer}", glorot_uniform, (self.inducing, self.width))
            summary = AttentionBlock(self.width, self.heads, name=f"gather_{layer}")(points, hidden, mask)[0]
            everywhere = jnp.ones(self.inducing, bool)
            hidden = AttentionBlock(self.width, self.heads, name=f"spread_{layer}")(hidden, summary, everywhere)[0]
        hidden = nn.relu(nn.Dense(self.width, kernel_init=glorot_uniform, name="feed")(hidden))
        seeds = self.param("seeds", glorot_uniform, (self.seeds, self.width))
        pooled, weights = AttentionBlock(self.width, self.heads, name="pool")(seeds, hidden, mask)
        return Pooled(where_any(mask, pooled.reshape(-1)), weights.mean(axis=(0, 1)))


class AttentionBlock(nn.Module):
    """MAB(X, Y) = LN(H + rFF(H)) with H = LN(X + Multihead(X, Y, Y)); X is projected to the width first."""

    width: int
    """W."""
    heads: int
    """That it is cut into."""

    @nn.compact
    def __call__(
        self, queries: Float[Array, "Q I"], keys: Float[Array, "K J"], mask: Bool[Array, " K"]
    ) -> tuple[Float[Array, "Q W"], Float[Array, "H Q K"]]:
        """What the queries [Q, I] make of the keys in `mask` [K], and the weights of each head."""
        inputs = {"query": queries, "key": keys, "value": keys}
        query, key, value = (
            nn.Dense(self.width, kernel_init=glorot_uniform, name=name)(tokens) for name, tokens in inputs.items()
        )
        scaled = split_heads(query, self.heads) / jnp.sqrt(self.width)
        weights = weights_of(scaled, split_heads(key, self.heads), mask)
        hidden = nn.LayerNorm(epsilon=1e-5)(query + join_heads(weights @ split_heads(value, self.heads)))
        fed = nn.relu(nn.Dense(self.width, kernel_init=glorot_uniform, name="feed")(hidden))
        return nn.LayerNorm(epsilon=1e-5)(hidden + fed), weights
