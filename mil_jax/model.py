"""The MIL model: encoder, then pooling, then a linear classifier; it sees one bag.

The bag axis and the member axis are added by `vmap` at the edge.

Axes: K slots of a bag, D embedding, C classes.
"""

import dataclasses
from typing import Any, Literal, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from mil_jax.encoders import MLPEncoder, glorot_uniform
from mil_jax.errors import InputError
from mil_jax.pooling import AttentionPooling

Params = Any  # Flax's nested dict of arrays


@no_type_check
@struct.dataclass
class MILOutput:
    """What the model says of one bag.

    Attributes:
        logits: [C] before the softmax.
        attention: [K] weight of each instance; sums to 1 over the mask, 0 elsewhere.
        embedding: [D] of the bag.
    """

    logits: jax.Array
    attention: jax.Array
    embedding: jax.Array


@no_type_check
@struct.dataclass
class Prediction:
    """What a model says of B bags.

    Attributes:
        probability: [B, C] of each class.
        attention: [B, K] weight of each instance.
    """

    probability: jax.Array
    attention: jax.Array


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The choices that make a model; as plain values, so that a run folder can hold them."""

    hidden: tuple[int, ...] = (128, 64)
    """Widths of the encoder's layers; the last one is the embedding's."""
    attention_units: int = 256
    """Width of the attention's hidden layer, A."""
    gated: bool = True
    """Gate the attention's tanh by a sigmoid."""
    head: Literal["concat", "sum"] = "concat"
    """Concatenate the weighted embeddings (needs full bags of one size) or sum them (takes any bag)."""
    classes: int = 2
    """Number of bag classes, C."""


class MIL(nn.Module):
    """encoder → pooling → linear classifier.

    Attributes:
        encoder: instances [K, ...] to embeddings [K, D].
        pooling: embeddings [K, D] and mask [K] to `Pooled`.
        classes: C.
    """

    encoder: nn.Module
    pooling: nn.Module
    classes: int = 2

    @nn.compact
    def __call__(self, instances: Float[Array, "K ..."], mask: Bool[Array, " K"]) -> MILOutput:
        """Classifies one bag of instances [K, ...] that `mask` [K] marks as present."""
        pooled = self.pooling(self.encoder(instances), mask)
        logits = nn.Dense(self.classes, kernel_init=glorot_uniform, name="head")(pooled.embedding)
        return MILOutput(logits, pooled.attention, pooled.embedding)


def build(config: ModelConfig = ModelConfig()) -> MIL:
    """The model that `config` describes; its defaults are the Keras example's model.

    Raises:
        InputError: a width below 1, fewer than 2 classes, or an unknown head.
    """
    if not config.hidden or min(config.hidden) < 1:
        raise InputError("hidden", config.hidden, "use widths of at least 1")
    if config.attention_units < 1:
        raise InputError("attention_units", config.attention_units, "use at least 1")
    if config.classes < 2:
        raise InputError("classes", config.classes, "use at least 2")
    if config.head not in ("concat", "sum"):
        raise InputError("head", config.head, "use 'concat' or 'sum'")
    pooling = AttentionPooling(config.attention_units, config.gated, config.head == "concat")
    return MIL(MLPEncoder(tuple(config.hidden)), pooling, config.classes)


def init_params(model: MIL, key: Key[Array, ""], bag_size: int, instance_shape: tuple[int, ...]) -> Params:
    """Draws the model's parameters for bags of `bag_size` instances of `instance_shape`."""
    instances = jnp.zeros((bag_size, *instance_shape), jnp.float32)
    return model.init(key, instances, jnp.ones(bag_size, bool))["params"]


def apply(model: MIL, params: Params, instances: Array, mask: Array) -> MILOutput:
    """The model's output for one bag, given its parameters."""
    return model.apply({"params": params}, instances, mask)  # type: ignore[return-value]


def count_params(params: Params) -> int:
    """The number of parameters of one member."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def layer_table(model: MIL, bag_size: int, instance_shape: tuple[int, ...]) -> list[tuple[str, str, int]]:
    """Layers as (name, shapes of the parameters, number of parameters), in the order of the data."""
    shapes = jax.eval_shape(lambda key: init_params(model, key, bag_size, instance_shape), jax.random.key(0))
    layers: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        *layer, kind = (str(entry.key) for entry in path)
        layers.setdefault("/".join(layer), []).append((kind, leaf.shape))
    rows = [
        (name, ", ".join(f"{kind} {list(shape)}" for kind, shape in reversed(kinds)),
         sum(int(np.prod(shape)) for _, shape in kinds))
        for name, kinds in layers.items()
    ]  # fmt: skip
    order = ("encoder", "pooling/V", "pooling/U", "pooling/w", "head")
    return sorted(rows, key=lambda row: [row[0].startswith(name) for name in order], reverse=True)


def joins(model: MIL) -> bool:
    """Whether the model concatenates the weighted embeddings, and so needs full bags of one size."""
    return isinstance(model.pooling, AttentionPooling) and model.pooling.concat


def check_full(model: MIL, params: Params | None, mask: Bool[np.ndarray | Array, "*bags K"]) -> None:
    """Refuses bags that a concatenating head cannot take.

    Raises:
        InputError: empty slots, or a bag size other than the one that the parameters were made for.
    """
    if not joins(model):
        return
    remedy = "the concat head needs full bags of one size: use the head 'sum'"
    if not np.asarray(mask).all():
        raise InputError("mask", "bags with empty slots", remedy)
    if params is None:
        return
    size, width = mask.shape[-1], params["pooling"]["V"]["kernel"].shape[-2]
    trained = params["head"]["kernel"].shape[-2] // width
    if size != trained:
        raise InputError("bag_size", size, f"this model was made for {trained}; {remedy}")
