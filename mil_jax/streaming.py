"""Bags that do not fit into memory: one pass over the disk trains all members, window by window.

In which order a member visits the bags of a window that are its own, its own key decides. While the members train on
one window, the next is read. Bags that fit into one window are read once, and give the bits of `fit_ensemble`.

Axes: S members, B bags of the cohort, P bags of a window, T of these that one member sees, K slots.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mil_jax.bags import ABSENT, Bags, mark_absent
from mil_jax.buckets import bucket_widths
from mil_jax.ensemble import Ensemble, Execution, Progress, check_hyper, collect, fit_ensemble
from mil_jax.epochs import WIDE_VECTORS, advance_in_turn, choose_slots, init_members, restart
from mil_jax.errors import InputError, checked
from mil_jax.members import Members, check_members
from mil_jax.memory import is_finite
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
from mil_jax.record import Values, record
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
from mil_jax.windows import (
    Layout,
    Window,
    Windows,
    bags_in,
    bags_of,
    fit_scaler_windows,
    lay_out,
    places_in,
    read_windows,
    stand_in_bags,
)

# ---- records ----


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


# ---- one window of all members ----


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=6, compiler_options=WIDE_VECTORS)
def run_window(
    member: Callable[..., Any], model: MIL, config: FitConfig, placement: Placement,
    window: Window, members: tuple[Any, Any], carry: tuple[FitState, EpochSums],
) -> tuple[FitState, EpochSums]:  # fmt: skip
    """`member` of the members that have not stopped; the others stay as they are (see `run_epoch`).

    Args:
        member: `train_window` or `validate_window`; static, as are the next three.
        model: what all members are.
        config: epochs, batch size, patience.
        placement: devices, and members at once.
        window: some bags.
        members: the slots to run, and what is the members' own: hyperparameters and places of bags in the window.
        carry: states and sums of the members; their memory is used again.
    """

    def on_device(window: Window, of_device: Any) -> tuple[FitState, EpochSums]:
        (slots, own), carry = of_device

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

    return on_members(on_device, placement)(window, (members, carry))


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
        shared, members = put_shared(window, self.placement), (slots, (self.hyper, places))
        given = (self.model, self.config, self.placement, shared, members, carry)
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
