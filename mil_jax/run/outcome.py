"""What a run on bags of a person's own found out: every bag judged by members that have not seen it, as tables.

Axes: B bags, C classes, F fits, M members of a fit, R rounds.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from mil_jax import crossing, evaluation
from mil_jax.bags import Bags, take
from mil_jax.ensemble import Ensemble, average
from mil_jax.folds import Plan
from mil_jax.model import MIL, Prediction
from mil_jax.protocols import split_bags
from mil_jax.run import summary
from mil_jax.run.summary import Judged
from mil_jax.scores import SCORES, group_scores
from mil_jax.text import Table

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What is judged.

    Attributes:
        bags: B bags with labels.
        plan: which of them each fit saw.
        names: what each is called.
        groups: what belongs together.
        class_names: a name for each class.
    """

    bags: Bags
    plan: Plan
    names: Sequence[str]
    groups: Sequence[str]
    class_names: tuple[str, ...]

    @property
    def label(self) -> np.ndarray:
        """[B] the class of each bag."""
        return np.asarray(self.bags.label)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """Predictions of bags by members that have not seen them.

    Attributes:
        fits: each member judged on its own three sets.
        pooled: members that judge every bag, each bag by the fit that was not trained on it; their ensemble.
        probability: of the fits' ensembles, by round [R, B, C]; NaN where a round does not judge a bag.
        spread: standard deviation over those members, divided by their number - 1.
        threshold: chosen on each fit's validation bags [F]; None for more than two classes.
        holdout: the ensemble of all members on the bags that no fit saw; None where there are none.
    """

    fits: Judged
    pooled: Judged
    probability: Float[np.ndarray, "R B C"]
    spread: Float[np.ndarray, "R B C"]
    threshold: Float[np.ndarray, " F"] | None
    holdout: Prediction | None


def judge_fits(mil: MIL, trained: Ensemble, predicted: Prediction, material: Material) -> Outcome:
    """Judges the F * M members of the chosen settings, given what each says of all bags [F * M, B, ...]."""
    plan, bags = material.plan, material.bags
    members = len(trained.best_epoch) // plan.fits
    parts = plan.repeated(1, members)
    splits = split_bags(bags, parts)
    of_parts = {name: crossing.of_parts(predicted, part) for name, part in parts._asdict().items()}
    fits = summary.judge_predictions(mil, trained, of_parts, splits)
    by_round = crossing.out_of_fold(of_parts["test"], plan, members, len(material.label))
    tested = plan.tested()
    pooled, seen = crossing.as_members(by_round, tested), take(bags, tested)
    of_members, whole = summary.judge_shared(pooled, seen)
    binary = len(material.class_names) == 2
    val = np.asarray(of_parts["val"].probability)
    return Outcome(
        fits=fits,
        pooled=Judged(
            pooled,
            {"test": of_members},
            {"test": whole},
            [],
            ~pooled.converged,
        ),
        probability=crossing.ensemble_of(by_round.probability),
        spread=crossing.spread_of(by_round.probability),
        threshold=crossing.thresholds(val, splits.val.label, members) if binary else None,
        holdout=jax.tree.map(lambda leaf: leaf[:, plan.holdout], predicted) if len(plan.holdout) else None,
    )


# ---- scores ----


def score_rows(name: str, probability: Float[np.ndarray, "R B C"], material: Material, key: Array) -> list[Row]:
    """Rows for all test bags at once, for the mean over fits and for each fit, with scores, intervals and errors."""
    plan = material.plan
    of_fits = np.full((plan.fits, *probability.shape[1:]), np.nan)
    for fit, test in enumerate(plan.folds.test):
        seen = test[test >= 0]
        of_fits[fit, seen] = probability[plan.round[fit], seen]
    scopes = {"all folds": probability, "mean of folds": of_fits}
    scopes |= {fit_name(plan, fit): of_fits[fit : fit + 1] for fit in range(plan.fits)}
    rows = [score_row(name, scope, values, material, key) for scope, values in scopes.items()]
    return [row | {"fit": i - 2 if i > 1 else None} for i, row in enumerate(rows)]


def score_row(name: str, scope: str, probability: Float[np.ndarray, "R B C"], material: Material, key: Array) -> Row:
    """The scores of one scope."""
    known = np.asarray(np.isfinite(probability).all(axis=2).any(axis=0))
    groups = [group for group, is_known in zip(material.groups, known, strict=True) if is_known]
    row: Row = {"model": name, "bags": scope, "fit": None, "count": int(known.sum()), "groups": len(set(groups))}
    if not known.any():
        return row | {f"{score}{end}": np.nan for score in SCORES for end in ("", "_se", "_low", "_high")}
    scores = group_scores(probability[:, known], material.label[known], groups, key)
    for score, value in scores.items():
        row |= {score: value.mean, f"{score}_se": value.standard_error}
        row |= {f"{score}_low": value.low, f"{score}_high": value.high}
    return row


def fit_name(plan: Plan, fit: int) -> str:
    """What tables call a fit: its fold, and its round where there are several."""
    fold = int(np.sum(plan.round[:fit] == plan.round[fit]))
    if plan.rounds == 1:
        return f"fold {fold}"
    return f"round {plan.round[fit]}" + (f", fold {fold}" if np.sum(plan.round == plan.round[fit]) > 1 else "")


