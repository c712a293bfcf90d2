"""What the ablations share: options, a folder, bags and scores of seeds, paired differences, and how results are told.

An ablation compares points (an L2 strength, a size of bags) over the same seeds. A seed decides all that is drawn: the
bags of all three sets, the initial parameters and the orders of bags. So a difference between two points is taken seed
by seed, and its interval tells what another draw of everything could change.

Axes: P points, S seeds, B bags, K slots.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax import bags, cli, datasets, ensemble, evaluation, metrics, report, runs
from mil_jax.attention import WHAT_TO_TRY
from mil_jax.bags import Bags, Splits
from mil_jax.cli import Compute
from mil_jax.datasets import Dataset
from mil_jax.ensemble import Ensemble, OnEpoch, Progress
from mil_jax.errors import InputError
from mil_jax.evaluation import Evaluation
from mil_jax.model import MIL, Params
from mil_jax.training import EpochInfo, FitConfig, FitState, Hyper

# What `scores_of` gives for every member, and how tables and figures call it.
MEASURES = {
    "loss": "test loss (nats)",
    "accuracy": "test accuracy",
    "auc": "test AUC",
    "average_precision": "average precision",
    "recall": "recall",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "hit_at_1": "hit@1",
    "instance_auc": "instance AUC",
    "positive_mass": "weight on positive instances",
    "normalized_entropy": "entropy / log K",
    "effective_instances": "effective instances",
    "collapsed": "collapsed seeds (share)",
}
OF_ATTENTION = ("hit_at_1", "instance_auc", "positive_mass", "normalized_entropy", "effective_instances")

GALLERY_BAGS = 60

NOTE = (
    "Mean, standard deviation and 95 % bootstrap interval over seeds; differences are taken seed by seed. "
    "Attention statistics are means over the positive test bags. Intervals are not corrected for their number."
)


@dataclass(frozen=True)
class Options:
    """What every ablation can be told; a script adds its own options and changes defaults."""

    members: int = 32
    """Seeds at each point; a seed decides its bags, initial parameters and orders of bags."""
    dataset: str = "mnist-sample"
    """mnist-sample (embedded), mnist, fashion_mnist, kmnist, or tfds:NAME."""
    data_dir: Path | None = None
    """Where TensorFlow Datasets keeps prepared sets; its own default where not given."""
    manual_dir: Path | None = None
    """A folder, only read, with the canonical .gz files, for use without a network."""
    seed: int = 0
    """Decides everything that is drawn."""
    train_bags: int = 500
    """Bags that a member learns from."""
    val_bags: int = 200
    """Bags that the epoch is chosen on."""
    test_bags: int = 500
    """Bags that nothing is chosen on."""
    epochs: int = 20
    """The most epochs that a member trains for."""
    measures: tuple[str, ...] = ("auc", "hit_at_1", "normalized_entropy")
    """What tables and figures show; results.csv holds all there is."""
    out: Path | None = None
    """The folder of results; a new one under runs/ where not given."""


@dataclass(frozen=True, eq=False)
class Study:
    """An ablation that is running.

    Attributes:
        name: of its script.
        question: the docstring of its script.
        config: its options.
        out: the folder of its results.
        data: the instances.
        key: decides what all seeds share.
        keys: of the seeds [S].
        labels: the measures that it knows, and what tables and figures call them.
        watch: counts its seconds.
    """

    name: str
    question: str
    config: Options
    out: Path
    data: Dataset
    key: jax.Array
    keys: jax.Array
    labels: Mapping[str, str]
    watch: cli.Stopwatch


@dataclass(frozen=True, eq=False)
class Point:
    """What the seeds scored at one point.

    Attributes:
        name: as tables say it.
        factors: the columns of results.csv that tell it from the others.
        scores: each measure's values [S]; NaN where a seed does not define it.
        against: the name of what it is compared with; none where empty.
        differences: each measure's paired differences [S] to that.
    """

    name: str
    factors: Mapping[str, object]
    scores: Mapping[str, np.ndarray]
    against: str = ""
    differences: Mapping[str, np.ndarray] = field(default_factory=dict)


def prepare(
    name: str,
    question: str | None,
    config: Any,
    more_labels: Mapping[str, str] = {},
    fewest_members: int = 2,
) -> Study:
    """Checks what all ablations have in common, starts JAX and loads the data; nothing is written before the end.

    Raises:
        InputError: options out of range, an unknown measure, one seed, data that cannot be had, a folder that is taken.
    """
    watch, labels = cli.Stopwatch(), {**MEASURES, **more_labels}
    out = config.out or Path("runs") / name / f"seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    check(config, labels, fewest_members)
    runs.check_free(out, can_resume=False)
    cli.start_jax(Compute(), config.members)
    with watch.phase("data"):
        data = datasets.load(config.dataset, config.data_dir, config.manual_dir)
    positive_class = getattr(config, "positive_class", None)
    if positive_class is not None and not 0 <= positive_class < len(data.class_names):
        remedy = f"the data has the classes 0 to {len(data.class_names) - 1}"
        raise InputError("positive_class", positive_class, remedy)
    key, key_members = jax.random.split(jax.random.key(config.seed))
    keys = ensemble.member_keys(key_members, config.members)
    return Study(name, question or "", config, out, data, key, keys, labels, watch)


def check(config: Any, labels: Mapping[str, str], fewest_members: int) -> None:
    """Refuses options that no later step would name well."""
    if config.members < fewest_members:
        remedy = f"use at least {fewest_members}: intervals need more than one seed"
        raise InputError("members", config.members, remedy)
    cli.check_seed(config.seed)
    for name in ("train_bags", "val_bags", "test_bags", "epochs"):
        if getattr(config, name) < 1:
            raise InputError(name, getattr(config, name), "use at least 1")
    if not config.measures:
        raise InputError("measures", config.measures, f"choose from {', '.join(labels)}")
    evaluation.check_names(config.measures, tuple(labels), "measures")


def describe(study: Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `config.json` says: what decides the results, and what does not."""
    options = dataclasses.asdict(study.config)
    paths = {each: options.pop(each) for each in ("data_dir", "manual_dir")}
    del options["out"]
    content = {"name": study.data.name, "content_hash": study.data.content_hash}
    return {"experiment": f"ablations/{study.name}", "options": options, "data": content}, {"paths": paths}


