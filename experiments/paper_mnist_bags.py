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
from typing import Any

import jax
import numpy as np
import study

from mil_jax import bags, cli, datasets, ensemble, evaluation, model, plots, training
from mil_jax.bags import Bags, NormalSize, Splits
from mil_jax.cli import Compute, ComputeOptions
from mil_jax.errors import InputError
from mil_jax.model import MIL, Pooling
from mil_jax.training import FitConfig

VARIANCES = {10: 2.0, 50: 10.0, 100: 20.0}
TARGET = 9


@dataclass(frozen=True)
class Config:
    """Options of the experiment; the model and its training are the paper's."""

    data_dir: Path | None = None
    """A folder with the four canonical .gz files, or one that holds it as mnist/; not needed for mnist-sample."""
    datasets: tuple[str, ...] = ("mnist",)
    """mnist, mnist-sample (embedded), fashion_mnist or kmnist."""
    poolings: tuple[Pooling, ...] = study.COMPARED
    """Which poolings."""
    mean_sizes: tuple[int, ...] = (10,)
    """Mean sizes of bags, each with the paper's variance."""
    train_bags: tuple[int, ...] = (50, 100, 200)
    """Numbers of bags to learn from."""
    val_bags: int = 100
    """Bags that the epoch is chosen on, of digits that are in no test bag."""
    test_bags: int = 1000
    """Bags that nothing is chosen on."""
    repeats: int = 5
    """Draws of all bags, with a member each."""
    seed: int = 0
    """Decides everything that is drawn."""
    hidden: tuple[int, ...] = (500,)
    """Widths of the dense layers behind the convolutions."""
    attention_units: int = 128
    """Width of the attention's hidden layer."""
    epochs: int = 40
    """The most epochs that a member trains for."""
    patience: int = 8
    """A member stops after this many epochs without a better validation loss."""
    learning_rate: float = 5e-4
    """Of Adam."""
    weight_decay: float = 1e-4
    """Factor of every parameter in its gradient."""
    out: Path | None = None
    """The folder of results; a new one under runs/paper_mnist_bags where not given."""
    compute: ComputeOptions = Compute()


def main(config: Config) -> Path:
    """Runs the experiment and returns its folder."""
    check(config)
    cli.start_jax(config.compute, config.repeats)
    sets = {name: datasets.load(name, None, folder_of(config, name)) for name in config.datasets}
    rows: list[dict[str, Any]] = []
    with study.open_study("paper_mnist_bags", config, {n: s.content_hash for n, s in sets.items()}) as run:
        for name, data in sets.items():
            for mean_size in config.mean_sizes:
                repeats = draw_repeats(config, data, mean_size)
                for pooling in config.poolings:
                    for count in config.train_bags:
                        rows.append(measure(config, name, mean_size, pooling, count, repeats))
                        run.write_csv("results.csv", rows)
                run.write_figure(f"auc_{name}_{mean_size}", draw(config, rows, name, mean_size))
        run.write_json("summary.json", {"rows": rows})
    scores = ("auc", "accuracy", "instance_auc", "hit_at_1")
    study.print_rows("Test bags", rows, ("dataset", "mean_size", "pooling", "train_bags"), scores)
    cli.say(f"folder: {run.path}")
    return run.path


def check(config: Config) -> None:
    """Refuses options that no later step would name well."""
    study.check_common(config)
    for name in ("mean_sizes", "train_bags", "datasets"):
        if not getattr(config, name):
            raise InputError(name, getattr(config, name), "name at least one")
    unknown = set(config.mean_sizes) - set(VARIANCES)
    if unknown:
        raise InputError("mean_sizes", config.mean_sizes, f"use {', '.join(map(str, VARIANCES))}")
    for name in ("train_bags", "val_bags", "test_bags"):
        if np.min(getattr(config, name)) < 2:
            raise InputError(name, getattr(config, name), "use at least 2, one of each label")
    for pooling in config.poolings:
        build(config, pooling)
    FitConfig(config.epochs, 1, config.patience)


