"""The report of a run folder: what it was asked for, what came out, its figures, and its test bags to browse."""

from pathlib import Path

import numpy as np
from jax import Array
from jaxtyping import Shaped

from mil_jax.report.page import render
from mil_jax.report.parts import Gallery, Part, Picture, Settings, Text
from mil_jax.run.saved import FinishedRun

MOST_MEMBERS = 64  # rows of a table; members.csv has all

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
    """The report of a run that has come to its end (see `saved.load_finished`), as HTML.

    The rows in its `attention.npz` point into `pool`, the test instances; without it, bags are shown as weights alone.
    """
    *parts, bags = run_parts(run, pool)
    assert isinstance(bags, Gallery)
    sizes = np.asarray(bags.mask).sum(axis=1)
    size = f"{sizes.max():,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"
    members = f"{len(bags.attention)} member" + "s" * (len(bags.attention) > 1)
    name, seed = run.config.get("data", {}).get("name"), run.config.get("options", {}).get("seed")
    subtitle = f"{members}, bags of {size}" + f" of {name}" * (name is not None) + f", seed {seed}" * (seed is not None)
    binary = tuple(bags.classes) == ("negative", "positive")
    title = "Which instance of a bag made it positive?" if binary else "Which instances decided the class of a bag?"
    return render(title, [*parts, bags], f"{subtitle}: {run.path.name}")


def run_parts(run: FinishedRun, pool: Shaped[np.ndarray | Array, "N ..."] | None) -> list[Part]:
    """The parts of the report; the arguments are those of `report_of`."""
    parts: list[Part] = [*run.summary.shown_tables(MOST_MEMBERS)]
    warnings = run.summary.warnings()
    if warnings:
        parts.insert(0, Text("Warnings", warnings))
    parts += figure_parts(run.path)
    settings = {name: run.config.get(name) for name in ("options", "model", "data", "paths", "compute", "versions")}
    parts.append(Settings("Configuration", {name: value for name, value in settings.items() if value}))
    return [*parts, run_gallery(run, pool)]  # the bags last: they are many


def figure_parts(path: Path) -> list[Picture]:
    """All figures of a run folder, curves first."""
    figures = {file.stem: file.read_bytes() for file in sorted((path / "figures").glob("*.png"))}
    names = [*(name for name in TITLES if name in figures), *(name for name in figures if name not in TITLES)]
    return [Picture(TITLES.get(name, name.replace("_", " ").capitalize()), figures[name]) for name in names]


def run_gallery(run: FinishedRun, pool: Shaped[np.ndarray | Array, "N ..."] | None) -> Gallery:
    """The test bags of a run; those of a folder without a mask, which older versions wrote, are all full."""
    probability = run.arrays["probability"]
    converged = np.isfinite(probability).all(axis=(1, 2))
    members = converged if converged.any() else np.ones_like(converged)
    return Gallery(
        "Test bags",
        pool,
        mask=run.arrays["mask"] if "mask" in run.arrays else np.ones(run.arrays["rows"].shape, bool),
        attention=run.arrays["attention"][members],
        probability=probability[members],
        classes=run.config.get("classes", ()),
        names=run.arrays["names"].tolist() if "names" in run.arrays else (),
        caption="Each bag as the ensemble sees it: the wrongly predicted first, the surest of them at the top.",
        **{name: run.arrays[name] for name in ("rows", "label", "instance_label")},
    )
