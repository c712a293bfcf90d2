"""MIL pooling: from the instances of a bag to the bag.

Every pooling has one signature, `(embeddings [K, D], mask [K]) -> Pooled`, so that a model can swap them. Poolings of
embeddings stand before the classifier; those of instances (`of_instances = True`) stand behind it, and what they pool
are log odds [K, C - 1]. A pooling of one's own is a Flax module with that signature. Empty slots must not have any
influence; they stand behind the instances of a bag. What else it may have, all of it as it needs:

- `loss(pooled, label)`: what training adds to the bag's loss, of which `bag_share` (1) counts;
- `noisy = True`, or `dropout > 0`: it draws random numbers in training, by `make_rng(NOISE)` where `has_rng(NOISE)`;
- `attends = True`: its attention is learned, and so can collapse;
- `ordered = True`: it looks at the order of the instances.

For example, mean and standard deviation of each coordinate, in a model, and what `mil_jax.checks` finds of it:

    >>> import dataclasses
    >>> import flax.linen as nn
    >>> import jax.numpy as jnp
    >>> import mil_jax as mil
    >>> from mil_jax import checks
    >>> from mil_jax.pooling import Pooled
    >>> class MomentPooling(nn.Module):
    ...     def __call__(self, embeddings, mask):
    ...         weights = mask / jnp.maximum(mask.sum(), 1)
    ...         mean = weights @ embeddings
    ...         variance = weights @ (embeddings - mean) ** 2
    ...         deviation = jnp.where(mask.any(), jnp.sqrt(variance + 1e-6), 0)
    ...         return Pooled(jnp.concatenate([mean, deviation]), weights)
    >>> model = dataclasses.replace(mil.build(mil.ModelConfig(head="sum")), pooling=MomentPooling())
    >>> checks.report(MomentPooling())
    holds padding ...
    True

"""

from mil_jax.pooling.acmil import ACMILPooling
from mil_jax.pooling.additive import AdditivePooling, ConjunctivePooling
from mil_jax.pooling.attention import AEMPooling, AttentionPooling, MultiHeadAttentionPooling
from mil_jax.pooling.base import NOISE, Pooled, draws_noise, masked_softmax, sparsemax, with_class_0
from mil_jax.pooling.clam import CLAMPooling
from mil_jax.pooling.dsmil import DSMILPooling
from mil_jax.pooling.dtfd import DTFDPooling
from mil_jax.pooling.plain import EmbeddingPooling, InstancePooling
from mil_jax.pooling.set_transformer import SetTransformerPooling
from mil_jax.pooling.transmil import TransMILPooling

__all__ = [
    "NOISE", "ACMILPooling", "AEMPooling", "AdditivePooling", "AttentionPooling", "CLAMPooling", "ConjunctivePooling",
    "DSMILPooling", "DTFDPooling", "EmbeddingPooling", "InstancePooling", "MultiHeadAttentionPooling", "Pooled",
    "SetTransformerPooling", "TransMILPooling", "draws_noise", "masked_softmax", "sparsemax", "with_class_0",
]  # fmt: skip
