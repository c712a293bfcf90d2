"""Which digit of a bag made it positive? Attention-based deep MIL on bags of digits, end to end.

The question and the settings are those of the Keras example "Classification using Attention-based Deep Multiple
Instance Learning": bags of 3 digits, positive if one of them is a 1; with a test set that nothing was chosen on,
attention judged against the true positive instances, and as many members as you like.

    python experiments/mnist_bags.py
    python experiments/mnist_bags.py --members 16 --dataset mnist
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import (
    bags,
    cli,
    committee,
    datasets,
    ensemble,
    evaluation,
    metrics,
    model,
    plots,
    recording,
    report,
    runs,
    tensorboard_log,
    training,
)
from mil_jax.attention import AttentionStats
from mil_jax.bags import Bags, Splits
from mil_jax.cli import Compute, ComputeOptions
from mil_jax.datasets import Dataset
from mil_jax.ensemble import Ensemble
from mil_jax.errors import InputError
from mil_jax.evaluation import Evaluation
from mil_jax.model import MIL, Prediction
from mil_jax.pooling import AttentionPooling

# The statistics that the figure shows, as the labels of its panels.
SHOWN_STATS = {
    "normalized_entropy": "entropy / log K",
    "effective_instances": "effective instances",
    "largest_weight": "largest weight",
    "positive_mass": "weight on positive instances",
    "hit_at_1": "hit@1",
}


# Options that decide where and how, and not what comes out.
NOT_RESULTS = ("compute", "out", "data_dir", "manual_dir", "report", "tensorboard")


@dataclass(frozen=True)
class Config:
    """Options of the experiment; the defaults are the Keras example's."""

    seed: int = 0
    """Decides everything that is drawn: bags, initial parameters, orders of bags."""
    members: int = 1
    """Models that differ by their keys; they form the ensemble."""
    vary: str = "init,order"
    """What the key of a member decides, of init, order, bags; the rest is the same for all members."""
    dataset: str = "mnist-sample"
    """mnist-sample (embedded), mnist, fashion_mnist, kmnist, or tfds:NAME."""
    data_dir: Path | None = None
    """Where TensorFlow Datasets keeps prepared sets; its own default where not given."""
    manual_dir: Path | None = None
    """A folder, only read, with the canonical .gz files, for use without a network."""
    positive_class: int = 1
    """The class that makes a bag positive."""
    train_bags: int = 1000
    """Bags to learn from, drawn from the training instances."""
    val_bags: int = 300
    """Bags that early stopping looks at, from one half of the test instances."""
    test_bags: int = 1000
    """Bags that nothing is chosen on, from the other half."""
    bag_size: int = 3
    """Instances per bag."""
    head: Literal["concat", "sum"] = "concat"
    """Concatenate the weighted embeddings (the example), or sum them (the paper)."""
    pooling: model.Pooling = "gated_attention"
    """How a bag is made of its instances; all but the two kinds of attention need the head 'sum'."""
    attention_units: int = 256
    """Width of the attention's hidden layer."""
    l2: float = 0.01
    """Factor of the sum of squares of the attention's parameters."""
    class_weights: bool = True
    """Weigh the training loss by total / (2 * count) of the bag's class."""
    epochs: int = 20
    """The most epochs that a member trains for."""
    batch_size: int = 1
    """Bags per step."""
    learning_rate: float = 1e-3
    """Of Adam."""
    patience: int = 10
    """A member stops after this many epochs without a better validation loss."""
    unroll: int = 1
    """Steps in a turn of the compiled loop: 2 make many members on a CPU 5 % faster, and compile twice as long."""
    plot_bags: int = 3
    """Bags per class in the figures of bags; 0 for no such figures."""
    report: bool = True
    """Write report.html: settings, tables, figures, and the test bags to browse, on one page."""
    tensorboard: bool = False
    """Write event files for TensorBoard, which must be installed: pip install 'mil_jax[tensorboard]'."""
    out: Path | None = None
    """The run folder; a new one under runs/mnist_bags where not given."""
    compute: ComputeOptions = Compute()


