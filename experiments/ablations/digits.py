"""Which digits are hard to find, and what does the attention confuse them with?

Each class in turn makes a bag positive. A seed has the same bags of digits for all classes, only their labels differ;
all classes and seeds train as one ensemble. The map says how much weight an instance gets, by its true class.

    python experiments/ablations/digits.py

It took 110 seconds on 2 cores.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mil_jax import plots
from mil_jax.bags import Bags
from mil_jax.comparison import Point, Row, by_point, compare_all, tabulate
from mil_jax.ensemble import predict
from mil_jax.errors import check_whole
from mil_jax.model import build
from mil_jax.protocols import join_points
from mil_jax.run import ablation, cli, findings
from mil_jax.sampling import Splits


@dataclass(frozen=True)
class Config(ablation.AblationConfig):
    """Options of the ablation."""

    classes: tuple[int, ...] = (1, 0, 2, 3, 4, 5, 6, 7, 8, 9)
    """Classes that make a bag positive, from the one that the others are compared with."""
    test_bags: int = 1000
    epochs: int = 10
    measures: tuple[str, ...] = ("auc", "accuracy", "hit_at_1", "normalized_entropy")
    patience: int = 10
    """A member stops after this many epochs without a better validation loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ablation.check_points("classes", self.classes, fewest=2)


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    mil = build()
    study = ablation.prepare("digits", __doc__, config)
    for number in config.classes:
        check_whole("classes", number, 0, len(study.data.class_names) - 1)
    drawn = ablation.join(ablation.draw(study, config.bags(positive_class=config.classes[0])))
    splits = join_points([label_by(study, drawn, number) for number in config.classes])
    trained, _ = ablation.train(study, ablation.task_of(study, mil, splits))
    scores = by_point(ablation.scores_of(study, mil, trained.members, splits.test), len(config.classes))
    points = compare_all([
        Point(str(study.data.class_names[number]), {"class": number}, of_class)
        for number, of_class in zip(config.classes, scores, strict=True)
    ])  # fmt: skip
    rows = tabulate(points, list(config.labels), config.seed)
    weights = np.asarray(predict(mil, trained.members, splits.test).attention)
    is_negative = np.broadcast_to(np.asarray(splits.test.label)[..., None] == 0, weights.shape)
    everywhere = attention_by_class(study, splits.test, weights, np.asarray(splits.test.mask))
    negative = attention_by_class(study, splits.test, weights, is_negative)
    figures = draw(study, rows, points, everywhere, negative)
    maps = {"classes": config.classes, "weight_by_class": everywhere, "weight_by_class_negative_bags": negative}
    return findings.conclude(study, points, rows, figures, more=maps)


def label_by(study: ablation.Ablation, splits: Splits, positive_class: int) -> Splits:
    """The same bags, labelled by another class."""

    def label(part: Bags, classes: np.ndarray) -> Bags:
        truth = (classes[part.rows] == positive_class).astype(np.int32)
        return Bags(part.pool, dataclasses.replace(part.view, instance_label=truth, label=truth.max(axis=-1)))

    train, test = study.data.train.label, study.data.test.label
    return Splits(label(splits.train, train), label(splits.val, test), label(splits.test, test))


def attention_by_class(study: ablation.Ablation, test: Bags, weights: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean weight of the counted instances, by positive class (row) and own class (column); NaN where there is none."""
    members, count = study.config.members, len(study.data.class_names)
    points = len(weights) // members
    cell = (np.arange(len(weights)) // members * count)[:, None, None] + study.data.test.label[test.rows]
    number = np.bincount(cell[counted], minlength=points * count)
    total = np.bincount(cell[counted], weights.astype(float)[counted], minlength=points * count)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan).reshape(points, count)


def draw(
    study: ablation.Ablation, rows: Sequence[Row], points: Sequence[Point], everywhere: np.ndarray, negative: np.ndarray
) -> findings.Figures:
    """The scores by class, and the maps in the order of the class numbers."""
    order = np.argsort(study.config.classes)
    names = [points[i].name for i in order], list(study.data.class_names)
    titles = ("class that makes a bag positive", "true class of the instance", "mean attention weight")
    maps = [plots.heat_map(values[order], *names, *titles, number_format=".2f") for values in (everywhere, negative)]
    strips = findings.strips(study, rows, [points[i] for i in order])
    caption = "1 / K, the weight of an instance under uniform attention, is 0.33."
    instead = f"Bags without the class only: what attention turns to instead. {caption}"
    return {
        "attention_by_class": (maps[0], caption),
        "attention_in_negative_bags": (maps[1], instead),
        "digits": (plots.seeds_by_group(strips), "A dot is a seed; the mean in its 95 % interval."),
    }


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
