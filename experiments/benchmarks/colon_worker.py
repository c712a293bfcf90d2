"""S members of the colon network with augmentation, trained by mil_jax and timed in a process of its own.

    python colon_worker.py --bags bags.npz --out ours.json --members 4 --timing-only-epochs 3

`colon_speed.py` starts it, as it starts the PyTorch loop. Epochs are those of `fit_ensemble` without validation. It
also counts the operations of an epoch: how long it would take if it were nothing but products of large matrices.
"""

import argparse
from itertools import pairwise
from typing import Any

import jax
import jax_worker
import numpy as np
import peer_io

from mil_jax.augment import augment_bag
from mil_jax.bags import Bags, View
from mil_jax.ensemble import member_keys
from mil_jax.model import ModelConfig, build
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.run.config import Compute
from mil_jax.run.fit import Task
from mil_jax.run.processes import make_cpu_devices
from mil_jax.training import FitConfig


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


def main(options: argparse.Namespace) -> None:
    """Times the members."""
    make_cpu_devices(Compute())
    task, arrays = peer_io.read_task(options.bags)
    posed = pose(task, arrays, options.members, options.timing_only_epochs, options.seed)
    bags, patches = arrays["patches"].shape[:2]
    count = operations(task, patches) * bags
    peer_io.write_json(options.out, jax_worker.time_task(posed, count))


if __name__ == "__main__":
    main(peer_io.colon_options())
