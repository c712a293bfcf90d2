"""Bags that do not fit into memory: they are read in windows, and one pass over the disk trains all members.

A window is a number of instances in memory, filled with whole bags. Which bags share one is drawn anew each epoch from
a key that all members share; in which order a member visits those that are its own, its own key decides. All windows
have one shape, so that each program is compiled once. While the members train on one, the next is read. Bags that fit
into one window are read once, and give the bits of `fit_ensemble`.

Axes: S members, B bags of the cohort, P bags of a window, T of these that one member sees, W instances of a window,
K slots.
"""

import dataclasses
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from mil_jax.bags import ABSENT, UNKNOWN, Bags, Scaler, View, mark_absent, scaler_of
from mil_jax.buckets import bucket_widths
from mil_jax.datasets.cohort import Cohort
from mil_jax.ensemble import Ensemble, Execution, Progress, check_hyper, collect, fit_ensemble
from mil_jax.epochs import WIDE_VECTORS, advance_in_turn, choose_slots, init_members, restart
from mil_jax.errors import InputError, check_whole, checked
from mil_jax.members import Members, check_members
from mil_jax.memory import aligned_empty, is_finite
from mil_jax.model import MIL, Prediction, joins, param_shapes
from mil_jax.optimizer import Hyper, HyperConfig, by_member, make_hyper
from mil_jax.placement import (
    Placement,
    default_placement,
    map_members,
    on_members,
    put_members,
    put_shared,
    to_host,
)
from mil_jax.protocols import Folds, own_bags
from mil_jax.record import Values, record, static
from mil_jax.states import EpochInfo, FitConfig, FitState, MemberKeys, StepInfo, ValidationSums
from mil_jax.training import (
    blank_info,
    close_epoch,
    epoch_key,
    has_stopped,
    predict_member,
    train_sums,
    validation_of,
    validation_sums,
)

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


@record
class EpochSums:
    """What a member adds up over the windows of an epoch.

    Attributes:
        train: loss, and bags classified right, of its training steps.
        count: bags it trained on.
        val: of its validation bags.
    """

    train: StepInfo
    count: Int[Values, "*members"]
    val: ValidationSums


@dataclasses.dataclass(frozen=True)
class WindowProgress(Progress):
    """Where a run of `fit_windows` stood after a window, so that another can go on from there.

    Attributes:
        window: windows of the epoch that are done: those of training, then those of validation.
        sums: of the epoch so far.
    """

    window: int = 0
    sums: EpochSums | None = None


@dataclasses.dataclass(frozen=True)
class WindowExecution(Execution):
    """As `Execution`; `progress` may be that of a window.

    Attributes:
        on_window: called after every window but the last of an epoch; the next one consumes the state and the sums.
    """

    on_window: Callable[[WindowProgress], None] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class CohortPrediction:
    """What members say of all bags of a cohort, each bag at its own length.

    Attributes:
        probability: of each class.
        attention: for each bag, the weights [S, K] of its instances.
        scores: likewise, what the classifier says of each instance alone.
    """

    probability: Float[np.ndarray, "S B C"]
    attention: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]

    def padded(self, index: Int[np.ndarray, " M"]) -> Prediction:
        """The prediction of some bags as `predict` gives it, padded to the largest of them."""
        most = max(self.attention[i].shape[1] for i in index)
        pad = lambda values: np.pad(values, ((0, 0), (0, most - values.shape[1])))  # noqa: E731
        attention, scores = (
            np.stack([pad(values[i]) for i in index], axis=1) for values in (self.attention, self.scores)
        )
        return Prediction(self.probability[:, index], attention, scores)


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
    for buffer in buffers:
        buffer[:1] = 0  # where empty slots point to
    truth = None if cohort.instance_label is None else np.split(cohort.instance_label, np.cumsum(layout.sizes)[:-1])

    def fill_buffer(index: np.ndarray, buffer: np.ndarray) -> None:
        start = 0
        for i in index:
            values, _ = cohort.bags[i].read()
            buffer[start : start + len(values)] = values
            start += len(values)

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
                fill_buffer(index, buffers[turn])
            last, waiting = index, None
            following = next(plan, None)
            here = buffers[turn]
            if following is not None and not np.array_equal(following[0], index):
                if len(buffers) == 1:
                    buffers.append(aligned_empty(here.shape, here.dtype))
                    buffers[1][:1] = 0
                turn = 1 - turn
                waiting = reader.submit(fill_buffer, following[0], buffers[turn])
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


# ---- hyperparameters ----