def main(config: Config) -> Path:
    """Runs the experiment and returns its run folder."""
    watch = cli.Stopwatch()
    check(config)
    out = config.out or default_out("mnist_bags", config)
    if not config.compute.resume:
        runs.check_free(out)
    cli.start_jax(config.compute, config.members)
    with watch.phase("data"):
        data = datasets.load(config.dataset, config.data_dir, config.manual_dir)
        key_bags, key_members = jax.random.split(jax.random.key(config.seed))
        splits = draw_bags(key_bags, data, config)
        keys, order_keys = draw_keys(key_members, config)
    mil = build_model(config)
    hyper = training.make_hyper(
        splits.train, learning_rate=config.learning_rate, l2=config.l2,
        class_weights=config.class_weights,
    )  # fmt: skip
    with runs.open_run(out, describe(config, data), describe_how(config), config.compute.resume) as run:
        print_problem(data, splits, mil)
        with watch.phase("plots"):
            plot_bags_by_label(run, config, shared_or_first(splits.train))
        trained = recording.fit_recorded(
            run, config.compute, watch, mil, keys, splits.train, splits.val, fit_config(config), hyper, order_keys
        )
        with watch.phase("evaluate"):
            judged = judge(run, mil, trained, splits)
            details = {"test_details": detail(judged.predicted, splits.test, config.seed)}
        with watch.phase("plots"):
            plot_results(run, config, trained, judged, splits)
        summary = summarize(trained, judged, watch) | details
        run.write_json("summary.json", summary)
        run.write_tables(summary)
        write_views(run, config, splits.test)
        run.drop_progress()
    print_results(summary, out)
    return out


def check(config: Config) -> None:
    """Refuses options that no later step would name well."""
    cli.check_seed(config.seed)
    if config.members < 1:
        raise InputError("members", config.members, "use at least 1")
    if config.plot_bags < 0:
        raise InputError("plot_bags", config.plot_bags, "use 0 or more")
    if config.tensorboard:
        tensorboard_log.check_installed()
    varied_parts(config)
    fit_config(config)
    build_model(config)


def fit_config(config: Config) -> training.FitConfig:
    return training.FitConfig(config.epochs, config.batch_size, config.patience, config.unroll)


def build_model(config: Config) -> MIL:
    return model.build(model_config(config))


def model_config(config: Config) -> model.ModelConfig:
    return model.ModelConfig(attention_units=config.attention_units, pooling=config.pooling, head=config.head)


def varied_parts(config: Config) -> set[str]:
    """What differs between members."""
    parts = set(filter(None, config.vary.split(",")))
    if not parts or not parts <= {"init", "order", "bags"}:
        raise InputError("vary", config.vary, "name one or more of init, order, bags, with commas between them")
    return parts


def default_out(experiment: str, config: Any) -> Path:
    """A new run folder, named by data, seed and moment."""
    moment = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.dataset.replace(':', '-').replace('/', '-')}-seed{config.seed}-{moment}"
    return Path("runs") / experiment / name


def describe(config: Config, data: Dataset) -> dict[str, Any]:
    """What `config.json` says of the run, and what decides its results."""
    options = dataclasses.asdict(config)
    for name in NOT_RESULTS:
        del options[name]
    return {
        "experiment": "mnist_bags",
        "options": options,
        "model": dataclasses.asdict(model_config(config)),
        "data": {"name": data.name, "content_hash": data.content_hash},
    }


def describe_how(config: Config) -> dict[str, Any]:
    """What `config.json` says of the run besides, and what may change when it is resumed."""
    paths = {"data_dir": config.data_dir, "manual_dir": config.manual_dir}
    output = {"report": config.report, "tensorboard": config.tensorboard}
    return {"paths": paths, "output": output, "compute": dataclasses.asdict(config.compute)}


# ---- bags and keys ----


