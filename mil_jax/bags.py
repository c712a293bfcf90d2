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

from mil_jax.datasets import BagSet, Dataset
from mil_jax.errors import InputError

UNKNOWN = -1  # the instance label of an empty slot, and of an instance whose label nobody knows
ABSENT = -1  # the label of a place for a bag where there is none


@no_type_check
@struct.dataclass
class Bags:
    """B bags of at most K instances each, as views of one pool.

    Attributes:
        pool: [N, ...] every instance once; images as uint8, features as floats.
        rows: [B, K] int32, slot to row of the pool; 0 in an empty slot.
        mask: [B, K] bool, True where a slot holds an instance.
        label: [B] int32, the bag's class; -1 where there is no bag but a place for one: members have as many places as
            one another, and not always as many bags to be judged on.
        instance_label: [B, K] int32; 1 positive, 0 negative, -1 unknown or empty.
        scaler: how features are standardised when they are looked up; None for as they are.
    """

    pool: jax.Array
    rows: jax.Array
    mask: jax.Array
    label: jax.Array
    instance_label: jax.Array
    scaler: "Scaler | None" = None


@no_type_check
@struct.dataclass
class Scaler:
    """Standardisation of features: (x - mean) * factor.

    Attributes:
        mean: [F].
        factor: [F] 1 / standard deviation; 1 where that is 0 in what it was fitted on.
    """

    mean: jax.Array
    factor: jax.Array


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


@dataclasses.dataclass(frozen=True)
class NormalSize:
    """Sizes of bags by a normal law, rounded, at least 1; as the paper has them (Ilse et al. 2018).

    Raises:
        InputError: a mean below 1, or a negative variance.
    """

    mean: float | int
    """In instances."""
    variance: float | int
    """In instances squared."""

    def __post_init__(self) -> None:
        if not 1 <= self.mean < float("inf"):
            raise InputError("mean", self.mean, "use 1 or more instances")
        if not 0 <= self.variance < float("inf"):
            raise InputError("variance", self.variance, "use 0 or more")

    def draw(self, key: Key[Array, ""], bag_count: int) -> Int[np.ndarray, " B"]:
        """Draws the sizes [B] of `bag_count` bags."""
        sizes = self.mean + self.variance**0.5 * jax.random.normal(key, (bag_count,))
        return np.maximum(np.rint(np.asarray(sizes)), 1).astype(np.int32)


def sample_bags(
    key: Key[Array, ""],
    instances: Shaped[np.ndarray | Array, "N ..."],
    classes: Int[np.ndarray | Array, " N"],
    *,
    bag_count: int,
    bag_size: int | NormalSize,
    positive_class: int,
    positive_share: float | None = None,
    among: Int[np.ndarray, " M"] | None = None,
) -> Bags:
    """Draws bags of instances; a bag is positive if it holds an instance of `positive_class`.

    Every bag is a uniform draw from the pool without repeats inside the bag, so that a share
    1 - C(N - P, K) / C(N, K) of the bags is positive, where P instances of the pool are (see `positive_rate`). With
    `positive_share` the share is fixed, and a positive bag is a uniform draw from all the sets of K instances that
    hold a positive one, a negative bag one from all that do not.

    Args:
        key: decides the draw, and nothing else does.
        instances: [N, ...] the pool.
        classes: [N] the class of each instance.
        bag_count: B, at least 1.
        bag_size: K, at least 1 and at most N; or the law of the bags' sizes, and K is the largest one drawn.
        positive_class: the class that makes a bag positive; the pool must hold it.
        positive_share: share of the bags that are positive, up to rounding; as chance has it where not given.
        among: [M] rows of the pool to draw from; all where not given.

    Raises:
        InputError: a count, size or share out of range, or a class that the pool does not hold.
    """
    among = np.arange(len(instances)) if among is None else among
    if bag_count < 1:
        raise InputError("bag_count", bag_count, "ask for at least 1 bag")
    if isinstance(bag_size, NormalSize):
        key_rows, key_sizes = jax.random.split(key)
        sizes = bag_size.draw(key_sizes, bag_count)
    else:
        key_rows, sizes = key, np.full(bag_count, bag_size, np.int32)
    _check_draw(len(instances), np.asarray(classes), among, sizes, positive_class)
    mask = np.arange(sizes.max()) < sizes[:, None]
    if positive_share is None:
        drawn = _draw_bags(key_rows, len(among), bag_count, int(sizes.max()))
    else:
        is_positive = np.asarray(classes)[among] == positive_class
        drawn = _draw_by_label(key_rows, is_positive, sizes, positive_share)
    rows = jnp.where(mask, jnp.asarray(among, jnp.int32)[drawn], 0)
    truth = (jnp.asarray(classes)[rows] == positive_class).astype(jnp.int32)
    instance_label = jnp.where(mask, truth, UNKNOWN)
    return Bags(
        pool=jnp.asarray(instances),
        rows=rows,
        mask=jnp.asarray(mask),
        label=jnp.maximum(instance_label.max(axis=1), 0),
        instance_label=instance_label,
    )


