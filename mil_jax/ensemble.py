"""Many members: keys → fit → predict, placed on the devices and hosts that there are.

Members never communicate, so they are sharded over a mesh axis `member`, and inside a device they run `together` at
a time. On an accelerator a step of one member leaves the device idle, and many run together; on a CPU the
parameters and moments of many members fall out of the cache, so each runs its epoch alone, one device per core.

What comes back is NumPy on every host. Axes: S members, B bags, K slots, C classes, E epochs.
"""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key

from mil_jax.bags import ABSENT, Bags, bucket_widths, sizes_of
from mil_jax.errors import InputError
from mil_jax.model import MIL, Params, Prediction, check_full, joins
from mil_jax.training import (
    EpochInfo,
    FitConfig,
    FitState,
    Hyper,
    advance,
    blank_info,
    fit_epoch,
    has_stopped,
    init_fit,
    make_hyper,
    predict,
)

# ---- placement ----


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where members run: it decides the time that they take and the memory, not their numbers.

    Raises:
        InputError: a number below 1, or more devices than there are.
    """

    devices: int
    """Devices that share the members."""
    together: int
    """Members that run at once inside a device (`vmap`); the others wait for their turn."""

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= jax.device_count():
            remedy = f"use 1 to {jax.device_count()}, the {jax.default_backend()} devices there are"
            raise InputError("devices", self.devices, remedy)
        if self.together < 1:
            raise InputError("together", self.together, "use at least 1")


def default_placement(members: int) -> Placement:
    """All devices; on a CPU one member at a time in each, on an accelerator all that the device got."""
    # XLA compiles a program for one device otherwise than for two or more, up to rounding: a lone member uses two, so
    # that it gets the numbers that it would get among others. And every process must own a part of the mesh.
    devices = jax.device_count()
    if jax.process_count() == 1:
        devices = min(devices, max(members, 2))
    together = 1 if jax.default_backend() == "cpu" else -(-members // devices)
    return Placement(devices, together)


def mesh_of(placement: Placement) -> Mesh:
    """The devices of a placement, as a mesh with the one axis `member`."""
    return Mesh(np.array(jax.devices()[: placement.devices]), ("member",))


def sharded(placement: Placement, by_member: bool = True) -> NamedSharding:
    """How arrays lie on the devices: cut along the leading member axis, or whole on each."""
    return NamedSharding(mesh_of(placement), P("member") if by_member else P())


def fill(leaf: Any, placement: Placement) -> Any:
    """Repeats the last member until the devices divide the number of members."""
    extra = -leaf.shape[0] % placement.devices
    join = jnp.concatenate if isinstance(leaf, jax.Array) else np.concatenate
    return join([leaf, leaf[-1:].repeat(extra, axis=0)]) if extra else leaf


def to_host(tree: Any) -> Any:
    """The arrays as NumPy, whole on every process."""

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            if leaf.is_fully_replicated:
                return np.asarray(leaf.addressable_data(0))
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


# ---- members ----


def member_keys(key: Key[Array, ""], members: int) -> Key[Array, " S"]:
    """Keys of members 0 … S - 1; the key of member i does not depend on how many there are."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(members))


def same_for_all(keys: Key[Array, " S"]) -> Key[Array, " S"]:
    """The first member's key for every member, for what shall not vary between them."""
    return keys[jnp.zeros(keys.shape[0], int)]


def stack_bags(draws: Sequence[Bags]) -> Bags:
    """Bags that differ by member: S draws from one pool become `Bags` with a leading axis S on all but the pool.

    Raises:
        InputError: draws of different shapes.
    """
    if len({draw.rows.shape for draw in draws}) != 1:
        shapes = sorted({draw.rows.shape for draw in draws})
        raise InputError("draws", shapes, "give every member as many bags and slots: pad them")
    # In NumPy: JAX would compile a program for each number of draws.
    stack = lambda *leaves: jnp.asarray(np.stack([np.asarray(leaf) for leaf in leaves]))  # noqa: E731
    views = [dataclasses.replace(draw, pool=None) for draw in draws]
    return dataclasses.replace(jax.tree.map(stack, *views), pool=draws[0].pool)


