"""One way of training S members with mil_jax, timed in a process of its own.

    python jax_worker.py --way placed --members 8 --out placed.json

The benchmarks start it, as they start the peers. What it times is mil_jax as it is: epochs of `fit_ensemble` with
validation and attention statistics, and the training part of the same program, which is what the peers time.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peer_io
import tyro
from jax import Array, lax

from mil_jax import datasets, ensemble, epochs, placement, training
from mil_jax.bags import Bags, gather
from mil_jax.model import build, count_params, param_shapes
from mil_jax.optimizer import Hyper, by_member, make_hyper, optimizer
from mil_jax.placement import Placement
from mil_jax.run.config import Compute
from mil_jax.run.fit import Task
from mil_jax.run.processes import make_cpu_devices
from mil_jax.run.saved import jsonable, versions
from mil_jax.sampling import BagsConfig, Splits, sample_splits
from mil_jax.training import FitConfig, FitState, StepInfo, TrainState

ZERO: Any = np.float32(0)
NO_INFO = StepInfo(ZERO, ZERO)  # in the place of an epoch's
PRODUCT = 2048  # side of the matrices whose product is timed


@dataclass(frozen=True)
class Job:
    """What the worker does, and where the answer goes."""

    out: Path
    """The .json file to write; for the job 'bags' the .npz file."""
    job: Literal["time", "bags", "backend"] = "time"
    """Time a way, write the bags that all ways train on, or tell what JAX would run on."""
    way: Literal["placed", "vmap", "sequential", "adam"] = "placed"
    """fit_ensemble's own placement; all members by one vmap on one device; one member after the other on one device;
    or Adam's update alone, placed as fit_ensemble places members."""
    parts: Literal["train", "both"] = "both"
    """Time the training alone, or whole epochs as well."""
    members: int = 1
    """Members, S."""
    epochs: int = 2
    """Epochs of each part, the first of which compiles and warms up."""
    seed: int = 0
    """Decides bags and members."""
    train_bags: int = 1000
    """Training bags, which is also the number of steps of an epoch."""
    val_bags: int = 300
    """Bags of a validation."""


def main(job: Job) -> None:
    """Does the job; the file at `out` is whole or absent."""
    if job.job == "bags":
        write_peer_bags(draw_splits(job), job.out)
        return
    # One device where one is used: XLA shares the cores out among the devices of a CPU.
    make_cpu_devices(Compute(devices=1 if job.way in ("vmap", "sequential") else None))
    answer = {"versions": versions()} | (time_way(job) if job.job == "time" else {})
    peer_io.write_json(job.out, jsonable(answer))


def write_peer_bags(splits: Splits, path: Path) -> None:
    """Writes full bags as the peers read them, an .npz file: images [B, K, height, width] in [0, 1], and labels."""
    parts = splits._asdict().items()
    arrays: dict[str, Any] = {f"{name}_labels": np.asarray(part.label) for name, part in parts}
    arrays |= {f"{name}_instances": np.asarray(gather(part.pool, part.rows)) for name, part in parts}
    np.savez(path, **arrays)


def draw_splits(job: Job) -> Splits:
    """The bags that the seed decides."""
    counts = BagsConfig(train_bags=job.train_bags, val_bags=job.val_bags, test_bags=1)
    return sample_splits(jax.random.key(job.seed), datasets.load(datasets.SAMPLE), counts)


def pose(job: Job) -> Task:
    """The example's problem for S members that do not stop early."""
    splits = draw_splits(job)
    keys = ensemble.member_keys(jax.random.key(job.seed), job.members)
    config = FitConfig(epochs=job.epochs, patience=job.epochs)
    return Task(build(), keys, splits.train, splits.val, config, make_hyper(splits.train))


def time_way(job: Job) -> dict[str, Any]:
    """Times the way; the answer has microseconds per member and step by epoch, and memory."""
    task = pose(job)
    where = {"vmap": Placement(1, job.members), "sequential": Placement(1, 1)}.get(job.way)
    where = where or placement.default_placement(job.members)
    member = adam_member if job.way == "adam" else train_member
    epochs = sequential_epochs(task) if job.way == "sequential" else placed_epochs(task, where, member)
    train = list(clock(epochs))
    memory = peer_io.peak_memory_mib()
    whole = whole_epochs(task, where) if job.parts == "both" else []
    in_use = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    shapes = param_shapes(task.model, task.train.slots, task.train.kind.shape)
    details = dataclasses.asdict(where) | {
        "parameters": count_params(shapes), "peak_device_memory_mib": in_use and in_use / 2**20,
        "peak_memory_mib_with_validation": peer_io.peak_memory_mib() if whole else None,
    }  # fmt: skip
    parts = {"microseconds_per_step_by_epoch": train, "whole_microseconds_per_step_by_epoch": whole}
    microseconds = {name: [1e6 * s / (job.members * job.train_bags) for s in part] for name, part in parts.items()}
    return {"peak_memory_mib": memory, "details": details, "members": [microseconds]}  # one, as all take the same


def clock(epochs: Iterator[Any]) -> Iterator[float]:
    """The seconds that each item takes to make; the first one includes compilation."""
    start = time.perf_counter()
    for result in epochs:
        jax.block_until_ready(result)
        now = time.perf_counter()
        yield now - start
        start = now


