"""How much memory does it take to judge many members on many bags?

Predicts with the initial parameters of 256 members on 10,000 bags of 3 digits, and judges every member, in the memory
of one member's chunk of bags at a time.

    python experiments/benchmarks/evaluation_memory.py
"""

import time
from dataclasses import dataclass

import jax
import numpy as np
import peer_io

from mil_jax import datasets
from mil_jax.ensemble import init_members, member_keys, predict
from mil_jax.errors import check_whole
from mil_jax.evaluation import evaluate_members
from mil_jax.members import Members
from mil_jax.model import build
from mil_jax.run import cli
from mil_jax.run.config import Compute
from mil_jax.run.processes import start_jax
from mil_jax.run.screen import say
from mil_jax.sampling import BagLaw, sample_bags


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    members: int = 256
    """Members that predict."""
    bags: int = 10_000
    """Bags that they predict."""
    bag_size: int = 3
    """Instances per bag."""

    def __post_init__(self) -> None:
        check_whole("members", self.members, 1)


def main(config: Config) -> None:
    """Predicts, judges, and prints seconds and the peak memory of the process."""
    start_jax(Compute(), config.members)
    digits, mil = datasets.load(datasets.SAMPLE).test, build()
    test = sample_bags(jax.random.key(0), digits.x, digits.label, BagLaw(config.bag_size), count=config.bags)
    state = init_members(mil, member_keys(jax.random.key(1), config.members), test)
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[: config.members], state.best_params)
    del state
    started = time.perf_counter()
    judged = evaluate_members(predict(mil, Members(params, None, test.kind), test), test)
    seconds, peak = time.perf_counter() - started, peer_io.peak_memory_mib() / 2**10
    say(f"{config.members} members on {config.bags} bags: {seconds:.1f} s with compilation, peak memory {peak:.2f} GiB")
    say(f"mean AUC of the untrained members: {float(np.mean(judged.bags.auc)):.3f}")


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
