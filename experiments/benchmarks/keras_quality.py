"""Does mil_jax learn as well as the Keras example? Both train on the same bags and are judged on the same bags.

    python experiments/benchmarks/keras_quality.py --dataset mnist

Every draw has training, validation and test bags of its own. A Keras model and a member of one mil_jax ensemble train
on it, each with its own initial parameters and orders of bags, and the same code judges both on the test bags, on
which nothing was chosen. What is compared is the mean of the paired differences, which the luck of a draw leaves alone.

A Keras draw takes a minute on 2 cores with TensorFlow, half of one with JAX; the 8 draws of mil_jax together take
half a minute. What Keras gave is kept in the folder of the results: started again with the same --out and options, an
interrupted run goes on from there. Writes results.json and results.csv. Needs `pip install 'mil_jax[peers]'`.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import measure
import numpy as np

from mil_jax import bags, cli, datasets, ensemble, evaluation, model, runs, training
from mil_jax.bags import Bags, Splits
from mil_jax.datasets import Dataset
from mil_jax.ensemble import Ensemble
from mil_jax.errors import InputError
from mil_jax.model import Prediction

# What is judged, and whether more of it is better.
MEASURES = {"accuracy": True, "auc": True, "loss": False, "hit_at_1": True}


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    draws: int = 8
    """Draws of bags; more of them can be added later to the same --out."""
    seed: int = 0
    """Decides everything that is drawn."""
    dataset: Literal["mnist-sample", "mnist"] = "mnist-sample"
    """The embedded sample, or full MNIST."""
    data_dir: Path | None = None
    """Where TensorFlow Datasets keeps prepared sets; its own default where not given."""
    manual_dir: Path | None = None
    """A folder, only read, with the canonical .gz files, for use without a network."""
    train_bags: int = 1000
    """Bags to learn from."""
    val_bags: int = 300
    """Bags that early stopping looks at."""
    test_bags: int = 3000
    """Bags that both are judged on."""
    backend: Literal["tensorflow", "jax"] = "tensorflow"
    """Keras' backend."""
    epochs: int = 20
    """The most epochs of a model; both stop after 10 without a better validation loss."""
    out: Path = field(default_factory=lambda: measure.default_out("keras_quality"))
    """The folder of the results."""


def main(config: Config) -> None:
    """Trains both on every draw and compares them."""
    check(config)
    cli.make_cpu_devices(cli.Compute())
    watch = cli.Stopwatch()
    data = datasets.load(config.dataset, config.data_dir, config.manual_dir)
    key_bags, key_members = jax.random.split(jax.random.key(config.seed))
    options = described(config, data)
    with runs.open_run(config.out, *options, resume=(config.out / "config.json").exists()) as run:
        draws = draw_all(key_bags, data, config)
        test = ensemble.stack_bags([draw.test for draw in draws])
        with saying_what_is_kept(config.out / "keras"):
            with watch.phase("keras"):
                records, keras = train_keras(config, draws)
            with watch.phase("mil_jax"):
                trained, ours = train_ours(config, draws, key_members)
        judged = {"mil_jax": judge(ours, test), "keras": judge(keras, test)}
        results = compare(judged)
        write(run, config, judged, results, records, trained, watch)
    print_results(results, config)
    cli.say(f"seconds: {'  '.join(f'{name} {value:.0f}' for name, value in watch.read().items())}")
    cli.say(f"results: {config.out}")


def check(config: Config) -> None:
    """Refuses what no later step would name well."""
    measure.at_least(2, draws=config.draws)  # a standard error takes two
    measure.at_least(0, seed=config.seed)
    measure.at_least(1, epochs=config.epochs)
    way = {"tensorflow": measure.KERAS_TENSORFLOW, "jax": measure.KERAS_JAX}[config.backend]
    if missing := measure.missing_packages(way):
        raise InputError("backend", config.backend, measure.install_remedy(missing))


