"""The MIL model: encoder, pooling and linear classifier; it sees one bag.

The bag axis and the member axis are added by `vmap` at the edge.

Axes: K slots of a bag, D embedding, C classes, S members.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mil_jax.bags import Values
from mil_jax.encoders import COLON, LENET, ConvEncoder, MLPEncoder, glorot_uniform
from mil_jax.errors import InputError, check_choice, check_number, check_whole, checked
from mil_jax.losses import Classes
from mil_jax.pooling import NOISE, Pooled, draws_noise, with_class_0
from mil_jax.pooling.base import best_odds, largest
from mil_jax.pooling.names import ATTENTION, POOLINGS, WHOLE, Pooling, Sizes
from mil_jax.products import Precision
from mil_jax.record import record

Params = Any  # Flax's nested dict of arrays
Augment = Callable[[Key[Array, ""], Float[Array, "K ..."]], Float[Array, "K ..."]]

# ---- choices ----

Encoder = Literal["mlp", "lenet", "colon"]
ENCODERS: dict[Encoder, Callable[[tuple[int, ...], float, Precision], nn.Module]] = {
    "mlp": MLPEncoder,
    "lenet": partial(ConvEncoder, LENET),
    "colon": partial(ConvEncoder, COLON),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The choices that make a model; as plain values, so that a run folder can hold them."""

    encoder: Encoder = "mlp"
    """A multilayer perceptron, or convolutions for 28x28 images (LeNet) or 27x27x3 patches before it."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the encoder's dense layers; the last one is the embedding's."""
    dropout: float = 0.0
    """Share of the dense layers' units that a training step drops."""
    pooling: Pooling = "gated_attention"
    """How a bag is made of its instances; all but `attention` and `gated_attention` need the head 'sum'."""
    attention_units: int = 256
    """Width of the attention's hidden layer, A; of the methods that have a width of their own, theirs is kept."""
    chunk: int | None = None
    """Instances that the attention takes at a time, for bags that do not fit into memory; all where not given."""
    head: Literal["concat", "sum"] = "concat"
    """Concatenate the weighted embeddings (attention only; needs full bags of one size) or sum them (takes any bag)."""
    output: Literal["softmax", "sigmoid"] = "softmax"
    """A logit for each class, or one for the positive class of two; what classifies by itself keeps its own."""
    precision: Precision = "float32"
    """Factors of the products of dense layers and of attention: bfloat16 is faster where the processor has it."""

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, tuple | list) or not self.hidden:
            raise InputError("hidden", self.hidden, "expected one or more widths")
        for width in self.hidden:
            check_whole("hidden", width, 1)
        check_whole("attention_units", self.attention_units, 1)
        if self.chunk is not None:
            check_whole("chunk", self.chunk, 1)
        check_number("dropout", self.dropout, 0, 1)
        known = {"encoder": ENCODERS, "pooling": POOLINGS, "head": ("concat", "sum"), "output": ("softmax", "sigmoid")}
        known |= {"precision": get_args(Precision)}
        for name, choices in known.items():
            check_choice(name, getattr(self, name), tuple(choices))
        if self.head == "concat" and self.pooling not in ATTENTION:
            raise InputError("head", self.head, f"expected 'sum' with the pooling {self.pooling!r}")
        if self.head == "concat" and self.chunk is not None:
            raise InputError("chunk", self.chunk, "expected the head 'sum' with chunks, for bags of any size")
        if self.pooling in WHOLE and self.chunk is not None:
            raise InputError("chunk", self.chunk, f"expected none with the pooling {self.pooling!r}")


# ---- what a model says ----


