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

import ablation
import jax
import jax.numpy as jnp
import numpy as np
from ablation import Point, Study

from mil_jax import cli, ensemble, evaluation, model, plots, training
from mil_jax.bags import Splits
from mil_jax.errors import InputError
from mil_jax.model import MIL
from mil_jax.training import EpochInfo, FitConfig, FitState

MORE = {"train_loss": "training loss (nats)", "val_loss": "validation loss (nats)"}
EQUAL = 0.99  # mean normalised entropy above which weights count as equal, as in `attention.find_collapse`


@dataclass(frozen=True)
class Config(ablation.Options):
    """Options of the ablation."""

    l2: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1)
    """Strengths of L2; the first is what the others are compared with."""
    measured_at: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    """Epochs after which everything is measured; the last epoch always is."""
    train_bags: int = 100
    """Bags that a member learns from."""
    val_bags: int = 100
    """Bags that the best epoch is chosen on."""
    epochs: int = 200
    """Epochs that every member trains for."""
    measures: tuple[str, ...] = ("normalized_entropy", "hit_at_1", "train_loss", "loss")
    """What tables and figures show; results.csv holds all there is."""
    positive_class: int = 1
    """The class that makes a bag positive."""


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    if not config.l2 or min(config.l2) < 0 or len(set(config.l2)) < len(config.l2):
        raise InputError("l2", config.l2, "give one or more different numbers of 0 or more")
    mil = model.build()
    study = ablation.prepare("regularization", __doc__, config, MORE)
    drawn = ablation.join_splits(ablation.draw(study, config.positive_class))
    splits = ablation.repeat_splits(drawn, len(config.l2))
    measured = train(study, config, mil, splits)
    chosen = chosen_points(config, measured)
    rows = ablation.tabulate(chosen, list(study.labels), config.seed)
    caption = "Mean over seeds in its 95 % interval; attention on positive test bags."
    figures = {"regularization": (draw(study, config, measured), caption)}
    every = [point for l2 in config.l2 for point in measured[l2].values()]
    finding = find(rows, chosen)
    return ablation.conclude(study, every, rows, finding, figures)


Measured = dict[float, dict[int, Point]]  # L2, epoch → what the seeds scored there


def train(study: Study, config: Config, mil: MIL, splits: Splits) -> Measured:
    """Trains all strengths and seeds as one ensemble, and measures it on the way."""
    members, measured = len(config.l2) * config.members, {l2: {} for l2 in config.l2}
    epochs = {epoch for epoch in config.measured_at if epoch < config.epochs} | {config.epochs}

    def measure(epoch: int, info: EpochInfo, state: FitState) -> None:
        if epoch not in epochs:
            return
        params = jax.tree.map(lambda leaf: np.asarray(leaf)[:members], state.train.params)
        scores = ablation.scores_of(study, mil, params, splits.test)
        for name, part in (("train_loss", splits.train), ("val_loss", splits.val)):
            predicted = ensemble.predict_ensemble(mil, params, part)
            scores[name] = np.asarray(evaluation.evaluate_members(predicted, part).bags.loss)
        for l2, own in zip(config.l2, ablation.cut(scores, len(config.l2)), strict=True):
            measured[l2][epoch] = Point(f"L2 {l2:g}, epoch {epoch}", {"l2": l2, "epoch": epoch}, own)

    hyper = training.make_hyper(splits.train)
    strengths = jnp.repeat(jnp.array(config.l2, jnp.float32), config.members)
    fit_config = FitConfig(config.epochs, 1, config.epochs)  # no early stopping
    keys = jnp.tile(study.keys, len(config.l2))
    hyper = dataclasses.replace(hyper, l2=strengths)
    ablation.fit(study, mil, keys, splits.train, splits.val, fit_config, hyper, also=measure)
    return measured


def best_epoch(points: dict[int, Point]) -> int:
    """The epoch with the lowest mean validation loss over seeds."""
    return min(points, key=lambda epoch: float(np.mean(points[epoch].scores["val_loss"])))


def chosen_points(config: Config, measured: Measured) -> list[Point]:
    """The best epoch of each L2, against that of the first L2; and the last epoch, against the best one."""
    best = {l2: measured[l2][best_epoch(measured[l2])] for l2 in config.l2}
    first = best[config.l2[0]]
    chosen = [point if point is first else ablation.compare(point, first) for point in best.values()]
    for l2, point in best.items():
        last = measured[l2][config.epochs]
        if last is not point:
            chosen.append(ablation.compare(last, point))
    return chosen


def draw(study: Study, config: Config, measured: Measured) -> object:
    """The measures over epochs, a line for each L2."""
    epochs = sorted(measured[config.l2[0]])
    points = [measured[l2][epoch] for l2 in config.l2 for epoch in epochs]
    rows = ablation.tabulate(points, config.measures, config.seed)
    panels = {
        study.labels[measure]: {
            f"L2 {l2:g}": ablation.band(rows, measure, [measured[l2][epoch].name for epoch in epochs])
            for l2 in config.l2
        }
        for measure in config.measures
    }
    return plots.panels_with_band(np.array(epochs), panels, "epoch", log_x=True)


def find(rows: list[ablation.Row], chosen: list[Point]) -> str:
    """Whether test loss and entropy rise from the best to the last epoch, how equal the weights are then, and why."""
    told, more_equal = [], {}
    for point in chosen:
        l2 = point.factors["l2"]
        if not point.against.startswith(f"L2 {l2:g},"):
            continue
        loss, entropy = (ablation.row_of(rows, measure, point.name) for measure in ("loss", "normalized_entropy"))
        if loss["difference_low"] > 0:
            more_equal[l2] = entropy["difference_low"] > 0
        told.append(
            f"L2 {l2:g}, from epoch {point.against.split()[-1]} to {point.factors['epoch']}: "
            f"{ablation.tell('test loss', loss)}, {ablation.tell('entropy / log K', entropy)} and "
            f"{entropy['mean']:.3g} in the end: {verdict(loss, entropy)}"
        )
    with_l2 = [more for l2, more in more_equal.items() if l2]
    if more_equal.get(0.0) is False and with_l2 and all(with_l2):
        told.insert(0, "weights become equal by long training under L2, and not by overfitting alone")
    return ablation.sentence(told or ["no strength trained beyond its best epoch: nothing to judge the remark by"])


def verdict(loss: ablation.Row, entropy: ablation.Row) -> str:
    """What the change of test loss and of entropy from the best to the last epoch means for the remark."""
    if not loss["difference_low"] > 0:
        return "no overfitting beyond the interval to judge the remark by"
    if not entropy["difference_low"] > 0:
        return "overfitted, and the weights do not become more equal"
    return f"overfitted, and the weights become {'' if entropy['mean'] > EQUAL else 'more equal, but not '}equal"


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
