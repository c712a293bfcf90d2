"""Does the gate of gated attention pay, or does plain attention do as well?

Gated attention multiplies tanh(V h) by sigmoid(U h) before the scores are taken (Ilse, Tomczak, Welling 2018, equation
9); without the gate it has 16,384 parameters less here. Both are trained with the same seeds, hence on the same bags.

    python experiments/ablations/gating.py

It took 71 seconds on 2 cores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mil_jax import plots
from mil_jax.comparison import Point, compare_all, tabulate
from mil_jax.model import ModelConfig, Pooling, build
from mil_jax.run import ablation, cli, findings

POOLINGS: dict[str, Pooling] = {"gated": "gated_attention", "not gated": "attention"}


@dataclass(frozen=True)
class Config(ablation.AblationConfig):
    """Options of the ablation."""

    train_bags: int = 1000
    test_bags: int = 1000
    measures: tuple[str, ...] = ("auc", "loss", "hit_at_1", "normalized_entropy", "collapsed")
    positive_class: int = 1
    """The class that makes a bag positive."""
    head: Literal["concat", "sum"] = "concat"
    """Concatenate the weighted embeddings (the example), or sum them (the paper)."""
    patience: int = 10
    """A member stops after this many epochs without a better validation loss."""


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    models = {name: build(ModelConfig(pooling=pooling, head=config.head)) for name, pooling in POOLINGS.items()}
    study = ablation.prepare("gating", __doc__, config)
    splits = ablation.join(ablation.draw(study, config.bags(positive_class=config.positive_class)))
    trained = {
        name: ablation.train(study, ablation.task_of(study, mil, splits))[0].members for name, mil in models.items()
    }
    points = compare_all([
        Point(name, {"attention": name}, ablation.scores_of(study, mil, trained[name], splits.test))
        for name, mil in models.items()
    ])  # fmt: skip
    rows = tabulate(points, list(config.labels), config.seed)
    figure = plots.seeds_by_group(findings.strips(study, rows, points), join=True)
    figures = {"gating": (figure, "A dot is a seed; a line joins the two models of a seed.")}
    bags = findings.gallery_of(
        study, models["gated"], trained["gated"], "Bags by gated attention", config.positive_class
    )  # fmt: skip
    return findings.conclude(study, points, rows, figures, gallery=bags)


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
