"""Ranks under masks: how many members of a group lie above each value. All metrics of rankings are made of it."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Up to this many slots every weight is compared with every other, which compiles and runs in less
# time than a sort; above, sorted.
PAIRWISE_SLOTS = 64


def counts_above(
    value: Float[Array, " K"], groups: Bool[Array, "G K"]
) -> tuple[Float[Array, "G K"], Float[Array, "G K"]]:
    """Count the members of each group above, and at or above, each value."""
    if value.shape[0] <= PAIRWISE_SLOTS:
        more, as_much = value > value[:, None], value >= value[:, None]
        above = jnp.sum(more & groups[:, None], axis=-1)
        at_or_above = jnp.sum(as_much & groups[:, None], axis=-1)
    else:
        order = jnp.argsort(value)
        total = jnp.cumsum(groups[:, order].astype(jnp.int32), axis=-1)
        total = jnp.pad(total, ((0, 0), (1, 0)))
        above = total[:, -1:] - total[:, jnp.searchsorted(value[order], value, side="right")]
        at_or_above = total[:, -1:] - total[:, jnp.searchsorted(value[order], value, side="left")]
    dtype = value.dtype
    return above.astype(dtype), at_or_above.astype(dtype)
