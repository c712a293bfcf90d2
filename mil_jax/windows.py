"""Windows over a cohort: some of its bags in memory at a time, read from the disk while others are used.

A window is a number of instances in memory, filled with whole bags. All windows have one shape, so that a program is
compiled once. Which bags share one is drawn anew each epoch from a key that all members share.

Axes: S members, B bags of the cohort, P bags of a window, T of these that one member sees, W instances of a window,
K slots.
"""

import dataclasses
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, Shaped

from mil_jax.bags import ABSENT, UNKNOWN, Bags, Scaler, View, scaler_of
from mil_jax.datasets.cohort import Cohort
from mil_jax.errors import InputError, check_whole
from mil_jax.memory import aligned_empty
from mil_jax.record import Values, record, static

# ---- records ----


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """A cohort, to be read some bags at a time.

    Raises:
        InputError: a window without an instance.
    """

    cohort: Cohort
    size: int
    """Instances in memory at a time, W; while they are used, as many are read."""
    key: Key[Array, ""] = dataclasses.field(default_factory=lambda: jax.random.key(0))
    """Decides which bags share a window in which epoch."""

    def __post_init__(self) -> None:
        check_whole("window", self.size, 1)


@record
class Window:
    """Some bags in memory, one after the other in the pool.

    Attributes:
        pool: instances; those behind the last bag are anything.
        start: the first row of each bag.
        count: its number of instances; 0 in a place without a bag.
        label: its class.
        truth: instance labels of the pool; None where nobody knows any.
        number: of the window in its epoch, from 0.
        slots: K.
        widths: as of a `View`.
    """

    pool: Shaped[Values, "W ..."]
    start: Int[Values, " P"]
    count: Int[Values, " P"]
    label: Int[Values, " P"]
    truth: Int[Values, " W"] | None
    number: Int[Values, ""]
    slots: int = static()
    widths: tuple[int, ...] = static()


# ---- which bags share a window ----


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The shapes of all windows, and which bags they hold.

    Attributes:
        windows: where they are read from.
        sizes: instances of each bag of the cohort [B].
        train: the bags that any member trains on, ascending.
        val: those that any is chosen on.
        instances: W.
        places: P.
        slots: K.
        widths: what bags are cut to.
    """

    windows: Windows
    sizes: np.ndarray
    train: np.ndarray
    val: np.ndarray
    instances: int
    places: int
    slots: int
    widths: tuple[int, ...] = ()

    @property
    def used(self) -> np.ndarray:
        """The bags that any member has, ascending."""
        return np.union1d(self.train, self.val)

    def plan(self, epoch: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The bags of each window of an epoch: of training, drawn anew; of validation, always the same."""
        draw = np.random.default_rng([*np.asarray(jax.random.key_data(self.windows.key)).tolist(), epoch])
        return self.cut(draw.permutation(self.train)), self.cut(self.val)

    def cut(self, order: np.ndarray) -> list[np.ndarray]:
        """Bags in a given order, cut into windows as soon as one is full."""
        parts, start, filled = [], 0, 0
        for at, size in enumerate(self.sizes[order].tolist()):
            if filled + size > self.instances or at - start == self.places:
                parts.append(np.sort(order[start:at]))
                start, filled = at, 0
            filled += size
        return [*parts, np.sort(order[start:])]


def lay_out(windows: Windows, train: np.ndarray, val: np.ndarray) -> Layout:
    """The shapes that hold the bags of any draw.

    Raises:
        InputError: a bag that is larger than a window.
    """
    sizes, used = windows.cohort.sizes, np.union1d(train, val)
    of_used = sizes[used]
    if of_used.max() > windows.size:
        name = windows.cohort.bag_names[int(used[of_used.argmax()])]
        raise InputError("window", windows.size, f"expected at least {of_used.max()}, the instances of bag {name!r}")
    total = int(of_used.sum())
    instances = min(windows.size, total)
    # Room for more bags than fit on the average; a window with that many small ones counts as full.
    places = min(len(used), int(np.ceil(1.5 * instances * len(used) / total)))
    return Layout(windows, sizes, train, val, instances, places, int(sizes.max()))


def bags_of(folds_part: np.ndarray) -> np.ndarray:
    """The bags that any member has, ascending."""
    return np.unique(folds_part[folds_part >= 0])


