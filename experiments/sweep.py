"""Which learning rate and which L2 strength? A grid of them times seeds, as one compiled program.

Hyperparameters are arrays, so every point of the grid and every seed is a member of one ensemble. The point is chosen
by the mean validation loss over its seeds; the test bags judge the chosen point, and take no part in choosing it. A
seed that diverged is in no mean, and its point is chosen only where no other has fewer such seeds.

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
import numpy as np

from mil_jax import datasets, plots
from mil_jax.ensemble import Ensemble, Execution, fit_ensemble, member_keys, predict
from mil_jax.errors import InputError, RunError, check_number, check_whole
from mil_jax.evaluation import evaluate_members, mean_and_spread
from mil_jax.model import MIL, ModelConfig, build
from mil_jax.optimizer import Hyper, make_hyper
from mil_jax.placement import Placement
from mil_jax.run import cli
from mil_jax.run.config import DataConfig, settings
from mil_jax.run.experiment import default_out
from mil_jax.run.fit import Task, fit_recorded
from mil_jax.run.folder import RunFolder, check_free, open_run
from mil_jax.run.processes import placement_of, start_jax
from mil_jax.run.screen import Stopwatch, print_table, say
from mil_jax.run.study import StudyConfig
from mil_jax.sampling import BagsConfig, Splits, sample_splits
from mil_jax.text import Table, with_error
from mil_jax.training import FitConfig


@dataclass(frozen=True)
class Config(StudyConfig):
    """Options of the sweep."""

    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3)
    """Learning rates of Adam, the rows of the grid."""
    l2: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1)
    """L2 strengths, the columns of the grid."""
    members: int = 8
    """Seeds at each point of the grid."""
    class_weight_strength: float = 1.0
    """0 for no class weights, 1 for total / (2 * count), between for a part of the way."""
    data: DataConfig = DataConfig()
    bags: BagsConfig = BagsConfig()
    model: ModelConfig = ModelConfig()
    fit: FitConfig = FitConfig()
    one_by_one: bool = False
    """Also time the same runs one after the other, a fit for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("members", self.members, 1)
        check_number("class_weight_strength", self.class_weight_strength, 0)
        for name in ("learning_rates", "l2"):
            if not getattr(self, name):
                raise InputError(name, getattr(self, name), "expected one or more numbers")
        for rate in self.learning_rates:
            check_number("learning_rates", rate, 0, 1e3, ends="(]")
        for l2 in self.l2:
            check_number("l2", l2, 0)

    @property
    def grid(self) -> list[tuple[float, float]]:
        """The points: learning rate and L2 strength."""
        return list(itertools.product(self.learning_rates, self.l2))


def main(config: Config) -> Path:
    """Runs the sweep and returns its run folder."""
    watch, points = Stopwatch(), len(config.grid)
    fits = points * config.members
    out = Path(config.out or default_out("sweep", config.data.dataset, config.seed))
    if not config.compute.resume:
        check_free(out)
    start_jax(config.compute, fits)
    data = datasets.load(config.data.dataset, config.data.data_dir, config.data.manual_dir)
    key_bags, key_members = jax.random.split(jax.random.key(config.seed))
    splits = sample_splits(key_bags, data, config.bags)
    # The same seeds at every point, so that points differ by their hyperparameters alone.
    keys = jax.tree.map(lambda keys: jnp.tile(keys, points), member_keys(key_members, config.members))
    task = Task(build(config.model), keys, splits.train, splits.val, config.fit, grid_hyper(config, splits))
    with open_run(out, *describe(config, data), config.compute.resume) as run:
        say(f"{points} points of the grid x {config.members} seeds = {fits} fits in one program")
        trained = fit_recorded(run, task, config.compute, watch)
        rows = tabulate(config, task.model, trained, splits)
        seconds = watch.read() | (time_one_by_one(task) if config.one_by_one else {})
        write(run, config, rows, trained, seconds)
        run.drop_progress()
    print_results(rows, seconds, out)
    return out


