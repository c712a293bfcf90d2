"""Bags with a wanted share of positive ones, however rare or certain a positive bag is among uniform draws.

A uniform draw of 100 digits holds a 1 almost surely, one of 3 seldom. Here the number of positive bags is given, and
each bag is what a uniform draw is, given its label: the number of positive instances of a positive bag follows the
hypergeometric distribution without its 0, and all that is drawn is drawn without repeats. Pure functions of a key.

Axes: B bags, K slots.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import bags
from mil_jax.bags import Bags, Splits
from mil_jax.datasets import Dataset, Instances
from mil_jax.errors import InputError


def sample_bags(
    key: jax.Array,
    pool: Instances,
    among: np.ndarray,
    *,
    bag_count: int,
    bag_size: int,
    positive_class: int,
    positive_share: float,
) -> Bags:
    """Draws `bag_count` bags, of which round(`positive_share` * `bag_count`) are positive, in random order.

    Args:
        key: decides the draw.
        pool: the instances.
        among: rows of the pool to draw from.
        bag_count: B.
        bag_size: K.
        positive_class: the class that makes a bag positive.
        positive_share: share of positive bags.

    Raises:
        InputError: no bag of one of the two classes, or bags that the pool cannot fill.
    """
    is_positive = pool.label[among] == positive_class
    positives, negatives = among[is_positive], among[~is_positive]
    count = round(positive_share * bag_count)
    if not 0 < count < bag_count:
        remedy = f"of {bag_count} bags this makes {count} positive: use other shares, or more bags"
        raise InputError("positive_share", positive_share, remedy)
    if not len(positives):
        raise InputError("positive_class", positive_class, "the data has no such instances")
    if not 1 <= bag_size <= len(negatives):
        raise InputError("bag_size", bag_size, f"use 1 to {len(negatives)}, the number of negative instances")
    chances = positives_in_a_positive_bag(len(positives), len(negatives), bag_size)
    rows = _draw(key, positives, negatives, jnp.asarray(chances, jnp.float32), count, bag_count, bag_size)
    instance_label = (jnp.asarray(pool.label)[rows] == positive_class).astype(jnp.int32)
    return Bags(
        pool=jnp.asarray(pool.x),
        rows=rows,
        mask=jnp.ones(rows.shape, bool),
        label=instance_label.max(axis=1),
        instance_label=instance_label,
    )


def positives_in_a_positive_bag(positives: int, negatives: int, bag_size: int) -> np.ndarray:
    """The chances of 1 … min(K, positives) positive instances in a uniform draw that holds one at least."""
    log_choose = lambda n, k: math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)  # noqa: E731
    counts = range(1, min(bag_size, positives) + 1)
    logs = np.array([log_choose(positives, m) + log_choose(negatives, bag_size - m) for m in counts])
    chances = np.exp(logs - logs.max())
    return chances / chances.sum()


@partial(jax.jit, static_argnums=(5, 6))
def _draw(
    key: jax.Array,
    positives: jax.Array,
    negatives: jax.Array,
    chances: jax.Array,
    count: int,
    bag_count: int,
    bag_size: int,
) -> jax.Array:
    # One call of the generator, which compiles slowly, gives the bits of all draws: of a bag's positive instances,
    # of its negative ones, of the order of its slots, of its number of positive ones, and of its label.
    most = len(chances)
    widths = (most, most, bag_size, bag_size, bag_size, 1, 1)
    bits = jax.random.bits(key, (bag_count, sum(widths)), jnp.uint32)
    *of_bags, of_counts, of_labels = jnp.split(bits, np.cumsum(widths)[:-1], axis=1)
    is_positive = jnp.argsort(of_labels[:, 0]) < count
    uniform = of_counts[:, 0].astype(jnp.float32) / 2.0**32
    drawn = 1 + jnp.minimum(jnp.searchsorted(jnp.cumsum(chances), uniform), most - 1)

    def draw_bag(held: jax.Array, *own: jax.Array) -> jax.Array:
        chosen = positives[draw_without_repeats(own[0], own[1], len(positives))]
        others = negatives[draw_without_repeats(own[2], own[3], len(negatives))]
        slot = jnp.arange(bag_size)
        rows = jnp.where(slot < held, chosen[jnp.minimum(slot, most - 1)], others[slot - held])
        return rows[jnp.argsort(own[4])].astype(jnp.int32)

    return jax.vmap(draw_bag)(jnp.where(is_positive, drawn, 0), *of_bags)


def draw_without_repeats(bits: jax.Array, order: jax.Array, pool_size: int) -> jax.Array:
    """`bags.draw_without_repeats` from random bits [count] each for the draws and for their order.

    The remainders of 32 bits are uniform up to pool_size / 2^32.
    """
    tops = pool_size - len(bits) + jnp.arange(len(bits))
    draws = (bits % (tops + 1).astype(jnp.uint32)).astype(jnp.int32)

    def insert(slot: int, chosen: jax.Array) -> jax.Array:
        taken = jnp.any(chosen == draws[slot])
        return chosen.at[slot].set(jnp.where(taken, tops[slot], draws[slot]))

    chosen = jax.lax.fori_loop(0, len(bits), insert, jnp.full(len(bits), -1))
    return chosen[jnp.argsort(order)]


def sample_splits(
    key: jax.Array,
    key_halves: jax.Array,
    data: Dataset,
    *,
    train_bags: int,
    val_bags: int,
    test_bags: int,
    bag_size: int,
    positive_class: int,
    positive_share: float,
) -> Splits:
    """`bags.sample_splits` with the wanted share: validation and test bags have no instance in common.

    Args:
        key: decides the draw of bags.
        key_halves: decides which test instances are for validation; seeds that share it share the compiled draw.
        data: the instances.
        train_bags: bags drawn from the training instances.
        val_bags: bags drawn from one half of the test instances.
        test_bags: bags drawn from the other half.
        bag_size: K.
        positive_class: the class that makes a bag positive.
        positive_share: share of positive bags in each set.

    Raises:
        InputError: as `sample_bags`.
    """
    halves = bags.split_pool(key_halves, len(data.test.label), 0.5)
    pools = ((data.train, np.arange(len(data.train.label))), (data.test, halves[0]), (data.test, halves[1]))
    counts = (train_bags, val_bags, test_bags)
    draws = [
        sample_bags(
            each, pool, among, bag_count=count, bag_size=bag_size, positive_class=positive_class,
            positive_share=positive_share,
        )
        for each, (pool, among), count in zip(jax.random.split(key, 3), pools, counts, strict=True)
    ]  # fmt: skip
    return Splits(*draws)