# ---- bags and training ----


def draw(study: Study, positive_class: int, bag_size: int = 3, positive_share: float | None = None) -> list[Splits]:
    """The bags of each seed: uniform draws, as in the Keras example, with a wanted share of positive ones if given."""
    with study.watch.phase("draw"):
        return [draw_splits(study, key, positive_class, bag_size, positive_share) for key in study.keys]


def draw_splits(
    study: Study, key: jax.Array, positive_class: int, bag_size: int = 3, positive_share: float | None = None
) -> Splits:
    """The bags of one seed, or of all where `key` is the study's; validation and test bags share no instance."""
    config, data = study.config, study.data
    # The same halves for all seeds, so that their draws are compiled once.
    halves = bags.split_pool(jax.random.fold_in(study.key, 1), len(data.test.label), 0.5)
    pools = ((data.train, None), (data.test, halves[0]), (data.test, halves[1]))
    counts = (config.train_bags, config.val_bags, config.test_bags)
    keys = jax.random.split(jax.random.fold_in(key, 1), 3)
    return Splits(*(
        bags.sample_bags(
            each, pool.x, pool.label, bag_count=count, bag_size=bag_size, positive_class=positive_class,
            positive_share=positive_share, among=among,
        )
        for each, (pool, among), count in zip(keys, pools, counts, strict=True)
    ))  # fmt: skip


def join_splits(draws: Sequence[Splits]) -> Splits:
    """Bags of many members, [S, B, K]."""
    return Splits(*(ensemble.stack_bags(parts) for parts in zip(*draws, strict=True)))


