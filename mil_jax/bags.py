"""Bags of instances: the record that all training sees, and the pure functions that make bags.

A bag is a row of indices into a pool, not a copy of its instances. An instance is stored once however many bags hold
it, drawing fresh bags for every member of an ensemble costs only integers, and `vmap` over draws never copies an image.

Axes: N instances in the pool, B bags, K slots per bag, S members where their views differ.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from mil_jax.datasets.records import UNKNOWN
from mil_jax.errors import InputError, as_array, check_index, check_whole, checked
from mil_jax.memory import is_finite
from mil_jax.record import Values, record, static

ABSENT = -1  # the label of a place for a bag where there is none


@record
class View:
    """Which rows of a pool form which bag; the only part of `Bags` that may have a member axis."""

    rows: Int[Values, "*members B K"]
    """int32, slot to row of the pool; 0 in an empty slot."""
    mask: Bool[Values, "*members B K"]
    """True where a slot holds an instance; the instances of a bag stand before its empty slots."""
    label: Int[Values, "*members B"]
    """int32, the bag's class; -1 where there is no bag but a place for one: members have as many places as one another,
    and not always as many bags to be judged on."""
    instance_label: Int[Values, "*members B K"]
    """int32; 1 positive, 0 negative, -1 unknown or empty."""
    widths: tuple[int, ...] = static(default=())
    """Numbers of slots that bags are cut to, ascending (see `buckets`); they decide time alone."""
    partial: bool = static(default=False)
    """Whether training must look for places without a bag; without, it takes every place for a bag."""


@record
class Bags:
    """B bags of at most K instances each, as views of one pool."""

    pool: Shaped[Values, "N ..."]
    """Every instance once; images as uint8, features as floats."""
    view: View
    """Which of them form which bag; with a leading axis S where each member has bags of its own."""

    rows = property(lambda self: self.view.rows, doc="[*S, B, K] slot to row of the pool.")
    mask = property(lambda self: self.view.mask, doc="[*S, B, K] True where a slot holds an instance.")
    label = property(lambda self: self.view.label, doc="[*S, B] the class of each bag.")
    instance_label = property(lambda self: self.view.instance_label, doc="[*S, B, K] 1, 0, or -1 for unknown.")

    @property
    def by_member(self) -> bool:
        """Whether each member has bags of its own."""
        return self.view.rows.ndim == 3

    @property
    def slots(self) -> int:
        """K."""
        return self.view.rows.shape[-1]

    @property
    def kind(self) -> "InstanceKind":
        """What kind of instances these are."""
        return InstanceKind(tuple(self.pool.shape[1:]), bool(jnp.issubdtype(self.pool.dtype, jnp.integer)))


@dataclasses.dataclass(frozen=True)
class InstanceKind:
    """What a model must know of instances, and what one that was trained on others does not fit."""

    shape: tuple[int, ...]
    """Of one instance."""
    pixels: bool
    """Whether they are whole numbers 0 to 255, which the model sees as 0 to 1."""

    def __str__(self) -> str:
        return f"{'pixels' if self.pixels else 'features'} {list(self.shape)}"


@record
class Scaler:
    """What happens to features before the model sees them: (x - mean) * factor, of x or of x / |x|."""

    mean: Float[Values, "*members F"]
    """Of each feature."""
    factor: Float[Values, "*members F"]
    """1 / standard deviation; 1 where that is 0 in what it was fitted on."""
    unit: Float[Values, "*members"] | None = None
    """1 where each instance is divided by its Euclidean length first, 0 where not; None for a program without."""


# ---- instances ----


def gather(
    pool: Shaped[Values, "N ..."], rows: Int[Values, "*slots"], scaler: Scaler | None = None
) -> Float[Array, "..."]:
    """Looks rows of the pool up as float32; integer pixels 0 … 255 become 0 … 1, features are standardised.

    It runs inside the compiled step, so that what stays in memory, and what is copied, is bytes.
    """
    instances = jnp.asarray(pool)[rows]
    if jnp.issubdtype(pool.dtype, jnp.integer):
        return instances.astype(jnp.float32) / 255
    instances = instances.astype(jnp.float32)
    if scaler is None:
        return instances
    if scaler.unit is not None:
        length = jnp.sqrt(jnp.sum(instances**2, axis=-1, keepdims=True))
        instances = instances / jnp.where(scaler.unit > 0, jnp.where(length > 0, length, 1), 1)
    return (instances - scaler.mean) * scaler.factor


@checked
def fit_scaler(bags: Bags) -> Scaler:
    """Mean and standard deviation of each feature over the instances of the bags, each as often as it is in one.

    A feature that is constant there gets the factor 1: it becomes 0 there, and stays finite elsewhere. For bags with
    a member axis, a scaler for each member.

    Raises:
        InputError: the pool does not hold features [N, F].
    """
    check_bags("bags", bags)
    if bags.pool.ndim != 2 or bags.kind.pixels:
        raise InputError("pool", f"{bags.pool.dtype} {bags.pool.shape}", "expected features [N, F] of floats")
    rows, mask = np.asarray(bags.rows), np.asarray(bags.mask)
    members = zip(rows, mask, strict=True) if bags.by_member else [(rows, mask)]
    counts = np.stack([np.bincount(row[filled], minlength=len(bags.pool)) for row, filled in members])
    scaler = scaler_of([(np.asarray(bags.pool), counts)])
    return scaler if bags.by_member else Scaler(scaler.mean[0], scaler.factor[0])


CHUNK = 1024  # rows that are held as float64 at a time


def scaler_of(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Scaler:
    """The scalers [S, F] of features that come in parts: rows [n, F], of which row i counts counts[s, i] times.

    One pass, in double precision. Rows that do not count change no bit, and so nothing is subtracted first: a mean of
    10^4 standard deviations costs the eighth digit.
    """
    total, first, second = np.zeros(1), np.zeros(1), np.zeros(1)
    for rows, counts in parts:
        total = total + counts.sum(axis=1, keepdims=True)
        for start in range(0, len(rows), CHUNK):
            values = rows[start : start + CHUNK].astype(np.float64)
            weight = counts[:, start : start + CHUNK].astype(np.float64)
            first = first + weight @ values
            second = second + weight @ (values * values)
    total = np.maximum(total, 1)
    mean = first / total
    deviation = np.sqrt(np.maximum(second / total - mean**2, 0))
    constant = deviation <= 1e-7 * np.maximum(np.abs(mean), 1)  # but for rounding
    return Scaler(mean.astype(np.float32), (1 / np.where(constant, 1, deviation)).astype(np.float32))


# ---- other views of the same pool ----


@checked
def take(bags: Bags, index: Int[Values, " M"] | Sequence[int]) -> Bags:
    """The bags at `index` [M], in that order; an index beyond 0 to B - 1 is an InputError. The pool stays shared."""
    at = as_array("index", index, whole=True)
    if bags.by_member:
        raise InputError("bags", bags.rows.shape, "expected bags that all members share")
    check_index("index", at, len(bags.label))
    return Bags(bags.pool, jax.tree.map(lambda leaf: np.asarray(leaf)[at], bags.view))


@checked
def pad(bags: Bags, bag_size: int) -> Bags:
    """The same bags with empty slots up to `bag_size` slots; an InputError if they have more already."""
    check_whole("bag_size", bag_size, bags.slots)
    widths = [(0, 0)] * (bags.rows.ndim - 1) + [(0, bag_size - bags.slots)]
    view = dataclasses.replace(
        bags.view,
        rows=np.pad(bags.rows, widths),
        mask=np.pad(bags.mask, widths),
        instance_label=np.pad(bags.instance_label, widths, constant_values=UNKNOWN),
    )
    return Bags(bags.pool, view)


@checked
def stack_bags(draws: Sequence[Bags]) -> Bags:
    """Bags that differ by member: draws of one pool and shape become `Bags` with an axis S; else an InputError."""
    if not draws or not all(isinstance(draw, Bags) for draw in draws):
        raise InputError("draws", str(draws)[:80], "expected the bags of at least one member")
    if len({draw.rows.shape for draw in draws}) != 1:
        shapes = sorted({draw.rows.shape for draw in draws})
        raise InputError("draws", shapes, "expected as many bags and slots for every member: pad them")
    pool = draws[0].pool
    if any(draw.pool is not pool and not np.array_equal(draw.pool, pool) for draw in draws):
        raise InputError("draws", f"{len(draws)} draws", "expected draws from one pool")
    return Bags(pool, jax.tree.map(lambda *leaves: np.stack(leaves), *(draw.view for draw in draws)))


def of_member(bags: Bags, member: int) -> Bags:
    """The bags of one member; bags that all share are everyone's."""
    if not bags.by_member:
        return bags
    return Bags(bags.pool, jax.tree.map(lambda leaf: leaf[member], bags.view))


def mark_absent(bags: Bags) -> Bags:
    """The same bags, which say whether there are places without a bag."""
    return Bags(bags.pool, dataclasses.replace(bags.view, partial=bool((np.asarray(bags.label) < 0).any())))


def check_bags(argument: str, bags: Bags) -> None:
    """Refuses, by an InputError, what would go wrong in silence, as rows that the pool has not or values not finite."""
    rows, mask = np.asarray(bags.rows), np.asarray(bags.mask)
    if (mask[..., 1:] & ~mask[..., :-1]).any():
        got = "an instance behind an empty slot"
        raise InputError(f"{argument}.mask", got, "expected the instances of a bag first")
    expected = f"expected rows of the pool, 0 to {len(bags.pool) - 1}"
    check_index(f"{argument}.rows", rows[mask], len(bags.pool), expected)
    if not bags.kind.pixels and not is_finite(np.asarray(bags.pool)):
        raise InputError(f"{argument}.pool", "NaN or infinite", "expected finite values")
    if not np.size(bags.label):
        raise InputError(argument, "no bag", "expected at least one bag")
