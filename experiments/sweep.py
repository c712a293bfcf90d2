"""Which learning rate and which L2 strength? A grid of them times seeds, as one compiled program.

Hyperparameters are arrays, so every point of the grid and every seed is a member of one ensemble. The point is chosen
by the mean validation loss over its seeds; the test bags judge the chosen point, and take no part in choosing it.

    python experiments/sweep.py
    python experiments/sweep.py --one-by-one      (also times the same runs one after the other)
"""

import dataclasses
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mnist_bags
import numpy as np

from mil_jax import cli, datasets, ensemble, evaluation, plots, recording, runs, training
from mil_jax.bags import Splits
from mil_jax.cli import Compute, ComputeOptions
from mil_jax.ensemble import Ensemble
from mil_jax.errors import InputError
from mil_jax.evaluation import Evaluation
from mil_jax.training import Hyper


@dataclass(frozen=True)
class Config:
    """Options of the sweep; what is not here is as in mnist_bags."""

    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3)
    """Learning rates of Adam, the rows of the grid."""
    l2: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1)
    """L2 strengths, the columns of the grid."""
    members: int = 8
    """Seeds at each point of the grid."""
    class_weight_strength: float = 1.0
    """0 for no class weights, 1 for total / (2 * count), between for a part of the way."""
    seed: int = 0
    """Decides the bags and the members' keys; all points of the grid share them."""
    dataset: str = "mnist-sample"
    """As in mnist_bags."""
    data_dir: Path | None = None
    """Where TensorFlow Datasets keeps prepared sets."""
    manual_dir: Path | None = None
    """A folder, only read, with the canonical .gz files."""
    train_bags: int = 1000
    """Bags to learn from."""
    val_bags: int = 300
    """Bags that the epoch and the point are chosen on."""
    test_bags: int = 1000
    """Bags that nothing is chosen on."""
    epochs: int = 20
    """The most epochs that a member trains for."""
    patience: int = 10
    """A member stops after this many epochs without a better validation loss."""
    one_by_one: bool = False
    """Also time the same runs one after the other, a fit for each."""
    out: Path | None = None
    """The run folder; a new one under runs/sweep where not given."""
    compute: ComputeOptions = Compute()


def main(config: Config) -> Path:
    """Runs the sweep and returns its run folder."""
    watch = cli.Stopwatch()
    out = config.out or mnist_bags.default_out("sweep", config)
    check(config, out)
    grid = list(itertools.product(config.learning_rates, config.l2))
    fits = len(grid) * config.members
    cli.start_jax(config.compute, fits)
    base = problem(config)
    data = datasets.load(config.dataset, config.data_dir, config.manual_dir)
    key_bags, key_members = jax.random.split(jax.random.key(config.seed))
    splits = mnist_bags.draw_bags(key_bags, data, base)
    hyper = grid_hyper(config, grid, splits)
    # The same seeds at every point, so that points differ by their hyperparameters alone.
    keys = jnp.tile(ensemble.member_keys(key_members, config.members), len(grid))
    mil = mnist_bags.build_model(base)
    with runs.open_run(out, describe(config, data), mnist_bags.describe_how(base), config.compute.resume) as run:
        cli.say(f"{len(grid)} points of the grid x {config.members} seeds = {fits} fits in one program")
        trained = recording.fit_recorded(
            run, config.compute, watch, mil, keys, splits.train, splits.val, mnist_bags.fit_config(base), hyper
        )
        judged = {
            name: evaluation.evaluate_members(ensemble.predict_ensemble(mil, trained.params, part), part)
            for name, part in (("val", splits.val), ("test", splits.test))
        }
        rows = tabulate(grid, config.members, judged)
        seconds = watch.read() | (time_one_by_one(config, mil, keys, splits, hyper) if config.one_by_one else {})
        report(run, config, rows, trained, seconds)
        run.drop_progress()
    print_results(rows, seconds, out)
    return out


def check(config: Config, out: Path) -> None:
    """Refuses options that no later step would name well."""
    if not config.learning_rates or min(config.learning_rates) <= 0:
        raise InputError("learning_rates", config.learning_rates, "give one or more positive numbers")
    if not config.l2 or min(config.l2) < 0:
        raise InputError("l2", config.l2, "give one or more numbers of 0 or more")
    if not config.class_weight_strength >= 0:
        raise InputError("class_weight_strength", config.class_weight_strength, "use 0 or more")
    mnist_bags.check(problem(config))
    if not config.compute.resume:
        runs.check_free(out)


