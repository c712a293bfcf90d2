"""Which digit of a bag made it positive? Attention-based deep MIL on bags of digits, end to end.

The question and the settings are those of the Keras example "Classification using Attention-based Deep Multiple
Instance Learning": bags of 3 digits, positive if one of them is a 1; with a test set that nothing was chosen on,
attention judged against the true positive instances, and as many members as you like.

    python experiments/mnist_bags.py
    python experiments/mnist_bags.py --members 16 --dataset mnist
"""

from dataclasses import dataclass
from pathlib import Path

import jax

from mil_jax import datasets
from mil_jax.datasets import Dataset
from mil_jax.run import cli
from mil_jax.run.config import DataConfig, Problem, RunConfig
from mil_jax.run.experiment import begin, run_bags
from mil_jax.sampling import BagsConfig, Splits, sample_splits, sample_splits_of_members


@dataclass(frozen=True)
class Config(RunConfig):
    """Options of the experiment; the defaults are the Keras example's."""

    data: DataConfig = DataConfig()
    bags: BagsConfig = BagsConfig()


def main(config: Config) -> Path:
    """Runs the experiment and returns its run folder."""
    started, watch = begin(config, "mnist_bags", config.data.dataset)
    with watch.phase("data"):
        data = datasets.load(config.data.dataset, config.data.data_dir, config.data.manual_dir)
        problem = Problem(
            name=data.name, splits=draw_bags(config, data), content_hash=data.content_hash, experiment="mnist_bags"
        )
    return run_bags(started, problem, watch)


def draw_bags(config: Config, data: Dataset) -> Splits:
    """The bags of all sets; with --vary bags, every member has its own draw of training bags."""
    key, _ = jax.random.split(jax.random.key(config.seed))
    if "bags" in config.varied:
        return sample_splits_of_members(key, data, config.bags, config.members)
    return sample_splits(key, data, config.bags)


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
