"""What helps when positive bags are rare: class weights, oversampling, an initial bias of the output, or nothing?

Positive bags from 50 % down to 2 % in all three sets. Class weights are total / (2 * count); oversampling repeats
bags until both classes are equally frequent; the initial bias, log(p / (1 - p)), makes the model predict the share of
positive bags before it has learned anything. An epoch takes 2 * train_bags steps whatever the treatment, so that
oversampling leaves no bag out and costs no more steps. The threshold is the one of the best F1 on the validation bags.

    python experiments/ablations/imbalance.py

It took 214 seconds on 2 cores.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import metrics, plots
from mil_jax.bags import take
from mil_jax.comparison import Point, by_point, compare_all, tabulate
from mil_jax.curves import precision_recall_curve
from mil_jax.ensemble import Progress, init_members, predict
from mil_jax.errors import InputError
from mil_jax.members import Members
from mil_jax.model import MIL, build
from mil_jax.optimizer import Hyper, make_hyper
from mil_jax.placement import to_host
from mil_jax.run import ablation, cli, findings
from mil_jax.run.fit import Task
from mil_jax.run.processes import placement_of
from mil_jax.sampling import BagsConfig, Splits
from mil_jax.training import FitState

TREATMENTS = ("nothing", "class weights", "oversampling", "initial bias")


@dataclass(frozen=True)
class Config(ablation.AblationConfig):
    """Options of the ablation."""

    labels: ClassVar = {
        **ablation.MEASURES,
        "recall_at_threshold": "recall at the chosen threshold",
        "precision_at_threshold": "precision at the chosen threshold",
        "f1_at_threshold": "F1 at the chosen threshold",
        "threshold": "chosen threshold",
    }

    shares: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.02)
    """Shares of positive bags."""
    train_bags: int = 400
    """Bags that a member learns from; every epoch takes twice as many steps."""
    val_bags: int = 400
    """Bags that the epoch and the threshold are chosen on."""
    test_bags: int = 1000
    epochs: int = 6
    measures: tuple[str, ...] = ("auc", "average_precision", "recall", "recall_at_threshold", "calibration_error")
    positive_class: int = 1
    """The class that makes a bag positive."""
    bag_size: int = 3
    """Instances per bag."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ablation.check_points("shares", self.shares)
        for share in self.shares:
            self.law(share)
            for count in (self.train_bags, self.val_bags, self.test_bags):
                if not 0 < round(share * count) < count:
                    raise InputError("shares", share, f"expected both classes among {count} bags: take more bags")

    def law(self, share: float) -> BagsConfig:
        """How bags are drawn of which a share is positive."""
        return self.bags(bag_size=self.bag_size, positive_class=self.positive_class, positive_share=share)

    @property
    def grid(self) -> list[tuple[float, str]]:
        """The points: a share of positive bags and a treatment."""
        return [(share, treatment) for share in self.shares for treatment in TREATMENTS]


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    mil = build()
    study = ablation.prepare("imbalance", __doc__, config)
    splits = draw_bags(study, config)
    task = ablation.task_of(study, mil, splits, weigh(config, make_hyper(splits.train)))
    trained, _ = ablation.train(study, task, progress=Progress(start(study, task), ()))
    scores = ablation.scores_of(study, mil, trained.members, splits.test)
    scores |= at_threshold(mil, trained.members, splits)
    points = make_points(config, by_point(scores, len(config.grid)))
    rows = tabulate(points, list(config.labels), config.seed)
    lines = {treatment: [name_of(share, treatment) for share in config.shares] for treatment in TREATMENTS}
    panels = findings.panels(study, rows, lines)
    figure = plots.panels_with_band(100 * np.array(config.shares), panels, "positive bags (%)", log_x=True)
    caption = "Mean over seeds in its 95 % interval; recall without a word on the threshold is at 1/2."
    return findings.conclude(study, points, rows, {"imbalance": (figure, caption)})