@record
class MILOutput:
    """What the model says of one bag."""

    logits: Float[Array, " C"]
    """Before the softmax."""
    scores: Float[Array, " K"]
    """What the classifier says of each instance alone: the log odds of not being of class 0 (for several classes, of
    the likeliest other one); or what the pooling says of it, where that scores instances itself."""
    pooled: Pooled
    """What the pooling made of the bag."""

    attention = property(lambda self: self.pooled.attention, doc="[K] each instance's part in the bag's; sums to 1.")
    embedding = property(lambda self: self.pooled.embedding, doc="[D] of the bag; of poolings of instances, log odds.")


@record
class Prediction:
    """What a model says of B bags; with a leading axis S, what its members say."""

    probability: Float[Values, "*members B C"]
    """Of each class."""
    attention: Float[Values, "*members B K"]
    """Weight of each instance."""
    scores: Float[Values, "*members B K"] | None = None
    """What the model says of each instance, in log odds; 0 in an empty slot."""

    @property
    def converged(self) -> np.ndarray:
        """Of members, which have not diverged: [S], True where all probabilities are finite."""
        return np.asarray(np.isfinite(np.asarray(self.probability)).all(axis=(1, 2)))


# ---- the network ----


class MIL(nn.Module):
    """encoder → pooling → linear classifier; or, where instances are pooled, encoder → classifier → pooling."""

    encoder: nn.Module
    """Instances [K, ...] to embeddings [K, D]."""
    pooling: nn.Module
    """Embeddings [K, D], or log odds [K, C - 1], and mask [K] to `Pooled`."""
    target: Classes = Classes()
    """What a bag is labelled with; C is its number of classes."""
    sigmoid: bool = False
    """The classifier has no logit for class 0: it stands for log odds against it."""
    augment: Augment | None = None
    """What a training step does to a bag's instances [K, ...] first, given a key; a function of a module."""

    @nn.compact
    def __call__(self, instances: Float[Array, "K ..."], mask: Bool[Array, " K"]) -> MILOutput:
        """Classifies one bag of instances [K, ...] that `mask` [K] marks as present."""
        head = nn.Dense(self.target.count - self.sigmoid, kernel_init=glorot_uniform, name="head")
        embeddings = self.encoder(instances)
        if getattr(self.pooling, "of_instances", False):
            embeddings = log_odds(head(embeddings), self.sigmoid)
        pooled = self.pooling(embeddings, mask)

        def logits_of(pooled: Pooled) -> Array:
            if pooled.logits is not None:
                return pooled.logits
            return with_class_0(head(pooled.embedding)) if self.sigmoid else head(pooled.embedding)

        logits, scores = logits_of(pooled), pooled.scores
        if scores is None and pooled.alone is not None:
            odds = log_odds(head(pooled.alone), self.sigmoid)
            scores = jnp.where(mask, largest(odds), 0)
        elif scores is None:
            scores = best_odds(jax.vmap(logits_of)(pool_each(self.pooling, embeddings)), mask)
        return MILOutput(logits, scores, pooled)


def log_odds(outputs: Float[Array, "*K units"], sigmoid: bool) -> Float[Array, "*K others"]:
    """Log odds of the classes 1 … C - 1 against class 0, from a classifier's outputs."""
    return outputs if sigmoid else outputs[..., 1:] - outputs[..., :1]


def pool_each(pooling: nn.Module, embeddings: Float[Array, "K D"]) -> Pooled:
    """What the pooling makes of each instance as a bag of its own, with a leading axis K."""
    lone = nn.vmap(
        lambda pooling, embedding: pooling(embedding[None], jnp.ones(1, bool)),
        variable_axes={"params": None}, split_rngs={"params": False, NOISE: True},
    )  # fmt: skip
    return lone(pooling, embeddings)


@checked
def build(config: ModelConfig = ModelConfig(), target: Classes = Classes(), augment: Augment | None = None) -> MIL:
    """The model that `config` describes (the Keras example's), for a target; an InputError where they do not fit."""
    if config.output == "sigmoid" and target.count != 2:
        raise InputError("output", config.output, f"expected 'softmax' for {target.count} classes")
    encoder = ENCODERS[config.encoder](tuple(config.hidden), config.dropout, config.precision)
    sizes = Sizes(config.attention_units, config.head == "concat", config.chunk, target.count, config.precision)
    return MIL(encoder, POOLINGS[config.pooling](sizes), target, config.output == "sigmoid", augment)


