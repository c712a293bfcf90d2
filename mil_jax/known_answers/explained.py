"""Do explanations find what is known to speak for a class, and what is known to speak against it?

An explanation is a number for each instance of a bag. Where the evidence has signs, one that can only say how much an
instance matters (attention) finds one side at best, and the two-sided score tells (Hense et al. 2024).

Axes: S members, B bags, K slots per bag.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mil_jax.bags import Values
from mil_jax.errors import InputError, checked
from mil_jax.metrics import average_precision, mean_where, roc_auc
from mil_jax.record import record


@record
class Found:
    """How well explanations rank the instances of a bag by their evidence: means over the bags that define it."""

    auroc: Float[Values, "*members"]
    """How often an instance that speaks for the class outranks one that does not."""
    auprc: Float[Values, "*members"]
    """Average precision of those that speak for it."""
    two_sided: Float[Values, "*members"]
    """Mean of that and of the average precision of the lowest ones for those that speak against it; of one of them
    where a bag has the other kind of evidence not at all."""


@checked
def evidence_found(explanation: Float[Values, "S B K"], sign: Int[Values, "..."], mask: Bool[Values, "..."]) -> Found:
    """Compares explanations of S members with the evidence; fields are [S], NaN where no bag defines them.

    A bag counts where it has an instance with evidence and another without it.

    Args:
        explanation: of each instance, higher where it speaks for the class.
        sign: the evidence, 1, 0 or -1, of shared bags [B, K] or of each member's own [S, B, K].
        mask: True where a slot holds an instance, likewise.

    Raises:
        InputError: evidence of other bags.
    """
    given = np.shape(explanation)
    if np.shape(sign) != np.shape(mask) or np.shape(sign) not in (given, given[1:]):
        raise InputError("sign", np.shape(sign), f"expected {given} or {given[1:]}, as the mask")
    return _found(*(jnp.broadcast_to(values, given) for values in (explanation, sign, mask)))


@jax.jit
def _found(explanation: Array, sign: Array, mask: Array) -> Found:
    def member(given: tuple[Array, Array, Array]) -> Found:
        of_bags = jax.lax.map(lambda bag: _found_in_bag(*bag), given, batch_size=64)
        return jax.tree.map(lambda values: mean_where(values, ~jnp.isnan(values)), of_bags)

    return jax.lax.map(member, (explanation, sign, mask))


def _found_in_bag(explanation: Float[Array, " K"], sign: Int[Array, " K"], mask: Bool[Array, " K"]) -> Found:
    def side(score: Array, truth: Array) -> Array:
        both = jnp.any(truth & mask) & jnp.any(~truth & mask)
        return jnp.where(both, average_precision(score, truth, mask), jnp.nan)

    above, below = side(explanation, sign > 0), side(-explanation, sign < 0)
    two_sided = jnp.nanmean(jnp.stack([above, below]))
    return Found(roc_auc(explanation, sign > 0, mask), above, two_sided)


def weight_on(attention: Float[np.ndarray, "S B K"], where: Bool[np.ndarray, "..."]) -> Float[np.ndarray, " S"]:
    """The mean attention weight of the instances of `where` together, over the bags that have any; NaN for none."""
    where = np.broadcast_to(where, attention.shape)
    weight, bags = np.where(where, attention, 0).sum(axis=2), where.any(axis=2).sum(axis=1)
    return weight.sum(axis=1) / np.where(bags > 0, bags, np.nan)
