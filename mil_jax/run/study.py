"""A study: settings compared over repeats, from its options to a folder of results.

A study's config extends `StudyConfig`. `begin` refuses what cannot be run and starts JAX, `open_study` opens the folder
once nothing can be refused any more, `Rows` measures the rows one after the other, `train_row` trains the members of
one of them, and `summary_row` and `print_rows` make the table. A row is a setting with the mean and the standard error
over repeats of every score.

A study may be stopped or killed at any time. Resumed, it reads back the rows that it had measured, goes on inside the
one that it was measuring, and ends with the same `results.csv`, but for seconds.

Axes: S members, R repeats.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mil_jax.ensemble import Ensemble
from mil_jax.errors import InputError, RunError, check_whole
from mil_jax.model import Encoder, ModelConfig, Pooling
from mil_jax.protocols import estimate
from mil_jax.run.config import Compute, aside, check_out, check_seed, settings
from mil_jax.run.fit import Task, fit_resumably
from mil_jax.run.folder import RunFolder, check_free, open_run
from mil_jax.run.processes import from_first, start_jax
from mil_jax.run.saved import check_stopped, read_rows
from mil_jax.run.screen import Stopwatch, print_table
from mil_jax.text import Table, with_error
from mil_jax.training import FitConfig, FitState

Row = dict[str, Any]

# ---- options ----


@dataclass(frozen=True)
class StudyConfig:
    """What every study can be told."""

    can_resume: ClassVar[bool] = True

    seed: int = 0
    """Decides everything that is drawn."""
    out: Path | None = aside(None)
    """The folder of results; a new one under runs/ where not given."""
    compute: Compute = aside(Compute())

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_out(self.out)


# The six poolings that the papers compare.
COMPARED: tuple[Pooling, ...] = (
    "gated_attention", "attention", "instance_max", "instance_mean", "embedding_max", "embedding_mean",
)  # fmt: skip


@dataclass(frozen=True)
class PoolingsConfig(StudyConfig):
    """Options of a study that compares poolings, with a member for each repeat."""

    encoder: ClassVar[Encoder] = "mlp"

    poolings: tuple[Pooling, ...] = COMPARED
    """Which poolings."""
    repeats: int = 5
    """Draws, of folds or of all bags."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the encoder's dense layers."""
    attention_units: int = 128
    """Width of the attention's hidden layer."""
    dropout: float = 0.0
    """Share of the dense layers' units that a step drops."""
    fit: FitConfig = FitConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("repeats", self.repeats, 1)
        if not self.poolings:
            raise InputError("poolings", self.poolings, "expected one or more")
        for pooling in self.poolings:
            self.network(pooling)

    def network(self, pooling: Pooling) -> ModelConfig:
        """The model with this pooling; its head sums, and it has one output."""
        return ModelConfig(
            encoder=self.encoder, hidden=self.hidden, dropout=self.dropout, pooling=pooling,
            attention_units=self.attention_units, head="sum", output="sigmoid",
        )  # fmt: skip


# ---- a study that runs ----


@dataclass(frozen=True, eq=False)
class Study:
    """A study that is running."""

    name: str
    """Of its script; with a slash, of the folder before it."""
    question: str
    """The docstring of its script."""
    config: Any
    """Its options."""
    out: Path
    """The folder of its results, which `open_study` makes."""
    watch: Stopwatch
    """Counts its seconds."""


@dataclass(frozen=True, eq=False)
class Measurement(Study):
    """A study that is measuring a row."""

    run: RunFolder
    """Its folder, in which the row has checkpoints of its own."""


def begin(name: str, question: str | None, config: Any, members: int) -> Study:
    """Starts JAX, for so many members at most, and writes nothing.

    Raises:
        InputError: a folder that is taken, or one without a study to go on with.
    """
    watch = Stopwatch()
    out = Path(config.out or Path("runs") / name / f"seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}")
    if config.compute.resume:
        check_stopped(out)
    else:
        check_free(out, config.can_resume)
    start_jax(config.compute, members)
    return Study(name, question or "", config, out, watch)


