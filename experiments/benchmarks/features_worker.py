"""S members on the features of slides, trained by mil_jax and timed in a process of its own.

    python features_worker.py --bags bags.npz --out ours.json --members 8 --timing-only-epochs 3

`features_speed.py` starts it, as it starts the PyTorch loop. Epochs are those of `fit_ensemble` without validation. It
also counts the operations of an epoch: how long it would take if it were nothing but products of large matrices.
"""

import argparse
from itertools import pairwise
from typing import Any

import jax
import jax_worker
import numpy as np
import peer_io

from mil_jax.arrays import bags_in_order
from mil_jax.ensemble import member_keys
from mil_jax.model import ModelConfig, build
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.run.config import Compute
from mil_jax.run.fit import Task
from mil_jax.run.processes import make_cpu_devices
from mil_jax.training import FitConfig


def pose(task: dict[str, Any], arrays: dict[str, np.ndarray], options: argparse.Namespace) -> Task:
    """Members that do not stop early."""
    config = ModelConfig(
        hidden=tuple(task["hidden"]), attention_units=task["attention_units"], head="sum", output="sigmoid",
        precision=options.precision,
    )  # fmt: skip
    bags = bags_in_order(arrays["features"], arrays["sizes"], arrays["labels"].astype(np.int32), None)
    rates = {name: task[name] for name in ("learning_rate", "weight_decay")}
    hyper = make_hyper(bags, HyperConfig(l2=None, class_weights=False, **rates))
    keys, epochs = member_keys(jax.random.key(options.seed), options.members), options.timing_only_epochs
    return Task(build(config), keys, bags, bags, FitConfig(epochs=epochs, patience=epochs), hyper)


def operations(task: dict[str, Any], instances: int, features: int) -> int:
    """Additions and multiplications of an epoch's products, the gradient's among them; 2 for each pair of numbers."""
    forward = [before * after for before, after in pairwise([features, *task["hidden"]])]
    forward += 2 * [task["hidden"][-1] * task["attention_units"]]  # V and U
    # Backward there are two products for each of forward, but no gradient of the features.
    return 2 * instances * (3 * sum(forward) - forward[0])


def main(options: argparse.Namespace) -> None:
    """Times the members."""
    make_cpu_devices(Compute())
    task, arrays = peer_io.read_task(options.bags)
    posed = pose(task, arrays, options)
    count = operations(task, *arrays["features"].shape)
    peer_io.write_json(options.out, jax_worker.time_task(posed, count))


if __name__ == "__main__":
    main(peer_io.features_options())