def varies(bags: Bags) -> Bags:
    """For each field, whether it has a member axis."""
    own = bags.rows.ndim == 3
    return dataclasses.replace(jax.tree.map(lambda _: own, bags), pool=False)  # type: ignore[arg-type]


def map_members(member: Callable[..., Any], own: Any, args: Any, together: int) -> Any:
    """`member(*args)` for each of a device's members, `together` at a time.

    Args:
        member: a function of one member.
        own: for each leaf of `args`, whether it has a leading member axis; the others are shared.
        args: a tuple.
        together: members at once.
    """
    leaves, structure = jax.tree.flatten(args)
    is_own = jax.tree.leaves(own)
    varied = [leaf for leaf, flag in zip(leaves, is_own, strict=True) if flag]

    def one(leaves_of_one: list[Array]) -> Any:
        rest = iter(leaves_of_one)
        whole = [next(rest) if flag else leaf for leaf, flag in zip(leaves, is_own, strict=True)]
        return member(*jax.tree.unflatten(structure, whole))

    if together >= varied[0].shape[0]:
        return jax.vmap(one)(varied)
    return lax.map(one, varied, batch_size=None if together == 1 else together)


def advance_in_turn(
    member: Callable[..., Any], own: Any, args: Any, infos: Any, slots: Int[Array, " slots"], count: Int[Array, ""]
) -> tuple[Any, Any]:
    """`member(*args)` for one of a device's members after the other, each state changed where it lies.

    No state is copied, and a member that is left out costs nothing.

    Args:
        member: a function of one member that returns its new state and an info.
        own: for each leaf of `args`, whether it has a leading member axis; the others are shared.
        args: a tuple; the last one is the members' states.
        infos: of all members, to be overwritten.
        slots: places of members inside the device.
        count: [] how many of them to advance.

    Returns:
        States and infos of all members; those left out as they were.
    """

    def turn(k: Array, done: tuple[Any, Any]) -> tuple[Any, Any]:
        of_member = lambda leaf: lax.dynamic_index_in_dim(leaf, slots[k], keepdims=False)  # noqa: E731
        put = lambda whole, one: lax.dynamic_update_index_in_dim(whole, one, slots[k], axis=0)  # noqa: E731
        now = (*args[:-1], done[0])
        given = jax.tree.map(lambda leaf, flag: of_member(leaf) if flag else leaf, now, own)
        return jax.tree.map(put, done, member(*given))

    return lax.fori_loop(0, count, turn, (args[-1], infos))


# ---- training ----


@no_type_check
@struct.dataclass
class Ensemble:
    """S trained members, as NumPy.

    Attributes:
        params: the parameters of each member's best epoch, with a leading axis S.
        best_epoch: [S] from 1; 0 for a member that never had a finite validation loss.
        best_loss: [S] validation loss at the best epoch.
        epochs_run: [S] epochs trained before the member stopped.
        curves: `EpochInfo` with axes [S, E]; blank after a member has stopped.
    """

    params: Any
    best_epoch: np.ndarray
    best_loss: np.ndarray
    epochs_run: np.ndarray
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