# ---- parameters ----


def init_params(model: MIL, key: Key[Array, ""], bag_size: int, instance_shape: tuple[int, ...]) -> Params:
    """Draws the model's parameters for bags of `bag_size` instances of `instance_shape`."""
    instances = jnp.zeros((bag_size, *instance_shape), jnp.float32)
    return model.init(key, instances, jnp.ones(bag_size, bool))["params"]


def apply(model: MIL, params: Params, instances: Array, mask: Values, key: Key[Array, ""] | None = None) -> MILOutput:
    """The model's output for one bag, given its parameters; with augmentation and noise where there is a key."""
    rngs = None
    if key is not None:
        key_augment, key_noise = jax.random.split(key)
        instances = instances if model.augment is None else model.augment(key_augment, instances)
        rngs = {NOISE: key_noise} if draws(model) else None
    output: Any = model.apply({"params": params}, instances, mask, rngs=rngs)
    return output


def bag_loss(model: MIL, output: MILOutput, label: Int[Array, ""]) -> Float[Array, ""]:
    """The loss of one bag in training: the target's, and what the pooling's own loss adds to its share of that."""
    loss = model.target.loss(output.logits, label)
    own: Any = getattr(model.pooling, "loss", None)
    return loss if own is None else getattr(model.pooling, "bag_share", 1) * loss + own(output.pooled, label)


def draws(model: MIL) -> bool:
    """Whether the network draws random numbers in training, as for dropout."""
    return draws_noise(model.encoder) or draws_noise(model.pooling)


def is_noisy(model: MIL) -> bool:
    """Whether a training step of the model needs a key."""
    return model.augment is not None or draws(model)


def attention_kernels(params: Params) -> list[Any]:
    """The matrices V, U and w of attention, wherever they are in the pooling."""
    leaves = jax.tree_util.tree_leaves_with_path(params.get("pooling", {}))
    return [leaf for path, leaf in leaves if {"V", "U", "w"} & {str(getattr(entry, "key", "")) for entry in path}]


def count_params(params: Params) -> int:
    """The number of parameters in a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def param_shapes(model: MIL, bag_size: int, instance_shape: tuple[int, ...]) -> Params:
    """The shapes of the parameters of one member; instances that the encoder cannot take are an InputError."""
    try:
        return jax.eval_shape(lambda key: init_params(model, key, bag_size, instance_shape), jax.random.key(0))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        expected = f"expected instances that the encoder can take ({reason:.150})"
        raise InputError("instances", list(instance_shape), expected) from None


@checked
def layer_table(model: MIL, bag_size: int, instance_shape: tuple[int, ...]) -> list[tuple[str, str, int]]:
    """Layers as (name, shapes of the parameters, number of parameters), in the order of the data."""
    layers: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(model, bag_size, instance_shape)):
        *layer, kind = (str(entry.key) for entry in path)
        layers.setdefault("/".join(layer), []).append((kind, leaf.shape))
    rows = [
        (name, ", ".join(f"{kind} {list(shape)}" for kind, shape in reversed(kinds)),
         sum(int(np.prod(shape)) for _, shape in kinds))
        for name, kinds in layers.items()
    ]  # fmt: skip
    order = ("encoder", "pooling/V", "pooling/U", "pooling/w", "pooling", "head")
    return sorted(rows, key=lambda row: [row[0].startswith(name) for name in order], reverse=True)


# ---- what fits together ----


def joins(model: MIL) -> bool:
    """Whether the model concatenates the weighted embeddings, and so needs full bags of one size."""
    return getattr(model.pooling, "concat", False)
