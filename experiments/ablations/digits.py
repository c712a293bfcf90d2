"""Which digits are hard to find, and what does the attention confuse them with?

Each class in turn makes a bag positive. A seed has the same bags of digits for all classes, only their labels differ;
all classes and seeds train as one ensemble. The map says how much weight an instance gets, by its true class.

    python experiments/ablations/digits.py

It took 110 seconds on 2 cores.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import ablation
import jax.numpy as jnp
import numpy as np
from ablation import Point, Study

from mil_jax import cli, ensemble, model, plots
from mil_jax.bags import Bags, Splits
from mil_jax.errors import InputError
from mil_jax.training import FitConfig


@dataclass(frozen=True)
class Config(ablation.Options):
    """Options of the ablation."""

    classes: tuple[int, ...] = (1, 0, 2, 3, 4, 5, 6, 7, 8, 9)
    """Classes that make a bag positive, from the one that the others are compared with."""
    test_bags: int = 1000
    """Bags that nothing is chosen on."""
    epochs: int = 10
    """The most epochs that a member trains for."""
    measures: tuple[str, ...] = ("auc", "accuracy", "hit_at_1", "normalized_entropy")
    """What tables and figures show; results.csv holds all there is."""
    patience: int = 10
    """A member stops after this many epochs without a better validation loss."""


def main(config: Config) -> Path:
    """Runs the ablation and returns its folder."""
    mil = model.build()
    study = ablation.prepare("digits", __doc__, config)
    check(study, config)
    drawn = ablation.join_splits(ablation.draw(study, config.classes[0]))
    each = [label_by(study, drawn, positive) for positive in config.classes]
    splits = Splits(*(join_points(parts) for parts in zip(*each, strict=True)))
    keys = jnp.tile(study.keys, len(config.classes))
    fit_config = FitConfig(config.epochs, 1, config.patience)
    trained = ablation.fit(study, mil, keys, splits.train, splits.val, fit_config)
    scores = ablation.cut(ablation.scores_of(study, mil, trained.params, splits.test), len(config.classes))
    points = [Point(name(study, c), {"class": c}, s) for c, s in zip(config.classes, scores, strict=True)]
    points = [points[0], *(ablation.compare(point, points[0]) for point in points[1:])]
    rows = ablation.tabulate(points, list(study.labels), config.seed)
    weights = np.asarray(ensemble.predict_ensemble(mil, trained.params, splits.test).attention)
    everywhere, negative = (attention_by_class(study, splits.test, weights, only) for only in (False, True))
    finding = find(study, config, rows, negative)
    figures = draw(study, config, rows, points, everywhere, negative)
    maps = {"classes": config.classes, "weight_by_class": everywhere, "weight_by_class_negative_bags": negative}
    return ablation.conclude(study, points, rows, finding, figures, more=maps)


def check(study: Study, config: Config) -> None:
    known = range(len(study.data.class_names))
    if len(set(config.classes)) != len(config.classes) or len(config.classes) < 2 or not {*config.classes} <= {*known}:
        raise InputError("classes", config.classes, f"give two or more different ones of 0 to {known[-1]}")


def name(study: Study, number: int) -> str:
    """The class as tables say it."""
    return str(study.data.class_names[number])


def label_by(study: Study, splits: Splits, positive_class: int) -> Splits:
    """The same bags, labelled by another class."""

    def label(part: Bags, classes: np.ndarray) -> Bags:
        truth = (classes[part.rows] == positive_class).astype(np.int32)
        return dataclasses.replace(part, instance_label=truth, label=truth.max(axis=-1))

    train, test = study.data.train.label, study.data.test.label
    return Splits(label(splits.train, train), label(splits.val, test), label(splits.test, test))


def join_points(parts: tuple[Bags, ...]) -> Bags:
    """Bags of the seeds of several points as those of one ensemble, [P * S, B, K]."""
    fields = ("rows", "mask", "label", "instance_label")
    joined = {field: np.concatenate([np.asarray(getattr(part, field)) for part in parts]) for field in fields}
    return dataclasses.replace(parts[0], **joined)


def attention_by_class(study: Study, test: Bags, weights: np.ndarray, only_negative: bool) -> np.ndarray:
    """Mean weight of an instance by positive class (row) and its own class (column); NaN where there is none."""
    counted = (np.asarray(test.label) == 0)[..., None] if only_negative else np.asarray(test.mask)
    points = len(test.label) // study.config.members
    count = len(study.data.class_names)
    cell = np.arange(len(test.label))[:, None, None] // study.config.members * count + study.data.test.label[test.rows]
    counted = np.broadcast_to(counted, cell.shape)
    number = np.bincount(cell[counted], minlength=points * count)
    total = np.bincount(cell[counted], np.asarray(weights, float)[counted], minlength=points * count)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan).reshape(points, count)


def draw(
    study: Study,
    config: Config,
    rows: list[ablation.Row],
    points: list[Point],
    everywhere: np.ndarray,
    negative: np.ndarray,
) -> ablation.Figures:
    """The scores by class, and the maps in the order of the class numbers."""
    order = np.argsort(config.classes)
    names = [points[i].name for i in order], list(study.data.class_names)
    titles = ("class that makes a bag positive", "true class of the instance", "mean attention weight")
    caption = "1 / K, the weight of an instance under uniform attention, is 0.33."
    strips = ablation.strips(study, rows, [points[i] for i in order])
    return {
        "attention_by_class": (plots.heat_map(everywhere[order], *names, *titles, number_format=".2f"), caption),
        "attention_in_negative_bags": (
            plots.heat_map(negative[order], *names, *titles, number_format=".2f"),
            f"Bags without the class only: what attention turns to instead. {caption}",
        ),
        "digits": (plots.seeds_by_group(strips), "A dot is a seed; the mean in its 95 % interval."),
    }


def find(study: Study, config: Config, rows: list[ablation.Row], negative: np.ndarray) -> str:
    """Which classes are harder than the first one, and the largest weights on a wrong class."""
    first, *others = (name(study, number) for number in config.classes)
    found = {each: ablation.row_of(rows, "auc", each) for each in others}
    harder = sorted((e for e in others if found[e]["difference_high"] < 0), key=lambda e: found[e]["mean"])
    easier = [each for each in others if found[each]["difference_low"] > 0]
    told = []
    if harder:
        hardest = found[harder[0]]
        told.append(
            f"lower AUC than {first} beyond the interval: {ablation.listed(harder)}, of which {harder[0]} is lowest "
            f"({hardest['mean']:.4f}; {ablation.tell('AUC', hardest)} than {first})"
        )
    if easier:
        told.append(f"higher AUC than {first} beyond the interval: {ablation.listed(easier)}")
    if not told:
        told.append(f"no class differs in AUC from {first} beyond the interval")
    filled = np.where(np.isnan(negative), -1, negative)
    top = np.argsort(-filled, axis=None)[:3]
    pairs = [(config.classes[i // filled.shape[1]], i % filled.shape[1], filled.flat[i]) for i in top]
    weights = [f"{name(study, seen)} when looking for {name(study, sought)} ({w:.2f})" for sought, seen, w in pairs]
    told.append(f"in bags without the class, attention turns most to {ablation.listed(weights)}; uniform would be 0.33")
    return ablation.sentence(told)


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
