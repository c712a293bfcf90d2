"""What do 1, 2, 4, … 64 members buy?

Many members are trained on the same bags and cut into ensembles that share no member, so that the ensembles of a size
are independent of each other and their spread is honest. Each ensemble is compared with the mean of its own members.

    python experiments/ablations/ensemble_size.py

It took 128 seconds on 2 cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ablation
import jax.numpy as jnp
import numpy as np
from ablation import Point, Study

from mil_jax import cli, committee, ensemble, metrics, model, plots
from mil_jax.bags import Bags
from mil_jax.errors import InputError
from mil_jax.model import Prediction
from mil_jax.training import FitConfig

MORE = {
    "information_auc": "errors found by the members' disagreement (AUC)",
    "uncertainty_auc": "errors found by the ensemble's own uncertainty (AUC)",
}
FINDERS = {"members' disagreement": "information_auc", "own uncertainty": "uncertainty_auc"}
FEWEST = 4  # members for two ensembles of two
SHOWN = ("accuracy", "auc", "loss", "calibration_error", "hit_at_1", "normalized_entropy")

NOTE = (
    "Mean, standard deviation and 95 % bootstrap interval over ensembles that share no member, on the same test bags; "
    "an ensemble is compared with the mean of its own members. Attention statistics are means over the positive test "
    "bags, of the members' mean weights."
)


@dataclass(frozen=True)
class Config(ablation.Options):
    """Options of the ablation."""

    members: int = 512
    """Members trained; there are members / size ensembles of a size, and two of the largest at least."""
    largest: int = 64
    """Members of the largest ensemble."""
    train_bags: int = 300
    """Bags that all members learn from."""
    test_bags: int = 2000
    """Bags that nothing is chosen on."""
    epochs: int = 10
    """The most epochs that a member trains for."""
    measures: tuple[str, ...] = (*SHOWN, "information_auc", "uncertainty_auc")
    """What tables and figures show; results.csv holds all there is."""
    positive_class: int = 1
    """The class that makes a bag positive."""


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    if config.members >= FEWEST and not 2 <= config.largest <= config.members // 2:
        raise InputError("largest", config.largest, f"use 2 to {config.members // 2}, half of the members")
    mil = model.build()
    study = ablation.prepare("ensemble_size", __doc__, config, MORE, fewest_members=FEWEST)
    splits = ablation.draw_splits(study, study.key, config.positive_class)
    fit_config = FitConfig(config.epochs, 1, config.epochs)
    trained = ablation.fit(study, mil, study.keys, splits.train, splits.val, fit_config)
    with study.watch.phase("evaluate"):
        predicted = ensemble.predict_ensemble(mil, trained.params, splits.test)
        points = judge(predicted, splits.test, committee.sizes_up_to(config.largest))
    points = [points[0], *(gain(points[0], point) for point in points[1:])]
    rows = ablation.tabulate(points, list(study.labels), config.seed)
    title = f"Bags by an ensemble of {config.largest}"
    first = ablation.members_of(trained.params, slice(config.largest))
    gallery = ablation.gallery_of(study, mil, first, config.positive_class, title)
    figures = {**draw(study, rows, points), **reliability(predicted, splits.test, points)}
    return ablation.conclude(study, points, rows, find(rows, points), figures, gallery, note=NOTE)


def judge(predicted: Prediction, test: Bags, sizes: Sequence[int]) -> list[Point]:
    """What the ensembles of each size score, an ensemble where other ablations have a seed."""
    members = len(predicted.probability)
    subsets = [committee.disjoint_subsets(members, size) for size in sizes]
    every = np.concatenate(subsets)
    scores = ablation.measures_of(committee.judge_subsets(predicted, test, every))
    found = [committee.disagreement(predicted, test, subset) for subset in every]
    scores |= {name: np.array([float(getattr(each, name)) for each in found]) for name in MORE}
    scores["information_auc"][every.sum(axis=1) == 1] = np.nan  # one member has nobody to disagree with
    scores["collapsed"] = np.full(len(every), np.nan)  # of an ensemble it says nothing
    bounds = np.cumsum([len(each) for each in subsets])[:-1]
    parts = {name: np.split(values, bounds) for name, values in scores.items()}
    return [Point(f"{size}", {"size": size}, {n: parts[n][i] for n in parts}) for i, size in enumerate(sizes)]


def gain(alone: Point, point: Point) -> Point:
    """The point against single members: each ensemble's score less the mean of its own members' scores."""
    size, count = int(point.name), len(point.scores["loss"])
    own = {name: values[: size * count].reshape(count, size).mean(axis=1) for name, values in alone.scores.items()}
    return ablation.compare(point, Point("its own members", {}, own))


def draw(study: Study, rows: list[ablation.Row], points: list[Point]) -> ablation.Figures:
    names = [point.name for point in points]
    panels = {
        study.labels[measure]: {"ensembles": ablation.band(rows, measure, names)}
        for measure in study.config.measures if measure not in MORE
    }  # fmt: skip
    found = {name: ablation.band(rows, measure, names) for name, measure in FINDERS.items()}
    x = np.array([point.factors["size"] for point in points])
    caption = "Mean over ensembles that share no member, in its 95 % interval."
    figures = {"ensemble_size": (plots.panels_with_band(x, panels, "members", log_x=True), caption)}
    title = "errors found (AUC)"
    figures["errors_found"] = (plots.lines_with_band(x, found, "members", title, log_x=True), caption)
    return figures


def reliability(predicted: Prediction, test: Bags, points: list[Point]) -> ablation.Figures:
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


def find(rows: list[ablation.Row], points: list[Point]) -> str:
    """What the largest ensembles gain, from which size half of it is had, and what disagreement tells."""
    last = points[-1].name
    of = lambda measure, name=last: ablation.row_of(rows, measure, name)  # noqa: E731
    told = [ablation.tell(name, of(measure)) for measure, name in (
        ("accuracy", "accuracy"), ("auc", "AUC"), ("loss", "loss"), ("calibration_error", "calibration error"),
        ("hit_at_1", "hit@1"),
    )]  # fmt: skip
    sentence = f"Ensembles of {last} against their own members: {', '.join(told)}"
    whole = of("loss")["difference"]
    if ablation.differs(of("loss")) and whole < 0:
        half = next(p.name for p in points[1:] if of("loss", p.name)["difference"] <= whole / 2)
        sentence += f"; half of the gain in loss is had with {half}"
    by_members, by_itself = of("information_auc"), of("uncertainty_auc")
    if np.isfinite([by_members["mean"], by_itself["mean"]]).all():
        sentence += (
            f"; the members' disagreement finds the ensemble's errors with AUC {by_members['mean']:.3g} "
            f"({by_members['low']:.3g} to {by_members['high']:.3g}), the ensemble's own uncertainty with "
            f"{by_itself['mean']:.3g} ({by_itself['low']:.3g} to {by_itself['high']:.3g})"
        )
    return f"{sentence}."


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
