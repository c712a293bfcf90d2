"""Draws of bags from labelled instances, and of the sets that a model learns from, is chosen on and is judged on.

A bag is a uniform draw of instances; it is positive if it holds one of the positive class. All is a function of a key.

Axes: N instances in the pool, B bags, K slots per bag.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key, Shaped

from mil_jax.bags import UNKNOWN, Bags, Values, View, stack_bags
from mil_jax.datasets import Dataset
from mil_jax.errors import InputError, as_array, check_index, check_number, check_whole, checked


@dataclasses.dataclass(frozen=True)
class BagLaw:
    """The law by which bags are drawn."""

    bag_size: int = 3
    """Instances per bag; their mean number where sizes vary."""
    size_variance: float = 0.0
    """Variance of the sizes by a normal law, rounded, at least 1, as in the paper; 0 for bags of one size."""
    positive_class: int = 1
    """The class that makes a bag positive."""
    positive_share: float | None = None
    """Share of the bags that are positive, up to rounding; as chance has it where not given."""

    def __post_init__(self) -> None:
        check_whole("bag_size", self.bag_size, 1)
        check_number("size_variance", self.size_variance, 0)
        check_whole("positive_class", self.positive_class, 0)
        if self.positive_share is not None:
            check_number("positive_share", self.positive_share, 0, 1, ends="[]")


@dataclasses.dataclass(frozen=True)
class BagsConfig(BagLaw):
    """How many bags are drawn, and by which law; the defaults are the Keras example's."""

    train_bags: int = 1000
    """Bags to learn from, drawn from the training instances."""
    val_bags: int = 300
    """Bags that early stopping looks at, from one half of the test instances."""
    test_bags: int = 1000
    """Bags that nothing is chosen on, from the other half."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_bags", "val_bags", "test_bags"):
            check_whole(name, getattr(self, name), 1)


class Splits(NamedTuple):
    """Bags to learn from, bags to choose on, and bags that nothing was chosen on."""

    train: Bags
    val: Bags
    test: Bags


@checked
def sample_splits(key: Key[Array, ""], data: Dataset, config: BagsConfig = BagsConfig()) -> Splits:
    """Draws training bags from the training instances, validation and test bags from halves of the test ones.

    No instance is in both a validation and a test bag, so that the epoch that early stopping chose on the
    validation bags is judged on instances that it was not chosen on.

    Raises:
        InputError: as `sample_bags`.
    """
    key_halves, *keys = jax.random.split(key, 4)
    return draw_sets(keys, data, config, split_pool(key_halves, len(data.test.label), 0.5))


def sample_splits_of_members(key: Key[Array, ""], data: Dataset, config: BagsConfig, members: int) -> Splits:
    """`sample_splits` with a draw of training bags of its own for each member; the other sets are shared."""
    keys = [jax.random.fold_in(key, member) for member in range(members)]
    train = stack_bags([sample_splits(key, data, config).train for key in keys])
    return sample_splits(key, data, config)._replace(train=train)


def draw_sets(keys: Sequence[Array] | Array, data: Dataset, config: BagsConfig, halves: Sequence[np.ndarray]) -> Splits:
    """The three sets of bags, each by a key of its own; `halves` are the test instances of the last two."""
    pools = ((data.train, None), (data.test, halves[0]), (data.test, halves[1]))
    counts = (config.train_bags, config.val_bags, config.test_bags)
    return Splits(*(
        sample_bags(key, pool.x, pool.label, config, count=count, among=among)
        for key, (pool, among), count in zip(keys, pools, counts, strict=True)
    ))  # fmt: skip


@checked
def split_pool(
    key: Key[Array, ""], pool_size: int, share: float
) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]:
    """Splits `range(pool_size)` into two disjoint random parts, the first with `share` of it.

    Bags drawn from different parts have no instance in common, so that what is chosen on one set of bags
    (the epoch to stop at) is not judged on instances that it was chosen on.

    Raises:
        InputError: `share` leaves one part empty.
    """
    check_whole("pool_size", pool_size, 2)
    check_number("share", share, 0, 1, ends="()")
    first = round(pool_size * share)
    if not 0 < first < pool_size:
        raise InputError("share", share, f"expected a share that leaves neither part of {pool_size} instances empty")
    order = np.asarray(jax.random.permutation(key, pool_size))
    return np.sort(order[:first]), np.sort(order[first:])


@checked
def sample_bags(
    key: Key[Array, ""],
    instances: Shaped[Values, "N ..."],
    classes: Int[Values, " N"],
    law: BagLaw = BagLaw(),
    *,
    count: int,
    among: Int[np.ndarray, " M"] | None = None,
) -> Bags:
    """Draws bags of instances; a bag is positive if it holds an instance of `law.positive_class`.

    Every bag is a uniform draw from the pool without repeats inside the bag, so that a share
    1 - C(N - P, K) / C(N, K) of the bags is positive, where P instances of the pool are. With `law.positive_share`
    the share is fixed, and a positive bag is a uniform draw from all the sets of K instances that
    hold a positive one, a negative bag one from all that do not.

    Args:
        key: decides the draw, and nothing else does.
        instances: [N, ...] the pool.
        classes: [N] the class of each instance.
        law: by which bags are drawn.
        count: B, at least 1.
        among: [M] rows of the pool to draw from, each once; all where not given.

    Raises:
        InputError: a count, size or row out of range, or a class that the pool does not hold.
    """
    check_whole("count", count, 1)
    if not np.ndim(instances):
        raise InputError("instances", np.shape(instances), "expected a pool [N, ...]")
    label = as_array("classes", classes, whole=True)
    chosen = _checked_rows(len(instances), label, among)
    key_rows, sizes = _draw_sizes(key, law, count)
    _check_draw(label[chosen], sizes, law.positive_class)
    mask = np.arange(sizes.max()) < sizes[:, None]
    if law.positive_share is None:
        drawn = _draw_bags(key_rows, len(chosen), count, int(sizes.max()))
    else:
        drawn = _draw_by_label(key_rows, label[chosen] == law.positive_class, sizes, law.positive_share)
    rows = np.where(mask, chosen.astype(np.int32)[drawn], 0)
    truth = (label[rows] == law.positive_class).astype(np.int32)
    instance_label = np.where(mask, truth, UNKNOWN).astype(np.int32)
    return Bags(np.asarray(instances), View(rows, mask, np.maximum(instance_label.max(axis=1), 0), instance_label))


def _checked_rows(pool_size: int, label: np.ndarray, among: np.ndarray | None) -> np.ndarray:
    if label.shape != (pool_size,):
        raise InputError("classes", label.shape, f"expected one for each of the {pool_size} instances")
    chosen = np.arange(pool_size) if among is None else as_array("among", among, whole=True)
    check_index("among", chosen, pool_size, f"expected rows 0 to {pool_size - 1}")
    if len(np.unique(chosen)) < len(chosen):
        raise InputError("among", f"{len(chosen) - len(np.unique(chosen))} repeated rows", "expected each row once")
    return chosen


def _draw_sizes(key: Array, law: BagLaw, count: int) -> tuple[Array, np.ndarray]:
    """What is left of the key, and the sizes [B]."""
    if not law.size_variance:
        return key, np.full(count, law.bag_size, np.int32)
    key_rows, key_sizes = jax.random.split(key)
    sizes = law.bag_size + law.size_variance**0.5 * jax.random.normal(key_sizes, (count,))
    return key_rows, np.maximum(np.rint(np.asarray(sizes)), 1).astype(np.int32)


def _check_draw(label: np.ndarray, sizes: np.ndarray, positive_class: int) -> None:
    if sizes.max() > len(label):
        raise InputError("bag_size", int(sizes.max()), f"expected 1 to {len(label)}, the size of the pool")
    if positive_class not in label:
        known = ", ".join(map(str, np.unique(label)))
        raise InputError("positive_class", positive_class, f"expected one of the classes of the data, {known}")


DRAWN_TOGETHER = 1024  # bags; one program serves any number of bags and any pool


def _draw_bags(key: Array, pool_size: int, bag_count: int, bag_size: int) -> np.ndarray:
    """Rows [B, K] of bags drawn uniformly."""
    padded = bag_count + -bag_count % DRAWN_TOGETHER
    keys = np.asarray(jax.random.key_data(jax.random.split(key, padded))).reshape(-1, DRAWN_TOGETHER, 2)
    parts = [np.asarray(_draw_some(jnp.asarray(some), pool_size, bag_size)) for some in keys]
    return np.concatenate(parts)[:bag_count]


@partial(jax.jit, static_argnums=2)
def _draw_some(key_data: Array, pool_size: Array, bag_size: int) -> Array:
    draw = partial(draw_without_repeats, pool_size=pool_size, count=bag_size)
    return jax.vmap(draw)(jax.random.wrap_key_data(key_data))


def draw_without_repeats(key: Key[Array, ""], pool_size: int | Int[Array, ""], count: int) -> Int[Array, " count"]:
    """Draws `count` of `range(pool_size)` uniformly, without repeats, in uniformly random order.

    Floyd's algorithm (Bentley and Floyd 1987): time and memory grow with `count` alone, where a permutation of
    the pool would cost N for every bag. It draws a uniform set in an order that is not, hence the shuffle.
    """
    key_draw, key_order = jax.random.split(key)
    tops = pool_size - count + jnp.arange(count)
    draws = jax.random.randint(key_draw, (count,), 0, tops + 1)

    def insert(chosen: Array, slot: Array) -> tuple[Array, None]:
        taken = jnp.any(chosen == draws[slot])
        return chosen.at[slot].set(jnp.where(taken, tops[slot], draws[slot])), None

    chosen, _ = lax.scan(insert, jnp.full(count, -1), jnp.arange(count))
    return jax.random.permutation(key_order, chosen).astype(jnp.int32)


# ---- a fixed share of positive bags ----


def _draw_by_label(key: Array, is_positive: np.ndarray, sizes: np.ndarray, positive_share: float) -> np.ndarray:
    """Rows [B, K] of bags of which a share is positive, in random order."""
    key_order, key_rows = jax.random.split(key)
    positives, negatives = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    if sizes.max() > len(negatives):
        raise InputError("bag_size", int(sizes.max()), f"expected 1 to {len(negatives)}, the negative instances")
    first = jnp.arange(len(sizes)) < round(positive_share * len(sizes))
    wanted = jax.random.permutation(key_order, first)
    keys = jax.random.split(key_rows, len(sizes))
    return np.asarray(_draw_labelled_bags(keys, wanted, sizes, positives, negatives, int(sizes.max())))


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