def draw_bags(key: jax.Array, data: Dataset, config: Config) -> Splits:
    """The bags of all sets; with --vary bags, every member has its own draw of training bags."""
    splits = draw_splits(key, data, config)
    if "bags" not in varied_parts(config):
        return splits
    keys = ensemble.member_keys(key, config.members)
    own = [draw_splits(each, data, config).train for each in keys]
    return splits._replace(train=ensemble.stack_bags(own))


def draw_keys(key: jax.Array, config: Config) -> tuple[jax.Array, jax.Array]:
    """Two keys for each member: one decides its initial parameters, one its orders of bags."""
    keys, parts = ensemble.member_keys(key, config.members), varied_parts(config)
    fixed = ensemble.same_for_all(keys)
    return keys if "init" in parts else fixed, keys if "order" in parts else fixed


def shared_or_first(part: Bags) -> Bags:
    """The bags, of the first member where each has its own."""
    if part.rows.ndim == 2:
        return part
    first = {name: getattr(part, name)[0] for name in ("rows", "mask", "label", "instance_label")}
    return dataclasses.replace(part, **first)


def draw_splits(key: jax.Array, data: Dataset, config: Config) -> Splits:
    return bags.sample_splits(
        key,
        data,
        train_bags=config.train_bags,
        val_bags=config.val_bags,
        test_bags=config.test_bags,
        bag_size=config.bag_size,
        positive_class=config.positive_class,
    )


def print_problem(data: Dataset, splits: Splits, mil: MIL) -> None:
    """Says what will be learned, from what, and by which model."""
    rows = []
    for name, part in splits._asdict().items():
        part = shared_or_first(part)
        positive = int(np.sum(np.asarray(part.label) == 1))
        rows.append((name, len(part.label), positive, len(part.label) - positive))
    cli.print_table(f"Bags of {data.name}", ("set", "bags", "positive", "negative"), rows)
    shape = splits.train.pool.shape[1:]
    layers = model.layer_table(mil, splits.train.rows.shape[-1], shape)
    total = sum(count for _, _, count in layers)
    cli.print_table("Model", ("layer", "parameters", "number"), [*layers, ("total", "", total)])


# ---- judging ----


@dataclass(frozen=True)
class Judged:
    """Predictions on the test bags, and evaluations of members [S] and of the ensemble on all sets."""

    predicted: Prediction
    members: dict[str, Evaluation]
    ensemble: dict[str, Evaluation]
    warnings: list[list[str]]


def judge(run: runs.RunFolder, mil: MIL, trained: Ensemble, splits: Splits) -> Judged:
    """Predicts all sets, judges them, and keeps the attention on the test bags."""
    sets = splits._asdict()
    predictions = {name: ensemble.predict_ensemble(mil, trained.params, part) for name, part in sets.items()}
    members, whole = {}, {}
    for name, part in sets.items():
        if part.rows.ndim == 3:  # no bags that all members have in common, so none for the ensemble
            members[name] = evaluation.evaluate_members(predictions[name], part)
            continue
        judged = evaluation.evaluate_members(with_average(predictions[name]), part)
        members[name] = jax.tree.map(lambda values: values[:-1], judged)
        whole[name] = jax.tree.map(lambda values: values[-1], judged)
    predicted = predictions["test"]
    run.write_arrays(
        "attention.npz",
        attention=np.asarray(predicted.attention),
        probability=np.asarray(predicted.probability),
        rows=np.asarray(splits.test.rows),
        label=np.asarray(splits.test.label),
        instance_label=np.asarray(splits.test.instance_label),
    )
    # A pooling without attention cannot collapse: a mean is uniform by definition.
    attends = isinstance(mil.pooling, AttentionPooling)
    warnings = evaluation.warnings_of(predictions["val"], splits.val) if attends else [[] for _ in predicted.attention]
    for i, sentence in ((i, sentence) for i, sentences in enumerate(warnings) for sentence in sentences):
        run.note(f"warning: member {i}: {sentence}")
    return Judged(predicted, members, whole, warnings)


