"""MIL pooling: from the embeddings of a bag's instances to one embedding of the bag.

Every pooling has one signature, `(embeddings [K, D], mask [K]) -> Pooled`, so that a model can swap them.

Axes: K slots of a bag, D embedding, A attention width.
"""

from typing import no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from mil_jax.encoders import glorot_uniform


@no_type_check
@struct.dataclass
class Pooled:
    """What pooling makes of one bag.

    Attributes:
        embedding: [D] of the bag (or [K * D] where the instances are concatenated).
        attention: [K] weight of each instance: sums to 1 over the mask, 0 elsewhere.
    """

    embedding: jax.Array
    attention: jax.Array


def masked_softmax(scores: Float[Array, " K"], mask: Bool[Array, " K"]) -> Float[Array, " K"]:
    """Softmax over the slots of the mask, exactly 0 elsewhere; all 0 for a bag with no instance."""
    return jax.nn.softmax(scores, where=mask)


class AttentionPooling(nn.Module):
    """Attention pooling, gated or not (Ilse, Tomczak, Welling 2018, equations 8 and 9).

    Scores are w · (tanh(V h) * sigmoid(U h)), or w · tanh(V h) without the gate; the weights are their softmax
    over the bag. V, U [D, A] and w [A] have no biases. The bag's embedding is the sum of the weighted
    embeddings, for bags of any size, or their concatenation, which depends on the order of the instances
    and on their number, as in the Keras example.

    Attributes:
        units: A, the attention width.
        gated: whether sigmoid(U h) gates the tanh.
        concat: concatenate the weighted embeddings instead of summing them.
    """

    units: int = 256
    gated: bool = True
    concat: bool = False

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Weighs the embeddings [K, D] of the instances in `mask` [K] and joins them."""

        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, use_bias=False, kernel_init=glorot_uniform, name=name)

        hidden = jnp.tanh(dense(self.units, "V")(embeddings))
        if self.gated:
            hidden = hidden * nn.sigmoid(dense(self.units, "U")(embeddings))
        attention = masked_softmax(dense(1, "w")(hidden)[:, 0], mask)
        weighted = attention[:, None] * embeddings
        return Pooled(weighted.reshape(-1) if self.concat else weighted.sum(axis=0), attention)
