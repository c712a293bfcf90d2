"""The figures of a run, from its records; what each shows is in `mil_jax.plots`.

Axes: S members, B bags, K slots, C classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mil_jax import curves, metrics, plots
from mil_jax.attention import AttentionStats
from mil_jax.bags import Bags
from mil_jax.ensemble import Ensemble, average
from mil_jax.evaluation import NEEDS_POSITIVE, Evaluation, where_known
from mil_jax.run.config import DEFAULT_NAMES
from mil_jax.run.summary import Judged
from mil_jax.scores import ranking_scores

# The statistics that the figure shows, as the labels of its panels.
SHOWN_STATS = {
    "normalized_entropy": "entropy / log K",
    "effective_instances": "effective instances",
    "largest_weight": "largest weight",
    "positive_mass": "weight on positive instances",
    "hit_at_1": "hit@1",
}


def before_training(train: Bags, class_names: tuple[str, ...], bags_per_class: int) -> dict[str, Any]:
    """The training bags by label."""
    label = np.asarray(train.label)
    index = first_bags(label, bags_per_class)
    if not len(index):
        return {}
    titles = [plots.bag_title(i, called(label[i], class_names)) for i in index]
    return {"bags_before_training": draw(train, index, titles, "Training bags by label")}


def after_training(
    trained: Ensemble, judged: Judged, test: Bags, class_names: tuple[str, ...], bags_per_class: int
) -> dict[str, Any]:
    """All figures of a trained ensemble, by name."""
    info, best_epoch = trained.curves, np.asarray(trained.best_epoch)
    figures = {
        "learning_curves": plots.learning_curves(
            info.train_loss, info.val_loss, info.train_accuracy, info.val_accuracy, best_epoch
        )
    }
    panels = stat_curves(info.positive, info.negative)
    if panels:  # none where all have diverged
        figures["attention_statistics"] = plots.attention_curves(panels, best_epoch)
    if judged.diverged.all():
        return figures
    figures |= classification_figures(judged, test, class_names)
    index = first_bags(np.asarray(average(judged.predicted).probability).argmax(axis=-1), bags_per_class)
    return figures | (
        {"bags_after_training": bags_by_prediction(judged, test, index, class_names)} if len(index) else {}
    )


def called(label: Any, class_names: tuple[str, ...]) -> object:
    """What a bag's title calls a class: its name, where it has one of its own."""
    return label if class_names == DEFAULT_NAMES else class_names[label]


def first_bags(label: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` bags of each class, the last class first."""
    return np.concatenate([np.flatnonzero(label == value)[:count] for value in np.unique(label)[::-1]])


def draw(part: Bags, index: np.ndarray, titles: list[str], heading: str, **weights: Any) -> Any:
    """A figure of the bags at `index`."""
    pool, rows = np.asarray(part.pool), np.asarray(part.rows)[index]
    truth = np.asarray(part.instance_label)
    positive = truth[index] == 1 if (truth >= 0).any() else None
    mask = np.asarray(part.mask)[index]
    return plots.bags_figure(pool[rows], mask, titles, positive=positive, heading=heading, **weights)


def stat_curves(positive: AttentionStats, negative: AttentionStats) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curves [S, E] of the shown statistics; a negative bag has no positive instance to hit."""
    unknown, known = np.full_like(np.asarray(negative.entropy), np.nan), where_known(positive)
    panels = {
        label: (getattr(known, name), unknown if name in NEEDS_POSITIVE else getattr(negative, name))
        for name, label in SHOWN_STATS.items()
    }
    return {label: (values, others) for label, (values, others) in panels.items() if np.isfinite(values).any()}


def classification_figures(judged: Judged, test: Bags, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Confusion matrix of the ensemble, and the curves of members and ensemble, on the test bags."""
    kept = ~judged.diverged
    label, members = np.asarray(test.label), np.asarray(judged.predicted.probability)[kept]
    whole = np.asarray(average(judged.predicted).probability)
    counts = confusion_counts(whole.argmax(axis=-1), label, len(class_names))
    figures = {"confusion_matrix": plots.confusion_matrix(counts, class_names)}
    figures["reliability"] = reliability_figure(whole, label, judged.ensemble["test"])
    if len(members) > 1:
        every, labels = members.reshape(-1, members.shape[-1]), np.tile(label, len(members))
        figures["reliability_of_members"] = reliability_figure(every, labels, judged.members["test"])
    if len(np.unique(label)) < 2:
        return figures
    if len(class_names) > 2:
        return figures | {"one_against_rest": against_rest_figure(whole, label, class_names)}
    by_member, by_ensemble = judged.members["test"].bags, judged.ensemble["test"].bags
    curve: Callable[..., Any]
    for name, curve, draw_curves, area, extra in (
        ("roc_curve", curves.roc_curve, plots.roc_curves, "auc", ()),
        ("precision_recall_curve", curves.precision_recall_curve, plots.precision_recall_curves,
         "average_precision", (float(label.mean()),)),
    ):  # fmt: skip
        figures[name] = draw_curves(
            [curve(score, label) for score in members[..., 1]],
            curve(whole[:, 1], label),
            np.asarray(getattr(by_member, area))[kept].tolist(),
            float(getattr(by_ensemble, area)),
            *extra,
        )
    return figures


def against_rest_figure(probability: np.ndarray, label: np.ndarray, class_names: tuple[str, ...]) -> Any:
    """The curves of each class that some bag has."""
    roc, precision_recall, areas = {}, {}, {}
    for number in np.unique(label):
        name, score, positive = class_names[number], probability[:, number], (label == number).astype(int)
        roc[name] = curves.roc_curve(score, positive)
        precision_recall[name] = curves.precision_recall_curve(score, positive)
        once = np.ones((1, len(label)))
        auc, precision = ranking_scores(score, positive > 0, once)
        areas[name] = float(auc[0]), float(precision[0])
    return plots.one_against_rest(roc, precision_recall, areas)


def confusion_counts(prediction: np.ndarray, label: np.ndarray, class_count: int) -> np.ndarray:
    """Bags by true class (row) and predicted class (column) [C, C]; one whose label is no class does not count."""
    classes = np.arange(class_count)[:, None]
    return (label == classes).astype(int) @ (prediction == classes).T


def reliability_figure(probability: np.ndarray, label: np.ndarray, judged: Evaluation) -> Any:
    """The reliability diagram of all these predictions, with the mean calibration error of those who made them."""
    bins = jax.jit(metrics.reliability)(probability, label)
    error = float(np.nanmean(judged.bags.calibration_error))
    return plots.reliability_diagram(bins.confidence, bins.accuracy, bins.count, error)


def bags_by_prediction(judged: Judged, test: Bags, index: np.ndarray, class_names: tuple[str, ...]) -> Any:
    """Test bags by predicted class, with the ensemble's weights and their spread over the members."""
    whole = average(judged.predicted)
    probability, label = np.asarray(whole.probability), np.asarray(test.label)
    prediction = probability.argmax(axis=-1)
    titles = [
        plots.bag_title(i, called(label[i], class_names), called(prediction[i], class_names), probability[i].max())
        for i in index
    ]
    members = np.asarray(judged.predicted.attention)[~judged.diverged]
    spread = members.std(axis=0, ddof=1)[index] if len(members) > 1 else None
    attention = np.asarray(whole.attention)[index]
    return draw(test, index, titles, "Test bags by predicted class", attention=attention, spread=spread)
