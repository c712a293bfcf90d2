"""What does another program for the same members change: one device against two, one member at a time?

XLA compiles a program for one device otherwise than for several. The same 64 members train on MUSK1 by both, without
stopping early, on two thirds of the bags, and are validated on the others after every epoch.

    python experiments/benchmarks/devices.py --data-dir FOLDER
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax import datasets
from mil_jax.arrays import bags_from_set
from mil_jax.bags import Bags, take
from mil_jax.ensemble import Execution, fit_ensemble, member_keys
from mil_jax.errors import InputError, check_whole
from mil_jax.model import ModelConfig, build
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.placement import Placement, use_all_cores
from mil_jax.run import cli
from mil_jax.run.screen import print_table
from mil_jax.states import EpochInfo, FitConfig, FitState
from mil_jax.text import Table, with_error


@dataclass(frozen=True)
class Config:
    """Options of the comparison."""

    data_dir: Path | None = None
    """The folder with MUSK1."""
    epochs: tuple[int, ...] = (1, 2, 5, 10, 20, 40, 60)
    """Epochs after which members are compared."""
    members: int = 64
    """Members that train by both programs."""
    seed: int = 0
    """Decides the members."""

    def __post_init__(self) -> None:
        check_whole("members", self.members, 2)
        if self.data_dir is None:
            raise InputError("data_dir", None, "expected the folder that holds MUSK1")
        if not self.epochs or sorted(set(self.epochs)) != list(self.epochs) or self.epochs[0] < 1:
            raise InputError("epochs", self.epochs, "expected growing numbers from 1")


def main(config: Config) -> None:
    """Trains by both programs and prints how far they are apart."""
    if use_all_cores() < 2:
        raise InputError("devices", 1, "expected two devices or more")
    bags = bags_from_set(datasets.load_classic("musk1", config.data_dir or ""))
    is_val = np.arange(len(bags.label)) % 3 == 2
    train, val = take(bags, np.flatnonzero(~is_val)), take(bags, np.flatnonzero(is_val))
    (params, losses), (other_params, other_losses), again = (
        trained(config, train, val, devices) for devices in (1, 2, 2)
    )
    if not np.array_equal(again[1], other_losses):
        raise InputError("devices", 2, "expected the same losses from the same program")
    apart, means = [], []
    for at, epochs in enumerate(config.epochs):
        one, two = losses[at], other_losses[at]
        largest = (np.abs(params[at] - other_params[at]).max(axis=1), np.abs(one - two))
        cells = [f"{of(values):.1e}" for values in largest for of in (np.median, np.max)]
        apart.append([epochs, epochs * len(train.label), *cells])
        errors = [with_error(v.mean(), v.std(ddof=1) / len(v) ** 0.5, 4) for v in (one, two, one - two)]
        means.append([epochs, *errors, f"{np.corrcoef(one, two)[0, 1]:.3f}"])
    columns = ("epochs", "steps", "parameters, median", "largest", "validation loss, median", "largest")
    caption = f"the largest difference of a member; median and largest of {config.members} members"
    print_table(Table("How far one device is from two", columns, apart, caption))
    columns = ("epochs", "one device", "two devices", "difference", "correlation")
    print_table(Table("Mean validation loss ± standard error, paired by member", columns, means))


def trained(config: Config, train: Bags, val: Bags, devices: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters [S, P] and validation losses [S] after the epochs of interest."""
    params, losses = [], []

    def on_epoch(epoch: int, info: EpochInfo, state: FitState) -> None:
        if epoch in config.epochs:
            leaves: list[Any] = [np.asarray(leaf)[: config.members] for leaf in jax.tree.leaves(state.train.params)]
            params.append(np.concatenate([leaf.reshape(config.members, -1) for leaf in leaves], axis=1))
            losses.append(np.asarray(info.val_loss, np.float64))

    model = build(ModelConfig(hidden=(256, 128, 64), attention_units=64, head="sum"))
    hyper = HyperConfig(learning_rate=5e-4, l2=None, weight_decay=5e-3, class_weights=False, standardize=True)
    keys, fit = member_keys(jax.random.key(config.seed), config.members), FitConfig(config.epochs[-1], 1, 10**6)
    fit_ensemble(
        model, keys, train, val, fit, make_hyper(train, hyper), Execution(Placement(devices, 1), None, on_epoch)
    )
    return params, losses


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
