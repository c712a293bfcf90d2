"""How good are the poolings on the five classic benchmarks, when nothing is chosen on the test folds?

MUSK1, MUSK2 (molecules and their shapes), Elephant, Fox and Tiger (images and their segments): 10-fold
cross-validation, 5 times. All folds and repeats of a data set and a pooling are members of one ensemble, each with its
own bags and its own standardisation. A member's epoch and threshold are chosen on a validation part of its training
folds.

    python experiments/classic_benchmarks.py --data-dir FOLDER
    python experiments/classic_benchmarks.py --data-dir FOLDER --datasets musk1 --repeats 1      (a look, in a minute)
    python experiments/classic_benchmarks.py --data-dir FOLDER --choose-on-test             (what that would pretend)
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import study

from mil_jax import bags, cli, datasets, model, plots, protocols, training
from mil_jax.bags import Splits
from mil_jax.cli import Compute, ComputeOptions
from mil_jax.errors import InputError
from mil_jax.model import MIL, Pooling
from mil_jax.protocols import Folds
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
class Config:
    """Options of the benchmark."""

    data_dir: Path | None = None
    """The folder with the data sets: NAME.csv, or the public originals."""
    datasets: tuple[str, ...] = datasets.CLASSIC_NAMES
    """Which of them."""
    poolings: tuple[Pooling, ...] = study.COMPARED
    """Which poolings."""
    repeats: int = 5
    """Draws of folds."""
    folds: int = 10
    """Parts that the bags are cut into; each is the test set once."""
    val_share: float = 0.15
    """Share of the bags outside the test fold that the epoch and the threshold are chosen on."""
    choose_on_test: bool = False
    """Choose epoch and threshold on the test fold itself, as some published figures do: to see what that pretends."""
    seed: int = 0
    """Decides folds, initial parameters and orders of bags."""
    hidden: tuple[int, ...] = (256, 128, 64)
    """Widths of the encoder's layers."""
    attention_units: int = 64
    """Width of the attention's hidden layer."""
    dropout: float = 0.0
    """Share of the encoder's units that a step drops."""
    epochs: int = 60
    """The most epochs that a member trains for."""
    patience: int = 20
    """A member stops after this many epochs without a better validation loss."""
    learning_rate: float = 5e-4
    """Of Adam."""
    weight_decay: float = 5e-3
    """Factor of every parameter in its gradient."""
    out: Path | None = None
    """The folder of results; a new one under runs/classic_benchmarks where not given."""
    compute: ComputeOptions = Compute()


def main(config: Config) -> Path:
    """Runs the benchmark and returns its folder."""
    check(config)
    cli.start_jax(config.compute, config.folds * config.repeats)
    sets = {name: datasets.load_classic(name, config.data_dir or Path()) for name in config.datasets}
    rows = []
    with study.open_study("classic_benchmarks", config, {n: s.content_hash for n, s in sets.items()}) as run:
        for name, data in sets.items():
            folds, splits = draw_folds(config, data)
            if config.choose_on_test:
                splits = splits._replace(val=splits.test)
            for pooling in config.poolings:
                rows.append(measure(config, name, pooling, folds, splits, data.label))
                run.write_csv("results.csv", rows)
        run.write_figure("accuracy", draw(rows, config))
        run.write_json("summary.json", {"rows": rows, "seconds": sum(row["seconds"] for row in rows)})
    names = ("dataset", "pooling", "published")
    scores = ("accuracy", "auc", "accuracy_chosen_threshold")
    choice = "CHOSEN ON the test folds, which is no result" if config.choose_on_test else "chosen on validation bags"
    title = f"Test folds, {config.folds} folds x {config.repeats}; epoch and threshold {choice}"
    study.print_rows(title, rows, names, scores)
    cli.say(f"{sum(row['fits'] for row in rows)} fits, {sum(row['seconds'] for row in rows) / 60:.1f} minutes")
    cli.say(f"folder: {run.path}")
    return run.path


def check(config: Config) -> None:
    """Refuses options that no later step would name well."""
    study.check_common(config)
    if config.data_dir is None:
        raise InputError("data_dir", None, "name the folder that holds the data sets, as NAME.csv or the originals")
    unknown = set(config.datasets) - set(datasets.CLASSIC_NAMES)
    if unknown or not config.datasets:
        raise InputError("datasets", config.datasets, f"name one or more of {', '.join(datasets.CLASSIC_NAMES)}")
    for pooling in config.poolings:
        build(config, pooling)
    fit_config(config)


def build(config: Config, pooling: Pooling) -> MIL:
    return model.build(
        model.ModelConfig(
            hidden=config.hidden, dropout=config.dropout, pooling=pooling, attention_units=config.attention_units,
            head="sum", output="sigmoid",
        )
    )  # fmt: skip


def fit_config(config: Config) -> FitConfig:
    return FitConfig(config.epochs, 1, config.patience)


def folds_of(config: Config, label: np.ndarray) -> Folds:
    """The folds of bags with these labels, the same ones for all poolings."""
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    return protocols.cross_validation(
        key, label, folds=config.folds, repeats=config.repeats, val_share=config.val_share
    )


def draw_folds(config: Config, data: datasets.BagSet) -> tuple[Folds, Splits]:
    """The folds of a data set, and each member's bags."""
    folds = folds_of(config, data.label)
    whole = bags.bags_from_set(data)
    sizes = bags.sizes_of(whole)
    widths = bags.bucket_widths(sizes)
    cli.say(
        f"{data.name}: {len(sizes)} bags of {sizes.min()} to {sizes.max()} instances; empty slots "
        f"{bags.empty_share(sizes, widths):.2f} in widths {widths}, "
        f"{bags.empty_share(sizes, (int(sizes.max()),)):.2f} in one"
    )
    return folds, protocols.split_bags(whole, folds, standardize=True)


def measure(
    config: Config, name: str, pooling: Pooling, folds: Folds, splits: Splits, label: np.ndarray
) -> dict[str, Any]:
    """One row: a data set and a pooling."""
    mil, members = build(config, pooling), len(folds.test)
    hyper = training.make_hyper(
        splits.train, learning_rate=config.learning_rate, l2=None, weight_decay=config.weight_decay, class_weights=False
    )
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    trained, seconds = study.fit_members(
        mil, key, members, splits, fit_config(config), hyper, config.compute, f"{name}, {pooling}"
    )
    crossed = study.judge_folds(mil, trained, splits, folds, label, config.repeats)
    right = (crossed.called == label).mean(axis=0)
    names = {"dataset": name, "pooling": pooling, "published": PUBLISHED.get(pooling, {}).get(name, float("nan"))}
    of_repeat = partial(study.mean_of_repeats, repeats=config.repeats)
    epochs = {"best_epoch": of_repeat(trained.best_epoch), "epochs_run": of_repeat(trained.epochs_run)}
    return study.row_of(names, study.scores_of(crossed) | epochs, members, seconds, {"accuracy": right})


def draw(rows: list[dict[str, Any]], config: Config) -> Any:
    """The table as a picture: data sets against poolings."""
    values = np.array([row["accuracy"] for row in rows]).reshape(len(config.datasets), len(config.poolings))
    names = [pooling.replace("_", " ") for pooling in config.poolings]
    return plots.heat_map(values, list(config.datasets), names, "data set", "pooling", "accuracy on test folds")


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
