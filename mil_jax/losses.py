"""Losses: elementwise, so that the mean is taken in one visible place; and the weights and penalty around them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mil_jax.errors import InputError


def class_weights(label: Int[np.ndarray | Array, " B"], classes: int = 2) -> Float[Array, " C"]:
    """The weight of each class, B / (C * count of the class): rare classes count as much as frequent ones.

    Raises:
        InputError: a class that no bag has, or a label that is no class.
    """
    count = np.bincount(np.asarray(label), minlength=classes)
    if len(count) > classes:
        raise InputError("label", len(count) - 1, f"use classes from 0 to {classes - 1}")
    if (count == 0).any():
        missing = np.flatnonzero(count == 0).tolist()
        raise InputError(
            "label",
            f"no bag of class {missing[0]} among {len(label)}",
            "train on bags of every class (draw more bags), or switch the class weights off",
        )
    return jnp.asarray(len(label) / (classes * count), jnp.float32)


def cross_entropy(logits: Float[Array, " C"], label: Int[Array, ""]) -> Float[Array, ""]:
    """Minus the logarithm of the softmax probability of the true class, of one bag, in nats."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)


def l2_penalty(params: Any) -> Float[Array, ""]:
    """The sum of squares of all parameters in a tree."""
    # A dot product is vectorised on the CPU; a sum of squares keeps its order and is not.
    return sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))
