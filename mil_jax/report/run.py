"""The parts of a run folder: what it was asked for, what came out, its figures, and its test bags to browse."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Shaped

from mil_jax.report.parts import Gallery, Part, Picture, Settings, Table, Text
from mil_jax.runs import FinishedRun

MOST_MEMBERS = 64  # rows of a table; members.csv has all

COLUMNS = ("best_epoch", "epochs_run", "test_loss", "test_accuracy", "test_auc", "instance_hit_at_1", "instance_auc")
MEASURES = ("loss", "accuracy", "auc", "precision", "recall")
ROLES = {"train": "learned from", "val": "epoch chosen on", "test": "nothing chosen on"}

# Figures in this order, the others behind them, by their titles.
TITLES = {
    "learning_curves": "Learning curves",
    "attention_statistics": "Attention statistics",
    "roc_curve": "ROC curve",
    "precision_recall_curve": "Precision-recall curve",
    "confusion_matrix": "Confusion matrix",
    "reliability_diagram": "Reliability diagram",
}


def run_parts(run: FinishedRun, pool: Shaped[np.ndarray | Array, "N ..."] | None) -> list[Part]:
    """Makes the parts of a run that has come to its end.

    Args:
        run: see `runs.load_finished`.
        pool: what `rows` in its `attention.npz` point into; without it there is no gallery.
    """
    parts: list[Part] = [summary_table(run.summary), sets_table(run.summary)]
    warnings = warning_texts(run.summary["members"])
    if warnings:
        parts.insert(0, Text("Warnings", warnings))
    parts += figure_parts(run.path)
    settings = {name: run.config.get(name) for name in ("options", "model", "data", "paths", "compute", "versions")}
    parts.append(Settings("Configuration", {name: value for name, value in settings.items() if value}))
    if pool is not None:  # last: it is long
        parts.append(run_gallery(run.arrays, pool))
    return parts


def summary_table(summary: Mapping[str, Any]) -> Table:
    """A row for each member, then their mean and standard deviation, and the ensemble."""
    members = summary["members"]
    rows = [member_row(f"member {row['seed']}", row) for row in members[:MOST_MEMBERS]]
    if len(members) > 1:
        rows.append(member_row("mean of members", summary["mean"]))
        rows.append(member_row("standard deviation", summary["standard_deviation"]))
        rows.append(member_row("ensemble", summary["ensemble"]))
    caption = "The ensemble averages the members' probabilities." if len(members) > 1 else ""
    if len(members) > MOST_MEMBERS:
        caption = f"The first {MOST_MEMBERS} of {len(members)} members; members.csv has all. {caption}"
    return Table("Results on the test bags", ("", *(name.replace("_", " ") for name in COLUMNS)), rows, caption)


def member_row(name: str, row: Mapping[str, Any]) -> list[object]:
    """The cells of a row; what it does not have is a dash."""
    return [name, *(row.get(column) for column in COLUMNS)]


def sets_table(summary: Mapping[str, Any]) -> Table:
    """The mean member on the three sets side by side."""
    mean = summary["mean"]
    rows = [[name, role, *(mean.get(f"{name}_{measure}") for measure in MEASURES)] for name, role in ROLES.items()]
    return Table("Mean of members, all sets", ("set", "role", *MEASURES), rows)


def warning_texts(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the members' attention, a line for each sentence that names the members it holds for."""
    by_sentence: dict[str, list[str]] = {}
    for row in members:
        for sentence in row.get("warnings", ()):
            by_sentence.setdefault(sentence, []).append(str(row["seed"]))
    return [f"Member {', '.join(seeds)}: {sentence}" for sentence, seeds in by_sentence.items()]


def figure_parts(path: Path) -> list[Picture]:
    """All figures of a run folder, curves first."""
    found = {file.stem: file.read_bytes() for file in sorted((path / "figures").glob("*.png"))}
    names = [*(name for name in TITLES if name in found), *(name for name in found if name not in TITLES)]
    return [Picture(TITLES.get(name, name.replace("_", " ").capitalize()), found[name]) for name in names]


def run_gallery(arrays: Mapping[str, np.ndarray], pool: Shaped[np.ndarray | Array, "N ..."]) -> Gallery:
    """The test bags of a run."""
    return Gallery(
        title="Test bags",
        pool=pool,
        rows=arrays["rows"],
        mask=arrays["mask"] if "mask" in arrays else np.ones(arrays["rows"].shape, bool),
        label=arrays["label"],
        instance_label=arrays["instance_label"],
        attention=arrays["attention"],
        probability=arrays["probability"],
        caption="Each bag as the ensemble sees it: the wrongly predicted first, the surest of them at the top.",
    )
