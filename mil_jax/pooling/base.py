"""What all poolings share: the record that they return, masked sums, and the kernels of attention.

Axes: K slots of a bag, D embedding of the bag, A attention width, C classes.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mil_jax.encoders import glorot_uniform
from mil_jax.products import Precision, product
from mil_jax.record import record

NOISE = "dropout"  # the stream of random numbers that a training step hands over, and nobody else


@record
class Pooled:
    """What pooling makes of one bag; a pooling fills in what it has beyond the first two."""

    embedding: Float[Array, " D"]
    """Of the bag, [D] (or [K * D] where the instances are concatenated); of poolings of instances, log odds [C - 1]."""
    attention: Float[Array, " K"]
    """Each instance's part in it: sums to 1 over the mask, 0 elsewhere."""
    alone: Float[Array, "K D"] | None = None
    """What the bag's embedding would be if an instance had all the weight, 0 in an empty slot; without it, and without
    scores, the model pools each instance as a bag of its own."""
    logits: Float[Array, " C"] | None = None
    """Of the classes, where the pooling classifies by itself; the model's classifier is left out then."""
    scores: Float[Array, " K"] | None = None
    """What the pooling says of each instance, in log odds of not being of class 0; 0 in an empty slot."""
    aux: Any = None
    """What the pooling's own loss needs besides."""


# ---- over the instances of a mask ----


def masked_softmax(scores: Float[Array, "K ..."], mask: Bool[Array, "K ..."]) -> Float[Array, "K ..."]:
    """Softmax over the slots of the mask, exactly 0 elsewhere; all 0 for a bag with no instance."""
    return jax.nn.softmax(scores, axis=0, where=mask)


def sparsemax(scores: Float[Array, " K"], mask: Bool[Array, " K"]) -> Float[Array, " K"]:
    """The point of the simplex over the mask that is nearest to the scores (Martins and Astudillo 2016, algorithm 1).

    Scores less a threshold, or 0 where that is negative; 0 outside the mask, all 0 for a bag with no instance.
    """
    top = jax.lax.stop_gradient(jnp.max(scores, where=mask, initial=jnp.finfo(scores.dtype).min))
    shifted = jnp.where(mask, scores - top, -jnp.inf)
    ordered, rank = -jnp.sort(-shifted), jnp.arange(1, 1 + len(scores))
    support = 1 + rank * ordered > jnp.cumsum(jnp.where(ordered > -jnp.inf, ordered, 0))
    threshold = (jnp.sum(ordered, where=support) - 1) / jnp.maximum(support.sum(), 1)
    return jnp.where(mask, jnp.maximum(jnp.where(mask, shifted, 0) - threshold, 0), 0)


def shares(parts: Float[Array, " K"], mask: Bool[Array, " K"]) -> Float[Array, " K"]:
    """Non-negative parts, divided by their sum over the mask; 0 elsewhere."""
    inside, tiny = jnp.where(mask, parts, 0), jnp.finfo(parts.dtype).tiny
    total = inside.sum()
    # A maximum would multiply the gradient of 1 / tiny, which is infinite, by 0.
    return inside / jnp.where(total > tiny, total, tiny)


def filled_rows(values: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Float[Array, "K D"]:
    """The values [K, D] of the instances, and zeros in empty slots."""
    return jnp.where(mask[:, None], values, 0)


def where_any(mask: Bool[Array, " K"], values: Float[Array, "..."]) -> Float[Array, "..."]:
    """The values, or zeros for a bag with no instance."""
    return jnp.where(mask.any(), values, 0)


# ---- classes ----


def with_class_0(odds: Float[Array, "*K others"]) -> Float[Array, "*K C"]:
    """Logits whose softmax has these log odds against class 0; of one, the softmax is its sigmoid."""
    return jnp.concatenate([jnp.zeros((*odds.shape[:-1], 1), odds.dtype), odds], axis=-1)


def largest(values: Float[Array, "K N"]) -> Float[Array, " K"]:
    """The largest of each row, with a gradient that is finite.

    That of a maximum compares each value with the result, and divides 0 by 0 where a program computes the value twice
    and rounds it otherwise.
    """
    return jnp.take_along_axis(values, jnp.argmax(values, axis=1)[:, None], axis=1)[:, 0]


def best_odds(logits: Float[Array, "K C"], mask: Bool[Array, " K"]) -> Float[Array, " K"]:
    """Log odds of the likeliest class but 0, against class 0, for each instance of the mask; 0 elsewhere."""
    return jnp.where(mask, largest(logits[:, 1:] - logits[:, :1]), 0)


def cross_entropy(logits: Float[Array, "*T C"], label: Int[Array, ""]) -> Float[Array, "*T"]:
    """Minus the logarithm of the softmax probability of a class, in nats."""
    return jax.nn.logsumexp(logits, axis=-1) - logits[..., label]


# ---- attention ----


class Kernel(nn.Module):
    """The matrix of a dense layer without bias, as a parameter."""

    features: int

    @nn.compact
    def __call__(self, width: int) -> Float[Array, "width features"]:
        """The kernel for inputs of the given width."""
        return self.param("kernel", glorot_uniform, (width, self.features))


def attention_kernels(
    width: int, units: int, gated: bool, branches: int = 1
) -> tuple[Float[Array, "D A"], Float[Array, "D A"] | None, Float[Array, "A T"]]:
    """V, U (None without the gate) and w of the module that calls this, for embeddings of the given width."""
    V = Kernel(units, name="V")(width)
    U = Kernel(units, name="U")(width) if gated else None
    return V, U, Kernel(branches, name="w")(units)


def branch_scores(
    V: Float[Array, "D A"],
    U: Float[Array, "D A"] | None,
    w: Float[Array, "A T"],
    embeddings: Float[Array, "K D"],
    precision: Precision = "float32",
) -> Float[Array, "K T"]:
    """The scores before the softmax, w · (tanh(V h) * sigmoid(U h)), or w · tanh(V h) without U, for each w."""
    hidden = jnp.tanh(product(embeddings, V, precision))
    if U is not None:
        hidden = hidden * nn.sigmoid(product(embeddings, U, precision))
    return hidden @ w


def attention_scores(
    V: Float[Array, "D A"],
    U: Float[Array, "D A"] | None,
    w: Float[Array, "A 1"],
    embeddings: Float[Array, "K D"],
    precision: Precision = "float32",
) -> Float[Array, " K"]:
    """`branch_scores` of one branch."""
    return branch_scores(V, U, w, embeddings, precision)[:, 0]


# ---- what a module says of itself ----


def draws_noise(module: object) -> bool:
    """Whether a module, or one that it holds, says that it draws random numbers in training.

    It says so by `noisy = True`, or by a `dropout` (or a `rate` of Flax's own layer) above 0.
    """
    if isinstance(module, list | tuple):
        return any(map(draws_noise, module))
    if not isinstance(module, nn.Module):
        return False
    rate = module.rate if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0)
    says = getattr(module, "noisy", False) or (isinstance(rate, int | float) and rate > 0)
    held = (getattr(module, field.name) for field in dataclasses.fields(module) if field.name not in ("parent", "name"))
    return bool(says) or any(map(draws_noise, held))
