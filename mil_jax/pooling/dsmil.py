"""DSMIL: an instance classifier picks the critical instance, and attention compares the others with it.

Axes: K slots of a bag, D embedding, A width of the queries, C classes.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mil_jax.encoders import glorot_uniform
from mil_jax.pooling.base import Pooled, cross_entropy, largest, masked_softmax, where_any, with_class_0
from mil_jax.record import record


@record
class Streams:
    """What the two streams of DSMIL say of a bag."""

    instance: Float[Array, " C"]
    """Logits of the critical instance."""
    bag: Float[Array, " C"]
    """Logits of the embedding that attention makes."""


class DSMILPooling(nn.Module):
    """Dual-stream pooling (Li, Li, Eliceiri 2021, CVPR).

    Instances have log odds c_i = W h_i of each class against class 0; the critical instance m of a class is the one of
    the largest. Attention a_i = softmax_i(q(h_i) · q(h_m) / sqrt(A)) with a perceptron q; the bag's log odds are
    linear in the sums Σ a_i h_i of all classes. The prediction is the mean of the two streams, and so is the loss.

    The authors' code has an output for each class, each with a cross-entropy of its own. Here a bag is of one class,
    and outputs are log odds against class 0, which for two classes is the same. The critical instance is always of the
    mask: where padding is sorted along with the instances, an empty slot can become it.
    """

    classes: int = 2
    """C."""
    units: int = 128
    """A."""
    attends = True
    bag_share = 0.0  # the streams are judged one by one

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Compares the embeddings [K, D] of the instances in `mask` [K] with the critical ones."""
        filled, others = mask[:, None], self.classes - 1
        odds = nn.Dense(others, kernel_init=glorot_uniform, name="instance")(embeddings)
        critical = jnp.argmax(jnp.where(filled, odds, -jnp.inf), axis=0)
        hidden = nn.relu(nn.Dense(self.units, kernel_init=glorot_uniform, name="query_0")(embeddings))
        queries = jnp.tanh(nn.Dense(self.units, kernel_init=glorot_uniform, name="query_1")(hidden))
        attention = masked_softmax(queries @ queries[critical].T / jnp.sqrt(self.units), filled)
        embedding = (attention.T @ embeddings).reshape(-1)
        bag = nn.Dense(others, kernel_init=glorot_uniform, name="bag")(embedding)
        instance = odds[critical, jnp.arange(others)]
        streams = Streams(*(where_any(mask, with_class_0(x)) for x in (instance, bag)))
        return Pooled(
            embedding, attention.mean(axis=1), logits=(streams.instance + streams.bag) / 2,
            scores=jnp.where(mask, largest(odds), 0), aux=streams,
        )  # fmt: skip

    def loss(self, pooled: Pooled, label: Int[Array, ""]) -> Float[Array, ""]:
        """All of the bag's loss: the mean of the streams' cross-entropies."""
        return streams_loss(pooled, label)


def streams_loss(pooled: Pooled, label: Int[Array, ""]) -> Float[Array, ""]:
    """The mean of the cross-entropies of DSMIL's two streams."""
    return (cross_entropy(pooled.aux.instance, label) + cross_entropy(pooled.aux.bag, label)) / 2