def detail(predicted: Prediction, test: Bags, seed: int) -> dict[str, Any]:
    """Attention by groups of test bags, and what the members are worth together: rows for tables.

    The intervals are over bags, of the ensemble's attention; one member has nobody to agree with.
    """
    key = jax.random.fold_in(jax.random.key(seed), 1)
    rows = {"attention": evaluation.attention_table(ensemble.average(predicted), test, key)}
    if len(predicted.probability) == 1:
        return rows
    spread = committee.disagreement(predicted, test)
    areas = {name: getattr(spread, name) for name in ("votes_auc", "information_auc", "uncertainty_auc")}
    return rows | {
        "agreement": evaluation.agreement_table(predicted, test, key),
        "ensemble_size": committee.gains(predicted, test, key),
        "disagreement": {"votes": spread.votes.mean(), "information": spread.information.mean(), **areas},
    }


def with_average(predicted: Prediction) -> Prediction:
    """The members' predictions, and behind them, as if it were one more member, the ensemble's."""
    join = lambda each, mean: np.concatenate([each, mean[None]])  # noqa: E731
    return jax.tree.map(join, predicted, ensemble.average(predicted))


def summarize(trained: Ensemble, judged: Judged, watch: cli.Stopwatch) -> dict[str, Any]:
    """What `summary.json` holds: each member, their mean and standard deviation, the ensemble, the seconds."""
    columns = {
        "best_epoch": np.asarray(trained.best_epoch),
        "epochs_run": np.asarray(trained.epochs_run),
        "best_val_loss": np.asarray(trained.best_loss),
        **result_columns(judged.members),
    }
    count = len(columns["best_epoch"])
    parameters = model.count_params(trained.params) // count
    rows = [
        {
            "seed": i,
            "parameters": parameters,
            **{name: values[i].item() for name, values in columns.items()},
            "warnings": judged.warnings[i],
        }
        for i in range(count)
    ]
    spread = {name: evaluation.mean_and_spread(values) for name, values in columns.items()}
    ensemble_row = {name: value.item() for name, value in result_columns(judged.ensemble).items()}
    return {
        "members": rows,
        "mean": {"seed": None, "parameters": parameters, **{k: v[0] for k, v in spread.items()}},
        "standard_deviation": {name: value[1] for name, value in spread.items()},
        "ensemble": ensemble_row,
        "which_is_which": WHICH_IS_WHICH,
        "seconds": watch.read(),
    }


WHICH_IS_WHICH = {
    "seed": "the member's number; with --seed it decides its initial parameters and orders of bags",
    "train_*": "on the training bags, with the parameters of the best epoch",
    "val_*": "on the validation bags: early stopping chose the epoch on them, so they flatter",
    "test_*": "on the test bags: nothing was chosen on them, and they share no instance with the others",
    "*_loss": "cross-entropy in nats, without class weights and L2",
    "best_val_loss": "what early stopping looked at: cross-entropy on the validation bags plus L2",
    "instance_*": "attention against the true instances, mean over the positive test bags",
    "positive_bags_*, negative_bags_*": "attention statistics, mean over the positive, negative test bags",
    "test_details": "the ensemble's attention by groups of test bags, with intervals over bags; how much the members "
    "agree; what random ensembles of 1, 2, … members score; and how well disagreement tells wrong bags from right ones",
}


def result_columns(sets: dict[str, Evaluation]) -> dict[str, np.ndarray]:
    """The numbers of evaluations by the names that `summary.json` uses."""
    columns = {}
    for name, judged in sets.items():
        columns |= evaluation.flatten(judged.bags, f"{name}_")
    test = sets["test"]
    columns |= {
        "instance_hit_at_1": np.asarray(test.positive.hit_at_1),
        "instance_positive_mass": np.asarray(test.positive.positive_mass),
        "instance_auc": np.asarray(test.positive.instance_auc),
    }
    return columns | evaluation.attention_columns(test.positive, test.negative)


# ---- figures ----


