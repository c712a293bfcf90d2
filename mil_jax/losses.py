"""What a bag is labelled with: the target, with its loss, its output and its check; and the penalty beside the loss.

A target is a frozen record that the model carries, so that a step, an ensemble and a run are the same for all of them.
Losses are elementwise, so that the mean is taken in one visible place.

Axes: B bags, C classes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mil_jax.errors import InputError, check_index, check_whole


@dataclasses.dataclass(frozen=True)
class Classes:
    """A bag is of one of C classes; fewer than two are an InputError."""

    count: int = 2
    """C."""

    def __post_init__(self) -> None:
        check_whole("classes", self.count, 2)

    def loss(self, logits: Float[Array, " C"], label: Int[Array, ""]) -> Float[Array, ""]:
        """Minus the logarithm of the softmax probability of the true class, of one bag, in nats."""
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)

    def prediction(self, logits: Float[Array, "*bags C"]) -> Float[Array, "*bags C"]:
        """The probability of each class."""
        return jax.nn.softmax(logits)

    def is_right(self, logits: Float[Array, "*bags C"], label: Int[Array, "*bags"]) -> Array:
        """Whether the most probable class is the true one."""
        return jnp.argmax(logits, axis=-1) == label

    def weights(self, label: Int[np.ndarray | Array, " B"]) -> Float[Array, " C"]:
        """The weight of each class, B / (C * count of the class); a class that no bag has is an InputError."""
        count = np.bincount(np.asarray(label), minlength=self.count)
        if (count == 0).any():
            missing = np.flatnonzero(count == 0).tolist()
            expected = "expected bags of every class (draw more bags), or class weights switched off"
            raise InputError("label", f"no bag of class {missing[0]} among {len(label)}", expected)
        return jnp.asarray(len(label) / (self.count * count), jnp.float32)

    def check(self, label: Int[np.ndarray | Array, "..."], least: int = 0) -> None:
        """Refuses, by an InputError, labels that are not `least` to C - 1; `least` is -1 where there may be no bag."""
        expected = f"expected 0 to {self.count - 1}, or a model of more classes"
        check_index("label", np.asarray(label), self.count, expected, least=least)


def l2_penalty(params: Any) -> Float[Array, ""]:
    """The sum of squares of all parameters in a tree."""
    # A dot product is vectorised on the CPU; a sum of squares keeps its order and is not.
    return sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))
