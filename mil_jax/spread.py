"""One bag over several devices: for bags whose instances no single device holds.

Each device encodes its part of the instances and weighs them; the softmax is put together over the devices (see
`pooling.attention.pool_in_chunks`). What comes out is that of one device, but for rounding.

Axes: K slots of the bag, cut into equal parts for the devices.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from mil_jax.errors import InputError
from mil_jax.model import MIL, MILOutput, Params, apply, joins
from mil_jax.pooling import AttentionPooling, Pooled

AXIS = "instance"


def spread_bag(
    instances: Float[np.ndarray | Array, "K ..."], devices: int | None = None
) -> tuple[Float[Array, "slots ..."], Bool[Array, " slots"]]:
    """The instances and the mask of a bag, cut among devices; the last part is filled up with empty slots.

    Args:
        instances: of one bag.
        devices: how many; all where not given.
    """
    mesh = _mesh(devices)
    extra = -len(instances) % mesh.size
    padded = np.pad(np.asarray(instances), [(0, extra), *[(0, 0)] * (instances.ndim - 1)])
    mask = np.arange(len(padded)) < len(instances)
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.device_put(padded, sharding), jax.device_put(mask, sharding)


def apply_spread(
    model: MIL, params: Params, instances: Float[Array, "K ..."], mask: Bool[Array, " K"], devices: int | None = None
) -> MILOutput:
    """`model.apply` of a bag that is spread over devices; it may be differentiated by the parameters.

    Args:
        model: with attention pooling and the head that sums.
        params: whole on every device.
        instances: as `spread_bag` cuts them.
        mask: likewise.
        devices: as for `spread_bag`.

    Raises:
        InputError: another pooling, or slots that the devices do not divide.
    """
    mesh = _mesh(devices)
    if not isinstance(model.pooling, AttentionPooling) or model.pooling.sparse or joins(model):
        expected = "expected attention pooling by softmax with the head 'sum'"
        raise InputError("model.pooling", type(model.pooling).__name__, expected)
    if len(mask) % mesh.size:
        raise InputError("mask", len(mask), f"expected a multiple of {mesh.size}, the devices (see spread_bag)")
    own = model.clone(pooling=model.pooling.clone(axis=AXIS))

    def on_device(params: Params, instances: Array, mask: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        out = apply(own, params, instances, mask)
        return (out.logits, out.embedding), (out.scores, out.attention)

    specs: Any = {"in_specs": (P(), P(AXIS), P(AXIS)), "out_specs": (P(), P(AXIS))}
    run = jax.shard_map(on_device, mesh=mesh, check_vma=False, **specs)
    (logits, embedding), (scores, attention) = run(params, instances, mask)
    return MILOutput(logits, scores, Pooled(embedding, attention))


def _mesh(devices: int | None) -> Mesh:
    count = jax.device_count() if devices is None else devices
    if not 1 <= count <= jax.device_count():
        raise InputError("devices", devices, f"expected 1 to {jax.device_count()}, those that there are")
    return Mesh(np.array(jax.devices()[:count]), (AXIS,))
