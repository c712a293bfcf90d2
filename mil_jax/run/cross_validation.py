"""A study by cross-validation: each row's folds, repeats and settings are the members of one ensemble.

A setting is chosen for each fit on its own validation bags, as its epoch and its threshold are; the test bags judge
what was chosen, and take no part in choosing it (nested choice).

Axes: F fits (folds of all repeats, repeat by repeat), G settings, R repeats, S = G * F members.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mil_jax import crossing
from mil_jax.bags import fit_scaler
from mil_jax.ensemble import Ensemble, member_keys, predict
from mil_jax.model import MIL
from mil_jax.protocols import Crossed, Folds, cross_validation, join_points, judge_folds
from mil_jax.run.fit import Task
from mil_jax.run.processes import placement_of
from mil_jax.run.search import Search, Setting, member_hyper
from mil_jax.run.study import Measurement, PoolingsConfig, Row, check_converged, train_row
from mil_jax.sampling import Splits

CHOSEN = "chosen_"  # begins the columns that say how often a setting was chosen

# ---- options ----


@dataclass(frozen=True)
class FoldsConfig(PoolingsConfig):
    """Options of a study by cross-validation, with a member for each setting and fold of each repeat."""

    folds: int = 10
    """Parts that the bags are cut into; each is the test set once."""
    val_share: float = 0.15
    """Share of the bags outside the test fold that the setting, the epoch and the threshold are chosen on."""
    search: Search = Search()

    def draw_folds(self, key: Key[Array, ""], label: np.ndarray) -> Folds:
        """The folds of bags with these labels, the same ones for all poolings."""
        return cross_validation(key, label, folds=self.folds, repeats=self.repeats, val_share=self.val_share)


# ---- a row ----


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What a cross-validation came to, with the setting of each fit chosen on its validation bags."""

    crossed: Crossed
    """What it says of every bag."""
    kept: Ensemble
    """The member of each fit that has the chosen setting [F]."""
    times_chosen: Mapping[Setting, int]
    """In how many fits each setting was chosen."""
    seconds: float
    """Of training, in all sittings."""

    def columns(self) -> Row:
        """How often settings were chosen, where there was a choice, how many members were trained, and the seconds."""
        counts = {column_of(setting): times for setting, times in self.times_chosen.items()}
        fits = len(self.kept.best_epoch) * len(counts)
        return (counts if len(counts) > 1 else {}) | {"fits": fits, "seconds": self.seconds}


def column_of(setting: Setting) -> str:
    """The column that says how often a setting was chosen."""
    return CHOSEN + str(setting).replace(",", "").replace(" ", "_")


def train_folds(
    study: Measurement, mil: MIL, key: Key[Array, ""], splits: Splits, folds: Folds, title: str
) -> CrossValidation:
    """A cross-validation: trains a member for each setting and fold, chooses a setting for each fold, and judges.

    All settings start from the same keys, and the test bags take no part in the choice. Members that diverged lose
    against others; a RunError where all of a fold did.
    """
    config, fits, tried = study.config, len(folds.test), study.config.search.settings(splits.train.kind)
    trained, seconds = train_row(study, grid_task(config, mil, key, splits, tried), title)
    chosen = crossing.choose_settings(trained.best_loss, len(tried), fits)
    kept = crossing.pick(trained, crossing.members_of(chosen, 1))
    check_converged(kept, title)
    placement = placement_of(config.compute, fits)
    val, test = (predict(mil, kept.members, part, placement) for part in (splits.val, splits.test))
    times = {setting: int((chosen == i).sum()) for i, setting in enumerate(tried)}
    return CrossValidation(judge_folds(val, test, splits, folds), kept, times, seconds)


def grid_task(config: FoldsConfig, mil: MIL, key: Key[Array, ""], splits: Splits, tried: Sequence[Setting]) -> Task:
    """What a cross-validation trains: S = G * F members, setting by setting."""
    fitted = fit_scaler(splits.train) if any(setting.scale == "standard" for setting in tried) else None
    hyper = member_hyper(splits.train, fitted, config.search, tried, 1, mil.target)
    keys = member_keys(key, len(splits.train.label))
    keys = jax.tree.map(lambda keys: jnp.tile(keys, len(tried)), keys)
    every = join_points([splits] * len(tried))
    return Task(mil, keys, every.train, every.val, config.fit, hyper)


def mean_of_repeats(values: np.ndarray, repeats: int) -> np.ndarray:
    """Values of the members [S], repeat by repeat, as their means over the folds of each repeat [R]."""
    return values.reshape(repeats, -1).mean(axis=1)