@partial(jax.jit, static_argnums=(1, 2, 3))
def _draw_bags(key: Array, pool_size: int, bag_count: int, bag_size: int) -> Array:
    draw = partial(draw_without_repeats, pool_size=pool_size, count=bag_size)
    return jax.vmap(draw)(jax.random.split(key, bag_count))


def _draw_by_label(key: Array, is_positive: np.ndarray, sizes: np.ndarray, positive_share: float) -> Array:
    """Rows [B, K] of bags of which a share is positive, in random order."""
    if not 0 <= positive_share <= 1:
        raise InputError("positive_share", positive_share, "use 0 to 1")
    key_order, key_rows = jax.random.split(key)
    negatives = np.flatnonzero(~is_positive)
    if sizes.max() > len(negatives):
        raise InputError("bag_size", int(sizes.max()), f"there are {len(negatives)} negative instances to draw from")
    first = jnp.arange(len(sizes)) < round(positive_share * len(sizes))
    wanted = jax.random.permutation(key_order, first)
    keys = jax.random.split(key_rows, len(sizes))
    positives = np.flatnonzero(is_positive)
    return _draw_labelled_bags(keys, wanted, sizes, positives, negatives, int(sizes.max()))


@partial(jax.jit, static_argnums=5)
def _draw_labelled_bags(
    keys: Array, wanted: Array, sizes: Array, positives: Array, negatives: Array, slots: int
) -> Array:
    draw = jax.vmap(partial(_draw_labelled, slots=slots), in_axes=(0, 0, 0, None, None))
    return draw(keys, wanted, sizes, positives, negatives)


def _draw_labelled(key: Array, wanted: Array, size: Array, positives: Array, negatives: Array, *, slots: int) -> Array:
    """One bag [K] of `size` instances with at least one positive, or with none."""
    key_count, key_positive, key_negative, key_order = jax.random.split(key, 4)
    count = jnp.where(wanted, _draw_positive_count(key_count, size, len(positives), len(negatives), slots), 0)
    most = min(slots, len(positives))
    chosen = jnp.pad(positives[draw_without_repeats(key_positive, len(positives), most)], (0, slots - most))
    others = negatives[draw_without_repeats(key_negative, len(negatives), slots)]
    slot = jnp.arange(slots)
    order = jnp.argsort(jax.random.uniform(key_order, (slots,)) + (slot >= size))  # empty slots stay behind
    return jnp.where(slot < count, chosen, others)[order]


def _draw_positive_count(key: Array, size: Array, positives: int, negatives: int, slots: int) -> Array:
    """How many of a bag's instances are positive, at least 1: the hypergeometric law without its 0."""
    j = jnp.arange(1, slots + 1, dtype=jnp.float32)
    # Ratios of successive probabilities, for the binomials themselves would lose all digits.
    ratio = (positives - j + 1) * (size - j + 1) / (j * (negatives - size + j))
    possible = (j <= size) & (j <= positives)
    logit = jnp.cumsum(jnp.log(jnp.where(possible, ratio, 1)))
    return 1 + jax.random.categorical(key, jnp.where(possible, logit, -jnp.inf))


def _check_draw(pool_size: int, classes: np.ndarray, among: np.ndarray, sizes: np.ndarray, positive_class: int) -> None:
    if len(classes) != pool_size:
        raise InputError("classes", len(classes), f"give one for each of the {pool_size} instances")
    if not 1 <= sizes.min() <= sizes.max() <= len(among):
        worst = sizes.min() if sizes.min() < 1 else sizes.max()
        raise InputError("bag_size", int(worst), f"take from 1 to {len(among)}, the size of the pool")
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
    bag_size: int | NormalSize = 3,
    positive_class: int = 1,
    positive_share: float | None = None,
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
            positive_class=positive_class, positive_share=positive_share, among=among,
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
    truth = None if instance_labels is None else _join_instance_labels(instance_labels, sizes)
    return _bag_by_bag(np.concatenate(arrays), sizes, np.asarray(labels), truth)


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


def bags_from_set(data: BagSet) -> Bags:
    """The bags of a data set whose instances stand bag by bag."""
    return _bag_by_bag(data.x, np.asarray(data.sizes), data.label, data.instance_label)


