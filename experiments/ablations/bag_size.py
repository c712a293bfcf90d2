"""How large may a bag be before attention loses the instance that matters?

Bags of 3 to 100 digits under the head that sums, with half of the bags positive; and bags of 3 under the head that
concatenates. A positive bag is a uniform draw that holds the digit at least once, so large bags hold it several times:
`hit by chance` is the share of such instances, which is what uniform attention would hit.

    python experiments/ablations/bag_size.py

It took 206 seconds on 2 cores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mil_jax import plots
from mil_jax.bags import Bags
from mil_jax.comparison import Point, band, compare_all, tabulate
from mil_jax.errors import check_number, check_whole
from mil_jax.model import ModelConfig, build
from mil_jax.run import ablation, cli, findings
from mil_jax.run.screen import say
from mil_jax.sampling import BagsConfig, Splits


@dataclass(frozen=True)
class Config(ablation.AblationConfig):
    """Options of the ablation."""

    labels: ClassVar = {**ablation.MEASURES, "hit_by_chance": "hit@1 by chance"}

    sizes: tuple[int, ...] = (3, 5, 10, 20, 50, 100)
    """Instances per bag, from the one that the others are compared with."""
    train_bags: int = 300
    epochs: int = 10
    measures: tuple[str, ...] = ("accuracy", "hit_at_1", "instance_auc", "normalized_entropy", "collapsed")
    positive_class: int = 1
    """The class that makes a bag positive."""
    positive_share: float = 0.5
    """Share of positive bags."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ablation.check_points("sizes", self.sizes)
        for size in self.sizes:
            check_whole("sizes", size, 1)
        check_number("positive_share", self.positive_share, 0, 1, ends="()")

    def law(self, size: int) -> BagsConfig:
        """How bags of a size are drawn."""
        return self.bags(bag_size=size, positive_class=self.positive_class, positive_share=self.positive_share)


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    study = ablation.prepare("bag_size", __doc__, config)
    for size in config.sizes:
        check_whole("sizes", size, 1, len(study.data.test.label) // 2)
    drawn = {size: ablation.join(ablation.draw(study, config.law(size))) for size in config.sizes}
    summed = [measure(study, size, "sum", splits) for size, splits in drawn.items()]
    points = compare_all([*summed, measure(study, config.sizes[0], "concat", drawn[config.sizes[0]])])
    rows = tabulate(points, list(config.labels), config.seed)
    names = [point.name for point in summed]
    panels = findings.panels(study, rows, {"head sum": names})
    if config.labels["hit_at_1"] in panels:
        panels[config.labels["hit_at_1"]]["by chance"] = band(rows, "hit_by_chance", names)
    figure = plots.panels_with_band(np.array(config.sizes), panels, "instances per bag", log_x=True)
    figures = {"bag_size": (figure, "Mean over seeds in its 95 % interval; the head sums.")}
    return findings.conclude(study, points, rows, figures)


def measure(study: ablation.Ablation, size: int, head: Literal["sum", "concat"], splits: Splits) -> Point:
    """Trains all seeds on bags of one size, and judges them."""
    say(f"bags of {size}, head {head}")
    mil = build(ModelConfig(head=head))
    trained, _ = ablation.train(study, ablation.task_of(study, mil, splits))
    scores = ablation.scores_of(study, mil, trained.members, splits.test) | {"hit_by_chance": by_chance(splits.test)}
    return Point(f"{size}, {head}", {"size": size, "head": head}, scores)


def by_chance(part: Bags) -> np.ndarray:
    """The share of positive instances in the positive bags of each seed [S]."""
    share = np.mean(np.asarray(part.instance_label) == 1, axis=-1)
    return np.mean(share, axis=-1, where=np.asarray(part.label) == 1)


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
