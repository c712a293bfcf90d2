"""The report of a run folder: what it was asked for, what came out, its figures, and its test bags to browse."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Shaped

from mil_jax.report.page import render
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


def report_of(run: FinishedRun, pool: Shaped[np.ndarray | Array, "N ..."] | None) -> str:
    """The report of a run that has come to its end, as HTML.

    Args:
        run: see `runs.load_finished`.
        pool: the instances of the test bags, which `rows` in its `attention.npz` point into; without it the bags are
            shown as their weights alone.
    """
    bags = run_gallery(run, pool)
    sizes = np.asarray(bags.mask).sum(axis=1)
    size = f"{sizes.max():,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"
    members = f"{len(bags.attention)} member" + "s" * (len(bags.attention) > 1)
    name, seed = run.config.get("data", {}).get("name"), run.config.get("options", {}).get("seed")
    subtitle = f"{members}, bags of {size}" + f" of {name}" * (name is not None) + f", seed {seed}" * (seed is not None)
    binary = tuple(bags.classes) == ("negative", "positive")
    title = "Which instance of a bag made it positive?" if binary else "Which instances decided the class of a bag?"
    return render(title, run_parts(run, pool), f"{subtitle}: {run.path.name}")


def run_parts(run: FinishedRun, pool: Shaped[np.ndarray | Array, "N ..."] | None) -> list[Part]:
    """The parts of the report; the arguments are those of `report_of`."""
    parts: list[Part] = [summary_table(run.summary), sets_table(run.summary)]
    warnings = warning_texts(run.summary["members"])
    if warnings:
        parts.insert(0, Text("Warnings", warnings))
    parts += figure_parts(run.path)
    settings = {name: run.config.get(name) for name in ("options", "model", "data", "paths", "compute", "versions")}
    parts.append(Settings("Configuration", {name: value for name, value in settings.items() if value}))
    return [*parts, run_gallery(run, pool)]  # the bags last: they are many


def summary_table(summary: Mapping[str, Any]) -> Table:
    """A row for each member, then their mean and standard deviation, and the ensemble."""
    members = summary["members"]
    of_all = {"mean of members": "mean", "standard deviation": "standard_deviation", "ensemble": "ensemble"}
    named = [(f"member {row['seed']}", row) for row in members[:MOST_MEMBERS]]
    named += [(name, summary[key]) for name, key in of_all.items() if len(members) > 1]
    rows = [[name, *(row.get(column) for column in COLUMNS)] for name, row in named]
    caption = "The ensemble averages the members' probabilities." if len(members) > 1 else ""
    if len(members) > MOST_MEMBERS:
        caption = f"The first {MOST_MEMBERS} of {len(members)} members; members.csv has all. {caption}"
    return Table("Results on the test bags", ("", *(name.replace("_", " ") for name in COLUMNS)), rows, caption)


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
    figures = {file.stem: file.read_bytes() for file in sorted((path / "figures").glob("*.png"))}
    names = [*(name for name in TITLES if name in figures), *(name for name in figures if name not in TITLES)]
    return [Picture(TITLES.get(name, name.replace("_", " ").capitalize()), figures[name]) for name in names]


def run_gallery(run: FinishedRun, pool: Shaped[np.ndarray | Array, "N ..."] | None) -> Gallery:
    """The test bags of a run; those of a folder without a mask, which older versions wrote, are all full."""
    names = ("rows", "label", "instance_label", "attention", "probability")
    return Gallery(
        "Test bags",
        pool,
        mask=run.arrays["mask"] if "mask" in run.arrays else np.ones(run.arrays["rows"].shape, bool),
        classes=run.config.get("classes", ()),
        caption="Each bag as the ensemble sees it: the wrongly predicted first, the surest of them at the top.",
        **{name: run.arrays[name] for name in names},
    )