def repeat_splits(splits: Splits, times: int) -> Splits:
    """The same members' bags once for each of several points: [P * S, B, K]."""
    tile = lambda leaf: np.tile(np.asarray(leaf), (times, *[1] * (leaf.ndim - 1)))  # noqa: E731
    return Splits(*(dataclasses.replace(jax.tree.map(tile, _views(part)), pool=part.pool) for part in splits))


def _views(part: Bags) -> Bags:
    return dataclasses.replace(part, pool=None)


def fit(
    study: Study,
    mil: MIL,
    keys: jax.Array,
    train: Bags,
    val: Bags,
    config: FitConfig,
    hyper: Hyper | None = None,
    progress: Progress | None = None,
    also: OnEpoch | None = None,
) -> Ensemble:
    """`fit_ensemble` that shows how far it is; `also` is called after every epoch."""
    with study.watch.phase("train"), cli.epoch_progress(config.epochs) as show:

        def on_epoch(epoch: int, info: EpochInfo, state: FitState) -> None:
            running = np.asarray(info.epoch) > 0
            loss = float(np.mean(np.asarray(info.val_loss)[running]))
            show(epoch, f"val loss {loss:.4f}  training {running.sum()} of {running.size}")
            if also:
                also(epoch, info, state)

        return ensemble.fit_ensemble(mil, keys, train, val, config, hyper, progress=progress, on_epoch=on_epoch)


# ---- scores ----


def scores_of(study: Study, mil: MIL, params: Params, part: Bags) -> dict[str, np.ndarray]:
    """All of `MEASURES` for each member [S], on shared bags or on each member's own."""
    with study.watch.phase("evaluate"):
        predicted = ensemble.predict_ensemble(mil, params, part)
        collapsed = np.array([bool(found) for found in evaluation.warnings_of(predicted, part)], float)
        return measures_of(evaluation.evaluate_members(predicted, part)) | {"collapsed": collapsed}


def measures_of(judged: Evaluation) -> dict[str, np.ndarray]:
    """The numbers of evaluations [R] by the names of `MEASURES`, but for `collapsed`."""
    flat = evaluation.flatten(judged)
    prefix = lambda name: "positive_" if name in OF_ATTENTION else "bags_"  # noqa: E731
    return {name: flat[prefix(name) + name] for name in MEASURES if name != "collapsed"}


def cut(scores: Mapping[str, np.ndarray], points: int) -> list[dict[str, np.ndarray]]:
    """The scores [P * S] of one ensemble as those of its points [S]."""
    parts = {name: np.split(values, points) for name, values in scores.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(points)]


def compare(point: Point, reference: Point) -> Point:
    """The point with its differences to the reference, seed by seed."""
    differences = {name: values - reference.scores[name] for name, values in point.scores.items()}
    return dataclasses.replace(point, against=reference.name, differences=differences)


Row = dict[str, Any]


def tabulate(points: Sequence[Point], measures: Sequence[str], seed: int = 0) -> list[Row]:
    """A row for each measure and point: mean, standard deviation, interval, and the difference with its interval.

    Args:
        points: the points.
        measures: what to tabulate.
        seed: draws the resamples.
    """
    pairs = [(measure, point) for measure in measures for point in points]
    nothing = np.array([np.nan])
    columns = [point.scores[measure] for measure, point in pairs]
    differences = [point.differences.get(measure, nothing) for measure, point in pairs]
    means, lows, highs = intervals([*columns, *differences], seed)
    rows = []
    for i, (measure, point) in enumerate(pairs):
        j = len(pairs) + i
        spread = evaluation.mean_and_spread(np.asarray(columns[i]))[1]
        row = {"measure": measure, "point": point.name, **point.factors, "seeds": len(columns[i]), "mean": means[i]}
        row |= {"standard_deviation": spread, "low": lows[i], "high": highs[i], "against": point.against}
        rows.append(row | {"difference": means[j], "difference_low": lows[j], "difference_high": highs[j]})
    return rows


