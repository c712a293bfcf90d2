"""A study: settings compared over repeats, from its options to a folder of results.

A study's config extends `StudyConfig`. `begin` refuses what cannot be run and starts JAX, `train` trains the members of
one setting, `open_study` opens the folder once nothing can be refused any more, and `summary_row` and `print_rows` make
the table. A row is a setting with the mean and the standard error over repeats of every score; whoever writes
`results.csv` anew after each row keeps, when a study is stopped, what it had.

Axes: S members, R repeats.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Key

from mil_jax.ensemble import Ensemble, Execution, OnEpoch, Progress, member_keys, predict
from mil_jax.errors import InputError, RunError, check_whole
from mil_jax.model import MIL, Encoder, ModelConfig, Pooling
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.protocols import Crossed, Folds, cross_validation, estimate, judge_folds
from mil_jax.run.config import Compute, aside, check_out, check_seed, settings
from mil_jax.run.fit import Task
from mil_jax.run.folder import RunFolder, check_free, open_run
from mil_jax.run.processes import placement_of, start_jax
from mil_jax.run.screen import Stopwatch, epoch_progress, losses_text, print_table
from mil_jax.sampling import Splits
from mil_jax.text import Table, with_error
from mil_jax.training import EpochInfo, FitConfig, FitState

# ---- options ----


@dataclass(frozen=True)
class StudyConfig:
    """What every study can be told."""

    can_resume: ClassVar[bool] = False

    seed: int = 0
    """Decides everything that is drawn."""
    out: Path | None = aside(None)
    """The folder of results; a new one under runs/ where not given."""
    compute: Compute = aside(Compute())

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_out(self.out)
        if self.compute.resume and not self.can_resume:
            raise InputError("resume", True, "expected another folder: a study keeps its rows, and is started anew")


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
    hyper: HyperConfig = HyperConfig()

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


@dataclass(frozen=True)
class FoldsConfig(PoolingsConfig):
    """Options of a study by cross-validation, with a member for each fold of each repeat."""

    folds: int = 10
    """Parts that the bags are cut into; each is the test set once."""
    val_share: float = 0.15
    """Share of the bags outside the test fold that the epoch and the threshold are chosen on."""

    def draw_folds(self, key: Key[Array, ""], label: np.ndarray) -> Folds:
        """The folds of bags with these labels, the same ones for all poolings."""
        return cross_validation(key, label, folds=self.folds, repeats=self.repeats, val_share=self.val_share)


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


def begin(name: str, question: str | None, config: Any, members: int) -> Study:
    """Starts JAX, for so many members at most; a folder that is taken is an InputError, and nothing is written."""
    watch = Stopwatch()
    out = Path(config.out or Path("runs") / name / f"seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}")
    check_free(out, can_resume=False)
    start_jax(config.compute, members)
    return Study(name, question or "", config, out, watch)


def open_study(study: Study, data: Mapping[str, Any]) -> AbstractContextManager[RunFolder]:
    """The folder of the study, to be opened by `with`; `data` are the names and hashes that config.json keeps."""
    options, how = settings(study.config)
    content = {"experiment": study.name, "options": options, "data": data}
    return open_run(study.out, content, how, can_resume=False)


def train(
    study: Study, task: Task, title: str = "", *, progress: Progress | None = None, also: OnEpoch | None = None
) -> tuple[Ensemble, float]:
    """`fit_ensemble` that shows how far it is, and the seconds; a RunError where members diverged.

    `title` is what the screen calls it where it is one of many, `progress` where to go on from, and `also` is called
    after every epoch.
    """
    started = time.perf_counter()
    with study.watch.phase("train"), epoch_progress(task.config.epochs, title) as show:

        def on_epoch(epoch: int, info: EpochInfo, state: FitState) -> None:
            show(epoch, losses_text(info))
            if also:
                also(epoch, info, state)

        execution = Execution(placement_of(study.config.compute, task.members), progress, on_epoch)
        trained = task.fit(execution)
    if diverged := int((trained.best_epoch == 0).sum()):
        what = f"{title}: " if title else ""
        raise RunError(f"{what}{diverged} of {task.members} members diverged: try a lower learning rate")
    return trained, time.perf_counter() - started


def train_folds(
    study: Study, mil: MIL, key: Key[Array, ""], splits: Splits, folds: Folds, title: str
) -> tuple[Crossed, Ensemble, float]:
    """A cross-validation: trains a member for each fold, and judges all of them; with the seconds of the training."""
    config, members = study.config, len(folds.test)
    hyper = make_hyper(splits.train, config.hyper)
    task = Task(mil, member_keys(key, members), splits.train, splits.val, config.fit, hyper)
    trained, seconds = train(study, task, title)
    placement = placement_of(config.compute, members)
    val, test = (predict(mil, trained.members, part, placement) for part in (splits.val, splits.test))
    return judge_folds(val, test, splits, folds), trained, seconds


# ---- rows ----


def mean_of_repeats(values: np.ndarray, repeats: int) -> np.ndarray:
    """Values of the members [S], repeat by repeat, as their means over the folds of each repeat [R]."""
    return values.reshape(repeats, -1).mean(axis=1)


def summary_row(
    factors: Mapping[str, Any], scores: Mapping[str, np.ndarray], by_bag: Mapping[str, np.ndarray] = {}
) -> dict[str, Any]:
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
