"""Bootstrap intervals of means, as pure functions of a key.

Axes: B bags or members · R statistics.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from mil_jax.errors import InputError, check_number, check_whole, checked
from mil_jax.metrics import all_or, divide, mean_where


@checked
def bootstrap_interval(
    values: Float[np.ndarray | Array, " B"],
    key: Key[Array, ""],
    level: float = 0.95,
    resamples: int = 1000,
    where: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute the percentile bootstrap interval (low, high) of the mean of the values of `where` (Efron 1979).

    NaN without a value. The same key gives the same interval for a masked call and for the subset. Holds
    B x resamples numbers. A level that is not between 0 and 1, or no resample, is an InputError.
    """
    check_number("level", level, 0, 1, ends="()")
    check_whole("resamples", resamples, 1)
    values = jnp.asarray(values)
    if values.ndim != 1:
        raise InputError("values", np.shape(values), "expected one value for each bag or member")
    where = all_or(values, where)
    place, count = jnp.arange(values.shape[0]), jnp.sum(where)
    counted_first = jnp.where(where, values, 0)[jnp.argsort(~where, stable=True)]

    def draw(nth: Array) -> Array:
        # A key for each draw: what the first `count` draws give does not depend on how many follow.
        return jax.random.randint(jax.random.fold_in(key, nth), (resamples,), 0, jnp.maximum(count, 1))

    drawn = counted_first[jax.vmap(draw)(place)]
    means = divide(jnp.sum(jnp.where((place < count)[:, None], drawn, 0), axis=0), count)
    low, high = jnp.quantile(means, jnp.array([(1 - level) / 2, (1 + level) / 2]))
    return low, high


def mean_intervals(
    values: Float[Array, "R B"],
    where: Bool[Array, "R B"],
    key: Key[Array, ""],
    level: float = 0.95,
    resamples: int = 1000,
) -> tuple[Float[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """The mean of each statistic over the values of `where`, and its `bootstrap_interval`: (mean, low, high), each [R].

    NaN without a value. All use the same resamples, so that equal values get equal intervals.
    """

    def one(row: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        of_row, counted = row
        return mean_where(of_row, counted), *bootstrap_interval(of_row, key, level, resamples, counted)

    return jax.lax.map(one, (values, where))
