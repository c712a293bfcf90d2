"""The results of a run as records: what `summary.json`, `attention.npz` and all tables and figures are made of.

`judge` makes them of trained members and bags; whatever shows or keeps results reads them and nothing else.

Axes: S members, B bags, K slots, C classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from mil_jax import committee, evaluation
from mil_jax.bags import Bags
from mil_jax.ensemble import Ensemble, average, predict
from mil_jax.evaluation import Evaluation
from mil_jax.model import MIL, Prediction, count_params
from mil_jax.placement import Placement
from mil_jax.sampling import Splits
from mil_jax.text import Table

DIVERGED = "Training has diverged: no epoch had a finite validation loss. Try a lower learning rate."

WHICH_IS_WHICH = {
    "seed": "the member's number; with --seed it decides its initial parameters and orders of bags",
    "train_*": "on the training bags, with the parameters of the best epoch",
    "val_*": "on the validation bags: early stopping chose the epoch on them, so they flatter",
    "test_*": "on the test bags: nothing was chosen on them, and they share no instance with the others",
    "*_loss": "cross-entropy in nats, without class weights and L2",
    "best_val_loss": "what early stopping looked at: cross-entropy on the validation bags plus L2",
    "diverged": "no epoch had a finite validation loss: the member is in no mean and not in the ensemble",
    "instance_*": "attention against the true instances, mean over the positive test bags",
    "positive_bags_*, negative_bags_*": "attention statistics, mean over the positive, negative test bags",
    "test_details": "the ensemble's attention by groups of test bags, with intervals over bags; how much the members "
    "agree; what random ensembles of 1, 2, … members score; and how well disagreement tells wrong bags from right ones",
}

# What tables show.
SHOWN = ("best_epoch", "test_loss", "test_accuracy", "test_auc", "instance_hit_at_1", "instance_auc")
MEASURES = ("loss", "accuracy", "auc", "precision", "recall")
ROLES = {"train": "learned from", "val": "epoch chosen on", "test": "untouched"}


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `summary.json` holds."""

    members: list[dict[str, Any]]
    """A row for each member."""
    mean: dict[str, Any]
    """The mean of each column over the members that have not diverged."""
    standard_deviation: dict[str, Any]
    """Of each column, divided by S - 1."""
    ensemble: dict[str, Any]
    """The same columns of the ensemble, where they are defined."""
    which_is_which: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What the columns mean."""
    test_details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Tables of attention by groups of test bags, and of what the members are worth together."""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of each phase."""
    tables: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Further ones, with title, columns, rows and caption."""

    def rows(self) -> list[dict[str, Any]]:
        """The members as rows of a CSV file."""
        return [row | {"warnings": "; ".join(row["warnings"])} if "warnings" in row else row for row in self.members]

    def results_table(self, most_members: int) -> Table:
        """A row for each member, then their mean and standard deviation, and the ensemble."""
        named = [(f"member {row['seed']}", row) for row in self.members[:most_members]]
        if len(self.members) > 1:
            named += [("mean of members", self.mean), ("standard deviation", self.standard_deviation)]
            named.append(("ensemble", self.ensemble))
        rows = [[name, *(row.get(column, "") for column in SHOWN)] for name, row in named]
        for cells, (_, row) in zip(rows, named, strict=True):
            if row.get("diverged"):
                cells[1:] = ["diverged", *[None] * (len(SHOWN) - 1)]
        hidden = f"the first {most_members} of {len(self.members)} members; summary.json has all"
        columns = ("", *(name.replace("_", " ") for name in SHOWN))
        title = "Test bags (nothing was chosen on them)"
        return Table(title, columns, rows, hidden if len(self.members) > most_members else "")

    def shown_tables(self, most_members: int) -> list[Table]:
        """What the screen and the report show, in this order."""
        further = [Table(**table) for table in self.tables]
        return [*further, self.results_table(most_members), self.sets_table()]

    def sets_table(self) -> Table:
        """The mean member on the three sets side by side."""
        rows = [[name, role, *(self.mean.get(f"{name}_{m}") for m in MEASURES)] for name, role in ROLES.items()]
        return Table("Mean of members, all sets", ("set", "role", *MEASURES), rows)

    def warnings(self) -> list[str]:
        """What is wrong with members, a line for each sentence that names those it holds for."""
        by_sentence: dict[str, list[str]] = {}
        for row in self.members:
            for sentence in row.get("warnings", ()):
                by_sentence.setdefault(sentence, []).append(str(row["seed"]))
        return [f"Member {', '.join(seeds)}: {sentence}" for sentence, seeds in by_sentence.items()]


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Predictions and evaluations of a run's members."""

    predicted: Prediction
    """Of the test bags, by each member."""
    members: dict[str, Evaluation]
    """Evaluations of each member [S], by set."""
    ensemble: dict[str, Evaluation]
    """Evaluations of the ensemble, by set; none of bags that members do not share."""
    warnings: list[list[str]]
    """Sentences for each member."""
    diverged: Bool[np.ndarray, " S"]
    """The members that never had a finite validation loss."""


