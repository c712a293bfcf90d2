"""An epoch of all members, as one program on all devices; and the members before their first one.

Axes: S members, B bags, K slots.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from mil_jax.bags import Bags, Values, View
from mil_jax.errors import checked
from mil_jax.model import MIL
from mil_jax.optimizer import Hyper
from mil_jax.placement import (
    Placement,
    default_placement,
    fill,
    map_members,
    on_members,
    put_members,
    put_shared,
    sharded,
    to_host,
)
from mil_jax.training import (
    EpochInfo,
    FitConfig,
    FitState,
    MemberKeys,
    advance,
    blank_info,
    fit_epoch,
    has_stopped,
    init_fit,
)

Shared = tuple[Values, View | None]  # what all members have in common of their bags: the pool, and the view or None


def cut(bags: Bags) -> tuple[Shared, View | None]:
    """Cuts bags into what all members share and what is each member's own."""
    return ((bags.pool, None), bags.view) if bags.by_member else ((bags.pool, bags.view), None)


def join(shared: Shared, own: View | None) -> Bags:
    """The bags of one member."""
    pool, view = shared
    return Bags(pool, view if own is None else own)  # type: ignore[arg-type]


def place(hyper: Hyper, train: Bags, val: Bags, placement: Placement) -> tuple[Any, Any]:
    """Puts what every epoch reads on the devices once: what members share, whole; their own parts, cut."""
    (train_shared, train_own), (val_shared, val_own) = cut(train), cut(val)
    pool = put_shared(train.pool, placement)
    val_pool = pool if val.pool is train.pool else put_shared(val.pool, placement)
    views = put_shared((train_shared[1], val_shared[1]), placement)
    shared = tuple(zip((pool, val_pool), views, strict=True))
    return shared, put_members((hyper, train_own, val_own), placement)


@checked
def init_members(
    model: MIL, keys: MemberKeys, train: Bags, config: FitConfig = FitConfig(), placement: Placement | None = None
) -> FitState:
    """All members before their first epoch, on their devices; filled up to a multiple of the devices.

    Fillers count as having trained all epochs: they take no time.
    """
    placement = placement or default_placement(keys.init.shape[0])
    state = _start(model, (train.slots, train.kind.shape), placement, _key_data(keys, placement))
    return stop_fillers(state, keys.init.shape[0], config)


def member_shapes(model: MIL, keys: MemberKeys, train: Bags, placement: Placement) -> FitState:
    """The shapes of `init_members`."""
    shapes = jax.eval_shape(
        partial(_start, model, (train.slots, train.kind.shape), placement), _key_data(keys, placement)
    )
    placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharded(placement))  # noqa: E731
    return jax.tree.map(placed, shapes)


def _key_data(keys: MemberKeys, placement: Placement) -> tuple[np.ndarray, np.ndarray]:
    return fill(tuple(np.asarray(jax.random.key_data(key)) for key in (keys.init, keys.order)), placement)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _start(model: MIL, bag_shape: tuple[int, tuple[int, ...]], placement: Placement, key_data: Any) -> FitState:
    def one(data: tuple[Array, Array]) -> FitState:
        return init_fit(model, MemberKeys(*map(jax.random.wrap_key_data, data)), *bag_shape)

    # One after the other, so that a member's draw does not depend on how many there are.
    return on_members(lambda _, own: map_members(one, own, 1), placement)(None, key_data)


def restart(state: FitState, members: int, config: FitConfig, placement: Placement) -> FitState:
    """Members of an earlier run on the devices of this one, whose number may differ."""
    whole = jax.tree.map(lambda leaf: leaf[:members], to_host(state))
    return stop_fillers(put_members(whole, placement), members, config)


def stop_fillers(state: FitState, members: int, config: FitConfig) -> FitState:
    """The members after the first `members` count as having trained all epochs."""
    if state.epoch.shape[0] == members:
        return state
    is_filler = np.arange(state.epoch.shape[0]) >= members
    sharding = state.epoch.sharding  # type: ignore[union-attr]
    epoch = np.where(is_filler, config.epochs, to_host(state.epoch)).astype(np.int32)
    return dataclasses.replace(state, epoch=jax.device_put(epoch, sharding))


