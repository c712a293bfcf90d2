"""Bags of instances: the record that all training sees, and the pure functions that make bags.

A bag is a row of indices into a pool, not a copy of its instances. An instance is stored once however many bags hold
it, drawing fresh bags for every member of an ensemble costs only integers, and `vmap` over draws never copies an image.

Axes: N instances in the pool, B bags, K slots per bag, and S members where a draw differs by member.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, Key, Shaped

from mil_jax.datasets import Dataset
from mil_jax.errors import InputError

UNKNOWN = -1  # the instance label of an empty slot, and of an instance whose label nobody knows


@no_type_check
@struct.dataclass
class Bags:
    """B bags of at most K instances each, as views of one pool.

    Attributes:
        pool: [N, ...] every instance once; images as uint8, features as floats.
        rows: [B, K] int32, slot to row of the pool; 0 in an empty slot.
        mask: [B, K] bool, True where a slot holds an instance.
        label: [B] int32, the bag's class.
        instance_label: [B, K] int32; 1 positive, 0 negative, -1 unknown or empty.
    """

    pool: jax.Array
    rows: jax.Array
    mask: jax.Array
    label: jax.Array
    instance_label: jax.Array


def draw_without_repeats(key: Key[Array, ""], pool_size: int, count: int) -> Int[Array, " count"]:
    """Draws `count` of `range(pool_size)` uniformly, without repeats, in uniformly random order.

    Floyd's algorithm (Bentley and Floyd 1987): time and memory grow with `count` alone, where a permutation of
    the pool would cost N for every bag. It draws a uniform set in an order that is not, hence the shuffle.
    """
    key_draw, key_order = jax.random.split(key)
    tops = jnp.arange(pool_size - count, pool_size)
    draws = jax.random.randint(key_draw, (count,), 0, tops + 1)

    def insert(chosen: Array, slot: Array) -> tuple[Array, None]:
        taken = jnp.any(chosen == draws[slot])
        return chosen.at[slot].set(jnp.where(taken, tops[slot], draws[slot])), None

    chosen, _ = lax.scan(insert, jnp.full(count, -1), jnp.arange(count))
    return jax.random.permutation(key_order, chosen).astype(jnp.int32)


def sample_bags(
    key: Key[Array, ""],
    instances: Shaped[np.ndarray | Array, "N ..."],
    classes: Int[np.ndarray | Array, " N"],
    *,
    bag_count: int,
    bag_size: int,
    positive_class: int,
    among: Int[np.ndarray, " M"] | None = None,
) -> Bags:
    """Draws bags of `bag_size` instances; a bag is positive if it holds an instance of `positive_class`.

    Every bag is a uniform draw from the pool without repeats inside the bag, so that a share
    1 - C(N - P, K) / C(N, K) of the bags is positive, where P instances of the pool are (see `positive_rate`).

    Args:
        key: decides the draw, and nothing else does.
        instances: [N, ...] the pool.
        classes: [N] the class of each instance.
        bag_count: B, at least 1.
        bag_size: K, at least 1 and at most N.
        positive_class: the class that makes a bag positive; the pool must hold it.
        among: [M] rows of the pool to draw from; all where not given.

    Raises:
        InputError: a count or size out of range, or a class that the pool does not hold.
    """
    among = np.arange(len(instances)) if among is None else among
    _check_draw(len(instances), np.asarray(classes), among, bag_count, bag_size, positive_class)
    rows = jnp.asarray(among, jnp.int32)[_draw_bags(key, len(among), bag_count, bag_size)]
    instance_label = (jnp.asarray(classes)[rows] == positive_class).astype(jnp.int32)
    return Bags(
        pool=jnp.asarray(instances),
        rows=rows,
        mask=jnp.ones(rows.shape, bool),
        label=instance_label.max(axis=1),
        instance_label=instance_label,
    )


@partial(jax.jit, static_argnums=(1, 2, 3))
def _draw_bags(key: Array, pool_size: int, bag_count: int, bag_size: int) -> Array:
    draw = partial(draw_without_repeats, pool_size=pool_size, count=bag_size)
    return jax.vmap(draw)(jax.random.split(key, bag_count))


def _check_draw(
    pool_size: int,
    classes: np.ndarray,
    among: np.ndarray,
    bag_count: int,
    bag_size: int,
    positive_class: int,
) -> None:
    if len(classes) != pool_size:
        raise InputError("classes", len(classes), f"give one for each of the {pool_size} instances")
    if bag_count < 1:
        raise InputError("bag_count", bag_count, "ask for at least 1 bag")
    if not 1 <= bag_size <= len(among):
        raise InputError("bag_size", bag_size, f"take from 1 to {len(among)}, the size of the pool")
    if positive_class not in classes[among]:
        known = ", ".join(str(c) for c in np.unique(classes[among]))
        raise InputError("positive_class", positive_class, f"the data has the classes {known}")


def positive_rate(pool_size: int, positive_count: int, bag_size: int) -> float:
    """The probability that a bag of `sample_bags` is positive: 1 - C(N - P, K) / C(N, K)."""
    slots = np.arange(bag_size)
    negative = np.maximum(pool_size - positive_count - slots, 0)
    return float(1 - np.prod(negative / (pool_size - slots)))


def split_pool(
    key: Key[Array, ""], pool_size: int, share: float
) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]:
    """Splits `range(pool_size)` into two disjoint random parts, the first with `share` of it.

    Bags drawn from different parts have no instance in common, so that what is chosen on one set of bags
    (the epoch to stop at) is not judged on instances that it was chosen on.

    Raises:
        InputError: `share` leaves one part empty.
    """
    first = round(pool_size * share)
    if not 0 < first < pool_size:
        raise InputError("share", share, f"leave both parts of the {pool_size} instances non-empty")
    order = np.asarray(jax.random.permutation(key, pool_size))
    return np.sort(order[:first]), np.sort(order[first:])


class Splits(NamedTuple):
    """Bags to learn from, bags to choose on, and bags that nothing was chosen on."""

    train: Bags
    val: Bags
    test: Bags


def sample_splits(
    key: Key[Array, ""],
    data: Dataset,
    *,
    train_bags: int = 1000,
    val_bags: int = 300,
    test_bags: int = 1000,
    bag_size: int = 3,
    positive_class: int = 1,
) -> Splits:
    """Draws training bags from the training instances, validation and test bags from halves of the test ones.

    No instance is in both a validation and a test bag, so that the epoch that early stopping chose on the
    validation bags is judged on instances that it was not chosen on.

    Raises:
        InputError: as `sample_bags`; the argument is the one that is wrong here.
    """
    counts = {"train_bags": train_bags, "val_bags": val_bags, "test_bags": test_bags}
    for name, count in counts.items():
        if count < 1:
            raise InputError(name, count, "ask for at least 1 bag")
    key_halves, *keys = jax.random.split(key, 4)
    val_rows, test_rows = split_pool(key_halves, len(data.test.label), 0.5)
    pools = ((data.train, None), (data.test, val_rows), (data.test, test_rows))
    draws = [
        sample_bags(
            key_bags, pool.x, pool.label, bag_count=count, bag_size=bag_size,
            positive_class=positive_class, among=among,
        )
        for key_bags, (pool, among), count in zip(keys, pools, counts.values(), strict=True)
    ]  # fmt: skip
    return Splits(*draws)


def bags_from_arrays(
    bags: Sequence[np.ndarray],
    labels: Sequence[int] | np.ndarray,
    instance_labels: Sequence[np.ndarray] | None = None,
) -> Bags:
    """Makes `Bags` of the reader's own data: one array `[K_i, ...]` per bag, and one label per bag.

    Args:
        bags: B arrays; the bags may differ in length, the instances not in shape or dtype. Arrays of uint8 are
            pixels, which the model sees as 0 … 1; all others are features, kept as float32.
        labels: [B] the class of each bag, 0, 1, …
        instance_labels: B arrays [K_i] of 1, 0 or -1, where they are known.

    Raises:
        InputError: no bags, an empty bag, instances of different shapes, values that are not finite, labels
            that are not whole numbers from 0, or counts that differ.
    """
    arrays = [_bytes_or_floats(i, np.asarray(bag)) for i, bag in enumerate(bags)]
    _check_arrays(arrays, np.asarray(labels))
    sizes = np.array([len(bag) for bag in arrays])
    mask = np.arange(sizes.max()) < sizes[:, None]
    rows = np.zeros(mask.shape, np.int32)
    rows[mask] = np.arange(sizes.sum())
    truth = np.full(mask.shape, UNKNOWN, np.int32)
    if instance_labels is not None:
        truth[mask] = _join_instance_labels(instance_labels, sizes)
    return Bags(
        pool=jnp.asarray(np.concatenate(arrays)),
        rows=jnp.asarray(rows),
        mask=jnp.asarray(mask),
        label=jnp.asarray(labels, jnp.int32),
        instance_label=jnp.asarray(truth),
    )


def _bytes_or_floats(number: int, bag: np.ndarray) -> np.ndarray:
    if bag.dtype.kind not in "biuf":
        raise InputError(f"bags[{number}]", str(bag.dtype), "give numbers")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
        return bag if bag.dtype == np.uint8 else bag.astype(np.float32)


def _check_arrays(arrays: list[np.ndarray], labels: np.ndarray) -> None:
    if not arrays:
        raise InputError("bags", [], "give at least one bag")
    if labels.shape != (len(arrays),):
        raise InputError("labels", labels.shape, f"give one for each of the {len(arrays)} bags")
    whole = np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool
    if not whole or labels.min() < 0:
        raise InputError("labels", labels.tolist()[:5], "use whole numbers from 0")
    for i, bag in enumerate(arrays):
        if bag.ndim < 2 or not len(bag):
            raise InputError(f"bags[{i}]", bag.shape, "give an array [instances, ...] with an instance")
        if bag.shape[1:] != arrays[0].shape[1:]:
            expected = arrays[0].shape[1:]
            raise InputError(f"bags[{i}]", bag.shape, f"use instances of shape {expected}, as bags[0]")
        if bag.dtype != arrays[0].dtype:
            raise InputError(f"bags[{i}]", str(bag.dtype), f"use {arrays[0].dtype}, as bags[0]")
        if not np.isfinite(bag).all():
            raise InputError(f"bags[{i}]", "NaN or infinite", "give finite values")


def _join_instance_labels(instance_labels: Sequence[np.ndarray], sizes: np.ndarray) -> np.ndarray:
    counts = [len(truth) for truth in instance_labels]
    if counts != sizes.tolist():
        raise InputError("instance_labels", counts[:5], f"match the bags' sizes {sizes.tolist()[:5]}")
    joined = np.concatenate([np.asarray(truth) for truth in instance_labels])
    if not np.isin(joined, (-1, 0, 1)).all():
        raise InputError("instance_labels", np.unique(joined).tolist(), "use 1, 0, or -1 for unknown")
    return joined.astype(np.int32)


def gather(pool: Shaped[Array, "N ..."], rows: Int[Array, "*slots"]) -> Float[Array, "..."]:
    """Looks rows of the pool up as float32; integer pixels 0 … 255 become 0 … 1.

    It runs inside the compiled step, so that what stays in memory, and what is copied, is bytes.
    """
    instances = pool[rows]
    if jnp.issubdtype(pool.dtype, jnp.integer):
        return instances.astype(jnp.float32) / 255
    return instances.astype(jnp.float32)


def take(bags: Bags, index: Int[Array | np.ndarray, " M"]) -> Bags:
    """The bags at `index` [M], in that order; the pool stays whole and shared."""
    return dataclasses.replace(
        bags,
        rows=bags.rows[index],
        mask=bags.mask[index],
        label=bags.label[index],
        instance_label=bags.instance_label[index],
    )


def pad(bags: Bags, bag_size: int) -> Bags:
    """The same bags with empty slots at the end, up to `bag_size` slots.

    Raises:
        InputError: `bag_size` is below the bags' present number of slots.
    """
    extra = bag_size - bags.rows.shape[-1]
    if extra < 0:
        raise InputError("bag_size", bag_size, f"use at least {bags.rows.shape[-1]}, the bags' slots")
    widths = [(0, 0)] * (bags.rows.ndim - 1) + [(0, extra)]
    return dataclasses.replace(
        bags,
        rows=jnp.pad(bags.rows, widths),
        mask=jnp.pad(bags.mask, widths),
        instance_label=jnp.pad(bags.instance_label, widths, constant_values=UNKNOWN),
    )
