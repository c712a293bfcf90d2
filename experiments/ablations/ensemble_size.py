"""What do 1, 2, 4, … 64 members buy?

Many members are trained on the same bags and cut into ensembles that share no member, so that the ensembles of a size
are independent of each other and their spread is honest. Each ensemble is compared with the mean of its own members.

    python experiments/ablations/ensemble_size.py

It took 128 seconds on 2 cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import committee, metrics, plots
from mil_jax.bags import Bags
from mil_jax.comparison import Point, Row, band, compare, tabulate
from mil_jax.ensemble import predict
from mil_jax.errors import check_whole
from mil_jax.members import Members
from mil_jax.model import Prediction, build
from mil_jax.run import ablation, cli, findings

MORE = {
    "information_auc": "errors found by the members' disagreement (AUC)",
    "uncertainty_auc": "errors found by the ensemble's own uncertainty (AUC)",
}
FINDERS = {"members' disagreement": "information_auc", "own uncertainty": "uncertainty_auc"}

NOTE = (
    "Mean, standard deviation and 95 % bootstrap interval (low, high) over ensembles that share no member, on the same "
    "test bags; an ensemble is compared with the mean of its own members. Attention statistics are means over the "
    "positive test bags, of the members' mean weights."
)


@dataclass(frozen=True)
class Config(ablation.AblationConfig):
    """Options of the ablation."""

    labels: ClassVar = {**ablation.MEASURES, **MORE}

    members: int = 512
    """Members trained; there are members / size ensembles of a size, and two of the largest at least."""
    largest: int = 64
    """Members of the largest ensemble."""
    train_bags: int = 300
    """Bags that all members learn from."""
    test_bags: int = 2000
    epochs: int = 10
    measures: tuple[str, ...] = (
        "accuracy", "auc", "loss", "calibration_error", "hit_at_1", "normalized_entropy", *MORE,
    )  # fmt: skip
    positive_class: int = 1
    """The class that makes a bag positive."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("members", self.members, 4)  # two ensembles of two
        check_whole("largest", self.largest, 2, self.members // 2)


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    mil = build()
    study = ablation.prepare("ensemble_size", __doc__, config)
    splits = ablation.draw_splits(study, study.key, config.bags(positive_class=config.positive_class))
    trained, _ = ablation.train(study, ablation.task_of(study, mil, splits))
    with study.watch.phase("evaluate"):
        predicted = predict(mil, trained.members, splits.test)
        points = judge(predicted, splits.test, committee.sizes_up_to(config.largest))
    points = [points[0], *(gain(points[0], point) for point in points[1:])]
    rows = tabulate(points, list(config.labels), config.seed)
    largest = Members(
        jax.tree.map(lambda leaf: leaf[: config.largest], trained.members.params), None, splits.train.kind
    )
    bags = findings.gallery_of(study, mil, largest, f"Bags by an ensemble of {config.largest}", config.positive_class)
    figures = {**draw(study, rows, points), **reliability(predicted, splits.test, points)}
    return findings.conclude(study, points, rows, figures, gallery=bags, note=NOTE)


def judge(predicted: Prediction, test: Bags, sizes: Sequence[int]) -> list[Point]:
    """What the ensembles of each size score, an ensemble where other ablations have a seed."""
    members = len(predicted.probability)
    subsets = [committee.disjoint_subsets(members, size) for size in sizes]
    every = np.concatenate(subsets)
    scores = ablation.measures_of(committee.judge_subsets(predicted, test, every))
    spreads = [committee.disagreement(predicted, test, subset) for subset in every]
    scores |= {name: np.array([float(getattr(spread, name)) for spread in spreads]) for name in MORE}
    scores["information_auc"][every.sum(axis=1) == 1] = np.nan  # one member has nobody to disagree with
    scores["collapsed"] = np.full(len(every), np.nan)  # of an ensemble it says nothing
    bounds = np.cumsum(list(map(len, subsets)))[:-1]
    parts = {name: np.split(values, bounds) for name, values in scores.items()}
    return [Point(f"{size}", {"size": size}, {n: parts[n][i] for n in parts}) for i, size in enumerate(sizes)]


def gain(alone: Point, point: Point) -> Point:
    """The point against single members: each ensemble's score less the mean of its own members' scores."""
    size, count = int(point.name), len(point.scores["loss"])
    means = {name: values[: size * count].reshape(count, size).mean(axis=1) for name, values in alone.scores.items()}
    return compare(point, Point("its own members", {}, means))


def draw(study: ablation.Ablation, rows: Sequence[Row], points: Sequence[Point]) -> findings.Figures:
    names = [point.name for point in points]
    panels = findings.panels(study, rows, {"ensembles": names})
    panels = {label: lines for label, lines in panels.items() if label not in MORE.values()}
    finders = {name: band(rows, measure, names) for name, measure in FINDERS.items()}
    x = np.array([point.factors["size"] for point in points])
    caption = "Mean over ensembles that share no member, in its 95 % interval."
    figures = {"ensemble_size": (plots.panels_with_band(x, panels, "members", log_x=True), caption)}
    title = "errors found (AUC)"
    figures["errors_found"] = (plots.lines_with_band(x, finders, "members", title, log_x=True), caption)
    return figures


def reliability(predicted: Prediction, test: Bags, points: Sequence[Point]) -> findings.Figures:
    """Reliability diagrams of single members and of the largest ensembles, all their predictions together."""
    figures = {}
    for point in (points[0], points[-1]):
        subsets = committee.disjoint_subsets(len(predicted.probability), int(point.name))
        probability = np.concatenate([np.asarray(predicted.probability)[subset].mean(axis=0) for subset in subsets])
        label = jnp.tile(test.label, len(subsets))
        bins = metrics.reliability(jnp.asarray(probability), label)
        error = float(np.mean(point.scores["calibration_error"]))
        figure = plots.reliability_diagram(bins.confidence, bins.accuracy, bins.count, error)
        name = "single members" if point is points[0] else f"ensembles of {point.name}"
        caption = f"{name.capitalize()}; the error printed is their mean; bars count all predictions as independent."
        figures[f"reliability_{point.name}"] = (figure, caption)
    return figures


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
