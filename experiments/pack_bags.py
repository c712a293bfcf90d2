"""Writes a cohort of features as one file with a manifest, which is read without parsing; or checks one.

    python experiments/pack_bags.py --features DIR --table cohort.csv --out packed/
    python experiments/pack_bags.py --verify packed/

A packed folder is read wherever a folder of features is: `--features packed/`.
"""

import dataclasses
import time
from pathlib import Path
from typing import Literal

from mil_jax.datasets.cohort import Columns, load_cohort
from mil_jax.datasets.pack import load_packed, pack, verify
from mil_jax.errors import InputError
from mil_jax.run.cli import command


@dataclasses.dataclass(frozen=True)
class Config:
    """What is packed, and where to."""

    features: Path | None = None
    """A folder with a file for each slide."""
    table: Path | None = None
    """A table with a row for each file: label, and patient."""
    slide_table: Path | None = None
    """A second one that tells which files are whose, such as STAMP's PATIENT,FILENAME."""
    slide_column: str | None = None
    """The column with the names of the files; found by itself where it has a usual name, as are the others."""
    label_column: str | None = None
    """The column with the labels."""
    group_column: str | None = None
    """The column with what must not be cut by a split, such as the patient."""
    split_column: str | None = None
    """The column that says train, val or test."""
    classes: tuple[str, ...] = ()
    """The labels in their order, the negative one first."""
    missing: Literal["refuse", "skip"] = "refuse"
    """What to do about rows without a file and files without a row."""
    instance_labels: Path | None = None
    """A CSV slide_id,row,positive with the truth of instances."""
    out: Path | None = None
    """The folder to write; a new one."""
    verify: Path | None = None
    """A packed folder to check instead, by the hash of every bag."""


def main(config: Config) -> None:
    """Packs, or verifies."""
    started = time.perf_counter()
    if config.verify is not None:
        cohort, what = load_packed(config.verify), f"{config.verify} is what was written"
        verify(cohort)
    else:
        if config.features is None or config.out is None:
            raise InputError("features", config.features, "expected --features and --out, or --verify")
        columns = Columns(config.slide_column, config.label_column, config.group_column, config.split_column)
        cohort = load_cohort(
            config.features, config.table, slide_table=config.slide_table, columns=columns, classes=config.classes,
            missing=config.missing, instance_labels=config.instance_labels,
        )  # fmt: skip
        what = f"{pack(cohort, config.out)}"
    size = int(cohort.sizes.sum()) * cohort.dtype.itemsize * int(cohort.shape[0])
    seconds = time.perf_counter() - started
    print(f"{what}: {len(cohort.bags)} bags, {cohort.sizes.sum()} instances, {size / 1e6:.0f} MB in {seconds:.1f} s, "
          f"{size / 1e6 / seconds:.0f} MB/s")  # fmt: skip


if __name__ == "__main__":
    command(Config, main, __doc__)