def first_bags(label: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first `count` bags of each class, class 1 first."""
    return np.concatenate([np.flatnonzero(label == value)[:count] for value in (1, 0)])


def plot_bags_by_label(run: runs.RunFolder, config: Config, train: Bags) -> None:
    """The bags before training, by label."""
    if not config.plot_bags:
        return
    label = np.asarray(train.label)
    index = first_bags(label, config.plot_bags)
    titles = [plots.bag_title(i, label[i]) for i in index]
    run.write_figure("bags_before_training", draw(train, index, titles, "Training bags by label"))


def draw(part: Bags, index: np.ndarray, titles: list[str], heading: str, **weights: Any) -> Any:
    """A figure of the bags at `index`."""
    pool, rows = np.asarray(part.pool), np.asarray(part.rows)[index]
    positive = np.asarray(part.instance_label)[index] == 1
    mask = np.asarray(part.mask)[index]
    return plots.bags_figure(pool[rows], mask, titles, positive=positive, heading=heading, **weights)


def plot_results(run: runs.RunFolder, config: Config, trained: Ensemble, judged: Judged, splits: Splits) -> None:
    """All figures after training."""
    curves = trained.curves
    best_epoch = np.asarray(trained.best_epoch)
    figures = {
        "learning_curves": plots.learning_curves(
            curves.train_loss, curves.val_loss, curves.train_accuracy, curves.val_accuracy, best_epoch
        ),
        "attention_statistics": plots.attention_curves(stat_curves(curves.positive, curves.negative), best_epoch),
        **classification_figures(judged, splits.test),
    }
    if config.plot_bags:
        figures["bags_after_training"] = plot_bags_by_prediction(config, judged, splits.test)
    for name, figure in figures.items():
        run.write_figure(name, figure)


def stat_curves(positive: AttentionStats, negative: AttentionStats) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curves [S, E] of the shown statistics; a negative bag has no positive instance to hit."""
    unknown = np.full_like(np.asarray(negative.entropy), np.nan)
    return {
        label: (getattr(positive, name), unknown if name in evaluation.NEEDS_POSITIVE else getattr(negative, name))
        for name, label in SHOWN_STATS.items()
    }


def classification_figures(judged: Judged, test: Bags) -> dict[str, Any]:
    """Confusion matrix of the ensemble, and the curves of members and ensemble, on the test bags."""
    label = np.asarray(test.label)
    whole = np.asarray(ensemble.average(judged.predicted).probability)
    scores = np.asarray(judged.predicted.probability)[..., 1]
    counts = metrics.confusion_counts(jnp.argmax(whole, axis=-1), test.label, 2)
    figures = {"confusion_matrix": plots.confusion_matrix(np.asarray(counts), ("negative", "positive"))}
    figures["reliability"] = draw_reliability(whole, test.label, judged.ensemble["test"])
    if len(scores) > 1:
        every, labels = np.reshape(judged.predicted.probability, (-1, 2)), jnp.tile(test.label, len(scores))
        figures["reliability_of_members"] = draw_reliability(every, labels, judged.members["test"])
    if len(np.unique(label)) < 2:
        return figures  # the curves need both classes
    by_member, by_ensemble = judged.members["test"].bags, judged.ensemble["test"].bags
    curve: Callable[..., Any]
    for name, curve, draw_curves, area, extra in (
        ("roc_curve", metrics.roc_curve, plots.roc_curves, "auc", ()),
        ("precision_recall_curve", metrics.precision_recall_curve, plots.precision_recall_curves,
         "average_precision", (float(label.mean()),)),
    ):  # fmt: skip
        figures[name] = draw_curves(
            [curve(score, label) for score in scores],
            curve(whole[:, 1], label),
            [float(value) for value in getattr(by_member, area)],
            float(getattr(by_ensemble, area)),
            *extra,
        )
    return figures


def draw_reliability(probability: np.ndarray, label: jax.Array, judged: Evaluation) -> Any:
    """The reliability diagram of all these predictions, with the mean calibration error of those who made them."""
    bins = metrics.reliability(jnp.asarray(probability), label)
    error = float(np.mean(judged.bags.calibration_error))
    return plots.reliability_diagram(bins.confidence, bins.accuracy, bins.count, error)


def plot_bags_by_prediction(config: Config, judged: Judged, test: Bags) -> Any:
    """Test bags by predicted class, with the ensemble's weights and their spread over the members."""
    whole = ensemble.average(judged.predicted)
    probability, label = np.asarray(whole.probability), np.asarray(test.label)
    prediction = probability.argmax(axis=-1)
    index = first_bags(prediction, config.plot_bags)
    titles = [plots.bag_title(i, label[i], prediction[i], float(probability[i, prediction[i]])) for i in index]
    members = np.asarray(judged.predicted.attention)
    spread = members.std(axis=0, ddof=1)[index] if len(members) > 1 else None
    attention = np.asarray(whole.attention)[index]
    return draw(test, index, titles, "Test bags by predicted class", attention=attention, spread=spread)


# ---- the run folder for people to look at ----


def write_views(run: runs.RunFolder, config: Config, test: Bags) -> None:
    """The report and the event files, each where asked for, from what the folder holds by now."""
    if not run.writes or not (config.report or config.tensorboard):
        return
    finished = runs.load_finished(run.path)
    if config.report:
        write_report(run, finished, test.pool)
    if config.tensorboard:
        write_event_files(run, finished)


def write_report(run: runs.RunFolder, finished: runs.FinishedRun, pool: Any) -> None:
    """Writes `report.html`."""
    options, name = finished.config["options"], finished.config["data"]["name"]
    members = "1 member" if options["members"] == 1 else f"{options['members']} members"
    subtitle = f"{members}, bags of {options['bag_size']} of {name}, seed {options['seed']}: {finished.path.name}"
    title = "Which instance of a bag made it positive?"
    run.write_text("report.html", report.render(title, report.run_parts(finished, pool), subtitle))


def write_event_files(run: runs.RunFolder, finished: runs.FinishedRun) -> None:
    """Writes the event files for TensorBoard, instead of those that there were."""
    for name, content in tensorboard_log.event_files(finished).items():
        run.write_bytes(f"tensorboard/{name}", content)


# ---- results on the screen ----


def print_results(summary: dict[str, Any], out: Path) -> None:
    """The results as tables, the seconds, and where the run is."""
    names = ("best_epoch", "test_loss", "test_accuracy", "test_auc", "instance_hit_at_1", "instance_auc")
    members = summary["members"]
    rows = [[f"member {row['seed']}", *(row[name] for name in names)] for row in members[:16]]
    if len(members) > 1:
        rows.append(["mean of members", *(summary["mean"][name] for name in names)])
        spread = summary["standard_deviation"]
        rows.append(["standard deviation", *(spread[name] for name in names)])
        rows.append(["ensemble", "", *(summary["ensemble"][name] for name in names[1:])])
    shown = "" if len(members) <= 16 else f"the first 16 of {len(members)} members; summary.json has all"
    cli.print_table("Test bags (nothing was chosen on them)", ("", *(n.replace("_", " ") for n in names)), rows, shown)
    print_sets(summary["mean"])
    for row in members:
        for sentence in row["warnings"]:
            cli.say(f"warning: member {row['seed']}: {sentence}")
    seconds = "  ".join(f"{name} {value:.1f}" for name, value in summary["seconds"].items())
    cli.say(f"seconds: {seconds}")
    cli.say(f"run folder: {out}")


def print_sets(mean: dict[str, Any]) -> None:
    """The mean member on the three sets side by side."""
    measures = ("loss", "accuracy", "auc", "precision", "recall")
    roles = {"train": "learned from", "val": "epoch chosen on", "test": "untouched"}
    rows = [[name, role, *(mean[f"{name}_{measure}"] for measure in measures)] for name, role in roles.items()]
    cli.print_table("Mean of members, all sets", ("set", "role", *measures), rows)


if __name__ == "__main__":
    cli.command(Config, main, __doc__, runs.saved_options)
