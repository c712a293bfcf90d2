"""How large may a bag be before attention loses the instance that matters?

Bags of 3 to 100 digits under the head that sums, with half of the bags positive; and bags of 3 under the head that
concatenates. A positive bag is a uniform draw that holds the digit at least once, so large bags hold it several times:
`hit by chance` is the share of such instances, which is what uniform attention would hit.

    python experiments/ablations/bag_size.py

It took 206 seconds on 2 cores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ablation
import numpy as np
from ablation import Point, Study

from mil_jax import cli, model, plots
from mil_jax.bags import Bags
from mil_jax.errors import InputError
from mil_jax.model import ModelConfig
from mil_jax.training import FitConfig

TOLD = (("accuracy", "accuracy"), ("hit_at_1", "hit@1"))
MORE = {"hit_by_chance": "hit@1 by chance"}


@dataclass(frozen=True)
class Config(ablation.Options):
    """Options of the ablation."""

    sizes: tuple[int, ...] = (3, 5, 10, 20, 50, 100)
    """Instances per bag, from the one that the others are compared with."""
    train_bags: int = 300
    """Bags that a member learns from."""
    epochs: int = 10
    """The most epochs that a member trains for."""
    measures: tuple[str, ...] = ("accuracy", "hit_at_1", "instance_auc", "normalized_entropy", "collapsed")
    """What tables and figures show; results.csv holds all there is."""
    positive_class: int = 1
    """The class that makes a bag positive."""
    positive_share: float = 0.5
    """Share of positive bags."""


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    if not config.sizes or min(config.sizes) < 1 or len(set(config.sizes)) < len(config.sizes):
        raise InputError("sizes", config.sizes, "give one or more different numbers of at least 1")
    if not 0 < config.positive_share < 1:
        raise InputError("positive_share", config.positive_share, "use a number between 0 and 1")
    study = ablation.prepare("bag_size", __doc__, config, MORE)
    summed = [train(study, config, size, "sum") for size in config.sizes]
    joined = train(study, config, config.sizes[0], "concat")
    first = summed[0]
    points = [first, *(ablation.compare(point, first) for point in (*summed[1:], joined))]
    rows = ablation.tabulate(points, list(study.labels), config.seed)
    figures = {"bag_size": (draw(study, rows, summed), "Mean over seeds in its 95 % interval; the head sums.")}
    return ablation.conclude(study, points, rows, find(rows, points), figures)


def train(study: Study, config: Config, size: int, head: Literal["sum", "concat"]) -> Point:
    """Trains all seeds on bags of one size."""
    cli.say(f"bags of {size}, head {head}")
    splits = ablation.join_splits(ablation.draw(study, config.positive_class, size, config.positive_share))
    mil = model.build(ModelConfig(head=head))
    fit_config = FitConfig(config.epochs, 1, config.epochs)
    trained = ablation.fit(study, mil, study.keys, splits.train, splits.val, fit_config)
    scores = ablation.scores_of(study, mil, trained.params, splits.test) | {"hit_by_chance": by_chance(splits.test)}
    return Point(f"{size}, {head}", {"size": size, "head": head}, scores)


def by_chance(part: Bags) -> np.ndarray:
    """The share of positive instances in the positive bags of each seed [S]."""
    share = np.mean(np.asarray(part.instance_label) == 1, axis=-1)
    return np.mean(share, axis=-1, where=np.asarray(part.label) == 1)


def draw(study: Study, rows: list[ablation.Row], summed: list[Point]) -> object:
    names = [point.name for point in summed]
    panels = {study.labels[m]: {"head sum": ablation.band(rows, m, names)} for m in study.config.measures}
    if study.labels["hit_at_1"] in panels:
        panels[study.labels["hit_at_1"]]["by chance"] = ablation.band(rows, "hit_by_chance", names)
    sizes = np.array([point.factors["size"] for point in summed])
    return plots.panels_with_band(sizes, panels, "instances per bag", log_x=True)


def find(rows: list[ablation.Row], points: list[Point]) -> str:
    """What became of accuracy and hit@1 at the largest size, and what the other head does at the first one."""
    first, *others, joined = points
    told = []
    if others:
        last = max(others, key=lambda point: int(str(point.factors["size"])))
        accuracy, hit = (ablation.tell(label, ablation.row_of(rows, m, last.name)) for m, label in TOLD)
        chance = ablation.row_of(rows, "hit_by_chance", last.name)["mean"]
        told.append(
            f"bags of {last.factors['size']} instead of {first.factors['size']}: {accuracy}, {hit}, where chance hits "
            f"{chance:.3g}"
        )
    accuracy, hit = (ablation.tell(label, ablation.row_of(rows, m, joined.name)) for m, label in TOLD)
    told.append(f"concatenating instead of summing in bags of {first.factors['size']}: {accuracy}, {hit}")
    return ablation.sentence(told)


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