@checked
def window_hyper(
    windows: Windows, folds: Folds, config: HyperConfig = HyperConfig(), model: MIL | None = None
) -> Hyper:
    """`make_hyper` for members that train on these folds of a cohort; standardising takes a pass over the disk."""
    stand_in = stand_in_bags(windows.cohort, folds.train)
    given = () if model is None else (model.target,)
    hyper = make_hyper(stand_in, dataclasses.replace(config, standardize=False), *given)
    scaler = fit_scaler_windows(windows, folds.train) if config.standardize else None
    return dataclasses.replace(hyper, scaler=scaler)


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


# ---- one window of all members ----


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=7, compiler_options=WIDE_VECTORS)
def run_window(
    member: Callable[..., Any], model: MIL, config: FitConfig, placement: Placement,
    slots: Any, window: Window, own: Any, carry: tuple[FitState, EpochSums],
) -> tuple[FitState, EpochSums]:  # fmt: skip
    """`member` of the members in `slots` that have not stopped; the others stay as they are (see `run_epoch`)."""

    def on_device(window: Window, of_device: Any) -> tuple[FitState, EpochSums]:
        slots, own, carry = of_device

        def one(given: Any) -> tuple[Any, tuple[()]]:
            (hyper, places), member_carry = given
            return member(model, config, hyper, window, places, *member_carry), ()

        if placement.together == 1:
            running = jnp.sum(~has_stopped(carry[0], config))
            return advance_in_turn(one, own, (carry, ()), slots, running)[0]
        chosen = jax.tree.map(lambda leaf: leaf[slots], (own, carry))

        def unless_stopped(given: Any) -> Any:
            stopped = has_stopped(given[1][0], config)
            return jax.lax.cond(stopped, lambda given: given[1], lambda given: one(given)[0], given)

        advanced = map_members(unless_stopped, chosen, placement.together)
        return jax.tree.map(lambda old, new: old.at[slots].set(new), carry, advanced)

    return on_members(on_device, placement)(window, (slots, own, carry))


def train_window(
    model: MIL, config: FitConfig, hyper: Hyper, window: Window, places: Array, state: FitState, sums: EpochSums
) -> tuple[FitState, EpochSums]:
    """A member visits its bags of a window."""
    key = jax.random.fold_in(epoch_key(state), jnp.asarray(window.number))
    trained, taken, count = train_sums(model, config, hyper, bags_in(window, places), state.train, key)
    train = jax.tree.map(jnp.add, sums.train, taken)
    return (
        dataclasses.replace(state, train=trained),
        dataclasses.replace(sums, train=train, count=sums.count + count),
    )


def validate_window(
    model: MIL, config: FitConfig, hyper: Hyper, window: Window, places: Array, state: FitState, sums: EpochSums
) -> tuple[FitState, EpochSums]:
    """A member is judged on its validation bags of a window."""

    def judge(val: ValidationSums) -> ValidationSums:
        judged = validation_sums(model, state.train.params, hyper, bags_in(window, places))
        return jax.tree.map(jnp.add, val, judged)

    val = jax.lax.cond(jnp.any(places >= 0), judge, lambda val: val, sums.val)
    return state, dataclasses.replace(sums, val=val)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=4, compiler_options=WIDE_VECTORS)
def end_epoch(
    config: FitConfig, placement: Placement, hyper: Hyper, sums: EpochSums, state: FitState
) -> tuple[FitState, EpochInfo]:
    """The members after the last window of an epoch; those that had stopped stay as they are."""

    def one(given: Any) -> tuple[FitState, EpochInfo]:
        hyper, sums, state = given

        def close(state: FitState) -> tuple[FitState, EpochInfo]:
            means = StepInfo(sums.train.loss / sums.count, sums.train.right / sums.count)
            return close_epoch(state, state.train, means, validation_of(sums.val, state.train.params, hyper))

        return jax.lax.cond(has_stopped(state, config), lambda state: (state, blank_info()), close, state)

    return on_members(lambda _, own: map_members(one, own, 1), placement)(None, (hyper, sums, state))


def blank_sums(members: int) -> EpochSums:
    """Before the first window of an epoch."""
    zero, none = jnp.zeros(members, jnp.float32), jnp.zeros(members, jnp.int32)
    stats = jax.tree.map(lambda _: zero, blank_info().positive), jax.tree.map(lambda _: none, blank_info().positive)
    return EpochSums(StepInfo(zero, none), none, ValidationSums(zero, none, none, stats, stats))


# ---- training ----


