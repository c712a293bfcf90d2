"""Does the gate of gated attention pay, or does plain attention do as well?

Gated attention multiplies tanh(V h) by sigmoid(U h) before the scores are taken (Ilse, Tomczak, Welling 2018, equation
9); without the gate it has 16,384 parameters less here. Both are trained with the same seeds, hence on the same bags.

    python experiments/ablations/gating.py
"""

from dataclasses import dataclass
from pathlib import Path

import ablation
from ablation import Point, Study

from mil_jax import cli, model, plots
from mil_jax.bags import Splits
from mil_jax.model import MIL, ModelConfig
from mil_jax.training import FitConfig


@dataclass(frozen=True)
class Config(ablation.Options):
    """Options of the ablation."""

    train_bags: int = 1000
    """Bags that a member learns from."""
    test_bags: int = 1000
    """Bags that nothing is chosen on."""
    measures: tuple[str, ...] = ("auc", "loss", "hit_at_1", "normalized_entropy", "collapsed")
    """What tables and figures show; results.csv holds all there is."""
    positive_class: int = 1
    """The class that makes a bag positive."""
    head: str = "concat"
    """Concatenate the weighted embeddings (the example), or sum them (the paper)."""
    patience: int = 10
    """A member stops after this many epochs without a better validation loss."""


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    models = {gated: model.build(ModelConfig(gated=gated, head=config.head)) for gated in (True, False)}  # type: ignore[arg-type]
    with ablation.open_study("gating", __doc__, config) as study:
        splits = ablation.draw(study, config.positive_class)
        gated, gallery = train(study, models[True], splits, "gated")
        plain, _ = train(study, models[False], splits, "not gated")
        points = [gated, ablation.compare(plain, gated)]
        rows = ablation.tabulate(points, list(study.labels), config.seed)
        strips = ablation.strips(study, rows, points)
        caption = "A dot is a seed; a line joins the two models of a seed."
        figures = {"gating": (plots.seeds_by_group(strips, join=True), caption)}
        return ablation.conclude(study, points, rows, find(study, rows), figures, gallery)


def train(study: Study, mil: MIL, splits: Splits, name: str) -> tuple[Point, object]:
    """Trains all seeds of one of the two models, and shows what the attention does."""
    fit_config = FitConfig(study.config.epochs, 1, study.config.patience)  # type: ignore[attr-defined]
    trained = ablation.fit(study, mil, study.keys, splits.train, splits.val, fit_config)
    scores = ablation.scores_of(study, mil, trained.params, splits.test)
    title = f"Bags by attention that is {name}"
    gallery = ablation.gallery_of(study, mil, trained.params, study.config.positive_class, title)  # type: ignore[attr-defined]
    return Point(name, {"attention": name}, scores), gallery


def find(study: Study, rows: list[ablation.Row]) -> str:
    """What the differences say."""
    told = [
        ablation.tell(study.labels[measure], ablation.row_of(rows, measure, "not gated"))
        for measure in ("auc", "loss", "hit_at_1", "normalized_entropy")
    ]
    return f"Without the gate, against with it: {'; '.join(told)}."


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
