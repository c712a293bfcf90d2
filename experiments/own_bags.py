"""Which bags are of which class, and which instances say so? For bags of your own: slides, molecules, texts.

Reads a folder of features as CLAM, TRIDENT, STAMP, torchmil and many scripts write them, or one CSV, and a table of
labels; draws folds that cut no patient, or takes given ones; trains all folds, settings and members as one ensemble;
chooses epoch, setting and threshold on validation bags inside each fold, and judges every bag by members that have not
seen it, beside a linear probe on mean features.

    python experiments/own_bags.py --features DIR --table cohort.csv --label-column label --folds 5 --members 4
    python experiments/own_bags.py --features DIR --table cohort.csv --splits splits/ --members 8
    python experiments/own_bags.py                     (a small cohort made of the package's digits)
"""

from dataclasses import dataclass
from pathlib import Path

from mil_jax.datasets.cohort import Cohort
from mil_jax.datasets.digits_cohort import digits_cohort
from mil_jax.errors import InputError
from mil_jax.folds import Plan, check_taught, check_uncut, given_plan
from mil_jax.run import cli
from mil_jax.run.cohort import CohortConfig, run_cohort
from mil_jax.run.config import FilesConfig, aside
from mil_jax.run.experiment import begin
from mil_jax.split_files import read_splits, splits_of_column


@dataclass(frozen=True)
class Config(CohortConfig):
    """Options of the experiment."""

    files: FilesConfig = FilesConfig()
    splits: Path | None = aside(None)
    """Folds that somebody drew: a folder of CLAM's splits_0.csv, …, or one such file."""


def main(config: Config) -> Path:
    """Runs the experiment and returns its run folder."""
    cohort = read(config)
    started, watch = begin(config, "own_bags", cohort.name)
    return run_cohort(started, cohort, plan_of(config, cohort), watch)


def read(config: Config) -> Cohort:
    """The bags that the options name."""
    if config.files.features is None and config.files.table is None:
        return digits_cohort(config.seed)
    cohort = config.files.load()
    if not cohort.class_names:
        raise InputError("table", None, "expected a CSV or .xlsx with the label of each bag")
    return cohort


def plan_of(config: Config, cohort: Cohort) -> Plan:
    """The given folds, or drawn ones."""
    if config.splits is not None:
        folds = read_splits(config.splits, cohort.bag_names)
    elif config.files.split_column is not None:
        folds = splits_of_column(cohort.split, cohort.bag_names)
    else:
        return config.drawn.draw(config.seed, cohort)
    check_uncut(folds, cohort.groups)
    check_taught(folds, cohort.label, cohort.class_names)
    return given_plan(folds)


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