def _bag_by_bag(pool: np.ndarray, sizes: np.ndarray, label: np.ndarray, truth: np.ndarray | None) -> Bags:
    """Bags of the given sizes [B] whose instances [N, ...], with their labels [N], stand one bag after the other."""
    mask = np.arange(sizes.max()) < sizes[:, None]
    rows, instance_label = np.zeros(mask.shape, np.int32), np.full(mask.shape, UNKNOWN, np.int32)
    rows[mask] = np.arange(sizes.sum())
    if truth is not None:
        instance_label[mask] = truth
    return Bags(
        pool=jnp.asarray(pool),
        rows=jnp.asarray(rows),
        mask=jnp.asarray(mask),
        label=jnp.asarray(label, jnp.int32),
        instance_label=jnp.asarray(instance_label),
    )


def gather(
    pool: Shaped[Array, "N ..."], rows: Int[Array, "*slots"], scaler: Scaler | None = None
) -> Float[Array, "..."]:
    """Looks rows of the pool up as float32; integer pixels 0 … 255 become 0 … 1, features are standardised.

    It runs inside the compiled step, so that what stays in memory, and what is copied, is bytes.
    """
    instances = pool[rows]
    if jnp.issubdtype(pool.dtype, jnp.integer):
        return instances.astype(jnp.float32) / 255
    instances = instances.astype(jnp.float32)
    return instances if scaler is None else (instances - scaler.mean) * scaler.factor


def fit_scaler(bags: Bags) -> Scaler:
    """Mean and standard deviation of each feature over the instances of the bags, each as often as it is in one.

    A feature that is constant there gets the factor 1: it becomes 0 there, and stays finite elsewhere. For bags with
    a leading member axis, a scaler for each member.

    Raises:
        InputError: the pool does not hold features [N, F].
    """
    if bags.pool.ndim != 2 or jnp.issubdtype(bags.pool.dtype, jnp.integer):
        raise InputError("pool", f"{bags.pool.dtype} {bags.pool.shape}", "standardise features [N, F] of floats")
    pool, rows, mask = np.asarray(bags.pool, np.float64), np.asarray(bags.rows), np.asarray(bags.mask)
    if rows.ndim == 2:
        return Scaler(*_moments(pool, rows[mask]))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(
        Scaler(*_moments(pool, own[held])) for own, held in zip(rows, mask, strict=True)
    ))  # fmt: skip


def _moments(pool: np.ndarray, rows: np.ndarray) -> tuple[Array, Array]:
    mean, deviation = pool[rows].mean(axis=0), pool[rows].std(axis=0)
    constant = deviation <= 1e-7 * np.maximum(np.abs(mean), 1)  # but for rounding
    return jnp.asarray(mean, jnp.float32), jnp.asarray(1 / np.where(constant, 1, deviation), jnp.float32)


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


# ---- sizes ----


def sizes_of(bags: Bags) -> Int[np.ndarray, "*members B"]:
    """The number of instances of each bag.

    Raises:
        InputError: an instance behind an empty slot.
    """
    mask = np.asarray(bags.mask)
    if (mask[..., 1:] & ~mask[..., :-1]).any():
        raise InputError("mask", "an instance behind an empty slot", "fill the slots of a bag from the first one")
    return mask.sum(axis=-1)


def bucket_widths(sizes: Int[np.ndarray, "..."], *, empty: float = 0.25, most: int = 8) -> tuple[int, ...]:
    """The fewest widths, ascending, to which bags can be cut so that few slots are empty.

    A bag is cut to the least width that holds it; compilation happens once for each. Widths are sizes of bags, and
    those that leave the fewest slots empty of all sets of as many.

    Args:
        sizes: of all bags.
        empty: share of empty slots that is good enough.
        most: widths at most; for them, what is left empty is accepted.
    """
    values, counts = np.unique(np.maximum(sizes, 1), return_counts=True)
    total, cumulated = int(values @ counts), np.concatenate([[0], np.cumsum(counts)])
    # cost[j] of the bags of the j smallest sizes in k widths: the last width holds those from i on.
    span = np.where(
        np.arange(len(values) + 1)[:, None] < np.arange(len(values) + 1),
        (cumulated - cumulated[:, None]) * np.concatenate([[0], values]), np.iinfo(np.int64).max // 4,
    )  # fmt: skip
    cost, back = span[0].copy(), []
    while cost[-1] > total / (1 - empty) and len(back) + 1 < min(most, len(values)):
        choices = cost[:, None] + span
        choices[0] = span[0]
        back.append(choices.argmin(axis=0))
        cost = choices.min(axis=0)
    widths, j = [], len(values)
    for before in [*reversed(back), np.zeros(len(values) + 1, int)]:
        if j:
            widths.append(int(values[j - 1]))
        j = before[j]
    return tuple(reversed(widths))


def empty_share(sizes: Int[np.ndarray, "..."], widths: tuple[int, ...]) -> float:
    """The share of slots that stay empty when every bag is cut to the least of the widths that holds it."""
    cut = np.array(widths)[np.searchsorted(widths, np.maximum(sizes, 1))]
    return float(1 - sizes.sum() / cut.sum())
