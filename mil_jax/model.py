"""The MIL model: encoder, pooling and linear classifier; it sees one bag.

The bag axis and the member axis are added by `vmap` at the edge.

Axes: K slots of a bag, D embedding, C classes.
"""

import dataclasses
from typing import Any, Literal, get_args, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from mil_jax.encoders import COLON, LENET, ConvEncoder, MLPEncoder, glorot_uniform
from mil_jax.errors import InputError
from mil_jax.pooling import AttentionPooling, EmbeddingPooling, InstancePooling

Params = Any  # Flax's nested dict of arrays


@no_type_check
@struct.dataclass
class MILOutput:
    """What the model says of one bag.

    Attributes:
        logits: [C] before the softmax.
        attention: [K] each instance's part in the bag's; sums to 1 over the mask, 0 elsewhere.
        embedding: [D] of the bag; of poolings of instances, log odds [C - 1].
        scores: [K] what the classifier says of each instance alone: the log odds of not being of class 0 (for several
            classes, of the likeliest other one).
    """

    logits: jax.Array
    attention: jax.Array
    embedding: jax.Array
    scores: jax.Array


@no_type_check
@struct.dataclass
class Prediction:
    """What a model says of B bags.

    Attributes:
        probability: [B, C] of each class.
        attention: [B, K] weight of each instance.
        scores: [B, K] what the classifier says of each instance alone, in log odds; 0 in an empty slot.
    """

    probability: jax.Array
    attention: jax.Array
    scores: jax.Array | None = None


Pooling = Literal[
    "gated_attention", "attention",
    "embedding_mean", "embedding_max", "embedding_lse",
    "instance_mean", "instance_max", "instance_noisy_or",
]  # fmt: skip
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ATTENTION: tuple[Pooling, ...] = ("gated_attention", "attention")
ENCODERS = ("mlp", "lenet", "colon")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The choices that make a model; as plain values, so that a run folder can hold them."""

    encoder: Literal["mlp", "lenet", "colon"] = "mlp"
    """A multilayer perceptron, or convolutions for 28x28 images (LeNet) or 27x27x3 patches before it."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the encoder's dense layers; the last one is the embedding's."""
    dropout: float = 0.0
    """Share of the dense layers' units that a training step drops."""
    pooling: Pooling = "gated_attention"
    """How a bag is made of its instances."""
    attention_units: int = 256
    """Width of the attention's hidden layer, A."""
    chunk: int | None = None
    """Instances that the attention takes at a time, for bags that do not fit into memory; all where not given."""
    head: Literal["concat", "sum"] = "concat"
    """Concatenate the weighted embeddings (attention only; needs full bags of one size) or sum them (takes any bag)."""
    output: Literal["softmax", "sigmoid"] = "softmax"
    """A logit for each class, or one for the positive class of two."""
    classes: int = 2
    """Number of bag classes, C."""


class MIL(nn.Module):
    """encoder → pooling → linear classifier; or, where instances are pooled, encoder → classifier → pooling.

    Attributes:
        encoder: instances [K, ...] to embeddings [K, D].
        pooling: embeddings [K, D], or log odds [K, C - 1], and mask [K] to `Pooled`.
        classes: C.
        sigmoid: the classifier has no logit for class 0: it stands for log odds against it.
    """

    encoder: nn.Module
    pooling: nn.Module
    classes: int = 2
    sigmoid: bool = False

    @nn.compact
    def __call__(self, instances: Float[Array, "K ..."], mask: Bool[Array, " K"]) -> MILOutput:
        """Classifies one bag of instances [K, ...] that `mask` [K] marks as present."""
        head = nn.Dense(self.classes - self.sigmoid, kernel_init=glorot_uniform, name="head")
        embeddings = self.encoder(instances)
        if isinstance(self.pooling, InstancePooling):
            odds = log_odds(head(embeddings), self.sigmoid)
            pooled = self.pooling(odds, mask)
            logits = with_class_0(pooled.embedding)
        else:
            pooled = self.pooling(embeddings, mask)
            logits = with_class_0(head(pooled.embedding)) if self.sigmoid else head(pooled.embedding)
            odds = log_odds(head(alone(self, embeddings)), self.sigmoid)
        scores = jnp.where(mask, odds.max(axis=-1), 0)
        return MILOutput(logits, pooled.attention, pooled.embedding, scores)