def intervals(columns: Sequence[np.ndarray], seed: int) -> tuple[list[float], list[float], list[float]]:
    """Mean and 95 % bootstrap interval of each column's defined values; columns may differ in length."""
    longest = max(map(len, columns))
    filled = [np.pad(np.asarray(c, np.float32), (0, longest - len(c)), constant_values=np.nan) for c in columns]
    values = np.stack(filled)
    found = _mean_intervals(values, ~np.isnan(values), jax.random.key(seed))
    mean, low, high = (np.asarray(each).tolist() for each in found)
    return mean, low, high


_mean_intervals = jax.jit(metrics.mean_intervals)


# ---- what was found ----


def row_of(rows: Sequence[Row], measure: str, point: str) -> Row:
    return next(row for row in rows if row["measure"] == measure and row["point"] == point)


def differs(row: Row) -> bool:
    """Whether the interval of the difference leaves 0 out."""
    return row["difference_low"] > 0 or row["difference_high"] < 0


def tell(name: str, row: Row) -> str:
    """The difference in what `name` says, no stronger than its interval allows."""
    low, high = row["difference_low"], row["difference_high"]
    if not np.isfinite([low, high]).all():
        return f"{name} not comparable (undefined for all seeds)"
    if not differs(row):
        return f"no difference in {name} beyond the interval ({low:+.3g} to {high:+.3g})"
    word = "higher" if row["difference"] > 0 else "lower"
    return f"{name} {abs(row['difference']):.3g} {word} ({low:+.3g} to {high:+.3g})"


def listed(words: Sequence[str]) -> str:
    """The words as a sentence lists them."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def sentence(parts: Sequence[str]) -> str:
    """The parts as one sentence."""
    return f"{title_of('; '.join(parts))}."


def title_of(text: str) -> str:
    """The text with a capital letter in front; AUC stays AUC."""
    return text[:1].upper() + text[1:]


def band(rows: Sequence[Row], measure: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, low and high of the named points, for a line with a band."""
    chosen = [row_of(rows, measure, name) for name in names]
    middle, low, high = (np.array([row[part] for row in chosen]) for part in ("mean", "low", "high"))
    return middle, low, high


def strips(
    study: Study, rows: Sequence[Row], points: Sequence[Point]
) -> dict[str, dict[str, tuple[np.ndarray, Any, Any]]]:
    """The panels of `plots.seeds_by_group`: the measures shown, and what each seed scored at each point."""
    return {
        study.labels[measure]: {
            point.name: (point.scores[measure], *(row_of(rows, measure, point.name)[end] for end in ("low", "high")))
            for point in points
        }
        for measure in study.config.measures
    }


Figures = Mapping[str, tuple[Any, str]]