def draw_bags(study: ablation.Ablation, config: Config) -> Splits:
    """The bags of all shares, treatments and seeds as one ensemble, [P * S, B, K]."""
    draws = []
    for share in config.shares:
        of_share = ablation.draw(study, config.law(share))
        for treatment in TREATMENTS:
            order = oversampled if treatment == "oversampling" else twice
            draws += [seed._replace(train=take(seed.train, order(np.asarray(seed.train.label)))) for seed in of_share]
    return ablation.join(draws)


def twice(label: np.ndarray) -> np.ndarray:
    """Every bag twice, [2 * B]."""
    return np.tile(np.arange(len(label)), 2)


def oversampled(label: np.ndarray) -> np.ndarray:
    """The positive bags over and over until there are B, and likewise the negative ones, [2 * B]."""
    return np.concatenate([np.resize(np.flatnonzero(label == value), len(label)) for value in (1, 0)])


def weigh(config: Config, hyper: Hyper) -> Hyper:
    """The hyperparameters, with class weights only where the treatment is that."""
    treated = np.repeat([treatment == "class weights" for _, treatment in config.grid], config.members)
    return dataclasses.replace(hyper, class_weight=jnp.where(treated[:, None], hyper.class_weight, 1))


def start(study: ablation.Ablation, task: Task) -> FitState:
    """The members before their first epoch, with the output's bias where the treatment is that."""
    state = init_members(
        task.model, task.keys, task.train, task.config, placement_of(study.config.compute, task.members)
    )
    state = jax.tree.map(lambda leaf: leaf[: task.members], to_host(state))
    grid = study.config.grid
    odds = [np.log(share / (1 - share)) if treatment == "initial bias" else 0.0 for share, treatment in grid]
    # With a softmax over two classes the odds are those of the difference of the two outputs.
    params = dict(state.train.params)
    bias = params["head"]["bias"] + np.repeat(odds, study.config.members)[:, None] * np.array([0, 1], np.float32)
    params["head"] = params["head"] | {"bias": bias.astype(np.float32)}
    return dataclasses.replace(state, train=dataclasses.replace(state.train, params=params), best_params=params)


def at_threshold(mil: MIL, members: Members, splits: Splits) -> dict[str, np.ndarray]:
    """Recall, precision and F1 on the test bags, at the threshold that is best on the validation bags, [P * S]."""
    val, test = (np.asarray(predict(mil, members, part).probability)[..., 1] for part in (splits.val, splits.test))
    threshold = np.array([best_threshold(s, y) for s, y in zip(val, np.asarray(splits.val.label), strict=True)])
    called = jnp.asarray(test >= threshold[:, None])
    judged = {
        f"{name}_at_threshold": np.asarray(jax.vmap(getattr(metrics, name))(called, jnp.asarray(splits.test.label)))
        for name in ("recall", "precision", "f1")
    }
    return judged | {"threshold": threshold}


def best_threshold(score: np.ndarray, label: np.ndarray) -> float:
    """The score [B] from which calling bags positive gives the best F1; the highest of several."""
    recall, precision = precision_recall_curve(score, label)
    f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
    return float(np.unique(score)[::-1][np.argmax(f1[1:])])


def name_of(share: float, treatment: str) -> str:
    """The point as tables say it."""
    return f"{100 * share:g} %, {treatment}"


def make_points(config: Config, scores: list[dict[str, np.ndarray]]) -> list[Point]:
    """The points, each treatment against nothing at the same share."""
    points = [
        Point(name_of(share, treatment), {"share": share, "treatment": treatment}, of_point)
        for (share, treatment), of_point in zip(config.grid, scores, strict=True)
    ]
    starts = range(0, len(points), len(TREATMENTS))  # of each share; nothing is the first treatment
    return [point for start in starts for point in compare_all(points[start : start + len(TREATMENTS)])]


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