def fit_ensemble(
    model: MIL,
    keys: Key[Array, " S"],
    train: Bags,
    val: Bags,
    config: FitConfig = FitConfig(),
    hyper: Hyper | None = None,
    placement: Placement | None = None,
    *,
    order_keys: Key[Array, " S"] | None = None,
    progress: Progress | None = None,
    on_epoch: OnEpoch | None = None,
    on_compiled: Callable[[], None] | None = None,
) -> Ensemble:
    """Trains one member for each key, epoch by epoch, until every one has stopped.

    Args:
        model: what all members are.
        keys: [S] one for each member; decides its initial parameters and its orders of bags.
        train: bags to learn from, shared by the members; or, with a leading axis S on all fields but the pool,
            the bags of each member.
        val: bags that early stopping looks at, of other instances than `train`; shared or not, likewise.
        config: epochs, batch size, patience.
        hyper: learning rate, L2 and class weights, each shared or with a leading axis S; `make_hyper(train)`
            where not given.
        placement: devices, and members at once; `default_placement` where not given.
        order_keys: [S] decide the orders of bags instead of `keys`.
        progress: go on from here instead of from the start.
        on_epoch: called after every epoch with its number, from 1, the infos of all members [S], and their states,
            which the next epoch consumes.
        on_compiled: called once, when the program of an epoch is compiled.

    Raises:
        InputError: bags that the model or the loss cannot take.
    """
    members = keys.shape[0]
    check_bags(model, train, val, members)
    placement = placement or default_placement(members)
    config = choose_widths(config, placement, train, val)
    hyper = make_hyper(train, model.classes) if hyper is None else hyper
    inputs = place_inputs(hyper, train, val, members, placement)
    lower = partial(run_epoch.lower, model, config, placement)
    programs, infos = {}, []
    if progress is None:
        given = (model, config, keys, order_keys, train, placement)
        waiting = start(*given, only_shapes=True)
        every = np.zeros(waiting.epoch.shape, np.int32)
        with ThreadPoolExecutor(1) as pool:  # the programs of the start and of an epoch, side by side
            compiling = pool.submit(lower(every, *inputs, waiting).compile)
            state = start(*given)
            programs[every.shape] = compiling.result()
    else:
        state, infos = restart(progress.state, members, config, placement), list(progress.infos)
    slots = choose_slots(state, config, placement)
    while slots is not None:
        if slots.shape not in programs:  # compaction halves the slots a few times at most
            programs[slots.shape] = lower(slots, *inputs, state).compile()
        if on_compiled:
            on_compiled()
            on_compiled = None
        state, info = programs[slots.shape](slots, *inputs, state)
        infos.append(jax.tree.map(lambda leaf: leaf[:members], to_host(info)))
        if on_epoch:
            on_epoch(len(infos), infos[-1], state)
        slots = choose_slots(state, config, placement)
    return collect(state, infos, members, config)


def check_bags(model: MIL, train: Bags, val: Bags, members: int) -> None:
    """Refuses members and bags that cannot be trained.

    Raises:
        InputError: no member; bags that the model cannot take; validation bags that do not fit the training bags.
    """
    if members < 1:
        raise InputError("keys", members, "give a key for at least one member")
    for bags in (train, val):
        check_full(model, None, bags.mask)
        labels = np.asarray(bags.label)
        present = labels >= (0 if bags is train else ABSENT)
        if not present.all() or labels.max() >= model.classes:
            wrong = labels.max() if present.all() else labels.min()
            raise InputError("label", int(wrong), f"use 0 to {model.classes - 1}, or a model of more classes")
        if bags.rows.ndim == 3 and bags.rows.shape[0] != members:
            raise InputError("rows", bags.rows.shape, f"give own bags to each of the {members} members, or share them")
    if train.pool.shape[1:] != val.pool.shape[1:]:
        raise InputError("val", val.pool.shape[1:], f"use instances of shape {train.pool.shape[1:]}, as in train")
    if joins(model) and train.rows.shape[-1] != val.rows.shape[-1]:
        remedy = f"use bags of {train.rows.shape[-1]}, as in train, or the head 'sum'"
        raise InputError("val", f"bags of {val.rows.shape[-1]}", remedy)


def choose_widths(config: FitConfig, placement: Placement, *all_bags: Bags) -> FitConfig:
    """The config with the widths that bags are cut to (see `bags.bucket_widths`), where it does not name them.

    Members that run together cannot each take a branch of their own, so their bags are not cut.
    """
    if placement.together > 1:
        return dataclasses.replace(config, widths=())
    if config.widths is not None:
        return config
    sizes = np.concatenate([sizes_of(bags).reshape(-1) for bags in all_bags])
    return dataclasses.replace(config, widths=bucket_widths(sizes))