def choose_slots(state: FitState, config: FitConfig, placement: Placement) -> Int[np.ndarray, " slots"] | None:
    """Which of its members each device runs next, as places inside the device; None when all have stopped.

    One at a time, all: those that have stopped are skipped. Together, a member that has stopped costs as much as one
    that has not, so the slots are halved as often as the live members allow; the slots that are left over go to
    members that have stopped, which stay as they are. Members do not move between devices.
    """
    host = dataclasses.replace(state, epoch=to_host(state.epoch), stale=to_host(state.stale))
    running = ~np.asarray(has_stopped(host, config)).reshape(placement.devices, -1)
    if not running.any():
        return None
    width = running.shape[1]
    most_running = running.sum(axis=1).max()
    while placement.together > 1 and -(-width // 2) >= most_running and width > 1:
        width = -(-width // 2)
    running_first = np.argsort(~running, axis=1, kind="stable")[:, :width]
    return running_first.reshape(-1).astype(np.int32)


# XLA's default is half of what a CPU with AVX-512 has; Adam's roots and divisions are most of a step. Others ignore it.
WIDE_VECTORS = {"xla_cpu_prefer_vector_width": 512}


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=6, compiler_options=WIDE_VECTORS)
def run_epoch(
    model: MIL, config: FitConfig, placement: Placement, slots: Any, shared: Any, own: Any, state: FitState
) -> tuple[FitState, EpochInfo]:
    """One epoch of the members in `slots`; the others, and those that have stopped, stay as they are.

    Args:
        model: static, as are `config` and `placement`.
        config: epochs, batch size, patience.
        placement: devices, and members at once.
        slots: see `choose_slots`.
        shared: training and validation bags, without the views that are members' own; see `place`.
        own: hyperparameters and members' own views.
        state: the members; its memory is used again.
    """

    def on_device(shared: Any, of_device: Any) -> tuple[FitState, EpochInfo]:
        slots, own, state = of_device

        def of_member(run: Callable[..., Any], member: tuple[Any, FitState]) -> tuple[FitState, EpochInfo]:
            (hyper, *views), member_state = member
            train, val = map(join, shared, views)
            return run(model, config, hyper, train, val, member_state)

        infos = jax.tree.map(lambda leaf: jnp.full(state.epoch.shape, leaf), blank_info())
        if placement.together == 1:
            running = jnp.sum(~has_stopped(state, config))  # they come first
            return advance_in_turn(partial(of_member, fit_epoch), own, (state, infos), slots, running)
        chosen = jax.tree.map(lambda leaf: leaf[slots], (own, state))
        advanced = map_members(partial(of_member, advance), chosen, placement.together)
        return jax.tree.map(lambda old, new: old.at[slots].set(new), (state, infos), advanced)

    return on_members(on_device, placement)(shared, (slots, own, state))


def advance_in_turn(
    member: Callable[..., Any], own: Any, states: tuple[Any, Any], slots: Int[Array, " slots"], count: Int[Array, ""]
) -> tuple[Any, Any]:
    """`member((own, state))` for one of a device's members after the other, each state changed where it lies.

    No state is copied, and a member that is left out costs nothing.

    Args:
        member: a function of what is a member's own and its state, which returns its new state and an info.
        own: what is the members' own.
        states: the members' states and their infos; the infos are overwritten.
        slots: places of members inside the device.
        count: how many of them to advance.

    Returns:
        States and infos of all members; those left out as they were.
    """

    def turn(k: Array, done: tuple[Any, Any]) -> tuple[Any, Any]:
        of_member = lambda leaf: lax.dynamic_index_in_dim(leaf, slots[k], keepdims=False)  # noqa: E731
        put = lambda whole, one: lax.dynamic_update_index_in_dim(whole, one, slots[k], axis=0)  # noqa: E731
        return jax.tree.map(put, done, member(jax.tree.map(of_member, (own, done[0]))))

    return lax.fori_loop(0, count, turn, states)
