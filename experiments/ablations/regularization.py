"""Does an overfitted model weigh all instances equally, and what does L2 do about it?

The Keras example remarks that attention becomes equal for all instances when the model is overfitted. Here seeds train
far beyond the best epoch, under several strengths of L2 on the attention's parameters, on few bags. Losses are plain
cross-entropy, without class weights and L2; the best epoch of a strength is the one with the lowest mean validation
loss, and all else is measured on bags that nothing was chosen on.

    python experiments/ablations/regularization.py

It took 209 seconds on 2 cores.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import plots
from mil_jax.comparison import Point, by_point, compare, compare_all, tabulate
from mil_jax.ensemble import predict
from mil_jax.errors import check_number
from mil_jax.evaluation import evaluate_members
from mil_jax.members import Members
from mil_jax.model import MIL, build
from mil_jax.optimizer import make_hyper
from mil_jax.protocols import join_points
from mil_jax.run import ablation, cli, findings
from mil_jax.sampling import Splits
from mil_jax.training import EpochInfo, FitState


@dataclass(frozen=True)
class Config(ablation.AblationConfig):
    """Options of the ablation."""

    labels: ClassVar = {
        **ablation.MEASURES, "train_loss": "training loss (nats)", "val_loss": "validation loss (nats)",
    }  # fmt: skip

    l2: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1)
    """Strengths of L2; the first is what the others are compared with."""
    measured_at: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    """Epochs after which everything is measured; the last epoch always is."""
    train_bags: int = 100
    val_bags: int = 100
    """Bags that the best epoch is chosen on."""
    epochs: int = 200
    """Epochs that every member trains for."""
    measures: tuple[str, ...] = ("normalized_entropy", "hit_at_1", "train_loss", "loss")
    positive_class: int = 1
    """The class that makes a bag positive."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ablation.check_points("l2", self.l2)
        for strength in self.l2:
            check_number("l2", strength, 0)


Measured = dict[float, dict[int, Point]]  # L2, epoch → what the seeds scored there


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    study = ablation.prepare("regularization", __doc__, config)
    drawn = ablation.join(ablation.draw(study, config.bags(positive_class=config.positive_class)))
    measured = train_and_measure(study, config, join_points([drawn] * len(config.l2)))
    rows = tabulate(chosen_points(config, measured), list(config.labels), config.seed)
    caption = "Mean over seeds in its 95 % interval; attention on positive test bags."
    points = [point for by_epoch in measured.values() for point in by_epoch.values()]
    return findings.conclude(study, points, rows, {"regularization": (draw(study, measured), caption)})


def train_and_measure(study: ablation.Ablation, config: Config, splits: Splits) -> Measured:
    """Trains all strengths and seeds as one ensemble, and measures it on the way."""
    mil, count, kind = build(), len(config.l2), splits.train.kind
    measured: Measured = {l2: {} for l2 in config.l2}
    epochs = {epoch for epoch in config.measured_at if epoch < config.epochs} | {config.epochs}

    def measure(epoch: int, info: EpochInfo, state: FitState) -> None:
        if epoch not in epochs:
            return
        params = jax.tree.map(lambda leaf: np.asarray(leaf)[: count * config.members], state.train.params)
        scores = scores_of(study, mil, Members(params, None, kind), splits)
        for l2, of_point in zip(config.l2, by_point(scores, count), strict=True):
            measured[l2][epoch] = Point(f"L2 {l2:g}, epoch {epoch}", {"l2": l2, "epoch": epoch}, of_point)

    strengths = jnp.repeat(jnp.array(config.l2, jnp.float32), config.members)
    hyper = dataclasses.replace(make_hyper(splits.train), l2=strengths)
    ablation.train(study, ablation.task_of(study, mil, splits, hyper), also=measure)
    return measured


def scores_of(study: ablation.Ablation, mil: MIL, members: Members, splits: Splits) -> dict[str, np.ndarray]:
    """What the members score on the test bags, and their losses on the others."""
    scores = ablation.scores_of(study, mil, members, splits.test)
    for name, part in (("train_loss", splits.train), ("val_loss", splits.val)):
        scores[name] = np.asarray(evaluate_members(predict(mil, members, part), part).bags.loss)
    return scores


def best_epoch(points: dict[int, Point]) -> int:
    """The epoch with the lowest mean validation loss over seeds."""
    return min(points, key=lambda epoch: float(np.mean(points[epoch].scores["val_loss"])))


def chosen_points(config: Config, measured: Measured) -> list[Point]:
    """The best epoch of each L2, against that of the first L2; and the last epoch, against the best one."""
    best = {l2: measured[l2][best_epoch(measured[l2])] for l2 in config.l2}
    chosen = compare_all(list(best.values()))
    for l2, point in best.items():
        last = measured[l2][config.epochs]
        if last is not point:
            chosen.append(compare(last, point))
    return chosen


def draw(study: ablation.Ablation, measured: Measured) -> object:
    """The measures over epochs, a line for each L2."""
    lines = {f"L2 {l2:g}": [point.name for point in by_epoch.values()] for l2, by_epoch in measured.items()}
    points = [point for by_epoch in measured.values() for point in by_epoch.values()]
    panels = findings.panels(study, tabulate(points, study.config.measures, study.config.seed), lines)
    epochs = list(next(iter(measured.values())))  # ascending, as they were trained
    return plots.panels_with_band(np.array(epochs), panels, "epoch", log_x=True)


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
