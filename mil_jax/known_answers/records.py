"""Bags whose answer is known, and how counts of instances of each kind become bags in a random order.

Host side, NumPy. What is drawn is a function of a key: the same key, the same bags.

Axes: N instances in the pool, B bags, K slots per bag, C classes, Q kinds of instances, S members.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Int, Key, Shaped

from mil_jax.bags import UNKNOWN, Bags, Values, View
from mil_jax.errors import InputError
from mil_jax.record import record, static


@record
class KnownBags:
    """Bags drawn by a law that is known, with what each of their instances says."""

    bags: Bags
    """The instance labels are 1 where an instance speaks against class 0 in a bag that is not of class 0."""
    kind: Int[Values, "*members B K"]
    """What each instance is, an index of `kinds`; -1 in an empty slot."""
    evidence: Int[Values, "*members B K C"]
    """What each instance says of each class: 1 for it, -1 against it, 0 nothing; 0 in an empty slot."""
    kinds: tuple[str, ...] = static()
    """A name for each kind of instance."""

    @property
    def sign(self) -> Int[Values, "*members B K"]:
        """The evidence against class 0, which `Prediction.scores` are to find: 1, 0 or -1."""
        return -self.evidence[..., 0]


def generator(key: Key[Array, ""]) -> np.random.Generator:
    """NumPy's generator, as a function of a key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def paired_labels(draw: np.random.Generator, count: int) -> Int[np.ndarray, " B"]:
    """Labels 0 and 1 of which each two hold one of each, so that the first 2 n bags are balanced for every n."""
    first = draw.integers(0, 2, -(-count // 2))
    return np.stack([first, 1 - first], axis=1).reshape(-1)[:count]


def shuffled_kinds(draw: np.random.Generator, counts: Int[np.ndarray, "B Q"]) -> Int[np.ndarray, "B K"]:
    """The kind of the instance in each slot: counts[b, q] of kind q, in uniformly random order; -1 behind the last.

    In the order in which a law lists its kinds, a model that looks at places would read the label off them.
    """
    ends, sizes = counts.cumsum(axis=1), counts.sum(axis=1)
    slot = np.arange(sizes.max())
    kind = (slot[:, None] >= ends[:, None, :]).sum(axis=-1)
    filled = slot < sizes[:, None]
    order = np.argsort(draw.uniform(size=kind.shape) + ~filled, axis=1)
    return np.where(filled, np.take_along_axis(kind, order, axis=1), -1)


def make_known(
    pool: Shaped[np.ndarray, "N ..."],
    rows: Int[np.ndarray, "*members B K"],
    label: Int[np.ndarray, "*members B"],
    kind: Int[np.ndarray, "*members B K"],
    evidence: Int[np.ndarray, "*members B K C"],
    kinds: tuple[str, ...],
) -> KnownBags:
    """Bags with their truth; slots of kind -1 are empty."""
    mask = kind >= 0
    evidence = np.where(mask[..., None], evidence, 0).astype(np.int8)
    truth = (evidence[..., 0] < 0) & (label > 0)[..., None]
    instance_label = np.where(mask, truth, UNKNOWN).astype(np.int32)
    rows, label = np.where(mask, rows, 0).astype(np.int32), label.astype(np.int32)
    return KnownBags(Bags(pool, View(rows, mask, label, instance_label)), kind.astype(np.int8), evidence, kinds)


def join(parts: Sequence[KnownBags]) -> KnownBags:
    """Draws as the bags of members, [S, B, K]: each part is one member's, or has members of its own.

    Pools that differ stand one behind the other, and bags get as many slots as the widest ones have.

    Raises:
        InputError: no part, or parts with other numbers of bags or classes, or other instances.
    """
    if len({(part.bags.label.shape[-1], part.evidence.shape[-1], part.bags.kind) for part in parts}) != 1:
        given = [f"{part.evidence.shape} of {part.bags.kind}" for part in parts]
        expected = "expected one or more, with as many bags and classes and the same kind of instances in each"
        raise InputError("parts", given[:5], expected)
    slots = max(part.bags.slots for part in parts)
    pools, starts = _stacked_pools([np.asarray(part.bags.pool) for part in parts])

    def members(part: KnownBags, start: int) -> tuple[np.ndarray, ...]:
        empty = slots - part.bags.slots
        leaves = (part.bags.rows + start, part.bags.label, part.kind, part.evidence)
        blanks = (0, None, -1, 0)
        widths = ([(0, empty)], [], [(0, empty)], [(0, empty), (0, 0)])
        padded = []
        for leaf, blank, width in zip(leaves, blanks, widths, strict=True):
            values = np.asarray(leaf)
            values = values if part.bags.by_member else values[None]
            if blank is not None:
                values = np.pad(values, [(0, 0)] * (values.ndim - len(width)) + width, constant_values=blank)
            padded.append(values)
        return tuple(padded)

    columns = zip(*(members(part, start) for part, start in zip(parts, starts, strict=True)), strict=True)
    rows, label, kind, evidence = (np.concatenate(column) for column in columns)
    return make_known(pools, rows, label, kind, evidence, parts[0].kinds)


def _stacked_pools(pools: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """All pools behind one another, each once, and where each given one begins."""
    single = list({id(pool): pool for pool in pools}.values())
    starts = np.cumsum([0, *(len(pool) for pool in single)])
    start_of = {id(pool): int(start) for pool, start in zip(single, starts, strict=False)}
    return single[0] if len(single) == 1 else np.concatenate(single), [start_of[id(pool)] for pool in pools]
