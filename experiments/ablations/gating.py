"""Does the gate of gated attention pay, or does plain attention do as well?

Gated attention multiplies tanh(V h) by sigmoid(U h) before the scores are taken (Ilse, Tomczak, Welling 2018, equation
9); without the gate it has 16,384 parameters less here. Both are trained with the same seeds, hence on the same bags.

    python experiments/ablations/gating.py

It took 71 seconds on 2 cores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ablation
from ablation import Point, Study

from mil_jax import cli, model, plots
from mil_jax.bags import Splits
from mil_jax.ensemble import Ensemble
from mil_jax.model import MIL, ModelConfig, Pooling
from mil_jax.training import FitConfig

POOLINGS: dict[str, Pooling] = {"gated": "gated_attention", "not gated": "attention"}


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
    head: Literal["concat", "sum"] = "concat"
    """Concatenate the weighted embeddings (the example), or sum them (the paper)."""
    patience: int = 10
    """A member stops after this many epochs without a better validation loss."""


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    models = {name: model.build(ModelConfig(pooling=pooling, head=config.head)) for name, pooling in POOLINGS.items()}
    study = ablation.prepare("gating", __doc__, config)
    splits = ablation.join_splits(ablation.draw(study, config.positive_class))
    trained = {name: train(study, config, mil, splits) for name, mil in models.items()}
    points = []
    for name, mil in models.items():
        scores = ablation.scores_of(study, mil, trained[name].params, splits.test)
        points.append(Point(name, {"attention": name}, scores))
    points[1] = ablation.compare(points[1], points[0])
    rows = ablation.tabulate(points, list(study.labels), config.seed)
    strips = ablation.strips(study, rows, points)
    caption = "A dot is a seed; a line joins the two models of a seed."
    figures = {"gating": (plots.seeds_by_group(strips, join=True), caption)}
    title = "Bags by gated attention"
    gallery = ablation.gallery_of(study, models["gated"], trained["gated"].params, config.positive_class, title)
    return ablation.conclude(study, points, rows, find(study, rows), figures, gallery)


def train(study: Study, config: Config, mil: MIL, splits: Splits) -> Ensemble:
    """Trains all seeds of one of the two models."""
    fit_config = FitConfig(config.epochs, 1, config.patience)
    return ablation.fit(study, mil, study.keys, splits.train, splits.val, fit_config)


def find(study: Study, rows: list[ablation.Row]) -> str:
    """What the differences say."""
    told = [
        ablation.tell(study.labels[measure], ablation.row_of(rows, measure, "not gated"))
        for measure in ("auc", "loss", "hit_at_1", "normalized_entropy")
    ]
    return f"Without the gate, against with it: {'; '.join(told)}."


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