@checked
def fit_windows(
    model: MIL,
    keys: MemberKeys,
    windows: Windows,
    folds: Folds,
    config: FitConfig = FitConfig(),
    hyper: Hyper | None = None,
    execution: Execution = WindowExecution(),
) -> Ensemble:
    """`fit_ensemble` of bags that are read window by window.

    What comes out is a function of the keys, the cohort, the folds and the size of a window; a run that goes on after
    an epoch or after a window gives the same bits as one that was not stopped.

    Args:
        model: what all members are.
        keys: [S] decide the members' initial parameters and orders of bags.
        windows: the cohort.
        folds: which bags each member trains on and is chosen on, with a row for each member.
        config: epochs, batch size, patience.
        hyper: as for `fit_ensemble`; `window_hyper(windows, folds)` where not given.
        execution: devices, a place to start from, and who is told of each epoch, and of each window.

    Raises:
        InputError: bags that the model cannot take, a bag larger than a window, a file that cannot be read.
    """
    members, train = keys.init.shape[0], stand_in_bags(windows.cohort, folds.train)
    check_windows(model, windows, folds, members)
    hyper = by_member(window_hyper(windows, folds, model=model) if hyper is None else hyper, members)
    check_hyper(model, hyper, train)
    layout = lay_out(windows, bags_of(folds.train), bags_of(folds.val))
    if layout.sizes[layout.used].sum() <= windows.size:
        return fit_ensemble(model, keys, *read_splits(layout, folds), config, hyper, execution)
    placement, progress = execution.placement or default_placement(members), execution.progress
    if progress is None:
        state, infos = init_members(model, keys, train, config, placement), []
    else:
        state, infos = restart(progress.state, members, config, placement), [*progress.infos]
    layout = cut_to_widths(layout, folds, placement)
    run = WindowRun(model, config, placement, layout, folds, members, put_members(hyper, placement), execution)
    slots, start = choose_slots(state, config, placement), 0
    sums = put_members(blank_sums(members), placement)
    if isinstance(progress, WindowProgress) and progress.sums is not None:
        start = progress.window
        whole = jax.tree.map(lambda leaf: leaf[:members], to_host(progress.sums))
        sums = put_members(whole, placement)
    with closing(read_windows(layout, epochs_of(layout, len(infos), config.epochs, start))) as reading:
        while slots is not None:
            state, info = run.epoch(reading, (state, sums), slots, infos, start)
            infos.append(info)
            if execution.on_epoch:
                execution.on_epoch(len(infos), info, state)
            slots, start, sums = choose_slots(state, config, placement), 0, put_members(blank_sums(members), placement)
    return collect(state, infos, members, config, hyper, train)


def check_windows(model: MIL, windows: Windows, folds: Folds, members: int) -> None:
    """Refuses members and bags that cannot be trained; what files hold is seen when they are read.

    Raises:
        InputError: as said.
    """
    cohort = windows.cohort
    if members < 1 or any(len(part) != members for part in folds):
        raise InputError("folds", [len(part) for part in folds], f"expected a row for each of {members} members")
    for name, part in zip(("train", "val"), folds[:2], strict=True):
        if not ((part >= ABSENT) & (part < len(cohort.bags))).all() or not (part >= 0).any(axis=1).all():
            expected = f"expected bags 0 to {len(cohort.bags) - 1}, at least one for every member"
            raise InputError(f"folds.{name}", f"{part.min()} to {part.max()}", expected)
    used = np.union1d(bags_of(folds.train), bags_of(folds.val))
    model.target.check(cohort.label[used])
    if joins(model) and len(np.unique(cohort.sizes)) > 1:
        raise InputError("cohort", "bags of several sizes", "expected bags of one size, or the head 'sum'")
    for i in used:
        arrays = cohort.bags[i].arrays
        if arrays is not None and arrays[0].dtype.kind == "f" and not is_finite(arrays[0]):
            raise InputError(cohort.bags[i].name, "NaN or infinite", "expected finite values")
    param_shapes(model, int(cohort.sizes.max()), cohort.shape)


def read_splits(layout: Layout, folds: Folds) -> tuple[Bags, Bags]:
    """Training and validation bags of all members, in memory."""
    place_of = np.full(len(layout.sizes) + 1, ABSENT)
    place_of[layout.used] = np.arange(len(layout.used))
    _, window = next(read_windows(layout, iter([(layout.used, 0)])))
    bags = jax.tree.map(np.asarray, bags_in(window, jnp.arange(len(layout.used))))
    return tuple(mark_absent(own_bags(bags, place_of[part])) for part in folds[:2])  # type: ignore[return-value]