def place_inputs(hyper: Hyper, train: Bags, val: Bags, members: int, placement: Placement) -> tuple[Hyper, Bags, Bags]:
    """Puts what every epoch reads on the devices once: members' own parts cut, shared parts whole."""

    def place_bags(bags: Bags) -> Bags:
        put = lambda leaf, own: jax.device_put(  # noqa: E731
            fill(np.asarray(leaf), placement) if own else np.asarray(leaf), sharded(placement, own)
        )
        return jax.tree.map(put, bags, varies(bags))

    def place_hyper(path: Any, leaf: Array) -> Array:
        axes = int(path[0].name == "class_weight")
        own = np.broadcast_to(leaf, (members, *leaf.shape[leaf.ndim - axes :]))
        return jax.device_put(fill(own, placement), sharded(placement))

    return (
        jax.tree_util.tree_map_with_path(place_hyper, hyper),
        place_bags(train),
        train if val is train else place_bags(val),
    )


def start(
    model: MIL,
    config: FitConfig,
    keys: Key[Array, " S"],
    order_keys: Key[Array, " S"] | None,
    train: Bags,
    placement: Placement,
    *,
    only_shapes: bool = False,
) -> FitState:
    """All members before their first epoch, sharded; filled up to a multiple of the devices. Or their shapes alone."""
    bag_shape = (train.rows.shape[-1], train.pool.shape[1:])
    given = (keys,) if order_keys is None else (keys, order_keys)
    key_data = tuple(fill(np.asarray(jax.random.key_data(each)), placement) for each in given)
    starter: Any = _starter(model, config, bag_shape, keys.shape[0], placement)  # type: ignore[arg-type]
    if not only_shapes:
        return starter(key_data)
    placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharded(placement))  # noqa: E731
    return jax.tree.map(placed, jax.eval_shape(starter, key_data))


@lru_cache
def _starter(
    model: MIL, config: FitConfig, bag_shape: tuple[int, tuple[int, ...]], members: int, placement: Placement
) -> Callable[[tuple[np.ndarray, ...]], FitState]:
    @partial(jax.jit, out_shardings=sharded(placement))
    def init(key_data: tuple[Array, ...]) -> FitState:
        # One after the other, so that a member's draw does not depend on how many there are.
        wrapped = [jax.random.wrap_key_data(data) for data in key_data]
        state = lax.map(lambda own: init_fit(model, own[0], *bag_shape, *own[1:]), wrapped)
        return stop_fillers(state, members, config)

    return init


def restart(state: FitState, members: int, config: FitConfig, placement: Placement) -> FitState:
    """Members of an earlier run on the devices of this one, whose number may differ."""
    filled = jax.tree.map(lambda leaf: fill(leaf[:members], placement), to_host(state))
    stopped = stop_fillers(filled, members, config)
    return jax.device_put(jax.tree.map(np.asarray, stopped), sharded(placement))


def stop_fillers(state: FitState, members: int, config: FitConfig) -> FitState:
    """The members after the first `members` count as having trained all epochs: they take no time."""
    is_filler = jnp.arange(state.epoch.shape[0]) >= members
    return dataclasses.replace(state, epoch=jnp.where(is_filler, config.epochs, state.epoch))


