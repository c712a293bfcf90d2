"""One way of training S members with mil_jax, timed in a process of its own.

    python jax_worker.py --way placed --members 8 --out placed.json

The benchmarks start it, as they start the peers. What it times is mil_jax as it is: epochs of `fit_ensemble` with
validation and attention statistics, and the training part of the same program, which is what the peers time.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import measure
import numpy as np
import peer_io
import tyro
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from mil_jax import bags, cli, datasets, ensemble, model, runs, training
from mil_jax.bags import Bags, Splits
from mil_jax.ensemble import Placement
from mil_jax.model import MIL
from mil_jax.training import FitConfig, FitState, Hyper, TrainState

NO_INFO = (np.float32(0), np.float32(0))  # in the place of the loss and accuracy of an epoch


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
    unroll: int = 1
    """Steps in a turn of the compiled loop."""


@dataclass(frozen=True)
class Problem:
    """The example's problem for S members that do not stop early."""

    mil: MIL
    config: FitConfig
    train: Bags
    val: Bags
    hyper: Hyper
    keys: Array


def main(job: Job) -> None:
    """Does the job; the file at `out` is whole or absent."""
    if job.job == "bags":
        measure.write_peer_bags(draw_splits(job), job.out)
        return
    # One device where one is used: XLA shares the cores out among the devices of a CPU.
    cli.make_cpu_devices(cli.Compute(devices=1 if job.way in ("vmap", "sequential") else None))
    answer = {"versions": runs.versions()}
    if job.job == "time":
        answer |= time_way(job)
    beside = job.out.with_name(job.out.name + ".partial")
    beside.write_text(json.dumps(runs.jsonable(answer), indent=2) + "\n")
    beside.replace(job.out)


def draw_splits(job: Job) -> Splits:
    """The bags that the seed decides."""
    data = datasets.load(datasets.SAMPLE)
    counts = {"train_bags": job.train_bags, "val_bags": job.val_bags, "test_bags": 1}
    return bags.sample_splits(jax.random.key(job.seed), data, **counts)


def pose(job: Job) -> Problem:
    """The problem of the job."""
    splits = draw_splits(job)
    keys = ensemble.member_keys(jax.random.key(job.seed), job.members)
    config = FitConfig(epochs=job.epochs, patience=job.epochs, unroll=job.unroll)
    return Problem(model.build(), config, splits.train, splits.val, training.make_hyper(splits.train), keys)


def time_way(job: Job) -> dict[str, Any]:
    """Times the way; the answer has microseconds per member and step by epoch, and memory."""
    problem = pose(job)
    placement = Placement(1, job.members) if job.way == "vmap" else ensemble.default_placement(job.members)
    if job.way == "sequential":
        placement = Placement(1, 1)
        train_seconds = list(clock(sequential_epochs(problem)))
    else:
        member = adam_member if job.way == "adam" else train_member
        train_seconds = list(clock(placed_epochs(problem, placement, member)))
    answer = {"peak_memory_mib": peer_io.peak_memory_mib(), "details": describe(problem, placement)}
    whole_seconds = whole_epochs(problem, placement) if job.parts == "both" else []
    answer["details"]["peak_memory_mib_with_validation"] = peer_io.peak_memory_mib() if whole_seconds else None
    per_step = 1e6 / (job.members * job.train_bags)
    return answer | {
        "train_microseconds": [seconds * per_step for seconds in train_seconds],
        "whole_microseconds": [seconds * per_step for seconds in whole_seconds],
    }


def describe(problem: Problem, placement: Placement) -> dict[str, Any]:
    """What else is worth knowing: placement, the model's size, and the device's memory where it counts it."""
    in_use = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    init = partial(model.init_params, problem.mil, bag_size=problem.train.rows.shape[-1], instance_shape=(28, 28))
    return {
        **dataclasses.asdict(placement),
        "parameters": model.count_params(jax.eval_shape(init, problem.keys[0])),
        "peak_device_memory_mib": in_use and in_use / 2**20,
    }


def clock(epochs: Iterator[Any]) -> Iterator[float]:
    """The seconds that each item takes to make; the first one includes compilation."""
    start = time.perf_counter()
    for result in epochs:
        jax.block_until_ready(result)
        now = time.perf_counter()
        yield now - start
        start = now