def problem(config: Config) -> mnist_bags.Config:
    """The problem and the model of mnist_bags."""
    shared = {field.name for field in dataclasses.fields(mnist_bags.Config)} - {"l2"}
    values = {name: value for name, value in vars(config).items() if name in shared}
    return mnist_bags.Config(**values)


def describe(config: Config, data: datasets.Dataset) -> dict[str, Any]:
    description = mnist_bags.describe(problem(config), data)
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in mnist_bags.NOT_RESULTS}
    return description | {"experiment": "sweep", "options": options}


def grid_hyper(config: Config, grid: list[tuple[float, float]], splits: Splits) -> Hyper:
    """The hyperparameters of all members, [points * seeds]."""
    rate, l2 = np.repeat(np.array(grid, np.float32), config.members, axis=0).T
    balanced = training.make_hyper(splits.train).class_weight
    weight = 1 + config.class_weight_strength * (balanced - 1)
    return Hyper(jnp.asarray(rate), jnp.asarray(l2), jnp.tile(weight, (len(rate), 1)))


def tabulate(grid: list[tuple[float, float]], members: int, judged: dict[str, Evaluation]) -> list[dict[str, float]]:
    """A row per point: mean and standard error over its seeds."""
    columns = {
        "val_loss": judged["val"].bags.loss, "val_accuracy": judged["val"].bags.accuracy,
        "test_loss": judged["test"].bags.loss, "test_accuracy": judged["test"].bags.accuracy,
        "test_auc": judged["test"].bags.auc, "hit_at_1": judged["test"].positive.hit_at_1,
        "normalized_entropy": judged["test"].positive.normalized_entropy,
    }  # fmt: skip
    rows = []
    for i, (rate, l2) in enumerate(grid):
        row: dict[str, float] = {"learning_rate": rate, "l2": l2}
        for name, values in columns.items():
            mean, spread = evaluation.mean_and_spread(np.asarray(values)[i * members : (i + 1) * members])
            row |= {name: mean, f"{name}_se": spread / members**0.5}
        rows.append(row)
    return rows


def chosen(rows: list[dict[str, float]]) -> dict[str, float]:
    """The point with the lowest mean validation loss."""
    return min(rows, key=lambda row: row["val_loss"])


def time_one_by_one(config: Config, mil: Any, keys: jax.Array, splits: Splits, hyper: Hyper) -> dict[str, float]:
    """Seconds of the same fits one after the other on one device, the program compiled once."""
    one = ensemble.Placement(devices=1, together=1)
    started = time.perf_counter()
    for i, key in enumerate(keys):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], hyper)
        ensemble.fit_ensemble(
            mil, key[None], splits.train, splits.val, mnist_bags.fit_config(problem(config)), own, one
        )  # fmt: skip
    return {"one_by_one": time.perf_counter() - started}


def report(
    run: runs.RunFolder, config: Config, rows: list[dict[str, float]], trained: Ensemble, seconds: dict[str, float]
) -> None:
    """Writes the table, the heat maps and the summary."""
    run.write_csv("results.csv", rows)
    shape = (len(config.learning_rates), len(config.l2))
    labels = [f"{rate:g}" for rate in config.learning_rates], [f"{value:g}" for value in config.l2]
    for name, what in (("val_loss", "mean validation loss (nats)"), ("normalized_entropy", "entropy / log K")):
        values = np.array([row[name] for row in rows]).reshape(shape)
        run.write_figure(name, plots.heat_map(values, *labels, "learning rate", "L2 strength", what))
    summary = {"chosen": chosen(rows), "grid": rows, "epochs_run": trained.epochs_run, "seconds": seconds}
    run.write_json("summary.json", summary)


def print_results(rows: list[dict[str, float]], seconds: dict[str, float], out: Path) -> None:
    names = ("val_loss", "test_accuracy", "test_auc", "hit_at_1", "normalized_entropy")
    cells = [
        [
            f"{row['learning_rate']:g}",
            f"{row['l2']:g}",
            *(f"{row[name]:.4f} ± {row[f'{name}_se']:.4f}" for name in names),
        ]
        for row in rows
    ]
    titles = ("learning rate", "L2", *(name.replace("_", " ") for name in names))
    cli.print_table("Mean ± standard error over seeds", titles, cells, "normalized entropy: on positive test bags")
    best = chosen(rows)
    cli.say(
        f"lowest validation loss: learning rate {best['learning_rate']:g}, L2 {best['l2']:g}; "
        f"there, test accuracy {best['test_accuracy']:.4f} ± {best['test_accuracy_se']:.4f}"
    )
    cli.say("seconds: " + "  ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    cli.say(f"run folder: {out}")


if __name__ == "__main__":
    cli.command(Config, main, __doc__, runs.saved_options)
