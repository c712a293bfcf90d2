"""An ablation: points (an L2 strength, a size of bags) compared over seeds, from its options to tables and a report.

A script extends `AblationConfig`, calls `prepare`, draws bags, trains, makes a `Point` of what the seeds scored at each
setting, and calls `findings.conclude`; until then nothing is written.

Axes: P points, S seeds, B bags, K slots.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mil_jax import datasets
from mil_jax.bags import Bags, stack_bags
from mil_jax.datasets import Dataset
from mil_jax.ensemble import Ensemble, Execution, OnEpoch, Progress, member_keys, predict
from mil_jax.errors import InputError, check_whole
from mil_jax.evaluation import Evaluation, check_names, evaluate_members, flatten, warnings_of
from mil_jax.members import Members
from mil_jax.model import MIL
from mil_jax.optimizer import Hyper, make_hyper
from mil_jax.run.config import DataConfig
from mil_jax.run.fit import Task
from mil_jax.run.processes import placement_of
from mil_jax.run.screen import epoch_progress, losses_text
from mil_jax.run.study import Study, StudyConfig, begin, check_converged
from mil_jax.sampling import BagsConfig, Splits, draw_sets, split_pool
from mil_jax.training import EpochInfo, FitConfig, FitState, MemberKeys

# What `scores_of` gives for every member, and how tables and figures call it.
MEASURES = {
    "loss": "test loss (nats)",
    "accuracy": "test accuracy",
    "auc": "test AUC",
    "average_precision": "average precision",
    "recall": "recall",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "hit_at_1": "hit@1",
    "instance_auc": "instance AUC",
    "positive_mass": "weight on positive instances",
    "normalized_entropy": "entropy / log K",
    "effective_instances": "effective instances",
    "collapsed": "collapsed seeds (share)",
}
OF_ATTENTION = ("hit_at_1", "instance_auc", "positive_mass", "normalized_entropy", "effective_instances")


# ---- options ----


@dataclass(frozen=True)
class AblationConfig(StudyConfig):
    """What every ablation can be told; a script adds its own options and changes defaults."""

    labels: ClassVar[Mapping[str, str]] = MEASURES
    can_resume: ClassVar[bool] = False

    members: int = 32
    """Seeds at each point; a seed decides its bags, initial parameters and orders of bags."""
    data: DataConfig = DataConfig()
    train_bags: int = 500
    """Bags that a member learns from."""
    val_bags: int = 200
    """Bags that the epoch is chosen on."""
    test_bags: int = 500
    """Bags that nothing is chosen on."""
    epochs: int = 20
    """The most epochs that a member trains for."""
    measures: tuple[str, ...] = ("auc", "hit_at_1", "normalized_entropy")
    """What tables and figures show; results.csv holds all there is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compute.resume:
            raise InputError("resume", True, "expected another folder: an ablation takes minutes, and is started anew")
        check_whole("members", self.members, 2)  # intervals need more than one seed
        self.bags()
        self.training()
        if not self.measures:
            raise InputError("measures", self.measures, f"expected some of {', '.join(self.labels)}")
        check_names(self.measures, tuple(self.labels), "measures")

    def bags(self, **law: Any) -> BagsConfig:
        """So many bags as the options say, by a law."""
        return BagsConfig(train_bags=self.train_bags, val_bags=self.val_bags, test_bags=self.test_bags, **law)

    def training(self) -> FitConfig:
        """How long members train; without an option `patience`, to the last epoch."""
        return FitConfig(self.epochs, patience=getattr(self, "patience", self.epochs))


def check_points(argument: str, values: Sequence[Any], fewest: int = 1) -> None:
    """Refuses, by an InputError, a list of settings with too few, or with one twice."""
    if len(values) < fewest or len(set(values)) < len(values):
        raise InputError(argument, values, f"expected {fewest} or more different ones")


@dataclass(frozen=True, eq=False)
class Ablation(Study):
    """An ablation that is running."""

    data: Dataset
    """The instances."""
    key: Key[Array, ""]
    """Decides what all seeds share."""
    seeds: Key[Array, " S"]
    """A key for each seed [S]: it decides the bags."""
    keys: MemberKeys
    """Of the members, one for each seed."""


def prepare(name: str, question: str | None, config: Any) -> Ablation:
    """Starts JAX and loads the data; an InputError where that cannot be, and nothing is written."""
    study = begin(f"ablations/{name}", question, config, config.members)
    with study.watch.phase("data"):
        data = datasets.load(config.data.dataset, config.data.data_dir, config.data.manual_dir)
    key, key_members = jax.random.split(jax.random.key(config.seed))
    seeds = jax.vmap(jax.random.fold_in, (None, 0))(key_members, jnp.arange(config.members))
    return Ablation(**vars(study), data=data, key=key, seeds=seeds, keys=member_keys(key_members, config.members))


# ---- bags ----


def draw(study: Ablation, law: BagsConfig) -> list[Splits]:
    """The bags of each seed."""
    with study.watch.phase("draw"):
        return [draw_splits(study, key, law) for key in study.seeds]


def draw_splits(study: Ablation, key: Key[Array, ""], law: BagsConfig) -> Splits:
    """The bags of one seed, or of all where `key` is the study's; validation and test bags share no instance."""
    # The same halves for all seeds, so that their draws are compiled once.
    halves = split_pool(jax.random.fold_in(study.key, 1), len(study.data.test.label), 0.5)
    return draw_sets(jax.random.split(jax.random.fold_in(key, 1), 3), study.data, law, halves)


def join(draws: Sequence[Splits]) -> Splits:
    """Bags of many members, [S, B, K]."""
    return Splits(*(stack_bags(parts) for parts in zip(*draws, strict=True)))


# ---- training and scores ----


def task_of(study: Ablation, mil: MIL, splits: Splits, hyper: Hyper | None = None) -> Task:
    """The training of all seeds on the bags of all points, [P * S, B, K], with a seed's keys the same at each point."""
    points = len(splits.train.rows) // study.config.members if splits.train.by_member else 1
    keys = jax.tree.map(lambda keys: jnp.tile(keys, points), study.keys)
    return Task(mil, keys, splits.train, splits.val, study.config.training(), hyper or make_hyper(splits.train))


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
    check_converged(trained, title)
    return trained, time.perf_counter() - started


def scores_of(study: Ablation, mil: MIL, members: Members, part: Bags) -> dict[str, np.ndarray]:
    """All of `MEASURES` for each member [S], on shared bags or on each member's own."""
    with study.watch.phase("evaluate"):
        predicted = predict(mil, members, part, placement_of(study.config.compute, members.count))
        collapsed = np.array([bool(warnings) for warnings in warnings_of(predicted, part)], float)
        return measures_of(evaluate_members(predicted, part)) | {"collapsed": collapsed}


def measures_of(judged: Evaluation) -> dict[str, np.ndarray]:
    """The numbers of evaluations [R] by the names of `MEASURES`, but for `collapsed`."""
    flat = flatten(judged)
    groups = {name: "positive" if name in OF_ATTENTION else "bags" for name in MEASURES if name != "collapsed"}
    return {name: flat[f"{group}_{name}"] for name, group in groups.items()}