# ---- training alone ----


def train_member(task: Task, hyper: Hyper, train: Bags, state: FitState) -> tuple[FitState, StepInfo]:
    """The training part of `training.fit_epoch`."""
    key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(state.order_key)), state.epoch)
    trained, info = training.train_epoch(task.model, task.config, hyper, train, state.train, key)
    return dataclasses.replace(state, train=trained, epoch=state.epoch + 1), info


def adam_member(task: Task, hyper: Hyper, train: Bags, state: FitState) -> tuple[FitState, StepInfo]:
    """As many updates of Adam, with a gradient that does not change, and no model: what no step can go below."""
    gradient = state.best_params  # any numbers of the right shapes do

    def step(state: TrainState, factor: Array) -> tuple[TrainState, None]:
        # The factor is 1, which the compiler does not know: else it would take products out of the loop.
        scaled = jax.tree.map(lambda g: factor * g, gradient)
        updates, opt_state = optimizer(hyper).update(scaled, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), None

    factors = jnp.where(state.epoch >= 0, jnp.ones(train.label.shape[0]), 0)
    updated, _ = lax.scan(step, state.train, factors)
    return dataclasses.replace(state, train=updated, epoch=state.epoch + 1), NO_INFO


def placed_epochs(task: Task, where: Placement, member: Callable[..., Any]) -> Iterator[FitState]:
    """Epochs of all members, mapped and sharded as `ensemble.run_epoch` does it."""
    hyper, bags = by_member(task.hyper, task.members), ensemble.choose_widths(where, task.train, task.val)
    shared, own = ensemble.place(hyper, *bags, where)
    state = ensemble.init_members(task.model, task.keys, task.train, task.config, where)

    def on_device(shared: Any, of_device: Any) -> tuple[FitState, StepInfo]:
        def one(member_part: Any) -> tuple[FitState, StepInfo]:
            (hyper, view, _), state = member_part
            return member(task, hyper, ensemble.join(shared[0], view), state)

        own, state = of_device
        if where.together > 1:
            return placement.map_members(one, of_device, where.together)
        infos = jax.tree.map(lambda leaf: jnp.full(state.epoch.shape, leaf), NO_INFO)
        running = jnp.sum(~training.has_stopped(state, task.config))  # all but fillers, which come last
        return epochs.advance_in_turn(one, own, (state, infos), jnp.arange(state.epoch.size), running)

    def epoch(shared: Any, own: Any, state: FitState) -> FitState:
        return placement.on_members(on_device, where)(shared, (own, state))[0]

    compiled = jax.jit(epoch, donate_argnums=2, compiler_options=epochs.WIDE_VECTORS)
    for _ in range(task.config.epochs):
        state = compiled(shared, own, state)
        yield state


def sequential_epochs(task: Task) -> Iterator[list[FitState]]:
    """Epochs of all members, each member by a call of its own: a loop in Python."""
    init = jax.jit(lambda keys: training.init_fit(task.model, keys, task.train.slots, task.train.kind.shape))
    epoch = jax.jit(partial(train_member, task), donate_argnums=2, compiler_options=epochs.WIDE_VECTORS)
    states = [init(jax.tree.map(lambda key, i=i: key[i], task.keys)) for i in range(task.members)]
    for _ in range(task.config.epochs):
        states = [epoch(task.hyper, task.train, state)[0] for state in states]
        yield states


def time_task(task: Task, operations: int) -> dict[str, Any]:
    """The answer of a worker that trains a task: times, memory, and how fast products of large matrices are.

    `operations` are those of all products of an epoch of one member.
    """
    steps, shapes = len(task.train.label), param_shapes(task.model, task.train.slots, task.train.kind.shape)
    epochs = placed_epochs(task, placement.default_placement(task.members), train_member)
    times = [1e6 * seconds / (task.members * steps) for seconds in clock(epochs)]
    memory = peer_io.peak_memory_mib()
    details = {
        "parameters": count_params(shapes), "operations": operations / steps,
        "operations_per_second": product_speed(task.members),
    }  # fmt: skip
    answer = {"versions": versions(), "peak_memory_mib": memory, "details": details}
    return jsonable(answer | {"members": [{"microseconds_per_step_by_epoch": times}]})


def product_speed(members: int) -> float:
    """Operations in a second of products of large matrices, on all devices that members use at once."""
    where = placement.default_placement(members)
    matrices = jnp.ones((where.devices, PRODUCT, PRODUCT)) / PRODUCT
    product = jax.jit(placement.on_members(lambda _, own: jax.lax.map(lambda one: one @ one, own), where))
    jax.block_until_ready(product(None, matrices))
    times = list(clock(product(None, matrices) for _ in range(8)))
    return 2 * PRODUCT**3 * where.devices / min(times)


# ---- whole epochs ----


def whole_epochs(task: Task, where: Placement) -> list[float]:
    """Seconds of the epochs of `fit_ensemble`, with validation, attention statistics, and curves fetched."""
    moments = [time.perf_counter()]
    execution = ensemble.Execution(where, on_epoch=lambda *_: moments.append(time.perf_counter()))
    ensemble.fit_ensemble(task.model, task.keys, task.train, task.val, task.config, task.hyper, execution)
    return np.diff(moments).tolist()


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
