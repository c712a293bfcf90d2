"""Many members: keys → fit → predict, on the devices and hosts that there are.

What comes back is NumPy on every host. Axes: S members, B bags, K slots, C classes, E epochs.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mil_jax.bags import ABSENT, Bags, check_bags, mark_absent
from mil_jax.buckets import bucket_widths, sizes_of, with_widths
from mil_jax.epochs import Shared, choose_slots, cut, init_members, join, member_shapes, place, restart, run_epoch
from mil_jax.errors import InputError, check_whole, checked
from mil_jax.members import Members, check_full, check_members
from mil_jax.model import MIL, Prediction, joins, param_shapes
from mil_jax.optimizer import Hyper, by_member, make_hyper
from mil_jax.placement import Placement, default_placement, fill, map_members, on_members, put_shared, to_host
from mil_jax.record import record
from mil_jax.training import EpochInfo, FitConfig, FitState, MemberKeys, member_key, predict_member

# ---- records ----


@record
class Ensemble:
    """S trained members, as NumPy.

    Attributes:
        members: all that predicting needs, with the parameters of each member's best epoch; not a number for a member
            that diverged, so that it takes no part in any result.
        best_epoch: from 1; 0 for a member that never had a finite validation loss: it diverged.
        best_loss: validation loss at the best epoch.
        epochs_run: epochs trained before the member stopped.
        curves: `EpochInfo` with axes [S, E]; blank after a member has stopped.
    """

    members: Members
    best_epoch: Int[np.ndarray, " S"]
    best_loss: Float[np.ndarray, " S"]
    epochs_run: Int[np.ndarray, " S"]
    curves: EpochInfo


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run of `fit_ensemble` stood after an epoch, so that another can go on from there.

    Attributes:
        state: the members, as `on_epoch` got them; on whatever devices, and with whatever fillers at the end.
        infos: what `on_epoch` got of each epoch so far.
    """

    state: FitState
    infos: tuple[EpochInfo, ...]


OnEpoch = Callable[[int, EpochInfo, FitState], None]


@dataclasses.dataclass(frozen=True)
class Execution:
    """How an ensemble is trained; of these, the placement alone has a say in its numbers, by rounding (see there).

    Attributes:
        placement: devices, and members at once; `default_placement` where not given.
        progress: where to go on from; from the start where not given.
        on_epoch: called after every epoch with its number, from 1, the infos of all members [S], and their states,
            which the next epoch consumes.
        on_compiled: called once, when the program of an epoch is compiled.
    """

    placement: Placement | None = None
    progress: Progress | None = None
    on_epoch: OnEpoch | None = None
    on_compiled: Callable[[], None] | None = None


# ---- keys ----


@checked
def member_keys(key: Key[Array, ""], members: int) -> MemberKeys:
    """Keys of members 0 … S - 1; those of member i do not depend on how many there are."""
    check_whole("members", members, 1)
    return _member_keys(key, np.arange(members))


@jax.jit
def _member_keys(key: Array, numbers: Array) -> MemberKeys:
    return jax.vmap(lambda number: member_key(jax.random.fold_in(key, number)))(numbers)


def same_for_all(keys: Key[Array, " S"]) -> Key[Array, " S"]:
    """The first member's key for every member, for what shall not vary between them."""
    return keys[np.zeros(keys.shape[0], int)]


# ---- training ----


