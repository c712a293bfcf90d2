"""The poolings that a user chooses by name, and what makes each of them."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn

from mil_jax.pooling.acmil import ACMILPooling
from mil_jax.pooling.additive import AdditivePooling, ConjunctivePooling
from mil_jax.pooling.attention import AEMPooling, AttentionPooling, MultiHeadAttentionPooling
from mil_jax.pooling.clam import CLAMPooling
from mil_jax.pooling.dsmil import DSMILPooling
from mil_jax.pooling.dtfd import DTFDPooling
from mil_jax.pooling.plain import EmbeddingPooling, InstancePooling
from mil_jax.pooling.set_transformer import SetTransformerPooling
from mil_jax.pooling.transmil import TransMILPooling
from mil_jax.products import Precision

Pooling = Literal[
    "gated_attention", "attention", "multi_head_attention", "sparsemax_attention", "aem",
    "embedding_mean", "embedding_max", "embedding_lse",
    "instance_mean", "instance_max", "instance_noisy_or", "instance_top_k", "instance_lse",
    "additive", "conjunctive", "dsmil", "clam_sb", "clam_mb", "acmil", "dtfd", "set_transformer", "transmil",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a model says of its pooling beside the name; each takes of it what it has."""

    units: int
    """Width of the attention's hidden layer, A."""
    concat: bool
    """Concatenate the weighted embeddings instead of summing them."""
    chunk: int | None
    """Instances at a time."""
    classes: int
    """C."""
    precision: Precision = "float32"
    """Of the factors of attention's products."""


POOLINGS: dict[Pooling, Callable[[Sizes], nn.Module]] = {
    "gated_attention": lambda s: AttentionPooling(s.units, True, s.concat, s.chunk, s.precision),
    "attention": lambda s: AttentionPooling(s.units, False, s.concat, s.chunk, s.precision),
    "multi_head_attention": lambda s: MultiHeadAttentionPooling(units=s.units),
    "sparsemax_attention": lambda s: AttentionPooling(s.units, precision=s.precision, sparse=True),
    "aem": lambda s: AEMPooling(s.units, chunk=s.chunk, precision=s.precision),
    "embedding_mean": lambda _: EmbeddingPooling("mean"),
    "embedding_max": lambda _: EmbeddingPooling("max"),
    "embedding_lse": lambda _: EmbeddingPooling("lse"),
    "instance_mean": lambda _: InstancePooling("mean"),
    "instance_max": lambda _: InstancePooling("max"),
    "instance_noisy_or": lambda _: InstancePooling("noisy_or"),
    "instance_top_k": lambda _: InstancePooling("top_k"),
    "instance_lse": lambda _: InstancePooling("lse"),
    "additive": lambda s: AdditivePooling(s.classes, s.units),
    "conjunctive": lambda s: ConjunctivePooling(s.classes),
    "dsmil": lambda s: DSMILPooling(s.classes),
    "clam_sb": lambda s: CLAMPooling(s.classes, s.units),
    "clam_mb": lambda s: CLAMPooling(s.classes, s.units, branches=True),
    "acmil": lambda s: ACMILPooling(s.classes, s.units),
    "dtfd": lambda s: DTFDPooling(s.classes, s.units),
    "set_transformer": lambda _: SetTransformerPooling(),
    "transmil": lambda s: TransMILPooling(chunk=s.chunk),
}

# Those whose embeddings may be concatenated, and those that take all instances of a bag at once, and so no chunk.
ATTENTION: tuple[Pooling, ...] = ("gated_attention", "attention")
WHOLE: tuple[Pooling, ...] = (
    "multi_head_attention", "sparsemax_attention", "additive", "conjunctive", "dsmil", "clam_sb", "clam_mb", "acmil",
    "dtfd", "set_transformer",
)  # fmt: skip