def cut_to_widths(layout: Layout, folds: Folds, placement: Placement) -> Layout:
    """The same windows, with the widths that `fit_ensemble` would choose."""
    if placement.together > 1:
        return layout
    sizes = np.concatenate([layout.sizes[part[part >= 0]] for part in folds[:2]])
    return dataclasses.replace(layout, widths=tuple(width for width in bucket_widths(sizes) if width < layout.slots))


def epochs_of(layout: Layout, first: int, epochs: int, skip: int) -> Iterator[tuple[np.ndarray, int]]:
    """The windows of all epochs from `first` on, without the first `skip` of them."""
    for epoch in range(first, epochs):
        train, val = layout.plan(epoch)
        numbered = [*zip(train, range(len(train)), strict=True), *zip(val, range(len(val)), strict=True)]
        yield from numbered[skip if epoch == first else 0 :]


@dataclasses.dataclass(frozen=True, eq=False)
class WindowRun:
    """What stays the same from window to window."""

    model: MIL
    config: FitConfig
    placement: Placement
    layout: Layout
    folds: Folds
    members: int
    hyper: Any
    execution: Execution

    def epoch(
        self, reading: Iterator[tuple[np.ndarray, Window]], carry: Any, slots: Any, infos: list[EpochInfo], start: int
    ) -> tuple[FitState, EpochInfo]:
        """One epoch of all members, from its window `start` on."""
        train, val = self.layout.plan(len(infos))
        count, on_window = len(train) + len(val), getattr(self.execution, "on_window", None)
        for number in range(start, count):
            index, window = next(reading)
            carry = self.window(number < len(train), index, window, slots, carry)
            if not infos and number == start and self.execution.on_compiled:
                self.execution.on_compiled()
            if on_window and number + 1 < count:
                on_window(WindowProgress(carry[0], tuple(infos), number + 1, carry[1]))
        state, info = end_epoch(self.config, self.placement, self.hyper, carry[1], carry[0])
        return state, jax.tree.map(lambda leaf: leaf[: self.members], to_host(info))

    def window(self, trains: bool, index: np.ndarray, window: Window, slots: Any, carry: Any) -> Any:
        """All members on one window; when it returns, nothing reads the window any more."""
        function, part = (train_window, self.folds.train) if trains else (validate_window, self.folds.val)
        places = put_members(places_in(self.layout, part, index), self.placement)
        shared, own = put_shared(window, self.placement), (self.hyper, places)
        given = (self.model, self.config, self.placement, slots, shared, own, carry)
        return jax.block_until_ready(run_window(function, *given))


# ---- prediction ----


@checked
def predict_windows(
    model: MIL,
    members: Members,
    windows: Windows,
    index: Int[np.ndarray, " B"] | None = None,
    placement: Placement | None = None,
) -> CohortPrediction:
    """`predict` for the bags of a cohort, window by window; memory for one of them, and for what comes out.

    Args:
        model: what the members are.
        members: their parameters.
        windows: the cohort.
        index: which bags, ascending; all where not given.
        placement: devices to use; `default_placement` where not given.

    Raises:
        InputError: members of another model, bags that the model cannot take, or a file that cannot be read.
    """
    cohort = windows.cohort
    chosen = np.arange(len(cohort.bags)) if index is None else np.unique(index)
    placement = placement or default_placement(members.count)
    layout = lay_out(windows, chosen, chosen)
    widths = tuple(width for width in bucket_widths(layout.sizes[chosen]) if width < layout.slots)
    layout = dataclasses.replace(layout, widths=widths)
    check_members(model, members, stand_in_bags(cohort, np.zeros((members.count, 1), int)))
    own = put_members(jax.tree.map(np.asarray, (members.params, members.scaler)), placement)
    probability, attention, scores = [], [], []
    for bags, window in read_windows(layout, ((bags, 0) for bags in layout.cut(chosen))):
        predicted = to_host(_predict_window(model, placement, put_shared(window, placement), own))
        probability.append(predicted.probability[: members.count, : len(bags)])
        for values, parts in ((predicted.attention, attention), (predicted.scores, scores)):
            parts += [values[: members.count, place, : layout.sizes[i]].copy() for place, i in enumerate(bags)]
    return CohortPrediction(np.concatenate(probability, axis=1), tuple(attention), tuple(scores))


@partial(jax.jit, static_argnums=(0, 1))
def _predict_window(model: MIL, placement: Placement, window: Window, own: Any) -> Prediction:
    def on_device(window: Window, own: Any) -> Prediction:
        bags = bags_in(window, jnp.where(jnp.asarray(window.count) > 0, jnp.arange(len(window.count)), ABSENT))
        return map_members(lambda member: predict_member(model, member[0], member[1], bags), own, together=1)

    return on_members(on_device, placement)(window, own)