CAPTION = (
    "[95 % interval over groups], ± standard error over rounds, or over fits. 'All folds' ranks the bags of all fits "
    "together, which costs AUC where fits are calibrated differently; 'mean of folds' ranks inside each."
)
SHOWN = ("auc", "average_precision", "balanced_accuracy", "f1", "calibration_error")


def score_tables(rows: Sequence[Row]) -> list[Table]:
    """The scores over all fits, and a shorter row for each fit."""
    whole = [row for row in rows if row["fit"] is None]
    cells = [[row["model"], row["bags"], row["count"], *(_interval(row, name) for name in SHOWN)] for row in whole]
    columns = ("model", "test bags", "number", *(name.replace("_", " ") for name in SHOWN))
    of_fits = [
        [row["bags"], row["count"], row["groups"], _interval(row, "auc"), _interval(row, "balanced_accuracy")]
        for row in rows
        if row["fit"] is not None
    ]
    each = ("test bags", "number", "groups", "auc", "balanced accuracy")
    return [
        Table("Bags that the members have not seen", columns, cells, CAPTION),
        Table("The same by fit", each, of_fits, "[95 % interval over groups]"),
    ]


def _interval(row: Row, name: str) -> str:
    error = f" ± {row[f'{name}_se']:.3f}" if np.isfinite(row[f"{name}_se"]) else ""
    return f"{row[name]:.3f}{error} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def settings_table(
    val_loss: Float[np.ndarray, " S"], names: Sequence[str], chosen: Int[np.ndarray, " F"], plan: Plan
) -> Table:
    """The mean validation loss of each setting in each fit; the chosen one is marked."""
    loss = crossing.loss_of_settings(val_loss, len(names), plan.fits)
    rows = [
        [
            name,
            *(f"{loss[i, fit]:.4f}{' *' if chosen[fit] == i else ''}" for fit in range(plan.fits)),
            int((chosen == i).sum()),
        ]
        for i, name in enumerate(names)
    ]
    columns = ("setting", *(fit_name(plan, fit) for fit in range(plan.fits)), "times chosen")
    return Table("Validation loss of each setting (* chosen)", columns, rows)


def instance_table(outcome: Outcome) -> Table | None:
    """How well the attention ranks the instances of positive bags, where their truth is known."""
    members, whole = outcome.pooled.members["test"].positive, outcome.pooled.ensemble["test"].positive
    if not np.asarray(whole.has_both) > 0:
        return None
    names = {"instance_auc": "instance AUC", "hit_at_1": "hit@1", "positive_mass": "weight on positive instances"}
    rows = []
    for name, title in names.items():
        mean, spread = evaluation.mean_and_spread(np.asarray(getattr(members, name)))
        rows.append((title, mean, spread, float(getattr(whole, name))))
    columns = ("positive test bags", "mean of members", "standard deviation", "ensemble")
    caption = (
        f"{len(outcome.pooled.diverged)} members that differ by their seeds, each bag by the fit that has not seen it"
    )
    return Table("Attention against the true instances", columns, rows, caption)


# ---- predictions ----


def prediction_rows(outcome: Outcome, material: Material) -> Iterator[Row]:
    """A row for each bag and fit that judges it, and for each bag that was held out."""
    plan = material.plan
    for fit, test in enumerate(plan.folds.test):
        of_round = plan.round[fit]
        for bag in test[test >= 0]:
            threshold = None if outcome.threshold is None else outcome.threshold[fit]
            row = {"bag": material.names[bag], "group": material.groups[bag], "round": int(of_round), "fit": fit}
            row["label"] = material.class_names[material.label[bag]]
            mean, spread = outcome.probability[of_round, bag], outcome.spread[of_round, bag]
            yield row | called(mean, spread, material.class_names, threshold)
    if outcome.holdout is not None:
        mean = np.asarray(average(outcome.holdout).probability)
        spread = crossing.spread_of(np.asarray(outcome.holdout.probability)[None])[0]
        middle = None if outcome.threshold is None else float(np.median(outcome.threshold))
        for place, bag in enumerate(plan.holdout):
            row = {"bag": material.names[bag], "group": material.groups[bag], "round": None, "fit": "held out"}
            row["label"] = material.class_names[material.label[bag]]
            yield row | called(mean[place], spread[place], material.class_names, middle)


def called(mean: np.ndarray, spread: np.ndarray, class_names: Sequence[str], threshold: float | None) -> Row:
    """Probabilities of a bag by class, their spread over members, and what it is called."""
    row: Row = {f"probability_{name}": float(p) for name, p in zip(class_names, mean, strict=True)}
    row |= {f"spread_{name}": float(s) for name, s in zip(class_names, spread, strict=True)}
    known = np.isfinite(mean).all()
    row["called"] = class_names[int(mean.argmax())] if known else None
    if threshold is not None:
        row |= {
            "threshold": float(threshold),
            "called_at_threshold": class_names[int(mean[1] >= threshold)] if known else None,
        }
    return row