@contextmanager
def open_study(study: Study, data: Mapping[str, Any]) -> Iterator[RunFolder]:
    """The folder of the study until its end; `data` are the names and hashes that config.json keeps."""
    config, (options, how) = study.config, settings(study.config)
    content = {"experiment": study.name, "options": options, "data": data}
    with open_run(study.out, content, how, config.compute.resume, can_resume=config.can_resume) as run:
        yield run
        run.drop_progress()


class Rows:
    """The rows of a study in its folder, each measured once, in however many sittings."""

    def __init__(self, study: Study, run: RunFolder):
        self.study, self.run = study, run
        self.rows: list[Row] = []
        self.before: list[Row] = []  # those of earlier sittings
        if study.config.compute.resume:
            rows = read_rows(run.path)
            self.before = rows[: from_first(len(rows))]
        if self.before:
            run.write_rows(self.before)  # it may have been killed between the two files
            run.note(f"rows measured before: {len(self.before)}")

    def add(self, measure: Callable[..., Row], *arguments: Any) -> Row:
        """The next row: what `measure(measurement, *arguments)` gives, or what it gave in an earlier sitting.

        The row counts when `measure` has returned, so that what it has written besides is there, too.
        """
        done = len(self.rows)
        if done < len(self.before):
            self.rows.append(self.before[done])
            return self.rows[-1]
        config, part = self.study.config, self.run.part(f"row-{done + 1:03d}")
        # The first row of this sitting is that which an earlier one was stopped in; the others have no checkpoints.
        resume = config.compute.resume and done == len(self.before)
        config = replace(config, compute=replace(config.compute, resume=resume))
        measurement = Measurement(**vars(self.study) | {"config": config}, run=part)
        self.rows.append(measure(measurement, *arguments))
        self.run.write_rows(self.rows)
        part.drop_progress()
        return self.rows[-1]


def train_row(study: Measurement, task: Task, title: str) -> tuple[Ensemble, float]:
    """Trains the members of the row, and gives the seconds of all sittings.

    Raises:
        Interrupted: the study was asked to stop.
        RunError: the disk is full, or another process of the study has died.
    """
    compute = study.config.compute

    def keep(epoch: int, state: FitState) -> str:
        inside = f" and the first {epoch} epochs of the next one" if compute.checkpoint_every else ""
        return f"the rows that were measured{inside}; go on with --resume"

    with study.watch.phase("train"):
        return fit_resumably(study.run, task, compute, keep, title)


def check_converged(trained: Ensemble, title: str = "") -> None:
    """Refuses, by a RunError, an ensemble of which members diverged; `title` says which it is."""
    if diverged := int((trained.best_epoch == 0).sum()):
        what, members = f"{title}: " if title else "", len(trained.best_epoch)
        raise RunError(f"{what}{diverged} of {members} members diverged: try a lower learning rate")


# ---- rows ----


def summary_row(
    factors: Mapping[str, Any], scores: Mapping[str, np.ndarray], by_bag: Mapping[str, np.ndarray] = {}
) -> Row:
    """A row of results.csv: what tells a setting from others, then mean and standard error of its scores over repeats.

    Of a score in `by_bag`, which holds its mean per bag, the row has the interval over bags too.
    """
    row = dict(factors)
    for name, values in scores.items():
        result = estimate(values, by_bag.get(name))
        row |= {name: result.mean, f"{name}_se": result.standard_error}
        if name in by_bag:
            row |= {f"{name}_low": result.low, f"{name}_high": result.high}
    return row


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], factors: Sequence[str], scores: Sequence[str]) -> None:
    """The rows on the screen: mean ± standard error; what all have in common stands in the title."""
    differing = [name for name in factors if len(rows) == 1 or len({row[name] for row in rows}) > 1]
    common = {name: rows[0][name] for name in factors if name not in differing and rows[0][name] is not None}
    same = [f"{name.replace('_', ' ')} {value}" for name, value in common.items()]
    cells = [
        [*(row[name] for name in differing), *(with_error(row[score], row[f"{score}_se"]) for score in scores)]
        for row in rows
    ]
    columns = [name.replace("_", " ") for name in (*differing, *scores)]
    print_table(Table("; ".join([title, *same]), columns, cells, "mean ± standard error over repeats"))
