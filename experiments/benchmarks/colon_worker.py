"""S members of the colon network with augmentation, trained by mil_jax and timed in a process of its own.

    python colon_worker.py --bags bags.npz --out ours.json --members 4 --timing-only-epochs 3

`colon_speed.py` starts it, as it starts the PyTorch loop. Epochs are those of `fit_ensemble` without validation. It
also counts the operations of a step and measures the product of large matrices on all devices at once: how long
a step would take if it were nothing but such products.
"""

import argparse
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import jax_worker
import numpy as np
import peer_io

from mil_jax.augment import augment_bag
from mil_jax.bags import Bags, View
from mil_jax.ensemble import member_keys
from mil_jax.model import ModelConfig, build, count_params, param_shapes
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.placement import default_placement, on_members
from mil_jax.run.config import Compute
from mil_jax.run.fit import Task
from mil_jax.run.processes import make_cpu_devices
from mil_jax.run.saved import jsonable, versions
from mil_jax.training import FitConfig

PRODUCT = 2048  # side of the matrices whose product is timed


def bags_of(arrays: dict[str, np.ndarray]) -> Bags:
    """Full bags, each instance in one of them."""
    shape, label = arrays["patches"].shape[:2], arrays["labels"]
    rows = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    view = View(rows, np.ones(shape, bool), label.astype(np.int32), np.full(shape, -1, np.int32))
    return Bags(arrays["patches"].reshape(-1, *arrays["patches"].shape[2:]), view)


def pose(task: dict[str, Any], arrays: dict[str, np.ndarray], members: int, epochs: int, seed: int) -> Task:
    """Members that do not stop early."""
    config = ModelConfig(
        encoder="colon", hidden=tuple(task["hidden"]), dropout=task["dropout"], pooling="attention",
        attention_units=task["attention_units"], head="sum", output="sigmoid",
    )  # fmt: skip
    bags, rates = bags_of(arrays), {name: task[name] for name in ("learning_rate", "weight_decay")}
    hyper = make_hyper(bags, HyperConfig(l2=None, class_weights=False, **rates))
    model = build(config, augment=augment_bag if task["augment"] else None)
    keys = member_keys(jax.random.key(seed), members)
    return Task(model, keys, bags, bags, FitConfig(epochs=epochs, patience=epochs), hyper)


def operations(task: dict[str, Any], patches: int) -> int:
    """Additions and multiplications of a step's products, the gradient's among them; 2 for each pair of numbers."""
    side, channels, forward = task["side"], 3, []
    for outputs, kernel in task["filters"]:
        values = side - kernel + 1
        forward.append(values**2 * kernel**2 * channels * outputs)
        side, channels = values // 2, outputs
    widths = [channels * side**2, *task["hidden"], task["attention_units"]]
    forward += [before * after for before, after in pairwise(widths)]
    # Backward there are two products for each of forward, but no gradient of the patches.
    return 2 * patches * (3 * sum(forward) - forward[0])


def product_speed(members: int) -> float:
    """Operations in a second of products of large matrices, on all devices that members use at once."""
    placement = default_placement(members)
    matrices = jnp.ones((placement.devices, PRODUCT, PRODUCT)) / PRODUCT
    product = jax.jit(on_members(lambda _, own: jax.lax.map(lambda one: one @ one, own), placement))
    jax.block_until_ready(product(None, matrices))
    times = list(jax_worker.clock(product(None, matrices) for _ in range(8)))
    return 2 * PRODUCT**3 * placement.devices / min(times)


def main(options: argparse.Namespace) -> None:
    """Times the members."""
    make_cpu_devices(Compute())
    task, arrays = peer_io.read_colon(options.bags)
    posed = pose(task, arrays, options.members, options.timing_only_epochs, options.seed)
    epochs = jax_worker.placed_epochs(posed, default_placement(options.members), jax_worker.train_member)
    bags, patches = arrays["patches"].shape[:2]
    times = [1e6 * seconds / (options.members * bags) for seconds in jax_worker.clock(epochs)]
    memory, shapes = peer_io.peak_memory_mib(), param_shapes(posed.model, patches, arrays["patches"].shape[2:])
    details = {
        "parameters": count_params(shapes), "operations": operations(task, patches),
        "operations_per_second": product_speed(options.members),
    }  # fmt: skip
    answer = {"versions": versions(), "peak_memory_mib": memory, "details": details}
    peer_io.write_json(options.out, jsonable(answer | {"members": [{"microseconds_per_step_by_epoch": times}]}))


if __name__ == "__main__":
    main(peer_io.colon_options())
