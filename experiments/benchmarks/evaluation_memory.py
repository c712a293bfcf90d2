"""How much memory does it take to judge many members on many bags?

Predicts with the initial parameters of 256 members on 10,000 bags of 3 digits, and judges every member, in the memory
of one member's chunk of bags at a time.

    python experiments/benchmarks/evaluation_memory.py
"""

import resource
import time
from dataclasses import dataclass

import jax
import numpy as np

from mil_jax import bags, cli, datasets, ensemble, evaluation, model, training
from mil_jax.errors import InputError


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    members: int = 256
    """Members that predict."""
    bags: int = 10_000
    """Bags that they predict."""
    bag_size: int = 3
    """Instances per bag."""


def main(config: Config) -> None:
    """Predicts, judges, and prints seconds and the peak memory of the process."""
    if config.members < 1:
        raise InputError("members", config.members, "use at least 1")
    cli.start_jax(cli.Compute(), config.members)
    digits = datasets.load("mnist-sample").test
    test = bags.sample_bags(
        jax.random.key(0), digits.x, digits.label,
        bag_count=config.bags, bag_size=config.bag_size, positive_class=1,
    )  # fmt: skip
    mil = model.build()
    keys = ensemble.member_keys(jax.random.key(1), config.members)
    placement = ensemble.default_placement(config.members)
    state = ensemble.start(mil, training.FitConfig(), keys, None, test, placement)
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[: config.members], state.best_params)
    del state
    started = time.perf_counter()
    predicted = ensemble.predict_ensemble(mil, params, test)
    judged = evaluation.evaluate_members(predicted, test)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cli.say(
        f"{config.members} members on {config.bags} bags: {seconds:.1f} s with compilation, peak memory {peak:.2f} GiB"
    )
    cli.say(f"mean AUC of the untrained members: {float(np.mean(judged.bags.auc)):.3f}")


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
