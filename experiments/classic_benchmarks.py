"""How good are the poolings on the five classic benchmarks, when nothing is chosen on the test folds?

MUSK1, MUSK2 (molecules and their shapes), Elephant, Fox and Tiger (images and their segments): 10-fold
cross-validation, 5 times. All folds and repeats of a data set and a pooling are members of one ensemble, each with its
own bags and its own standardisation. A member's epoch and threshold are chosen on a validation part of its training
folds; so is its setting, where there are several learning rates or weight decays: all of them are members, too. Any
other table, NAME.csv with lines of bag_label,bag_id,f1,f2,…, can be named beside the five.

    python experiments/classic_benchmarks.py --data-dir FOLDER
    python experiments/classic_benchmarks.py --data-dir FOLDER --datasets musk1 --repeats 1      (a look, in a minute)
    python experiments/classic_benchmarks.py --data-dir FOLDER --choose-on-test             (what that would pretend)
    python experiments/classic_benchmarks.py --data-dir FOLDER --learning-rates 1e-4 5e-4 --weight-decays 5e-4 5e-3
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax import datasets, plots
from mil_jax.arrays import bags_from_set
from mil_jax.buckets import bucket_widths, empty_share, sizes_of
from mil_jax.datasets import BagSet
from mil_jax.errors import InputError
from mil_jax.model import Pooling, build
from mil_jax.protocols import Folds, split_bags
from mil_jax.run import cli
from mil_jax.run.config import Compute, aside
from mil_jax.run.cross_validation import CHOSEN, FoldsConfig, mean_of_repeats, train_folds
from mil_jax.run.screen import print_table, say
from mil_jax.run.search import Search
from mil_jax.run.study import Measurement, Row, Rows, begin, open_study, print_rows, summary_row
from mil_jax.sampling import Splits
from mil_jax.text import Table
from mil_jax.training import FitConfig

# Accuracies as secondary sources report them, of other draws of folds and often with the epoch chosen on the test fold:
# MI-Net and mi-Net by Wang et al. 2018, attention and gated attention by Ilse et al. 2018.
PUBLISHED = {
    "gated_attention": {"musk1": 0.900, "musk2": 0.863, "fox": 0.603, "tiger": 0.845, "elephant": 0.857},
    "attention": {"musk1": 0.892, "musk2": 0.858, "fox": 0.615, "tiger": 0.839, "elephant": 0.868},
    "embedding_max": {"musk1": 0.887, "musk2": 0.859, "fox": 0.622, "tiger": 0.830, "elephant": 0.862},
    "instance_max": {"musk1": 0.889, "musk2": 0.858, "fox": 0.613, "tiger": 0.824, "elephant": 0.858},
}


@dataclass(frozen=True)
class Config(FoldsConfig):
    """Options of the benchmark."""

    data_dir: Path | None = aside(None)
    """The folder with the data sets: NAME.csv, or the public originals."""
    datasets: tuple[str, ...] = datasets.CLASSIC_NAMES
    """Which of them, or of other tables there."""
    choose_on_test: bool = False
    """Choose setting, epoch and threshold on the test fold itself, as some published figures do: to see what that
    pretends."""
    hidden: tuple[int, ...] = (256, 128, 64)
    """Widths of the encoder's layers."""
    attention_units: int = 64
    fit: FitConfig = FitConfig(epochs=60, patience=20)
    search: Search = Search("standard", learning_rates=(5e-4,), weight_decays=(5e-3,), class_weights=False)
    compute: Compute = aside(Compute(checkpoint_every=10))  # after every epoch it would take a quarter of the time