def choose_slots(state: FitState, config: FitConfig, placement: Placement) -> Int[np.ndarray, " slots"] | None:
    """Which of its members each device runs next, as places inside the device; None when all have stopped.

    One at a time, all: those that have stopped are skipped. Together, a member that has stopped costs as much as one
    that has not, so the slots are halved as often as the live members allow; the slots that are left over go to
    members that have stopped, which stay as they are. Members do not move between devices.
    """
    running = ~to_host(has_stopped(state, config)).reshape(placement.devices, -1)
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


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=7, compiler_options=WIDE_VECTORS)
def run_epoch(
    model: MIL,
    config: FitConfig,
    placement: Placement,
    slots: Int[np.ndarray | Array, " slots"],
    hyper: Hyper,
    train: Bags,
    val: Bags,
    state: FitState,
) -> tuple[FitState, EpochInfo]:
    """One epoch of the members in `slots`; the others, and those that have stopped, stay as they are."""
    args = (hyper, train, val, state)
    all_of = lambda tree: jax.tree.map(lambda _: True, tree)  # noqa: E731
    own = (all_of(hyper), varies(train), varies(val), all_of(state))

    def on_device(slots: Any, *args: Any) -> tuple[FitState, EpochInfo]:
        whole: FitState = args[-1]
        infos = jax.tree.map(lambda leaf: jnp.full(whole.epoch.shape, leaf), blank_info())
        if placement.together == 1:
            running = jnp.sum(~has_stopped(whole, config))  # they come first
            return advance_in_turn(partial(fit_epoch, model, config), own, args, infos, slots, running)
        member = partial(advance, model, config)
        if slots.shape == whole.epoch.shape:
            return map_members(member, own, args, placement.together)
        chosen = jax.tree.map(lambda leaf, flag: leaf[slots] if flag else leaf, args, own)
        advanced = map_members(member, own, chosen, placement.together)
        return jax.tree.map(lambda old, new: old.at[slots].set(new), (whole, infos), advanced)

    specs = jax.tree.map(lambda flag: P("member") if flag else P(), own)
    return jax.shard_map(
        on_device,
        mesh=mesh_of(placement),
        in_specs=(P("member"), *specs),
        out_specs=P("member"),
        check_vma=False,
    )(slots, *args)


def collect(state: FitState, infos: list[EpochInfo], members: int, config: FitConfig) -> Ensemble:
    """What is left of the members [S] after the last epoch, with their curves [S, E]."""
    keep = (state.best_params, state.best_epoch, state.best_loss, state.epoch)
    kept = jax.tree.map(lambda leaf: leaf[:members], to_host(keep))

    def curve(*epochs: np.ndarray) -> np.ndarray:
        missing = config.epochs - len(epochs)
        blank = 0 if epochs[0].dtype.kind == "i" else np.nan
        return np.pad(np.stack(epochs, axis=1), ((0, 0), (0, missing)), constant_values=blank)

    return Ensemble(*kept, curves=jax.tree.map(curve, *infos))


# ---- prediction ----


def predict_ensemble(model: MIL, params: Params, bags: Bags, placement: Placement | None = None) -> Prediction:
    """Predictions of all members: probabilities [S, B, C] and attention weights [S, B, K], as NumPy.

    Memory is bounded: a device holds the activations of one member's chunk of bags at a time.

    Args:
        model: what the members are.
        params: with a leading axis S.
        bags: bags that the model can take, shared by the members or with a leading axis S on all but the pool.
        placement: devices to use; `default_placement` where not given.

    Raises:
        InputError: bags that the model cannot take.
    """
    check_full(model, params, bags.mask)
    members = jax.tree.leaves(params)[0].shape[0]
    placement = placement or default_placement(members)
    filled = jax.tree.map(lambda leaf: fill(np.asarray(leaf), placement), params)
    own = varies(bags)
    views = jax.tree.map(lambda leaf, flag: fill(np.asarray(leaf), placement) if flag else np.asarray(leaf), bags, own)
    widths = bucket_widths(sizes_of(bags))
    predicted = to_host(_predict_members(model, placement, widths, filled, views))
    return jax.tree.map(lambda leaf: leaf[:members], predicted)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _predict_members(
    model: MIL, placement: Placement, widths: tuple[int, ...], params: Params, bags: Bags
) -> Prediction:
    own = (jax.tree.map(lambda _: True, params), varies(bags))

    def on_device(params: Params, bags: Bags) -> Prediction:
        return map_members(partial(predict, model, widths=widths), own, (params, bags), together=1)

    return jax.shard_map(
        on_device,
        mesh=mesh_of(placement),
        in_specs=jax.tree.map(lambda flag: P("member") if flag else P(), own),
        out_specs=P("member"),
        check_vma=False,
    )(params, bags)


def average(predicted: Prediction) -> Prediction:
    """The ensemble's prediction: the mean over members of probabilities [B, C] and attention [B, K]."""
    return jax.tree.map(lambda leaf: leaf.mean(axis=0), predicted)
