"""What does a trained ensemble say of new bags, how sure is it, and do they look like those it was trained on?

    python experiments/predict_bags.py RUN --features DIR
    python experiments/predict_bags.py RUN --features DIR --fit 2        (the members of one fold alone)

RUN is a folder that `own_bags.py` made, wherever it lies now. Leaves `predictions.csv` in --out: the probability of
each class with its spread over members, the entropy of the mean, the mutual information between label and member, and
how unlike the training bags a bag is.
"""

import csv
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mil_jax.committee import mutual_information
from mil_jax.crossing import mean_features, spread_of, unlikeness
from mil_jax.datasets.cohort import Cohort, load_cohort
from mil_jax.datasets.files import few
from mil_jax.errors import InputError, check_whole
from mil_jax.run import cli
from mil_jax.run.config import Compute, aside, check_out
from mil_jax.run.folder import check_free, open_run
from mil_jax.run.maps import write_maps
from mil_jax.run.outcome import called
from mil_jax.run.processes import placement_of, start_jax
from mil_jax.run.saved import Run, load_run
from mil_jax.run.screen import print_table, say
from mil_jax.streaming import predict_windows
from mil_jax.text import Table
from mil_jax.windows import Windows

FAR = 1.5  # times as far from the training bags' mean as the farthest of them: unlike them
SHOWN = 20


@dataclass(frozen=True)
class Config:
    """Options of the command."""

    run: cli.Positional[Path]
    """The run folder."""
    features: Path
    """A folder with a file for each bag, as for `own_bags.py`."""
    fit: int | None = None
    """Predict by the members of this fit alone, from 0; by all where not given."""
    window: int | None = None
    """Instances in memory at a time, for bags that do not fit into it; all where not given."""
    maps: int = 0
    """Bags, from the first, with a heat map, tiles and GeoJSON."""
    thumbnails: Path | None = aside(None)
    """A folder with an image for each bag, to draw maps on."""
    out: Path | None = aside(None)
    """The folder of the predictions; a new one beside the run where not given."""
    compute: Compute = aside(Compute())

    def __post_init__(self) -> None:
        check_out(self.out)
        check_whole("maps", self.maps, 0)
        if self.compute.resume:
            raise InputError("resume", True, "expected another folder: predictions are made anew")
        if self.fit is not None:
            check_whole("fit", self.fit, 0)


def main(config: Config) -> Path:
    """Predicts and returns the folder."""
    out = config.out or config.run.with_name(f"{config.run.name}-predictions")
    check_free(out, can_resume=False)
    cohort = load_cohort(config.features)
    start_jax(config.compute, 1)  # before the checkpoint is read, which starts JAX
    run = load_run(config.run)
    chosen, threshold = members_of_fit(run, config.fit)
    windows = Windows(cohort, int(cohort.sizes.sum()) if config.window is None else config.window)
    members = jax.tree.map(lambda leaf: leaf[chosen], run.members)
    predicted = predict_windows(run.model, members, windows, placement=placement_of(config.compute, len(chosen)))
    rows = list(prediction_rows(run, threshold, cohort, predicted.probability))
    options = {"run": str(config.run), "fit": config.fit}
    content = {"experiment": "predict_bags", "options": options, "data": {"content_hash": cohort.content_hash}}
    with open_run(out, content, {}, can_resume=False) as folder:
        folder.write_csv("predictions.csv", rows)
        first = np.arange(min(config.maps, len(cohort.bags)))
        if len(first):
            weights = np.asarray(predicted.padded(first).attention)
            write_maps(folder, cohort, first, weights, config.thumbnails)
    show(rows, len(chosen))
    known = {row["bag"] for row in rows} & judged_bags(config.run)
    if known and config.fit is None:
        say(f"{len(known)} of these bags were in the run's folds: members have trained on most of them; its own")
        say("predictions.csv has what is said of them by members that have not seen them")
    say(f"folder: {out}")
    return out


def judged_bags(path: Path) -> set[str]:
    """The names of the bags that the run itself judged."""
    if not (path / "predictions.csv").exists():
        return set()
    with (path / "predictions.csv").open(newline="") as file:
        return {row["bag"] for row in csv.DictReader(file)}


def members_of_fit(run: Run, fit: int | None) -> tuple[np.ndarray, float | None]:
    """The numbers of the members that predict, those of the fit that have not diverged, and the threshold of the fit.

    Raises:
        InputError: no such fit, or none that has converged.
    """
    if run.summary is None:
        raise InputError(
            "run folder", str(run.path), "expected one that has come to its end: go on with it by --resume"
        )
    fits = np.array([row.get("fit", 0) for row in run.summary.members])
    if fit is not None and fit > fits.max():
        raise InputError("fit", fit, f"expected 0 to {fits.max()}, the fits of {run.path}")
    kept = np.array([not row["diverged"] for row in run.summary.members])
    chosen = np.flatnonzero(kept & ((fits == fit) if fit is not None else True))
    if not len(chosen):
        raise InputError("run folder", str(run.path), "expected members that have converged: all have diverged")
    cuts = [row["threshold"] for row in (run.summary.members[i] for i in chosen) if "threshold" in row]
    return chosen, float(np.median(cuts)) if cuts else None


def prediction_rows(
    run: Run, threshold: float | None, cohort: Cohort, probability: Float[np.ndarray, "S B C"]
) -> Iterator[dict[str, Any]]:
    """A row for each bag."""
    mean, information = probability.mean(axis=0), mutual_information(probability)
    spread = spread_of(probability[None])[0]
    entropy = -np.sum(mean * np.log(np.maximum(mean, 1e-38)), axis=-1)
    distance = distances(run.path, cohort)
    for i, name in enumerate(cohort.bag_names):
        row = {"bag": name} | called(mean[i], spread[i], run.class_names, threshold)
        yield row | {"entropy": entropy[i], "mutual_information": information[i], "unlike_training": distance[i]}


def distances(path: Path, cohort: Cohort) -> np.ndarray:
    """How far each bag lies from the training bags, as a multiple of the farthest of them [B].

    Raises:
        InputError: the run has no file with what its features look like.
    """
    try:
        with (path / "features.npz").open("rb") as file, np.load(file) as saved:
            typical = dict(saved)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError("run folder", str(path), f"expected one of own_bags.py, with features.npz ({error})") from None
    far = unlikeness(mean_features(cohort), typical["mean"], typical["deviation"])
    return far / max(float(typical["distance"].max()), 1e-6)


def show(rows: list[dict[str, Any]], members: int) -> None:
    """The first rows on the screen, and a warning of bags that are unlike the training ones."""
    cells = [list(row.values()) for row in rows[:SHOWN]]
    columns = [name.replace("_", " ") for name in rows[0]]
    hidden = f"the first {SHOWN} of {len(rows)} bags; predictions.csv has all" if len(rows) > SHOWN else ""
    print_table(Table(f"Predictions by {members} members", columns, cells, hidden))
    unlike = [row["bag"] for row in rows if row["unlike_training"] > FAR]
    if unlike:
        say(f"warning: {len(unlike)} of {len(rows)} bags are unlike those of the training ({few(unlike)}): "
            "mean features lie farther from theirs than those of any of them")  # fmt: skip


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