def main(config: Config) -> Path:
    """Runs the benchmark and returns its folder."""
    if config.data_dir is None:
        raise InputError("data_dir", None, "expected the folder that holds the data sets, as NAME.csv or the originals")
    if not config.datasets:
        raise InputError("datasets", config.datasets, "expected one or more")
    study = begin("classic_benchmarks", __doc__, config, config.folds * config.repeats)
    sets = {name: datasets.load_table_set(name, config.data_dir) for name in config.datasets}
    drawn = {name: draw(config, data) for name, data in sets.items()}
    with open_study(study, {name: data.content_hash for name, data in sets.items()}) as run:
        table = Rows(study, run)
        for name, (folds, splits) in drawn.items():
            print_sizes(sets[name])
            for pooling in config.poolings:
                table.add(measure, name, pooling, folds, splits)
        rows = table.rows
        run.write_figure("accuracy", heat_map(rows, config))
        run.write_json("summary.json", {"rows": rows, "seconds": sum(row["seconds"] for row in rows)})
    choice = "CHOSEN ON the test folds, which is no result" if config.choose_on_test else "chosen on validation bags"
    title = f"Test folds, {config.folds} folds x {config.repeats}; epoch and threshold {choice}"
    scores = ("accuracy", "auc", "accuracy_chosen_threshold")
    print_rows(title, rows, ("dataset", "pooling", "published"), scores)
    print_choices(rows)
    say(f"{sum(row['fits'] for row in rows)} fits, {sum(row['seconds'] for row in rows) / 60:.1f} minutes")
    say(f"folder: {run.path}")
    return run.path


def draw(config: Config, data: BagSet) -> tuple[Folds, Splits]:
    """The folds of a data set, and each member's bags."""
    folds = config.draw_folds(jax.random.fold_in(jax.random.key(config.seed), 0), data.label)
    splits = split_bags(bags_from_set(data), folds)
    return folds, splits._replace(val=splits.test) if config.choose_on_test else splits


def print_sizes(data: BagSet) -> None:
    """Says how large the bags are, and how few slots widths leave empty."""
    sizes = sizes_of(bags_from_set(data))
    widths, largest = bucket_widths(sizes), int(sizes.max())
    say(
        f"{data.name}: {len(sizes)} bags of {sizes.min()} to {largest} instances; empty slots "
        f"{empty_share(sizes, widths):.2f} in widths {widths}, {empty_share(sizes, (largest,)):.2f} in one"
    )


def measure(study: Measurement, name: str, pooling: Pooling, folds: Folds, splits: Splits) -> Row:
    """One row: a data set and a pooling."""
    config, key = study.config, jax.random.fold_in(jax.random.key(study.config.seed), 1)
    mil = build(config.network(pooling))
    found = train_folds(study, mil, key, splits, folds, f"{name}, {pooling}")
    factors = {"dataset": name, "pooling": pooling, "published": PUBLISHED.get(pooling, {}).get(name)}
    epochs = {n: mean_of_repeats(getattr(found.kept, n), config.repeats) for n in ("best_epoch", "epochs_run")}
    row = summary_row(factors, found.crossed.scores() | epochs, {"accuracy": found.crossed.right})
    return row | found.columns()


def print_choices(rows: list[Row]) -> None:
    """How often each setting was chosen, where there was a choice: a table for each data set."""
    settings = [name for name in rows[0] if name.startswith(CHOSEN)]
    for dataset in dict.fromkeys(row["dataset"] for row in rows) if settings else ():
        of_set = {row["pooling"].replace("_", " "): row for row in rows if row["dataset"] == dataset}
        cells = [
            [name.removeprefix(CHOSEN).replace("_", " "), *(row[name] for row in of_set.values())] for name in settings
        ]
        print_table(Table(f"{dataset}: fits in which a setting was chosen", ("setting", *of_set), cells))


def heat_map(rows: list[Row], config: Config) -> Any:
    """The table as a picture: data sets against poolings."""
    values = np.array([row["accuracy"] for row in rows]).reshape(len(config.datasets), len(config.poolings))
    names = [pooling.replace("_", " ") for pooling in config.poolings]
    return plots.heat_map(values, list(config.datasets), names, "data set", "pooling", "accuracy on test folds")


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