def places_in(layout: Layout, part: np.ndarray, index: np.ndarray) -> Int[np.ndarray, "S T"]:
    """Where in a window of the bags `index` each member's bags `part` [S, T] are; -1 in a place without a bag."""
    place_of = np.full(len(layout.sizes) + 1, ABSENT, np.int32)
    place_of[index] = np.arange(len(index))
    places = place_of[part]  # -1 is the last one, which no window holds
    order = np.argsort(places < 0, axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)[:, : layout.places]


# ---- reading ----


def read_windows(
    layout: Layout, plan: Iterator[tuple[np.ndarray, int]]
) -> Generator[tuple[np.ndarray, Window], None, None]:
    """The bags of each window of the plan and the window, read while the one before it is used.

    A window's memory is filled again when the next but one is asked for: no program may read it by then.

    Args:
        layout: the shapes.
        plan: the bags of each window, and its number in the epoch.

    Raises:
        InputError: a file that cannot be read.
    """
    cohort = layout.windows.cohort
    buffers = [aligned_empty((layout.instances, *cohort.shape), cohort.dtype)]
    buffers[0][:1] = 0  # where empty slots point to
    truth = None if cohort.instance_label is None else np.split(cohort.instance_label, np.cumsum(layout.sizes)[:-1])

    def describe(index: np.ndarray, number: int, buffer: np.ndarray) -> Window:
        room = layout.places - len(index)
        count = np.pad(layout.sizes[index], (0, room)).astype(np.int32)
        start = np.where(count > 0, np.cumsum(count) - count, 0).astype(np.int32)
        label = np.pad(cohort.label[index], (0, room), constant_values=ABSENT)
        known = None
        if truth is not None:
            known = np.full(layout.instances, UNKNOWN, np.int32)
            known[: count.sum()] = np.concatenate([truth[i] for i in index])
        return Window(buffer, start, count, label, known, np.array(number, np.int32),
                      layout.slots, layout.widths)  # fmt: skip

    with ThreadPoolExecutor(1) as reader:
        last, turn, waiting = np.empty(0, int), 0, None
        following = next(plan, None)
        while following is not None:
            index, number = following
            if waiting is not None:
                waiting.result()
            elif not np.array_equal(index, last):
                cohort.fill(index, buffers[turn])
            last, waiting = index, None
            following = next(plan, None)
            here = buffers[turn]
            if following is not None and not np.array_equal(following[0], index):
                if len(buffers) == 1:
                    buffers.append(aligned_empty(here.shape, here.dtype))
                    buffers[1][:1] = 0
                turn = 1 - turn
                waiting = reader.submit(cohort.fill, following[0], buffers[turn])
            yield index, describe(index, number, here)


def bags_in(window: Window, places: Int[Array, " T"]) -> Bags:
    """The bags at some places of a window; at -1, a place without a bag."""
    at, slot = jnp.maximum(places, 0), jnp.arange(window.slots)
    start, count = jnp.asarray(window.start)[at], jnp.where(places < 0, 0, jnp.asarray(window.count)[at])
    mask = slot < count[:, None]
    rows = jnp.where(mask, start[:, None] + slot, 0)
    label = jnp.where(places < 0, ABSENT, jnp.asarray(window.label)[at])
    truth = UNKNOWN if window.truth is None else jnp.asarray(window.truth)[rows]
    view = View(rows, mask, label, jnp.where(mask, truth, UNKNOWN), window.widths, partial=True)
    return Bags(window.pool, view)


# ---- what members see of a cohort ----


def fit_scaler_windows(windows: Windows, train: Int[np.ndarray, "S T"]) -> Scaler:
    """`fit_scaler` of each member's training bags, in one pass over the disk."""
    used = bags_of(train)
    layout = lay_out(windows, used, used)

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index, window in read_windows(layout, ((index, 0) for index in layout.cut(used))):
            counts = np.stack([np.bincount(member[member >= 0], minlength=len(layout.sizes)) for member in train])
            sizes = layout.sizes[index]
            yield np.asarray(window.pool)[: sizes.sum()], np.repeat(counts[:, index], sizes, axis=1)

    return scaler_of(parts())


def stand_in_bags(cohort: Cohort, part: Int[np.ndarray, "S T"]) -> Bags:
    """Bags with the labels, the shapes and the kind of those that members have, and nothing in them."""
    label = np.where(part < 0, ABSENT, cohort.label[np.maximum(part, 0)]).astype(np.int32)
    blank = lambda value: np.broadcast_to(value, (*part.shape, int(cohort.sizes.max())))  # noqa: E731
    view = View(blank(np.int32(0)), blank(np.bool_(False)), label, blank(np.int32(UNKNOWN)))
    return Bags(np.empty((0, *cohort.shape), cohort.dtype), view)
