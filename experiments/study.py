"""What the experiments with repeats share: members that are folds, scores with their errors, one tidy table.

A row of results.csv is a data set, a pooling and a setting, with the mean and the standard error over repeats of every
score. The table is written anew after each row, so that a study that is stopped keeps what it had.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import cli, ensemble, metrics, protocols, runs
from mil_jax.bags import Splits
from mil_jax.ensemble import Ensemble
from mil_jax.errors import InputError
from mil_jax.model import MIL, POOLINGS, Pooling, Prediction
from mil_jax.protocols import Folds
from mil_jax.recording import losses_text, placement_of
from mil_jax.training import FitConfig, Hyper

# The six poolings that the papers compare.
COMPARED: tuple[Pooling, ...] = (
    "gated_attention", "attention", "instance_max", "instance_mean", "embedding_max", "embedding_mean",
)  # fmt: skip


def check_common(config: Any) -> None:
    """Refuses common options that no later step would name well."""
    for name in ("repeats", "epochs"):
        if getattr(config, name) < 1:
            raise InputError(name, getattr(config, name), "use at least 1")
    cli.check_seed(config.seed)
    unknown = set(config.poolings) - set(POOLINGS)
    if unknown or not config.poolings:
        raise InputError("poolings", config.poolings, f"name one or more of {', '.join(POOLINGS)}")


def open_study(name: str, config: Any, data: Mapping[str, str]) -> Any:
    """The run folder of a study, opened by `with`; its config.json names the content of the data.

    Raises:
        InputError: it holds a run already, or cannot be made; a study that was stopped is started anew.
    """
    if config.compute.resume:
        raise InputError("resume", True, "a study keeps its finished rows, and is started anew in another folder")
    out = config.out or Path("runs") / name / f"seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    options = dataclasses.asdict(config)
    how = {name: options.pop(name, None) for name in ("compute", "out", "data_dir", "manual_dir")}
    return runs.open_run(out, {"experiment": name, "options": options, "data": data}, {"paths": how}, can_resume=False)


def fit_members(
    mil: MIL,
    key: jax.Array,
    members: int,
    splits: Splits,
    config: FitConfig,
    hyper: Hyper,
    compute: cli.Compute,
    title: str,
) -> tuple[Ensemble, float]:
    """Trains one member for each draw or fold; what comes back besides are the seconds."""
    started = time.perf_counter()
    keys, placement = ensemble.member_keys(key, members), placement_of(compute, members)
    with cli.epoch_progress(config.epochs, title) as show:
        trained = ensemble.fit_ensemble(
            mil, keys, splits.train, splits.val, config, hyper, placement,
            on_epoch=lambda epoch, info, _: show(epoch, losses_text(info)),
        )  # fmt: skip
    return trained, time.perf_counter() - started


# ---- cross-validation ----


@dataclass(frozen=True)
class Crossed:
    """What a cross-validation says of every bag, once in each repeat.

    Attributes:
        label: [B].
        probability: [R, B] of the positive class, by the member whose test bag it was.
        called: [R, B] whether it was called positive at 0.5.
        called_by_choice: [R, B] the same at the threshold that the member chose on its validation bags.
        test: the members' predictions on their own test bags.
    """

    label: np.ndarray
    probability: np.ndarray
    called: np.ndarray
    called_by_choice: np.ndarray
    test: Prediction


def judge_folds(mil: MIL, trained: Ensemble, splits: Splits, folds: Folds, label: np.ndarray, repeats: int) -> Crossed:
    """Predicts every test fold once; thresholds come from the validation bags."""
    val = ensemble.predict_ensemble(mil, trained.params, splits.val)
    test = ensemble.predict_ensemble(mil, trained.params, splits.test)
    thresholds = [
        protocols.choose_threshold(probability[:, 1], of_member)
        for probability, of_member in zip(val.probability, np.asarray(splits.val.label), strict=True)
    ]
    positive = np.asarray(test.probability)[..., 1]
    by_choice = positive >= np.array(thresholds)[:, None]
    pool = lambda values: protocols.pool_repeats(values, folds.test, repeats)  # noqa: E731
    return Crossed(label, pool(positive), pool(positive >= 0.5), pool(by_choice), test)


def mean_of_repeats(values: np.ndarray, repeats: int) -> np.ndarray:
    """Values of the members, repeat by repeat [R * F], as their means over the folds of each repeat [R]."""
    return values.reshape(repeats, -1).mean(axis=1)


def scores_of(crossed: Crossed) -> dict[str, np.ndarray]:
    """Scores of each repeat [R], over all its bags."""
    truth = np.broadcast_to(crossed.label, crossed.called.shape)
    label = jnp.asarray(crossed.label)
    each = lambda metric, values: np.array([float(metric(jnp.asarray(v), label)) for v in values])  # noqa: E731
    called = crossed.called.astype(np.int32)
    return {
        "accuracy": (crossed.called == truth).mean(axis=1),
        "auc": each(metrics.roc_auc, crossed.probability),
        "precision": each(metrics.precision, called),
        "recall": each(metrics.recall, called),
        "f1": each(metrics.f1, called),
        "accuracy_chosen_threshold": (crossed.called_by_choice == truth).mean(axis=1),
    }


def row_of(
    names: Mapping[str, Any],
    scores: Mapping[str, np.ndarray],
    fits: int,
    seconds: float,
    by_bag: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """A row of results.csv: mean and standard error of each score over repeats, and intervals over bags."""
    row = dict(names)
    for name, values in scores.items():
        found = protocols.estimate(values, (by_bag or {}).get(name))
        row |= {name: found.mean, f"{name}_se": found.standard_error}
        if by_bag and name in by_bag:
            row |= {f"{name}_low": found.low, f"{name}_high": found.high}
    return row | {"fits": fits, "seconds": seconds}


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], scores: Sequence[str]) -> None:
    """The table on the screen: mean ± standard error; of one repeat, which has no error, the mean."""

    def score_of(row: Mapping[str, Any], name: str) -> str:
        error = row[f"{name}_se"]
        return f"{row[name]:.3f}" + ("" if np.isnan(error) else f" ± {error:.3f}")

    differing = [name for name in names if len(rows) == 1 or len({row[name] for row in rows}) > 1]
    same = [f"{name.replace('_', ' ')} {rows[0][name]}" for name in names if name not in differing]
    cells = [
        [*(row[name] for name in differing), *(score_of(row, score) for score in scores),
         row["fits"], f"{row['seconds']:.0f}"]
        for row in rows
    ]  # fmt: skip
    columns = (
        *(name.replace("_", " ") for name in differing),
        *(score.replace("_", " ") for score in scores),
        "fits",
        "seconds",
    )
    cli.print_table("; ".join([title, *same]), columns, cells, "mean ± standard error over repeats")