def conclude(
    study: Study,
    points: Sequence[Point],
    rows: Sequence[Row],
    finding: str,
    figures: Figures,
    gallery: Any = None,
    more: Mapping[str, Any] = {},
    note: str = NOTE,
) -> Path:
    """Writes results.csv, summary.json, figures and report.html, and prints the table and what was found.

    Args:
        study: the ablation.
        points: all points.
        rows: what `tabulate` made of them.
        finding: one sentence.
        figures: names to figures and their captions.
        gallery: a part of the report with bags; none where not given.
        more: what `summary.json` shall hold besides.
        note: what the report says of its numbers.
    """
    warnings = collapses([point for point in points if any(row["point"] == point.name for row in rows)])
    seconds = study.watch.read()
    summary = {"finding": finding, "warnings": warnings, "rows": list(rows), **more, "seconds": seconds}
    with runs.open_run(study.out, *describe(study), can_resume=False) as run:
        for sentence in warnings:
            run.note(f"warning: {sentence}")
        run.write_csv("results.csv", [row for point in points for row in tidy(point)])
        for name, (figure, _) in figures.items():
            run.write_figure(name, figure)
        run.write_text("report.html", page(study, rows, [finding, *warnings, note], figures, gallery, seconds))
        run.write_json("summary.json", summary)
    for measure in study.config.measures:
        cli.print_table(study.labels[measure], COLUMNS, cells(rows, measure))
    for sentence in warnings:
        cli.say(f"warning: {sentence}")
    cli.say(f"found: {finding}")
    cli.say("seconds: " + "  ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    cli.say(f"folder: {study.out}")
    return study.out


def collapses(points: Sequence[Point]) -> list[str]:
    """A sentence for each point where the detector of collapsed attention fires for some seeds."""
    counts = {point.name: int(np.nansum(point.scores["collapsed"])) for point in points}
    sizes = {point.name: len(point.scores["collapsed"]) for point in points}
    return [
        f"{name}: attention has collapsed for {count} of {sizes[name]} seeds; try {WHAT_TO_TRY}"
        for name, count in counts.items() if count
    ]  # fmt: skip


def tidy(point: Point) -> list[Row]:
    """A row for each seed of the point."""
    count = len(next(iter(point.scores.values())))
    columns = {name: np.asarray(values).tolist() for name, values in point.scores.items()}
    return [{**point.factors, "seed": i, **{name: columns[name][i] for name in columns}} for i in range(count)]


COLUMNS = ("", "mean", "std. dev.", "95 % from", "to", "against", "difference", "95 % from", "to")


def cells(rows: Sequence[Row], measure: str) -> list[list[object]]:
    """The rows of a measure as a table shows them."""
    of_point = ("point", "mean", "standard_deviation", "low", "high")
    of_pair = ("against", "difference", "difference_low", "difference_high")
    chosen = [row for row in rows if row["measure"] == measure]
    return [[*(r[c] for c in of_point), *(r[c] if r["against"] else "" for c in of_pair)] for r in chosen]


def page(
    study: Study,
    rows: Sequence[Row],
    finding: Sequence[str],
    figures: Figures,
    gallery: Any,
    seconds: Mapping[str, float],
) -> str:
    """The report as HTML."""
    title, *text = study.question.strip().split("\n\n")
    settings = dataclasses.asdict(study.config) | {"data": study.data.source, "seconds": round(seconds["total"], 1)}
    pictures = [
        report.Picture(title_of(name.replace("_", " ")), png(study.out, name), caption)
        for name, (_, caption) in figures.items()
    ]
    tables = [
        report.Table(title_of(study.labels[measure]), COLUMNS, cells(rows, measure))
        for measure in study.config.measures
    ]
    found = report.Text("What was found", [*finding, *(" ".join(each.split()) for each in text[:1])])
    parts = [found, *pictures, *tables, *([gallery] if gallery else []), report.Settings("Settings", settings)]
    return report.render(title, parts, subtitle=study.data.name)


def png(out: Path, name: str) -> bytes:
    return (out / "figures" / f"{name}.png").read_bytes()


def gallery_of(study: Study, mil: MIL, params: Params, positive_class: int, title: str, bag_size: int = 3) -> Any:
    """A part of the report: bags that no member has learned from, with the weights and predictions of all."""
    pool = study.data.test
    drawn = bags.sample_bags(
        jax.random.fold_in(study.key, 2), pool.x, pool.label, bag_count=GALLERY_BAGS, bag_size=bag_size,
        positive_class=positive_class,
    )  # fmt: skip
    predicted = ensemble.predict_ensemble(mil, params, drawn)
    return report.Gallery(
        title, np.asarray(drawn.pool), np.asarray(drawn.rows), np.asarray(drawn.mask), np.asarray(drawn.label),
        np.asarray(drawn.instance_label), predicted.attention, predicted.probability,
        caption=f"{GALLERY_BAGS} bags drawn from the test instances, predicted by {len(predicted.attention)} seeds",
    )  # fmt: skip


def members_of(params: Params, chosen: slice) -> Params:
    """The parameters of some of the members."""
    return jax.tree.map(lambda leaf: leaf[chosen], params)