def judge(mil: MIL, trained: Ensemble, splits: Splits, placement: Placement | None = None) -> Judged:
    """Predicts all sets and judges the predictions."""
    sets = splits._asdict()
    predictions = {name: predict(mil, trained.members, part, placement) for name, part in sets.items()}
    return judge_predictions(mil, trained, predictions, splits)


def judge_predictions(mil: MIL, trained: Ensemble, predictions: Mapping[str, Prediction], splits: Splits) -> Judged:
    """Judges the members' predictions of all sets."""
    members, whole = {}, {}
    for name, part in splits._asdict().items():
        if part.by_member:  # no bags that all members have in common, so none for the ensemble
            members[name] = evaluation.evaluate_members(predictions[name], part)
            continue
        members[name], whole[name] = judge_shared(predictions[name], part)
    diverged = np.asarray(trained.best_epoch) == 0
    # A pooling without attention cannot collapse: a mean is uniform by definition.
    attends = getattr(mil.pooling, "attends", False)
    collapses = evaluation.warnings_of(predictions["val"], splits.val) if attends else [[]] * len(diverged)
    warnings = [[DIVERGED] if gone else collapse for gone, collapse in zip(diverged, collapses, strict=True)]
    return Judged(predictions["test"], members, whole, warnings, diverged)


def judge_shared(predicted: Prediction, bags: Bags) -> tuple[Evaluation, Evaluation]:
    """Evaluations of the members' predictions of bags that they share, [S], and of the ensemble's."""
    # As if the ensemble were one more member: one program for all.
    both = jax.tree.map(lambda leaf, mean: np.concatenate([leaf, mean[None]]), predicted, average(predicted))
    judged = evaluation.evaluate_members(both, bags)
    return jax.tree.map(lambda values: values[:-1], judged), jax.tree.map(lambda values: values[-1], judged)


def attention_arrays(judged: Judged, test: Bags) -> dict[str, np.ndarray]:
    """What `attention.npz` holds."""
    return {
        "attention": np.asarray(judged.predicted.attention),
        "probability": np.asarray(judged.predicted.probability),
        **{name: np.asarray(getattr(test, name)) for name in ("rows", "mask", "label", "instance_label")},
    }


def summarize(trained: Ensemble, judged: Judged, test: Bags, seed: int) -> Summary:
    """The record of a run's results."""
    columns = {
        "best_epoch": np.asarray(trained.best_epoch),
        "epochs_run": np.asarray(trained.epochs_run),
        "best_val_loss": np.asarray(trained.best_loss),
        **result_columns(judged.members),
    }
    count, kept = len(judged.diverged), ~judged.diverged
    parameters = count_params(trained.members.params) // count
    rows = [
        {
            "seed": i,
            "parameters": parameters,
            **{name: values[i].item() for name, values in columns.items()},
            "diverged": bool(judged.diverged[i]),
            "warnings": judged.warnings[i],
        }
        for i in range(count)
    ]
    spread = {name: evaluation.mean_and_spread(values[kept]) for name, values in columns.items()}
    return Summary(
        members=rows,
        mean={"seed": None, "parameters": parameters, **{name: value[0] for name, value in spread.items()}},
        standard_deviation={name: value[1] for name, value in spread.items()},
        ensemble={name: value.item() for name, value in result_columns(judged.ensemble).items()},
        which_is_which=WHICH_IS_WHICH,
        test_details=details(judged, test, seed),
    )


def result_columns(sets: dict[str, Evaluation]) -> dict[str, np.ndarray]:
    """The numbers of evaluations by the names that `summary.json` uses."""
    columns = {}
    for name, judged in sets.items():
        columns |= evaluation.flatten(judged.bags, f"{name}_")
    test = sets["test"]
    known = evaluation.where_known(test.positive)
    columns |= {f"instance_{name}": getattr(known, name) for name in ("hit_at_1", "positive_mass")}
    columns["instance_auc"] = known.instance_auc
    return columns | evaluation.attention_columns(test.positive, test.negative)


def details(judged: Judged, test: Bags, seed: int) -> dict[str, Any]:
    """Attention by groups of test bags, and what the members are worth together: rows for tables.

    The intervals are over bags, of the ensemble's attention; one member has nobody to agree with. Members that
    diverged take no part.
    """
    predicted = judged.predicted
    kept = predicted.converged
    if not kept.any():
        return {}
    if not kept.all():
        predicted = jax.tree.map(lambda leaf: np.asarray(leaf)[kept], predicted)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    rows = {"attention": evaluation.attention_table(average(predicted), test, key)}
    if kept.sum() == 1:
        return rows
    spread = committee.disagreement(predicted, test)
    areas = {name: getattr(spread, name) for name in ("votes_auc", "information_auc", "uncertainty_auc")}
    return rows | {
        "agreement": evaluation.agreement_table(predicted, test, key),
        "ensemble_size": committee.gains(predicted, test, key),
        "disagreement": {"votes": spread.votes.mean(), "information": spread.information.mean(), **areas},
    }
