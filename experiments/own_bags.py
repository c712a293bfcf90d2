"""Which bags are of which class, and which instances say so? For bags of your own: slides, molecules, texts.

Reads a folder of features as CLAM, TRIDENT, STAMP, torchmil and many scripts write them, or one CSV, and a table of
labels; draws folds that cut no patient, or takes given ones; trains all folds, settings and members as one ensemble;
chooses epoch, setting and threshold on validation bags inside each fold, and judges every bag by members that have not
seen it, beside a linear probe on mean features.

    python experiments/own_bags.py --features DIR --table cohort.csv --label-column label --folds 5 --members 4
    python experiments/own_bags.py --features DIR --table cohort.csv --splits splits/ --members 8
    python experiments/own_bags.py                     (a small cohort made of the package's digits, in two minutes)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mil_jax.datasets.cohort import Cohort, Columns, load_cohort
from mil_jax.datasets.digits_cohort import digits_cohort
from mil_jax.errors import InputError
from mil_jax.folds import Plan, check_taught, check_uncut, given_plan
from mil_jax.run import cli
from mil_jax.run.cohort import CohortConfig, run_cohort
from mil_jax.run.config import aside
from mil_jax.run.experiment import begin
from mil_jax.split_files import read_splits, splits_of_column


@dataclass(frozen=True)
class Config(CohortConfig):
    """Options of the experiment."""

    features: Path | None = aside(None)
    """A folder with a file for each bag (.h5, .pt, .npy, .npz), a packed folder, or one CSV bag_label,bag_id,f1,f2,…"""
    table: Path | None = aside(None)
    """A CSV or .xlsx with a row for each bag."""
    slide_table: Path | None = aside(None)
    """A second one that tells which files are whose, such as STAMP's PATIENT,FILENAME."""
    slide_column: str | None = None
    """The column with the names of the files; found by itself where it has a usual name, as are the others."""
    label_column: str | None = None
    """The column with the labels."""
    group_column: str | None = None
    """The column with what must not be cut by a split, such as the patient."""
    split_column: str | None = None
    """The column that says train, val or test, where the table gives the split."""
    classes: tuple[str, ...] = ()
    """The labels in their order, the negative one first; in the order of the alphabet where not given."""
    slides: Literal["apart", "join"] = "apart"
    """Each file is a bag, or all files of a group are one."""
    missing: Literal["refuse", "skip"] = "refuse"
    """What to do about rows without a file and files without a row."""
    splits: Path | None = aside(None)
    """Folds that somebody drew: a folder of CLAM's splits_0.csv, …, or one such file."""
    instance_labels: Path | None = aside(None)
    """A CSV slide_id,row,positive with the truth of instances, to judge the attention by."""


def main(config: Config) -> Path:
    """Runs the experiment and returns its run folder."""
    cohort = read(config)
    started, watch = begin(config, "own_bags", cohort.name)
    return run_cohort(started, cohort, plan_of(config, cohort), watch)


def read(config: Config) -> Cohort:
    """The bags that the options name."""
    if config.features is None:
        if config.table is not None:
            raise InputError("features", None, "expected the folder of the files that the table names")
        return digits_cohort(config.seed)
    columns = Columns(config.slide_column, config.label_column, config.group_column, config.split_column)
    cohort = load_cohort(
        config.features, config.table, slide_table=config.slide_table, columns=columns, classes=config.classes,
        slides=config.slides, missing=config.missing, instance_labels=config.instance_labels,
    )  # fmt: skip
    if not cohort.class_names:
        raise InputError("table", None, "expected a CSV or .xlsx with the label of each bag")
    return cohort


def plan_of(config: Config, cohort: Cohort) -> Plan:
    """The given folds, or drawn ones."""
    if config.splits is not None:
        folds = read_splits(config.splits, cohort.bag_names)
    elif config.split_column is not None:
        folds = splits_of_column(cohort.split, cohort.bag_names)
    else:
        return config.drawn.draw(config.seed, cohort)
    check_uncut(folds, cohort.groups)
    check_taught(folds, cohort.label, cohort.class_names)
    return given_plan(folds)


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