def describe(config: Config, data: datasets.Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `config.json` says: what decides the results, and what does not."""
    options, how = settings(config)
    content = {"name": data.name, "content_hash": data.content_hash}
    model = dataclasses.asdict(config.model)
    return {"experiment": "sweep", "options": options, "model": model, "data": content}, how


def grid_hyper(config: Config, splits: Splits) -> Hyper:
    """The hyperparameters of all members, [points * seeds]."""
    rate, l2 = np.repeat(np.array(config.grid, np.float32), config.members, axis=0).T
    balanced = make_hyper(splits.train).class_weight
    weight = 1 + config.class_weight_strength * (balanced - 1)
    return Hyper(jnp.asarray(rate), jnp.asarray(l2), jnp.tile(weight, (len(rate), 1)))


def tabulate(config: Config, mil: MIL, trained: Ensemble, splits: Splits) -> list[dict[str, Any]]:
    """A row per point: mean and standard error over its seeds, and how many of them diverged."""
    placement = placement_of(config.compute, trained.members.count)
    val, test = (
        evaluate_members(predict(mil, trained.members, part, placement), part) for part in (splits.val, splits.test)
    )
    columns = {
        "val_loss": val.bags.loss, "val_accuracy": val.bags.accuracy, "test_loss": test.bags.loss,
        "test_accuracy": test.bags.accuracy, "test_auc": test.bags.auc, "hit_at_1": test.positive.hit_at_1,
        "normalized_entropy": test.positive.normalized_entropy,
    }  # fmt: skip
    if not trained.best_epoch.any():
        raise RunError("training diverged at all points of the grid: try lower learning rates")
    rows = []
    for i, (rate, l2) in enumerate(config.grid):
        of_point = slice(i * config.members, (i + 1) * config.members)
        kept = trained.best_epoch[of_point] > 0
        row: dict[str, Any] = {"learning_rate": rate, "l2": l2}
        for name, values in columns.items():
            mean, spread = mean_and_spread(np.asarray(values)[of_point][kept])
            row |= {name: mean, f"{name}_se": spread / max(kept.sum(), 1) ** 0.5}
        rows.append(row | {"diverged": config.members - int(kept.sum())})
    return rows


def chosen(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the points where the fewest seeds diverged, the one with the lowest mean validation loss."""
    return min(rows, key=lambda row: (row["diverged"], row["val_loss"]))


def time_one_by_one(task: Task) -> dict[str, float]:
    """Seconds of the same fits one after the other on one device, the program compiled once."""
    started, execution = time.perf_counter(), Execution(Placement(devices=1, together=1))
    for i in range(task.members):
        keys = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], task.keys)
        hyper = jax.tree.map(lambda leaf, i=i: leaf[i], task.hyper)
        fit_ensemble(task.model, keys, task.train, task.val, task.config, hyper, execution)
    return {"one_by_one": time.perf_counter() - started}


def write(
    run: RunFolder, config: Config, rows: list[dict[str, Any]], trained: Ensemble, seconds: dict[str, float]
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


def print_results(rows: list[dict[str, Any]], seconds: dict[str, float], out: Path) -> None:
    """The table, the chosen point, and the seconds."""
    names = ("val_loss", "test_accuracy", "test_auc", "hit_at_1", "normalized_entropy")
    scores = [{name: with_error(row[name], row[f"{name}_se"], digits=4) for name in names} for row in rows]
    cells = [
        [f"{row['learning_rate']:g}", f"{row['l2']:g}", *of_row.values()]
        for row, of_row in zip(rows, scores, strict=True)
    ]
    columns = ("rate", "L2", "val loss", "test accuracy", "test AUC", "hit@1", "entropy")
    note = "rate: of learning; entropy: of the attention, as a share of log K, on positive test bags"
    print_table(Table("Mean ± standard error over seeds", columns, cells, note))
    for row in rows:
        if row["diverged"]:
            say(f"warning: learning rate {row['learning_rate']:g}, L2 {row['l2']:g}: {row['diverged']} seeds diverged")
    best = chosen(rows)
    say(
        f"lowest validation loss: learning rate {best['learning_rate']:g}, L2 {best['l2']:g}; "
        f"there, test accuracy {scores[rows.index(best)]['test_accuracy']}"
    )
    say("seconds: " + "  ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    say(f"run folder: {out}")


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
