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

import ablation
import jax
import jax.numpy as jnp
import numpy as np
from ablation import Point, Study

from mil_jax import cli, ensemble, losses, metrics, model, plots
from mil_jax.bags import Bags, Splits, take
from mil_jax.ensemble import Progress
from mil_jax.errors import InputError
from mil_jax.model import MIL
from mil_jax.training import FitConfig, FitState, Hyper

TREATMENTS = ("nothing", "class weights", "oversampling", "initial bias")
MORE = {
    "recall_at_threshold": "recall at the chosen threshold",
    "precision_at_threshold": "precision at the chosen threshold",
    "f1_at_threshold": "F1 at the chosen threshold",
    "threshold": "chosen threshold",
}


@dataclass(frozen=True)
class Config(ablation.Options):
    """Options of the ablation."""

    shares: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.02)
    """Shares of positive bags."""
    train_bags: int = 400
    """Bags that a member learns from; every epoch takes twice as many steps."""
    val_bags: int = 400
    """Bags that the epoch and the threshold are chosen on."""
    test_bags: int = 1000
    """Bags that nothing is chosen on."""
    epochs: int = 6
    """The most epochs that a member trains for."""
    measures: tuple[str, ...] = ("auc", "average_precision", "recall", "recall_at_threshold", "calibration_error")
    """What tables and figures show; results.csv holds all there is."""
    positive_class: int = 1
    """The class that makes a bag positive."""
    bag_size: int = 3
    """Instances per bag."""


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    check(config)
    mil = model.build()
    grid = [(share, treatment) for share in config.shares for treatment in TREATMENTS]
    study = ablation.prepare("imbalance", __doc__, config, MORE)
    splits = draw_bags(study, config)
    fit_config = FitConfig(config.epochs, 1, config.epochs)
    keys = jnp.tile(study.keys, len(grid))
    progress = Progress(start(config, grid, mil, keys, splits.train, fit_config), ())
    hyper = hyper_of(config, grid, splits.train)
    trained = ablation.fit(study, mil, keys, splits.train, splits.val, fit_config, hyper, progress)
    scores = ablation.scores_of(study, mil, trained.params, splits.test)
    scores |= at_threshold(mil, trained.params, splits)
    points = make_points(grid, ablation.cut(scores, len(grid)))
    rows = ablation.tabulate(points, list(study.labels), config.seed)
    caption = "Mean over seeds in its 95 % interval; recall without a word on the threshold is at 1/2."
    figures = {"imbalance": (draw(study, config, rows), caption)}
    return ablation.conclude(study, points, rows, find(study, config, rows), figures)


def check(config: Config) -> None:
    """Refuses shares that leave a set without a bag of one class."""
    if not config.shares or len(set(config.shares)) < len(config.shares):
        raise InputError("shares", config.shares, "give one or more different numbers between 0 and 1")
    for share in config.shares:
        for bag_count in (config.train_bags, config.val_bags, config.test_bags):
            if not 0 < round(share * bag_count) < bag_count:
                raise InputError("shares", share, f"of {bag_count} bags, this leaves none of one class: take more bags")


def draw_bags(study: Study, config: Config) -> Splits:
    """The bags of all shares, treatments and seeds as one ensemble, [P * S, B, K]."""
    draws = []
    for share in config.shares:
        of_share = ablation.draw(study, config.positive_class, config.bag_size, share)
        for treatment in TREATMENTS:
            order = oversampled if treatment == "oversampling" else twice
            draws += [own._replace(train=take(own.train, order(np.asarray(own.train.label)))) for own in of_share]
    return ablation.join_splits(draws)


def twice(label: np.ndarray) -> np.ndarray:
    """Every bag twice, [2 * B]."""
    return np.tile(np.arange(len(label)), 2)


def oversampled(label: np.ndarray) -> np.ndarray:
    """The positive bags over and over until there are B, and likewise the negative ones, [2 * B]."""
    return np.concatenate([np.resize(np.flatnonzero(label == value), len(label)) for value in (1, 0)])


