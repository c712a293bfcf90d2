"""A run on bags of a person's own: folds that cut no group, settings chosen inside each, every bag judged unseen.

`run_cohort` trains all folds, rounds, settings and members as one ensemble, chooses the setting of each fit on its
validation bags, and leaves what every run leaves; besides, predictions of every bag, scores with intervals over groups,
the linear probe beside them, the folds in CLAM's form, and maps of bags with positions.

Axes: B bags, C classes, F fits, G settings, M members of a fit, S = G * F * M.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mil_jax import crossing
from mil_jax.arrays import bags_from_set, bags_in_order
from mil_jax.bags import Bags, take
from mil_jax.datasets.cohort import Cohort
from mil_jax.datasets.thumbnails import thumbnail_for
from mil_jax.ensemble import Ensemble, Execution, average
from mil_jax.errors import InputError, check_whole
from mil_jax.folds import Plan, draw_plan
from mil_jax.losses import Classes
from mil_jax.model import MIL, ModelConfig, build
from mil_jax.optimizer import by_member
from mil_jax.protocols import Folds
from mil_jax.run import figures, screen, summary
from mil_jax.run.config import MembersConfig, Problem, aside
from mil_jax.run.experiment import announce, describe, draw_keys, write_figures, write_results
from mil_jax.run.fit import Task, checkpoint_tree, fit_recorded
from mil_jax.run.folder import RunFolder, open_run
from mil_jax.run.maps import write_maps
from mil_jax.run.outcome import (
    Material,
    Outcome,
    instance_table,
    judge_fits,
    prediction_rows,
    score_row,
    score_rows,
    score_tables,
    settings_table,
)
from mil_jax.run.processes import placement_of
from mil_jax.run.screen import Stopwatch
from mil_jax.run.search import Search, Setting, member_hyper
from mil_jax.run.summary import Summary
from mil_jax.sampling import Splits
from mil_jax.split_files import write_splits
from mil_jax.states import FitConfig, MemberKeys
from mil_jax.streaming import check_windows, fit_windows, predict_windows
from mil_jax.text import Table
from mil_jax.windows import Windows, fit_scaler_windows, stand_in_bags

# ---- options ----


@dataclasses.dataclass(frozen=True)
class FoldsConfig:
    """How the folds are drawn where nobody gives them."""

    folds: int = 5
    """Parts that the bags are cut into; each is the test set of one fit. Groups are never cut."""
    repeats: int = 1
    """Draws of folds."""
    val_share: float = 0.2
    """About the share of the bags outside the test fold that epoch, setting and threshold are chosen on."""
    holdout: float = 0.0
    """About the share of all bags that no fit sees; the ensemble of all members is judged on them at the end."""

    def draw(self, seed: int, cohort: Cohort) -> Plan:
        """The folds of a cohort.

        Raises:
            InputError: a bag without a label, or see `draw_plan`.
        """
        key = jax.random.fold_in(jax.random.key(seed), 0)
        return draw_plan(
            key, cohort.label, cohort.groups, folds=self.folds, repeats=self.repeats, val_share=self.val_share,
            holdout=self.holdout,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CohortConfig(MembersConfig):
    """What a run on bags of one's own is asked for, besides where they are."""

    drawn: FoldsConfig = FoldsConfig()
    search: Search = Search()
    model: ModelConfig = ModelConfig(hidden=(256, 128), dropout=0.25, attention_units=128, head="sum")
    fit: FitConfig = FitConfig(epochs=40, patience=10)
    maps: int = aside(2)
    """Bags of each class with a heat map, where bags have positions: figure, tiles, and GeoJSON for QuPath."""
    thumbnails: Path | None = aside(None)
    """A folder with an image for each bag, to draw maps on."""
    window: int | None = None
    """Instances in memory at a time, for bags that do not fit into it; all where not given."""
    optimism: bool = False
    """Train once more with epochs chosen on the test folds, to see what that would pretend."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("maps", self.maps, 0)
        if self.window is not None:
            check_whole("window", self.window, 1)
        if "bags" in self.varied:
            raise InputError("vary", self.vary, "expected init, order, or both: members of a fit share their bags")
        if self.thumbnails is not None and not self.thumbnails.is_dir():
            raise InputError("thumbnails", str(self.thumbnails), "expected a folder of images")


# ---- training ----


@dataclasses.dataclass(frozen=True)
class WindowTask(Task):
    """Members that train on a cohort, window by window; `train` and `val` say what bags there are, and hold none."""

    windows: Windows
    folds: Folds

    def fit(self, execution: Execution) -> Ensemble:
        """Trains all members."""
        return fit_windows(self.model, self.keys, self.windows, self.folds, self.config, self.hyper, execution)


def member_task(
    config: CohortConfig, mil: MIL, windows: Windows, plan: Plan, settings: Sequence[Setting]
) -> WindowTask:
    """What is to be trained: S = G * F * M members, the same keys for all settings."""
    cohort, fits = windows.cohort, plan.fits * config.members
    standardized = any(setting.scale == "standard" for setting in settings)
    fitted = fit_scaler_windows(windows, plan.folds.train) if standardized else None
    of_fits = stand_in_bags(cohort, plan.folds.train)
    hyper = member_hyper(of_fits, fitted, config.search, settings, config.members, mil.target)
    keys = draw_keys(dataclasses.replace(config, members=fits))
    tiled, folds = np.tile(np.arange(fits), len(settings)), plan.repeated(len(settings), config.members)
    keys = MemberKeys(keys.init[tiled], keys.order[tiled])
    train, val = (stand_in_bags(cohort, part) for part in (folds.train, folds.val))
    check_windows(mil, windows, folds, len(tiled))
    return WindowTask(mil, keys, train, val, config.fit, hyper, windows, folds)


# ---- a run ----


def run_cohort(config: CohortConfig, cohort: Cohort, plan: Plan, watch: Stopwatch) -> Path:
    """Trains, chooses, judges, writes the run folder, and prints the results.

    Args:
        config: what is asked for, with its folder; `begin` was called.
        cohort: the bags, all with labels.
        plan: the folds.
        watch: the clock.

    Returns:
        The run folder.

    Raises:
        InputError: bags or options that cannot be used.
        RunError: no member has converged.
    """
    size = int(cohort.sizes.sum()) if config.window is None else config.window
    windows = Windows(cohort, size, jax.random.fold_in(jax.random.key(config.seed), 3))
    with watch.phase("data"):
        bags = described_bags(cohort)
        material = Material(bags, plan, cohort.bag_names, cohort.groups, cohort.class_names)
        mil, settings = build(config.model, Classes(len(cohort.class_names))), config.search.settings(bags.kind)
        task = member_task(config, mil, windows, plan, settings)
        features = crossing.mean_features(cohort)
    tested = plan.tested()
    seen, mapped = take(bags, tested), tested[figures.first_bags(cohort.label[tested], config.maps)]
    if config.thumbnails is not None:  # one that cannot be read is refused before training
        for bag in mapped:
            thumbnail_for(config.thumbnails, cohort.bag_names[bag])
    problem = Problem(
        cohort.name, Splits(task.train, task.val, seen), cohort.class_names, hash_of(cohort, plan), "own_bags"
    )
    content, how = describe(config, problem)
    with open_run(config.out or "", content, how, config.compute.resume) as run:
        for note in cohort.notes:
            run.note(note)
            screen.say(note)
        print_cohort(cohort, plan, settings, config.members)
        write_folds(run, material, features)
        trained = fit_recorded(run, task, config.compute, watch)
        chosen = crossing.choose_settings(trained.best_loss, len(settings), plan.fits)
        kept = crossing.pick(trained, crossing.members_of(chosen, config.members))
        run.write_members(checkpoint_tree(kept.members))
        with watch.phase("evaluate"):
            placement = placement_of(config.compute, len(kept.best_epoch))
            every = predict_windows(mil, kept.members, windows, placement=placement).padded(np.arange(len(cohort.bags)))
            outcome = judge_fits(mil, kept, every, material)
            pretended = chosen_on_test(config, task, plan, chosen) if config.optimism else None
            rows = compared(config, material, outcome, features, pretended)
            tried = settings_table(trained.best_loss, [str(setting) for setting in settings], chosen, plan)
        write_outcome(run, material, outcome, rows, seen)
        with watch.phase("plots"):
            shown = config.plot_bags if bags.kind.pixels else 0  # of features, maps and the report show the weights
            names = cohort.class_names
            write_figures(run, lambda: figures.after_training(kept, outcome.pooled, seen, names, shown))
            if len(mapped):
                weights = np.asarray(outcome.pooled.predicted.attention)[:, np.searchsorted(tested, mapped)]
                write_maps(run, cohort, mapped, weights, config.thumbnails)
        tables = [table for table in (*score_tables(rows), instance_table(outcome), tried) if table is not None]
        results = summary_of(kept, outcome, material, seen, tables, config.seed)
        results = dataclasses.replace(results, seconds=watch.read())
        write_results(run, config, results, seen)
        run.drop_progress()
    return announce(run.path, results, outcome.fits)


def hash_of(cohort: Cohort, plan: Plan) -> str:
    """Of the cohort and the folds: a run is not resumed on others."""
    parts = [np.ascontiguousarray(part, np.int64).tobytes() for part in (*plan.folds, plan.holdout)]
    return hashlib.sha256(b"".join([cohort.content_hash.encode(), *parts])).hexdigest()


def described_bags(cohort: Cohort) -> Bags:
    """All bags of a cohort: which instances are in which; the instances themselves only where they are images."""
    if cohort.dtype == np.uint8:
        return bags_from_set(cohort.read())
    pool = np.broadcast_to(np.zeros(1, cohort.dtype), (int(cohort.sizes.sum()), *cohort.shape))  # takes no memory
    return bags_in_order(pool, cohort.sizes, cohort.label, cohort.instance_label)


def print_cohort(cohort: Cohort, plan: Plan, settings: Sequence[Setting], members: int) -> None:
    """Says what will be learned from what."""
    label, groups = cohort.label, np.asarray(cohort.groups)
    rows = [
        (name, int((label == i).sum()), len(np.unique(groups[label == i])), int(cohort.sizes[label == i].sum()))
        for i, name in enumerate(cohort.class_names)
    ]
    screen.print_table(Table(f"Bags of {cohort.name}", ("class", "bags", "groups", "instances"), rows, cohort.source))
    screen.say(
        f"{plan.fits} fits ({plan.rounds} {'rounds' if plan.rounds > 1 else 'round'}) x {len(settings)} settings x "
        f"{members} members = {plan.fits * len(settings) * members} models; {len(plan.holdout)} bags held out"
    )


def write_folds(run: RunFolder, material: Material, features: Float[np.ndarray, "B F"]) -> None:
    """Writes the folds as CLAM's files do, for other tools, and what the bags' mean features look like."""
    if run.writes:
        write_splits(run.path / "splits", material.plan.folds, material.names)
    mean, deviation = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    distance = crossing.unlikeness(features, mean, deviation)
    run.write_arrays("features.npz", mean=mean, deviation=deviation, distance=distance)


def compared(
    config: CohortConfig,
    material: Material,
    outcome: Outcome,
    features: Float[np.ndarray, "B F"],
    pretended: Float[np.ndarray, "R B C"] | None,
) -> list[dict[str, Any]]:
    """Rows of scores: the model, the bags held out, the linear probe, and what choosing on the test folds would say."""
    plan, classes = material.plan, len(material.class_names)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    name = config.model.pooling.replace("_", " ")
    rows = score_rows(name, outcome.probability, material, key)
    if outcome.holdout is not None:
        held = np.full((1, len(material.label), classes), np.nan)
        held[0, plan.holdout] = average(outcome.holdout).probability
        rows.append(score_row(name, "held out", held, material, key))
    probe = crossing.linear_probe(features, material.label, plan, classes)
    rows.append(score_row("linear probe on mean features", "all folds", probe, material, key))
    if pretended is not None:
        rows.append(score_row(f"{name}, epoch CHOSEN ON the test folds", "all folds", pretended, material, key))
    return rows


def chosen_on_test(
    config: CohortConfig, task: WindowTask, plan: Plan, chosen: np.ndarray
) -> Float[np.ndarray, "R B C"]:
    """What the same members would say of their test bags if those decided the epoch: no result, but a warning."""
    index, folds = crossing.members_of(chosen, config.members), plan.repeated(1, config.members)
    hyper = jax.tree.map(lambda leaf: leaf[index], by_member(task.hyper, task.members))
    keys = MemberKeys(task.keys.init[index], task.keys.order[index])
    trained = fit_windows(task.model, keys, task.windows, folds._replace(val=folds.test), config.fit, hyper)
    bags = len(task.windows.cohort.bags)
    predicted = predict_windows(task.model, trained.members, task.windows).padded(np.arange(bags))
    pooled = crossing.out_of_fold(crossing.of_parts(predicted, folds.test), plan, config.members, bags)
    return crossing.ensemble_of(pooled.probability)


def summary_of(
    kept: Ensemble, outcome: Outcome, material: Material, seen: Bags, tables: Sequence[Table], seed: int
) -> Summary:
    """The results: a row for each member of each fit on its own bags, the ensemble on the bags of all folds."""
    judged = dataclasses.replace(outcome.fits, predicted=outcome.pooled.predicted, ensemble=outcome.pooled.ensemble)
    results = summary.summarize(kept, judged, seen, seed)
    members, plan = len(results.members) // material.plan.fits, material.plan
    rows = [
        row
        | {"fit": i // members, "round": int(plan.round[i // members])}
        | ({} if outcome.threshold is None else {"threshold": float(outcome.threshold[i // members])})
        for i, row in enumerate(results.members)
    ]
    return dataclasses.replace(results, members=rows, tables=[dataclasses.asdict(table) for table in tables])


def write_outcome(
    run: RunFolder, material: Material, outcome: Outcome, rows: Sequence[Mapping[str, Any]], seen: Bags
) -> None:
    """Writes predictions, scores, and the weights of all bags."""
    run.write_csv("predictions.csv", list(prediction_rows(outcome, material)))
    run.write_csv("scores.csv", rows)
    names = np.array([material.names[bag] for bag in material.plan.tested()])
    run.write_arrays("attention.npz", **summary.attention_arrays(outcome.pooled, seen), names=names)