@checked
def fit_ensemble(
    model: MIL,
    keys: MemberKeys,
    train: Bags,
    val: Bags,
    config: FitConfig = FitConfig(),
    hyper: Hyper | None = None,
    execution: Execution = Execution(),
) -> Ensemble:
    """Trains one member for each pair of keys, epoch by epoch, until every one has stopped.

    Args:
        model: what all members are.
        keys: [S] decide the members' initial parameters and orders of bags.
        train: bags to learn from, shared by the members or, with a leading axis S on the view, each member's own;
            there, members may have bags in some of the places only.
        val: bags that early stopping looks at, of other instances than `train`; shared or not, likewise.
        config: epochs, batch size, patience.
        hyper: learning rate, L2, class weights and standardisation, each shared or with a leading axis S;
            `make_hyper(train)` where not given.
        execution: devices, a place to start from, and who is told of each epoch.

    Raises:
        InputError: bags that the model or the loss cannot take.
    """
    members = keys.init.shape[0]
    check_fit(model, train, val, members)
    train = mark_absent(train)
    hyper = by_member(make_hyper(train, target=model.target) if hyper is None else hyper, members)
    check_hyper(model, hyper, train)
    placement = execution.placement or default_placement(members)
    shared, own = place(hyper, *choose_widths(placement, train, val), placement)
    lower = partial(run_epoch.lower, model, config, placement)
    programs, infos, on_compiled = {}, [], execution.on_compiled
    if execution.progress is None:
        waiting = member_shapes(model, keys, train, placement)
        every = np.zeros(waiting.epoch.shape, np.int32)
        with ThreadPoolExecutor(1) as pool:  # the programs of the start and of an epoch, side by side
            compiling = pool.submit(lower(every, shared, own, waiting).compile)
            state = init_members(model, keys, train, config, placement)
            programs[every.shape] = compiling.result()
    else:
        state, infos = restart(execution.progress.state, members, config, placement), [*execution.progress.infos]
    slots = choose_slots(state, config, placement)
    while slots is not None:
        if slots.shape not in programs:  # compaction halves the slots a few times at most
            programs[slots.shape] = lower(slots, shared, own, state).compile()
        if on_compiled:
            on_compiled()
            on_compiled = None
        state, info = programs[slots.shape](slots, shared, own, state)
        infos.append(jax.tree.map(lambda leaf: leaf[:members], to_host(info)))
        if execution.on_epoch:
            execution.on_epoch(len(infos), infos[-1], state)
        slots = choose_slots(state, config, placement)
    return collect(state, infos, members, config, hyper, train)


def check_fit(model: MIL, train: Bags, val: Bags, members: int) -> None:
    """Refuses members and bags that cannot be trained.

    Raises:
        InputError: no member; bags that the model cannot take; validation bags that do not fit the training bags.
    """
    if members < 1:
        raise InputError("keys", members, "expected the keys of at least one member")
    for name, bags in {"train": train, "val": val}.items():
        check_bags(name, bags)
        check_full(model, bags)
        model.target.check(bags.label, least=0 if bags is train and not bags.by_member else ABSENT)
        if bags.by_member and bags.rows.shape[0] != members:
            expected = f"expected bags of {members} members, or shared ones"
            raise InputError(f"{name}.rows", bags.rows.shape, expected)
    if (np.asarray(train.label) < 0).all(axis=-1).any():
        raise InputError("train", "a member without a bag", "expected a bag to learn from for every member")
    if train.kind != val.kind:
        raise InputError("val", str(val.kind), f"expected {train.kind}, as in train")
    if joins(model) and train.slots != val.slots:
        expected = f"expected bags of {train.slots}, as in train, or the head 'sum'"
        raise InputError("val", f"bags of {val.slots}", expected)
    param_shapes(model, train.slots, train.kind.shape)