# ---- training alone ----


def train_member(problem: Problem, hyper: Hyper, train: Bags, state: FitState) -> tuple[FitState, Any]:
    """The training part of `training.fit_epoch`."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.epoch)
    trained, info = training.train_epoch(problem.mil, problem.config, hyper, train, state.train, key)
    return dataclasses.replace(state, train=trained, epoch=state.epoch + 1), info


def adam_member(problem: Problem, hyper: Hyper, train: Bags, state: FitState) -> tuple[FitState, Any]:
    """As many updates of Adam, with a gradient that does not change, and no model: what no step can go below."""
    gradient = state.best_params  # any numbers of the right shapes do

    def step(state: TrainState, factor: Array) -> tuple[TrainState, None]:
        # The factor is 1, which the compiler does not know: else it would take products out of the loop.
        scaled = jax.tree.map(lambda g: factor * g, gradient)
        direction, opt_state = training.adam.update(scaled, state.opt_state)
        params = jax.tree.map(lambda p, d: p - hyper.learning_rate * d, state.params, direction)
        return TrainState(params, opt_state, state.step + 1), None

    factors = jnp.where(state.epoch >= 0, jnp.ones(train.label.shape[0]), 0)
    updated, _ = lax.scan(step, state.train, factors)
    return dataclasses.replace(state, train=updated, epoch=state.epoch + 1), NO_INFO


def placed_epochs(problem: Problem, placement: Placement, member: Callable[..., Any]) -> Iterator[FitState]:
    """Epochs of all members, mapped and sharded as `ensemble.run_epoch` does it."""
    members = problem.keys.shape[0]
    hyper, train, _ = ensemble.place_inputs(problem.hyper, problem.train, problem.val, members, placement)
    state = ensemble.start(problem.mil, problem.config, problem.keys, None, problem.train, placement)
    own = (jax.tree.map(lambda _: True, hyper), ensemble.varies(train), jax.tree.map(lambda _: True, state))
    train_one = partial(member, problem)

    def on_device(*args: Any) -> tuple[FitState, Any]:
        if placement.together > 1:
            return ensemble.map_members(train_one, own, args, placement.together)
        epoch = args[-1].epoch
        infos = jax.tree.map(lambda leaf: jnp.full(epoch.shape, leaf), NO_INFO)
        running = jnp.sum(~training.has_stopped(args[-1], problem.config))  # all but fillers, which come last
        return ensemble.advance_in_turn(train_one, own, args, infos, jnp.arange(epoch.size), running)

    epoch = jax.jit(
        jax.shard_map(
            on_device,
            mesh=ensemble.mesh_of(placement),
            in_specs=jax.tree.map(lambda flag: P("member") if flag else P(), own),
            out_specs=P("member"),
            check_vma=False,
        ),
        donate_argnums=2,
        compiler_options=ensemble.WIDE_VECTORS,
    )
    for _ in range(problem.config.epochs):
        state, _ = epoch(hyper, train, state)
        yield state


def sequential_epochs(problem: Problem) -> Iterator[list[FitState]]:
    """Epochs of all members, each member by a call of its own: a loop in Python."""
    bag_shape = (problem.train.rows.shape[-1], problem.train.pool.shape[1:])
    init = jax.jit(lambda key: training.init_fit(problem.mil, key, *bag_shape))
    epoch = jax.jit(partial(train_member, problem), donate_argnums=2, compiler_options=ensemble.WIDE_VECTORS)
    states = [init(key) for key in problem.keys]
    for _ in range(problem.config.epochs):
        states = [epoch(problem.hyper, problem.train, state)[0] for state in states]
        yield states


# ---- whole epochs ----


def whole_epochs(problem: Problem, placement: Placement) -> list[float]:
    """Seconds of the epochs of `fit_ensemble`, with validation, attention statistics, and curves fetched."""
    moments = [time.perf_counter()]
    ensemble.fit_ensemble(
        problem.mil, problem.keys, problem.train, problem.val, problem.config, problem.hyper, placement,
        on_epoch=lambda *_: moments.append(time.perf_counter()),
    )  # fmt: skip
    return np.diff(moments).tolist()


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
