r"""How many training bags does each pooling need? The paper's experiment on bags of digits that differ in size.

A bag is positive if it holds a 9; sizes follow a normal law with mean 10, 50 or 100 and variance 2, 10 or 20; half of
the bags are positive (Ilse et al. 2018). Each repeat has bags of its own; the smaller training sets of a repeat are
parts of its largest one, and all poolings see the same bags.

    python experiments/paper_mnist_bags.py --data-dir FOLDER                                    (quick settings)
    python experiments/paper_mnist_bags.py --data-dir FOLDER --mean-sizes 10 50 100 --train-bags 50 100 150 200 300 \
        400 500 --epochs 200 --patience 20                                                     (the paper's)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from mil_jax import datasets, plots
from mil_jax.bags import Bags, pad, stack_bags, take
from mil_jax.datasets import Dataset
from mil_jax.ensemble import member_keys, predict
from mil_jax.errors import InputError, check_choice, check_whole
from mil_jax.evaluation import evaluate_members
from mil_jax.model import Encoder, build
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.run import cli
from mil_jax.run.config import aside
from mil_jax.run.fit import Task
from mil_jax.run.processes import placement_of
from mil_jax.run.screen import say
from mil_jax.run.study import (
    Measurement,
    PoolingsConfig,
    Row,
    Rows,
    begin,
    check_converged,
    open_study,
    print_rows,
    summary_row,
    train_row,
)
from mil_jax.sampling import BagsConfig, Splits, sample_splits
from mil_jax.training import FitConfig

VARIANCES = {10: 2.0, 50: 10.0, 100: 20.0}
TARGET = 9


@dataclass(frozen=True)
class Config(PoolingsConfig):
    """Options of the experiment; the model and its training are the paper's."""

    encoder: ClassVar[Encoder] = "lenet"

    data_dir: Path | None = aside(None)
    """A folder with the four canonical .gz files, or one that holds it as mnist/; not needed for mnist-sample."""
    datasets: tuple[str, ...] = ("mnist",)
    """mnist, mnist-sample (embedded), fashion_mnist or kmnist."""
    mean_sizes: tuple[int, ...] = (10,)
    """Mean sizes of bags, each with the paper's variance."""
    train_bags: tuple[int, ...] = (50, 100, 200)
    """Numbers of bags to learn from."""
    val_bags: int = 100
    """Bags that the epoch is chosen on, of digits that are in no test bag."""
    test_bags: int = 1000
    """Bags that nothing is chosen on."""
    hidden: tuple[int, ...] = (500,)
    """Widths of the dense layers behind the convolutions."""
    fit: FitConfig = FitConfig(epochs=40, patience=8)
    hyper: HyperConfig = HyperConfig(learning_rate=5e-4, l2=None, weight_decay=1e-4, class_weights=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean_sizes", "train_bags", "datasets"):
            if not getattr(self, name):
                raise InputError(name, getattr(self, name), "expected one or more")
        for name in self.datasets:
            datasets.check_name("datasets", name)
        for size in self.mean_sizes:
            check_choice("mean_sizes", size, tuple(VARIANCES))
        for count in self.train_bags:
            check_whole("train_bags", count, 2)  # one of each label
        for name in ("val_bags", "test_bags"):
            check_whole(name, getattr(self, name), 2)


def main(config: Config) -> Path:
    """Runs the experiment and returns its folder."""
    study = begin("paper_mnist_bags", __doc__, config, config.repeats)
    sets = {name: datasets.load(name, None, folder_of(config, name)) for name in config.datasets}
    drawn = {(name, size): draw(config, data, size) for name, data in sets.items() for size in config.mean_sizes}
    with open_study(study, {name: data.content_hash for name, data in sets.items()}) as run:
        table = Rows(study, run)
        for (name, size), draws in drawn.items():
            for pooling in config.poolings:
                for count in config.train_bags:
                    factors = {"dataset": name, "mean_size": size, "pooling": pooling, "train_bags": count}
                    table.add(measure, factors, first_bags(draws, count))
            of_draw = [row for row in table.rows if (row["dataset"], row["mean_size"]) == (name, size)]
            run.write_figure(f"auc_{name}_{size}", draw_curves(config, of_draw, size))
        run.write_json("summary.json", {"rows": table.rows})
    scores = ("auc", "accuracy", "instance_auc", "hit_at_1")
    for name in config.datasets:
        of_set = [row for row in table.rows if row["dataset"] == name]
        print_rows(f"Test bags of {name}", of_set, ("mean_size", "pooling", "train_bags"), scores)
    say(f"folder: {run.path}")
    return run.path


def folder_of(config: Config, name: str) -> Path | None:
    """Where the files of a data set are: the folder itself, or the one of the set's name in it."""
    if config.data_dir is None or name == datasets.SAMPLE:
        return None
    inner = config.data_dir / name
    return inner if inner.is_dir() else config.data_dir


def draw(config: Config, data: Dataset, mean_size: int) -> list[Splits]:
    """The bags of each repeat, with as many training bags as the most that are asked for."""
    law = BagsConfig(
        bag_size=mean_size, size_variance=VARIANCES[mean_size], positive_class=TARGET, positive_share=0.5,
        train_bags=max(config.train_bags), val_bags=config.val_bags, test_bags=config.test_bags,
    )  # fmt: skip
    key = jax.random.fold_in(jax.random.key(config.seed), mean_size)
    return [sample_splits(key, data, law) for key in jax.random.split(key, config.repeats)]


def first_bags(draws: Sequence[Splits], count: int) -> Splits:
    """The bags of all repeats, with the first `count` training bags, half of them positive."""
    train = [take(draw.train, first_of_both(np.asarray(draw.train.label), count)) for draw in draws]
    _, val, test = zip(*draws, strict=True)
    return Splits(*map(stack_padded, (train, val, test)))


def first_of_both(label: np.ndarray, count: int) -> np.ndarray:
    """The first bags of both labels, `count` in all."""
    positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    return np.concatenate([positive[: count // 2], negative[: count - count // 2]])


def stack_padded(draws: Sequence[Bags]) -> Bags:
    """Draws of different widths with a leading member axis."""
    most = max(draw.slots for draw in draws)
    return stack_bags([pad(draw, most) for draw in draws])


def measure(study: Measurement, factors: dict[str, Any], splits: Splits) -> Row:
    """One row: a pooling and a number of training bags."""
    config, mil = study.config, build(study.config.network(factors["pooling"]))
    keys = member_keys(jax.random.fold_in(jax.random.key(config.seed), 0), config.repeats)
    hyper = make_hyper(splits.train, config.hyper)
    title = "{dataset}, mean size {mean_size}, {pooling}, {train_bags} bags".format(**factors)
    trained, seconds = train_row(study, Task(mil, keys, splits.train, splits.val, config.fit, hyper), title)
    check_converged(trained, title)
    predicted = predict(mil, trained.members, splits.test, placement_of(config.compute, config.repeats))
    judged = evaluate_members(predicted, splits.test)
    scores = {
        "auc": np.asarray(judged.bags.auc),
        "accuracy": np.asarray(judged.bags.accuracy),
        "instance_auc": np.asarray(judged.positive.instance_auc),
        "hit_at_1": np.asarray(judged.positive.hit_at_1),
        "best_epoch": np.asarray(trained.best_epoch),
    }
    return summary_row(factors, scores) | {"fits": config.repeats, "seconds": seconds}


def draw_curves(config: Config, rows: list[dict[str, Any]], mean_size: int) -> Any:
    """AUC against the number of training bags, in bands of one standard error."""
    series = {}
    for pooling in config.poolings:
        of_pooling = [row for row in rows if row["pooling"] == pooling]
        auc, error = (np.array([row[column] for row in of_pooling]) for column in ("auc", "auc_se"))
        series[pooling.replace("_", " ")] = (auc, auc - error, auc + error)
    return plots.lines_with_band(
        np.array(config.train_bags), series, f"training bags, mean size {mean_size}", "AUC on test bags (± 1 s. e.)"
    )


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