def check_hyper(model: MIL, hyper: Hyper, train: Bags) -> None:
    """Refuses hyperparameters for another target or other features, or with values that are not finite.

    Raises:
        InputError: as said.
    """
    classes = np.shape(hyper.class_weight)[-1]
    if classes != model.target.count:
        raise InputError("hyper.class_weight", classes, f"expected a weight for each of {model.target.count} classes")
    if hyper.scaler is not None and (train.kind.pixels or hyper.scaler.mean.shape[-1:] != train.kind.shape):
        features = hyper.scaler.mean.shape[-1]
        raise InputError("hyper.scaler", f"{features} features", f"expected a scaler of {train.kind}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(hyper):
        if not np.isfinite(leaf).all():
            name = f"hyper.{jax.tree_util.keystr(path, simple=True, separator='.')}"
            raise InputError(name, "NaN or infinite", "expected finite values")


def choose_widths(placement: Placement, train: Bags, val: Bags) -> tuple[Bags, Bags]:
    """The bags with the widths that they are cut to (see `buckets`), where they do not name them.

    Members that run together cannot each take a branch of their own, so their bags are not cut.
    """
    if placement.together > 1:
        return with_widths(train, ()), with_widths(val, ())
    if train.view.widths or val.view.widths:
        return train, val
    widths = bucket_widths(np.concatenate([sizes_of(bags).reshape(-1) for bags in (train, val)]))
    return with_widths(train, widths), with_widths(val, widths)


def collect(
    state: FitState, infos: list[EpochInfo], members: int, config: FitConfig, hyper: Hyper, train: Bags
) -> Ensemble:
    """What is left of the members [S] after the last epoch, with their curves [S, E]."""
    best = best_members(state, members, hyper, train)
    kept = jax.tree.map(lambda leaf: leaf[:members], to_host((state.best_epoch, state.best_loss, state.epoch)))

    def curve(*epochs: np.ndarray) -> np.ndarray:
        missing = config.epochs - len(epochs)
        blank = 0 if epochs[0].dtype.kind == "i" else np.nan
        return np.pad(np.stack(epochs, axis=1), ((0, 0), (0, missing)), constant_values=blank)

    return Ensemble(best, *kept, curves=jax.tree.map(curve, *infos))


def best_members(state: FitState, members: int, hyper: Hyper, train: Bags) -> Members:
    """The members with the parameters of their best epochs so far; not a number for one that has none yet."""
    params, best_epoch = jax.tree.map(lambda leaf: leaf[:members], to_host((state.best_params, state.best_epoch)))

    def blank(leaf: np.ndarray) -> np.ndarray:
        has_epoch = best_epoch.reshape(-1, *[1] * (leaf.ndim - 1)) > 0
        return leaf if has_epoch.all() else np.where(has_epoch, leaf, np.float32(np.nan))

    return Members(jax.tree.map(blank, params), hyper.scaler, train.kind)


# ---- prediction ----


@checked
def predict(model: MIL, members: Members, bags: Bags, placement: Placement | None = None) -> Prediction:
    """Predictions of all members: probabilities [S, B, C] and attention weights [S, B, K], as NumPy.

    Features are standardised as each member's training bags were. Memory is bounded: a device holds the activations
    of one member's chunk of bags at a time.

    Args:
        model: what the members are.
        members: their parameters.
        bags: bags that the model can take, shared by the members or each member's own.
        placement: devices to use; `default_placement` where not given.

    Raises:
        InputError: members of another model, or bags that the model cannot take.
    """
    check_bags("bags", bags)
    check_members(model, members, bags)
    placement = placement or default_placement(members.count)
    shared, own = cut(with_widths(bags, bucket_widths(sizes_of(bags))))
    filled = fill(jax.tree.map(np.asarray, (members.params, members.scaler, own)), placement)
    predicted = to_host(_predict_members(model, placement, put_shared(shared, placement), filled))
    return jax.tree.map(lambda leaf: leaf[: members.count], predicted)


@partial(jax.jit, static_argnums=(0, 1))
def _predict_members(model: MIL, placement: Placement, shared: Shared, own: Any) -> Prediction:
    def on_device(shared: Shared, own: Any) -> Prediction:
        def one(member: Any) -> Prediction:
            params, scaler, view = member
            return predict_member(model, params, scaler, join(shared, view))

        return map_members(one, own, together=1)

    return on_members(on_device, placement)(shared, own)


@checked
def average(predicted: Prediction) -> Prediction:
    """The ensemble's prediction: the mean over members of probabilities [B, C] and attention [B, K].

    A member that diverged predicts what is not a number, and does not count.

    Raises:
        InputError: the prediction of a single member, or of an ensemble already.
    """
    shape = np.shape(predicted.probability)
    if len(shape) != 3:
        raise InputError("predicted", shape, "expected the predictions of members, [S, B, C]")
    converged = predicted.converged
    if not converged.all() and converged.any():
        predicted = jax.tree.map(lambda leaf: np.asarray(leaf)[converged], predicted)
    return jax.tree.map(lambda leaf: leaf.mean(axis=0), predicted)
