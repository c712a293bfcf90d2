"""Two finished runs of `own_bags`, to be compared: read back, and refused where they are not a pair.

Axes: B bags, F fits, R rounds, S seeds (members of a fit).
"""

import csv
import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from mil_jax.errors import InputError
from mil_jax.run.saved import load_finished
from mil_jax.significance import Judgements


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """What a run says of its bags."""

    name: str
    """What the caller calls it."""
    content_hash: str
    """Of the bags and the folds."""
    probability: Float[np.ndarray, "RS B"]
    """Of the positive class, round by round and seed by seed; each bag by the fit that has not seen it."""
    label: Int[np.ndarray, " B"]
    fold: Int[np.ndarray, "RS B"]
    """The fit that judged it."""
    names: tuple[str, ...]
    groups: tuple[str, ...]
    auc: Float[np.ndarray, "S F"]
    """Of each seed on the test bags of each fit."""
    val_loss: Float[np.ndarray, "S F"]
    """The lowest validation loss of each seed and fit."""
    test_per_train: float
    """Test bags for each bag that a fit is trained or chosen on."""


def load_side(path: Path, name: str) -> Side:
    """Reads a run back.

    Raises:
        InputError: a run that has not ended, of another experiment, of more than two classes, in which a member
            diverged, or whose rounds do not all judge all bags.
    """
    run = load_finished(path, name)
    if run.config.get("experiment") != "own_bags" or not (path / "predictions.csv").exists():
        raise InputError(name, str(path), "expected a run of own_bags.py")
    probability, label = run.arrays["probability"], run.arrays["label"]
    if probability.shape[-1] != 2:
        raise InputError(name, f"{probability.shape[-1]} classes", "expected bags of two classes")
    if not np.isfinite(probability).all():
        raise InputError(name, str(path), "expected a prediction of every seed: a member diverged (NaN)")
    names = tuple(map(str, run.arrays["names"]))
    fits = np.array([row["fit"] for row in run.summary.members])
    count = int(fits.max()) + 1
    auc, loss = (np.array([row[part] for row in run.summary.members], float) for part in ("test_auc", "best_val_loss"))
    if not np.isfinite(auc).all():
        raise InputError(name, "NaN", "expected test bags of both classes in every fold: draw fewer folds")
    fold, groups = _places(path, names, name)
    seeds = len(fits) // count
    if len(probability) != len(fold) * seeds:
        raise InputError(name, str(path), "expected rounds that each judge every bag")
    tested = np.mean([(of_round == fit).sum() for of_round in fold for fit in np.unique(of_round)])
    return Side(
        name, run.config["data"]["content_hash"], np.asarray(probability[..., 1], np.float64), label,
        np.repeat(fold, seeds, axis=0), names, groups, auc.reshape(count, seeds).T, loss.reshape(count, seeds).T,
        float(tested / (len(names) - tested)),
    )  # fmt: skip


def _places(path: Path, names: tuple[str, ...], argument: str) -> tuple[Int[np.ndarray, "R B"], tuple[str, ...]]:
    """Which fit judged each bag in each round, and the bags' groups."""
    with (path / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["round"]]
    place = {name: i for i, name in enumerate(names)}
    fold = np.full((1 + max(int(row["round"]) for row in rows), len(names)), -1)
    groups = [""] * len(names)
    for row in rows:
        at = place[row["bag"]]
        fold[int(row["round"]), at], groups[at] = int(row["fit"]), row["group"]
    if (fold < 0).any():
        raise InputError(argument, str(path), "expected rounds that each judge every bag")
    return fold, tuple(groups)


def check_pair(a: Side, b: Side) -> None:
    """Refuses, by an InputError, runs on other bags or folds, with other numbers of seeds, or with a single one."""
    if a.content_hash != b.content_hash or a.names != b.names or not np.array_equal(a.fold[:1], b.fold[:1]):
        raise InputError("b", "another run", "expected a run on the bags and folds of A: these differ")
    if a.auc.shape != b.auc.shape:
        raise InputError("b", f"{len(b.auc)} seeds", f"expected {len(a.auc)}, as many as of A")
    if len(a.auc) < 2:
        raise InputError("members", len(a.auc), "expected two seeds or more: one cannot tell a difference from chance")


def judgements(a: Side, b: Side) -> Judgements:
    """What both say of the same bags."""
    return Judgements(a.probability, b.probability, a.label, a.fold, a.groups)