def log_odds(outputs: Float[Array, "*K units"], sigmoid: bool) -> Float[Array, "*K others"]:
    """Log odds of the classes 1 … C - 1 against class 0, from a classifier's outputs."""
    return outputs if sigmoid else outputs[..., 1:] - outputs[..., :1]


def with_class_0(odds: Float[Array, " others"]) -> Float[Array, " C"]:
    """Logits whose softmax has these log odds against class 0; of one, the softmax is its sigmoid."""
    return jnp.concatenate([jnp.zeros(1, odds.dtype), odds])


def alone(model: "MIL", embeddings: Float[Array, "K D"]) -> Float[Array, "K pooled"]:
    """What the bag's embedding would be if an instance had all the weight, for each instance."""
    if not joins(model):
        return embeddings
    own_slot = jnp.eye(len(embeddings))[:, :, None] * embeddings
    return own_slot.reshape(len(embeddings), -1)


def build(config: ModelConfig = ModelConfig()) -> MIL:
    """The model that `config` describes; its defaults are the Keras example's model.

    Raises:
        InputError: a width below 1, fewer than 2 classes, or choices that are unknown or do not go together.
    """
    check(config)
    encoder = MLPEncoder(tuple(config.hidden), config.dropout)
    if config.encoder != "mlp":
        encoder = ConvEncoder(LENET if config.encoder == "lenet" else COLON, tuple(config.hidden), config.dropout)
    return MIL(encoder, build_pooling(config), config.classes, config.output == "sigmoid")


def build_pooling(config: ModelConfig) -> nn.Module:
    """The pooling that `config` describes."""
    if config.pooling in ATTENTION:
        gated, concat = config.pooling == "gated_attention", config.head == "concat"
        return AttentionPooling(config.attention_units, gated, concat, config.chunk)
    level, kind = config.pooling.split("_", 1)
    return (EmbeddingPooling if level == "embedding" else InstancePooling)(kind)  # type: ignore[arg-type]


def check(config: ModelConfig) -> None:
    """Refuses choices of which no model can be made.

    Raises:
        InputError: as said.
    """
    if not config.hidden or min(config.hidden) < 1:
        raise InputError("hidden", config.hidden, "use widths of at least 1")
    least = {"attention_units": 1, "classes": 2} | ({} if config.chunk is None else {"chunk": 1})
    for name, value in least.items():
        if getattr(config, name) < value:
            raise InputError(name, getattr(config, name), f"use at least {value}")
    if not 0 <= config.dropout < 1:
        raise InputError("dropout", config.dropout, "use 0 or more, and less than 1")
    known = {"encoder": ENCODERS, "pooling": POOLINGS, "head": ("concat", "sum"), "output": ("softmax", "sigmoid")}
    for name, choices in known.items():
        if getattr(config, name) not in choices:
            raise InputError(name, getattr(config, name), f"use {' or '.join(map(repr, choices))}")
    if config.output == "sigmoid" and config.classes != 2:
        raise InputError("output", config.output, f"use 'softmax' for {config.classes} classes")
    if config.head == "concat" and config.pooling not in ATTENTION:
        raise InputError("head", config.head, f"use 'sum' with the pooling {config.pooling!r}")
    if config.head == "concat" and config.chunk is not None:
        raise InputError("chunk", config.chunk, "use the head 'sum', for bags of any size")


def init_params(model: MIL, key: Key[Array, ""], bag_size: int, instance_shape: tuple[int, ...]) -> Params:
    """Draws the model's parameters for bags of `bag_size` instances of `instance_shape`."""
    instances = jnp.zeros((bag_size, *instance_shape), jnp.float32)
    return model.init(key, instances, jnp.ones(bag_size, bool))["params"]


def apply(
    model: MIL, params: Params, instances: Array, mask: Array, dropout_key: Key[Array, ""] | None = None
) -> MILOutput:
    """The model's output for one bag, given its parameters; with dropout where there is a key for it."""
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return model.apply({"params": params}, instances, mask, rngs=rngs)  # type: ignore[return-value]


def drops(model: MIL) -> bool:
    """Whether the model has dropout, and so needs a key in training."""
    return model.encoder.dropout > 0  # type: ignore[attr-defined]


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
