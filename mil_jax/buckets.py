"""Widths: which numbers of slots bags are cut to, so that few slots are empty and few programs are compiled.

A view carries its widths. Code that maps over bags hands its function to `at_width` or `map_bags`, which cut the view
to the least width that holds its largest bag; the function never hears of it, and its numbers do not depend on it.

Axes: B bags, M bags of a batch, K slots.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from mil_jax.bags import Bags, View
from mil_jax.errors import InputError, checked

# Bags and slots evaluated at a time: memory stays bounded however many there are.
EVALUATION_BAGS, EVALUATION_SLOTS = 512, 2048
LARGE = 256


@checked
def sizes_of(bags: Bags) -> Int[np.ndarray, "*members B"]:
    """The number of instances of each bag."""
    return np.asarray(bags.mask).sum(axis=-1)


def bucket_widths(sizes: Int[np.ndarray, "..."], *, empty: float | None = None, most: int = 8) -> tuple[int, ...]:
    """The fewest widths, ascending, up to `most`, to which bags can be cut so that at most `empty` of the slots is.

    A bag is cut to the least width that holds it; compilation happens once for each. Widths are sizes of bags, and
    those that leave the fewest slots empty of all sets of as many. Where nothing else is asked for, a quarter of the
    slots may be empty, and 15 % where bags have `LARGE` instances on the average: there, slots cost more than
    compilation.
    """
    if empty is None:
        empty = 0.25 if np.mean(sizes) < LARGE else 0.15
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


@checked
def with_widths(bags: Bags, widths: tuple[int, ...]) -> Bags:
    """The same bags, to be cut to those widths that cut anything; an InputError unless they are whole and ascend."""
    if list(widths) != sorted(set(widths)) or not all(isinstance(w, int | np.integer) and w > 0 for w in widths):
        raise InputError("widths", widths, "expected whole numbers from 1, ascending")
    below = tuple(int(width) for width in widths if width < bags.slots)
    return Bags(bags.pool, dataclasses.replace(bags.view, widths=below))


def crop(view: View, width: int) -> View:
    """The view without the slots from `width` on."""
    cut = {name: getattr(view, name)[..., :width] for name in ("rows", "mask", "instance_label")}
    return dataclasses.replace(view, **cut, widths=())


def at_width(function: Callable[..., Any], view: View, *args: Any) -> Any:
    """`function(view, *args)`, the view cut to the least of its widths that holds its largest bag.

    Each width is compiled once; the function's results must not depend on it in shape.
    """
    if not view.widths:
        return function(view, *args)
    branches = [
        lambda view, *args, width=width: function(crop(view, width), *args)
        for width in (*view.widths, view.rows.shape[-1])
    ]
    largest = jnp.sum(view.mask, axis=-1).max()
    return lax.switch(jnp.sum(largest > jnp.array(view.widths)), branches, view, *args)


def map_bags(function: Callable[[View], Any], bags: Bags) -> Any:
    """`function` of the view of each bag, some bags at a time, those of like sizes together and cut to their largest.

    Its results, which come back with an axis B, must not depend on the number of slots in shape.
    """
    view, count = bags.view, bags.view.label.shape[0]
    chunk = max(1, min(EVALUATION_BAGS, EVALUATION_SLOTS // bags.slots))
    if not view.widths:
        return lax.map(function, view, batch_size=chunk)
    chunk = max(1, min(chunk, count // (4 * (len(view.widths) + 1))))  # few bags, so that most chunks are narrow
    order = jnp.argsort(view.mask.sum(axis=-1))  # so that the bags of a chunk are of like sizes
    padded = jnp.pad(order, (0, -count % chunk), mode="edge").reshape(-1, chunk)

    def of_chunk(index: Array) -> Any:
        return at_width(jax.vmap(function), jax.tree.map(lambda leaf: leaf[index], view))

    results = lax.map(of_chunk, padded)
    place = jnp.argsort(order)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[place], results)