def start(
    config: Config, grid: list[tuple[float, str]], mil: MIL, keys: jax.Array, train: Bags, fit_config: FitConfig
) -> FitState:
    """The members before their first epoch, with the output's bias where the treatment is that."""
    placement = ensemble.default_placement(len(keys))
    state = ensemble.start(mil, fit_config, keys, None, train, placement)
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(keys)], state)
    odds = [np.log(share / (1 - share)) if treatment == "initial bias" else 0.0 for share, treatment in grid]
    # With a softmax over two classes the odds are those of the difference of the two outputs.
    params = dict(state.train.params)
    bias = params["head"]["bias"] + np.repeat(odds, config.members)[:, None] * np.array([0, 1], np.float32)
    params["head"] = params["head"] | {"bias": bias.astype(np.float32)}
    return dataclasses.replace(state, train=dataclasses.replace(state.train, params=params), best_params=params)


def hyper_of(config: Config, grid: list[tuple[float, str]], train: Bags) -> Hyper:
    """Class weights where the treatment is that."""
    labels = np.asarray(train.label).reshape(len(grid), config.members, -1)
    ones = np.ones(2, np.float32)
    weights = [
        np.asarray(losses.class_weights(label)) if treatment == "class weights" else ones
        for (_, treatment), seeds in zip(grid, labels, strict=True) for label in seeds
    ]  # fmt: skip
    return Hyper(jnp.float32(1e-3), jnp.float32(0.01), jnp.asarray(np.stack(weights)))


def at_threshold(mil: MIL, params: model.Params, splits: Splits) -> dict[str, np.ndarray]:
    """Recall, precision and F1 on the test bags, at the threshold that is best on the validation bags, [P * S]."""
    score = lambda part: ensemble.predict_ensemble(mil, params, part).probability[..., 1]  # noqa: E731
    val, test = (score(part) for part in (splits.val, splits.test))
    threshold = np.array([best_threshold(s, y) for s, y in zip(val, np.asarray(splits.val.label), strict=True)])
    called = jnp.asarray(test >= threshold[:, None])
    judged = {
        f"{name}_at_threshold": np.asarray(jax.vmap(metric)(called, jnp.asarray(splits.test.label)))
        for name, metric in (("recall", metrics.recall), ("precision", metrics.precision), ("f1", metrics.f1))
    }
    return judged | {"threshold": threshold}


def best_threshold(score: np.ndarray, label: np.ndarray) -> float:
    """The score [B] from which calling bags positive gives the best F1; the highest of several."""
    recall, precision = metrics.precision_recall_curve(score, label)
    f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
    return float(np.unique(score)[::-1][np.argmax(f1[1:])])


def make_points(grid: list[tuple[float, str]], scores: list[dict[str, np.ndarray]]) -> list[Point]:
    """The points, each treatment against nothing at the same share."""
    points = {
        (share, treatment): Point(f"{100 * share:g} %, {treatment}", {"share": share, "treatment": treatment}, own)
        for (share, treatment), own in zip(grid, scores, strict=True)
    }
    return [
        point if treatment == "nothing" else ablation.compare(point, points[share, "nothing"])
        for (share, treatment), point in points.items()
    ]


def draw(study: Study, config: Config, rows: list[ablation.Row]) -> object:
    in_percent = [f"{100 * share:g} %" for share in config.shares]
    panels = {
        study.labels[measure]: {
            treatment: ablation.band(rows, measure, [f"{share}, {treatment}" for share in in_percent])
            for treatment in TREATMENTS
        }
        for measure in config.measures
    }
    return plots.panels_with_band(100 * np.array(config.shares), panels, "positive bags (%)", log_x=True)


def find(study: Study, config: Config, rows: list[ablation.Row]) -> str:
    """For each treatment, at which shares it helps or harms beyond the interval, against nothing."""
    told = []
    for treatment in TREATMENTS[1:]:
        of_treatment = []
        for measure in ("average_precision", "recall", "recall_at_threshold", "calibration_error"):
            found = {s: ablation.row_of(rows, measure, f"{100 * s:g} %, {treatment}") for s in config.shares}
            for word, sign in (("higher", 1), ("lower", -1)):
                at = [
                    f"{100 * s:g}" for s, row in found.items() if ablation.differs(row) and sign * row["difference"] > 0
                ]
                if at:
                    of_treatment.append(f"{study.labels[measure]} {word} at {ablation.listed(at)} %")
        told.append(f"{treatment}: {', '.join(of_treatment) or 'no difference beyond the interval at any share'}")
    return f"Against nothing, beyond the interval – {'; '.join(told)}."


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