def folder_of(config: Config, name: str) -> Path | None:
    """Where the files of a data set are: the folder itself, or the one of the set's name in it."""
    if config.data_dir is None or name == datasets.SAMPLE:
        return None
    inner = config.data_dir / name
    return inner if inner.is_dir() else config.data_dir


def build(config: Config, pooling: Pooling) -> MIL:
    return model.build(
        model.ModelConfig(
            encoder="lenet", hidden=config.hidden, pooling=pooling, attention_units=config.attention_units,
            head="sum", output="sigmoid",
        )
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Repeats:
    """The bags of all repeats: as many training bags as the most that are asked for, of each repeat on its own."""

    train: tuple[Bags, ...]
    val: Bags
    test: Bags


def draw_repeats(config: Config, data: datasets.Dataset, mean_size: int) -> Repeats:
    """Draws the bags of all repeats; validation and test bags have a leading axis."""
    key = jax.random.fold_in(jax.random.key(config.seed), mean_size)
    draws = [
        bags.sample_splits(
            each, data, train_bags=max(config.train_bags), val_bags=config.val_bags, test_bags=config.test_bags,
            bag_size=NormalSize(mean_size, VARIANCES[mean_size]), positive_class=TARGET, positive_share=0.5,
        )
        for each in jax.random.split(key, config.repeats)
    ]  # fmt: skip
    train, val, test = zip(*draws, strict=True)
    return Repeats(train, stack_padded(val), stack_padded(test))


def stack_padded(draws: Sequence[Bags]) -> Bags:
    """Draws of different widths with a leading member axis."""
    most = max(draw.rows.shape[-1] for draw in draws)
    return ensemble.stack_bags([bags.pad(draw, most) for draw in draws])


def first_of_both(draw: Bags, count: int) -> Bags:
    """The first `count` bags, half of them positive."""
    label = np.asarray(draw.label)
    positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    return bags.take(draw, np.concatenate([positive[: count // 2], negative[: count - count // 2]]))


def measure(
    config: Config, name: str, mean_size: int, pooling: Pooling, count: int, repeats: Repeats
) -> dict[str, Any]:
    """One row: a pooling and a number of training bags."""
    train = stack_padded([first_of_both(draw, count) for draw in repeats.train])
    mil, own = build(config, pooling), Splits(train, repeats.val, repeats.test)
    hyper = training.make_hyper(
        own.train, learning_rate=config.learning_rate, l2=None, weight_decay=config.weight_decay, class_weights=False
    )
    trained, seconds = study.fit_members(
        mil, jax.random.fold_in(jax.random.key(config.seed), 0), config.repeats, own,
        FitConfig(config.epochs, 1, config.patience), hyper, config.compute,
        f"{name}, mean size {mean_size}, {pooling}, {count} bags",
    )  # fmt: skip
    judged = evaluation.evaluate_members(ensemble.predict_ensemble(mil, trained.params, own.test), own.test)
    scores = {
        "auc": np.asarray(judged.bags.auc),
        "accuracy": np.asarray(judged.bags.accuracy),
        "instance_auc": np.asarray(judged.positive.instance_auc),
        "hit_at_1": np.asarray(judged.positive.hit_at_1),
        "best_epoch": np.asarray(trained.best_epoch),
    }
    names = {"dataset": name, "mean_size": mean_size, "pooling": pooling, "train_bags": count}
    return study.row_of(names, scores, config.repeats, seconds)


def draw(config: Config, rows: list[dict[str, Any]], name: str, mean_size: int) -> Any:
    """AUC against the number of training bags, in bands of one standard error."""
    series = {}
    for pooling in config.poolings:
        own = [r for r in rows if (r["dataset"], r["mean_size"], r["pooling"]) == (name, mean_size, pooling)]
        auc, error = (np.array([row[column] for row in own]) for column in ("auc", "auc_se"))
        series[pooling.replace("_", " ")] = (auc, auc - error, auc + error)
    return plots.lines_with_band(
        np.array(config.train_bags), series, f"training bags, mean size {mean_size}", "AUC on test bags (± 1 s. e.)"
    )


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