def described(config: Config, data: Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """For `config.json`: what decides the results of a draw, and what does not."""
    options = dataclasses.asdict(config)
    how = {"draws": options.pop("draws")}
    paths = {name: options.pop(name) for name in ("data_dir", "manual_dir", "out")}
    content = {"name": data.name, "content_hash": data.content_hash}
    return {"experiment": "keras_quality", "options": options, "data": content}, how | {"paths": runs.jsonable(paths)}


def draw_all(key: jax.Array, data: Dataset, config: Config) -> list[Splits]:
    """A fresh draw of bags for each number; all views of one pool, so that memory holds the images once."""
    counts = {"train_bags": config.train_bags, "val_bags": config.val_bags, "test_bags": config.test_bags}
    draws: list[Splits] = []
    for i in range(config.draws):
        draw = bags.sample_splits(jax.random.fold_in(key, i), data, **counts)
        first = draws[0] if draws else draw
        shared = [dataclasses.replace(part, pool=of.pool) for part, of in zip(draw, first, strict=True)]
        draws.append(Splits(*shared))
    return draws


@contextmanager
def saying_what_is_kept(folder: Path) -> Iterator[None]:
    """Within it, Ctrl-C ends the run with a line that says what the folder keeps."""
    try:
        yield
    except KeyboardInterrupt:
        kept = len(list(folder.glob("*.json")))
        remedy = "go on with the same --out and options"
        raise cli.Interrupted(f"{folder} keeps Keras' results of {kept} draws; {remedy}") from None


# ---- training ----


def train_keras(config: Config, draws: list[Splits]) -> tuple[list[dict[str, Any]], Prediction]:
    """What the peer says of each draw, and its predictions of each draw's test bags."""
    records, predictions = [], []
    folder = config.out / "keras"
    folder.mkdir(exist_ok=True)
    for i, splits in enumerate(draws):
        file, was_there = keras_draw(config, i, splits, folder)
        record = json.loads(file.read_text())
        with np.load(file.with_suffix(".npz")) as arrays:
            predictions.append(Prediction(arrays["probabilities"][0], arrays["attention"][0]))
        records.append(record["members"][0] | {"versions": record["versions"]})
        source = "kept from before" if was_there else f"{sum(records[-1]['epoch_seconds']):.0f} s"
        cli.say(f"Keras, draw {i + 1} of {config.draws}: accuracy {records[-1]['test_accuracy']:.4f}  ({source})")
    return records, jax.tree.map(lambda *each: np.stack(each), *predictions)


def keras_draw(config: Config, draw: int, splits: Splits, folder: Path) -> tuple[Path, bool]:
    """The file of the peer's results on a draw, and whether it was there; its name holds a hash of all that counts."""
    options = ["--backend", config.backend, "--epochs", str(config.epochs), "--seed", str(config.seed + draw)]
    with tempfile.TemporaryDirectory() as temporary:
        peer_bags = Path(temporary) / "bags.npz"
        measure.write_peer_bags(splits, peer_bags)
        file = folder / f"draw{draw:02d}-{digest(peer_bags, options)}.json"
        if file.exists():  # the peer writes it last, whole
            return file, True
        measure.run_scripts("keras_peer.py", [[*options, "--bags", str(peer_bags), "--out", str(file)]])
    return file, False


def digest(peer_bags: Path, options: list[str]) -> str:
    """A short hash of bags, options and Keras' version."""
    version = importlib.metadata.version("keras")
    content = hashlib.sha256(" ".join([*options, version]).encode())
    with np.load(peer_bags) as arrays:
        for name in sorted(arrays):
            content.update(arrays[name].tobytes())
    return content.hexdigest()[:12]


def train_ours(config: Config, draws: list[Splits], key: jax.Array) -> tuple[Ensemble, Prediction]:
    """One ensemble in which every member has a draw of its own, and its members' predictions of their test bags."""
    train, val, test = (ensemble.stack_bags(parts) for parts in zip(*draws, strict=True))
    mil = model.build()
    with cli.epoch_progress(config.epochs) as show:
        trained = ensemble.fit_ensemble(
            mil, ensemble.member_keys(key, len(draws)), train, val, training.FitConfig(config.epochs),
            on_epoch=lambda epoch, info, _: show(epoch, f"mil_jax, val loss {np.nanmean(info.val_loss):.4f}"),
        )  # fmt: skip
    return trained, ensemble.predict_ensemble(mil, trained.params, test)


# ---- judging ----


def judge(predicted: Prediction, test: Bags) -> dict[str, np.ndarray]:
    """Each measure for each draw, [S]."""
    judged = evaluation.evaluate_members(predicted, test)
    metrics = {name: np.asarray(getattr(judged.bags, name)) for name in ("accuracy", "auc", "loss")}
    return metrics | {"hit_at_1": np.asarray(judged.positive.hit_at_1)}


def mean_and_error(values: np.ndarray) -> dict[str, float]:
    """The mean and its standard error."""
    mean, spread = evaluation.mean_and_spread(values.astype(np.float64))
    return {"mean": mean, "standard_error": spread / math.sqrt(len(values))}


def compare(judged: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """For each measure: both means, the mean paired difference, and whether mil_jax is worse."""
    results = {}
    for name, more_is_better in MEASURES.items():
        ours, keras = judged["mil_jax"][name], judged["keras"][name]
        difference = mean_and_error(ours - keras)
        gain = difference["mean"] if more_is_better else -difference["mean"]
        results[name] = {
            "mil_jax": mean_and_error(ours),
            "keras": mean_and_error(keras),
            "difference": difference,
            "worse_by_more_than_two_standard_errors": bool(gain < -2 * difference["standard_error"]),
        }
    return results


# ---- results ----


def write(
    run: runs.RunFolder,
    config: Config,
    judged: dict[str, dict[str, np.ndarray]],
    results: dict[str, dict[str, Any]],
    records: list[dict[str, Any]],
    trained: Ensemble,
    watch: cli.Stopwatch,
) -> None:
    """Writes every draw's numbers, and what follows from them."""
    rows = [
        {"draw": i, "who": who, **{name: float(values[i]) for name, values in columns.items()}}
        for i in range(config.draws)
        for who, columns in judged.items()
    ]
    versions = {name: version for record in records for name, version in record["versions"].items()}
    run.write_json(
        "results.json",
        {
            **measure.describe(config),
            "versions": versions | runs.versions(),
            "seconds": watch.read(),
            "results": results,
            "draws": rows,
            "mil_jax": {"best_epoch": trained.best_epoch, "epochs_run": trained.epochs_run},
            "keras": [{name: value for name, value in record.items() if name != "versions"} for record in records],
        },
    )
    measure.write_csv(run.path / "results.csv", rows)


def print_results(results: dict[str, dict[str, Any]], config: Config) -> None:
    """The table, and whether mil_jax is worse in anything."""
    text = lambda value: f"{value['mean']:+.4f} ± {value['standard_error']:.4f}"  # noqa: E731
    rows = [
        (name.replace("_", " "), text(each["mil_jax"])[1:], text(each["keras"])[1:], text(each["difference"]))
        for name, each in results.items()
    ]
    title = f"Test bags of {config.dataset}, {config.draws} draws: mean ± standard error"
    columns = ("", "mil_jax", f"Keras ({config.backend})", "mil_jax − Keras, paired")
    cli.print_table(title, columns, rows)
    worse = [name for name, each in results.items() if each["worse_by_more_than_two_standard_errors"]]
    if worse:
        cli.say(f"mil_jax is worse than Keras by more than two standard errors in: {', '.join(worse)}")
    else:
        cli.say(f"mil_jax is worse than Keras by more than two standard errors in none of: {', '.join(results)}")


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
