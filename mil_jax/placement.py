"""Where members run: devices and hosts, and the one way in which a function of a member is mapped over all of them.

Members never communicate, so they are sharded over a mesh axis `member`, and inside a device they run `together` at
a time. On an accelerator a step of one member leaves the device idle, and many run together; on a CPU the
parameters and moments of many members fall out of the cache, so each runs its epoch alone, one device per core.

Axes: S members.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mil_jax.errors import InputError, check_whole, checked
from mil_jax.memory import aligned


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where members run: it decides the time that they take and the memory.

    On CPUs, two or more devices with one member at a time give the same bits however many they are. Any other
    placement is another program: its rounding differs, and training amplifies that without a bound. A member may end
    elsewhere; the distribution of members stays (`experiments/RESULTS.md` has figures).

    Raises:
        InputError: a number below 1, or more devices than there are.
    """

    devices: int
    """Devices that share the members."""
    together: int
    """Members that run at once inside a device (`vmap`); the others wait for their turn."""

    def __post_init__(self) -> None:
        check_whole("devices", self.devices, 1)
        check_whole("together", self.together, 1)
        if self.devices > jax.device_count():
            expected = f"expected 1 to {jax.device_count()}, the {jax.default_backend()} devices there are"
            raise InputError("devices", self.devices, expected)


def core_count() -> int:
    """The processor cores that this process may use; where the system does not say (macOS), all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@checked
def use_all_cores(devices: int | None = None) -> int:
    """Makes one CPU device per core, at least two, so that an ensemble uses all of them; call it before JAX starts.

    Args:
        devices: how many instead.

    Returns:
        The number of devices there are now. Where JAX has started already, as in a notebook, they stay as they were.

    Raises:
        InputError: a number below 1.
    """
    check_whole("devices", 1 if devices is None else devices, 1)
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices or max(core_count(), 2))
    return jax.device_count()


@checked
def default_placement(members: int) -> Placement:
    """All devices; on a CPU one member at a time in each, on an accelerator all that the device got."""
    # XLA compiles a program for one device otherwise than for two or more, with another rounding: a lone member uses
    # two, so that it gets the numbers that it would get among others. And every process must own a part of the mesh.
    devices = jax.device_count()
    if jax.process_count() == 1:
        devices = min(devices, max(members, 2))
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and devices == 1 < min(members, core_count()):
        advice = "call mil_jax.use_all_cores() before anything else uses JAX"
        warnings.warn(f"{members} members share one of {core_count()} cores: {advice}", stacklevel=3)
    return Placement(devices, 1 if on_cpu else -(-members // devices))


def mesh_of(placement: Placement) -> Mesh:
    """The devices of a placement, as a mesh with the one axis `member`."""
    return Mesh(np.array(jax.devices()[: placement.devices]), ("member",))


def sharded(placement: Placement) -> NamedSharding:
    """How members' arrays lie on the devices: cut along their leading axis."""
    return NamedSharding(mesh_of(placement), P("member"))


def fill(tree: Any, placement: Placement) -> Any:
    """Members' arrays, with the last member repeated until the devices divide their number."""

    def fill_leaf(leaf: Any) -> Any:
        extra = -leaf.shape[0] % placement.devices
        join = jnp.concatenate if isinstance(leaf, jax.Array) else np.concatenate
        return join([leaf, leaf[-1:].repeat(extra, axis=0)]) if extra else leaf

    return jax.tree.map(fill_leaf, tree)


def put_members(tree: Any, placement: Placement) -> Any:
    """Members' arrays on their devices, filled up."""
    return jax.device_put(fill(jax.tree.map(np.asarray, tree), placement), sharded(placement))


def put_shared(tree: Any, placement: Placement) -> Any:
    """What all members read, whole on each device.

    The devices of a CPU read NumPy's memory itself: an array must not change while a program may read it.
    """
    # Of an array that does not lie right, JAX would make a copy for each device.
    prepare = aligned if jax.default_backend() == "cpu" else np.asarray
    return jax.device_put(
        jax.tree.map(lambda leaf: prepare(np.asarray(leaf)), tree), NamedSharding(mesh_of(placement), P())
    )


def to_host(tree: Any) -> Any:
    """The arrays as NumPy, whole on every process."""

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            if leaf.is_fully_replicated:
                return np.asarray(leaf.addressable_data(0))
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def on_members(function: Callable[[Any, Any], Any], placement: Placement) -> Callable[[Any, Any], Any]:
    """`function(shared, own)` of a device's members, run on all devices.

    Args:
        function: of what all members share, and of a tree of the device's members, with a leading axis; so is its
            result.
        placement: the devices.
    """
    return jax.shard_map(
        function, mesh=mesh_of(placement), in_specs=(P(), P("member")), out_specs=P("member"), check_vma=False
    )


def map_members(function: Callable[[Any], Any], own: Any, together: int) -> Any:
    """`function` of each of a device's members, `together` at a time."""
    if together >= len(jax.tree.leaves(own)[0]):
        return jax.vmap(function)(own)
    return lax.map(function, own, batch_size=None if together == 1 else together)
