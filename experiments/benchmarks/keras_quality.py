"""Does mil_jax learn as well as the Keras example? Both train on the same bags and are judged on the same bags.

    python experiments/benchmarks/keras_quality.py --dataset mnist

Every draw has training, validation and test bags of its own. A Keras model and a member of one mil_jax ensemble train
on it, each with its own initial parameters and orders of bags, and the same code judges both on the test bags, on
which nothing was chosen. What is compared is the mean of the paired differences, which the luck of a draw leaves alone.

A Keras draw takes a minute on 2 cores with TensorFlow, half of one with JAX; the 8 draws of mil_jax together take
half a minute. What Keras gave is kept in the folder of the results: started again with the same --out and options, an
interrupted run goes on from there. Writes results.json and results.csv. Needs `pip install 'mil_jax[peers]'`.
"""

import hashlib
import importlib.metadata
import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax_worker
import measure
import numpy as np
import peer_io

from mil_jax import datasets
from mil_jax.bags import Bags, stack_bags
from mil_jax.ensemble import Ensemble, Execution, fit_ensemble, member_keys, predict
from mil_jax.evaluation import evaluate_members, mean_and_spread
from mil_jax.model import Prediction, build
from mil_jax.run import cli
from mil_jax.run.config import Compute, DataConfig, aside, check_seed, settings
from mil_jax.run.folder import RunFolder, open_run
from mil_jax.run.processes import Interrupted, make_cpu_devices
from mil_jax.run.saved import versions
from mil_jax.run.screen import Stopwatch, epoch_progress, losses_text, print_table, say
from mil_jax.sampling import BagsConfig, Splits, sample_splits
from mil_jax.text import Table, with_error
from mil_jax.training import FitConfig

Judged = dict[str, dict[str, np.ndarray]]  # who, measure: a value for each draw, [S]
# What is judged, and whether more of it is better.
MEASURES = {"accuracy": True, "auc": True, "loss": False, "hit_at_1": True}


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    draws: int = aside(8)
    """Draws of bags; more of them can be added later to the same --out."""
    seed: int = 0
    """Decides everything that is drawn."""
    data: DataConfig = DataConfig()
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
    out: Path = field(default_factory=lambda: measure.default_out("keras_quality"), metadata={"aside": True})
    """The folder of the results."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        measure.at_least(2, self, "draws")  # a standard error takes two
        measure.at_least(1, self, "epochs")
        self.bags()

    def bags(self) -> BagsConfig:
        """How many bags a draw has."""
        return BagsConfig(train_bags=self.train_bags, val_bags=self.val_bags, test_bags=self.test_bags)


def main(config: Config) -> None:
    """Trains both on every draw and compares them."""
    peer_io.require("keras", config.backend)
    make_cpu_devices(Compute())
    watch = Stopwatch()
    data = datasets.load(config.data.dataset, config.data.data_dir, config.data.manual_dir)
    key_bags, key_members = jax.random.split(jax.random.key(config.seed))
    draws = [sample_splits(jax.random.fold_in(key_bags, i), data, config.bags()) for i in range(config.draws)]
    test = stack_bags([draw.test for draw in draws])
    options, how = settings(config)
    content = {"name": data.name, "content_hash": data.content_hash}
    description = {"experiment": "keras_quality", "options": options, "data": content}
    with open_run(config.out, description, how, resume=(config.out / "config.json").exists()) as run:
        try:
            with watch.phase("keras"):
                records, keras = train_keras(config, draws)
            with watch.phase("mil_jax"):
                trained, ours = train_ours(config, draws, key_members)
        except KeyboardInterrupt:
            kept = f"keeps Keras' results of {len(list((config.out / 'keras').glob('*.json')))} draws"
            remedy = "go on with the same --out and options"
            raise Interrupted(f"{config.out / 'keras'} {kept}; {remedy}") from None
        judged = {"mil_jax": judge(ours, test), "keras": judge(keras, test)}
        results = compare(judged)
        ends = {"best_epoch": trained.best_epoch, "epochs_run": trained.epochs_run}
        write(run, config, {"seconds": watch.read(), "results": results, "mil_jax": ends}, judged, records)
    print_results(results, config)
    say(f"seconds: {'  '.join(f'{name} {value:.0f}' for name, value in watch.read().items())}")
    say(f"results: {config.out}")


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
            probability, attention = arrays["probabilities"][0], arrays["attention"][0]
        predictions.append(Prediction(probability, attention, np.zeros_like(attention)))
        records.append(record["members"][0] | {"versions": record["versions"]})
        source = "kept from before" if was_there else f"{sum(records[-1]['epoch_seconds']):.0f} s"
        say(f"Keras, draw {i + 1} of {config.draws}: val loss {min(records[-1]['val_loss']):.4f}  ({source})")
    return records, jax.tree.map(lambda *leaves: np.stack(leaves), *predictions)


def keras_draw(config: Config, draw: int, splits: Splits, folder: Path) -> tuple[Path, bool]:
    """The file of the peer's results on a draw, and whether it was there; its name holds a hash of all that counts."""
    options = ["--backend", config.backend, "--epochs", str(config.epochs), "--seed", str(config.seed + draw)]
    with tempfile.TemporaryDirectory() as temporary:
        peer_bags = Path(temporary) / "bags.npz"
        jax_worker.write_peer_bags(splits, peer_bags)
        file = folder / f"draw{draw:02d}-{digest(peer_bags, options)}.json"
        if file.exists():  # the peer writes it last, whole
            return file, True
        measure.run_scripts("keras_peer.py", [[*options, "--bags", str(peer_bags), "--out", str(file)]])
    return file, False


def digest(peer_bags: Path, options: list[str]) -> str:
    """A short hash of bags, options and Keras' version."""
    content = hashlib.sha256(" ".join([*options, importlib.metadata.version("keras")]).encode())
    with np.load(peer_bags) as arrays:
        for name in sorted(arrays):
            content.update(arrays[name].tobytes())
    return content.hexdigest()[:12]


def train_ours(config: Config, draws: list[Splits], key: jax.Array) -> tuple[Ensemble, Prediction]:
    """One ensemble in which every member has a draw of its own, and its members' predictions of their test bags."""
    train, val, test = (stack_bags(parts) for parts in zip(*draws, strict=True))
    mil, fit = build(), FitConfig(config.epochs)
    with epoch_progress(config.epochs) as show:
        execution = Execution(on_epoch=lambda epoch, info, _: show(epoch, f"mil_jax, {losses_text(info)}"))
        trained = fit_ensemble(mil, member_keys(key, len(draws)), train, val, fit, execution=execution)
    return trained, predict(mil, trained.members, test)


# ---- judging ----


def judge(predicted: Prediction, test: Bags) -> dict[str, np.ndarray]:
    """Each measure for each draw, [S]."""
    judged = evaluate_members(predicted, test)
    metrics = {name: np.asarray(getattr(judged.bags, name)) for name in ("accuracy", "auc", "loss")}
    return metrics | {"hit_at_1": np.asarray(judged.positive.hit_at_1)}


def mean_and_error(values: np.ndarray) -> dict[str, float]:
    """The mean and its standard error."""
    mean, spread = mean_and_spread(values.astype(np.float64))
    return {"mean": mean, "standard_error": spread / math.sqrt(len(values))}


def compare(judged: Judged) -> dict[str, dict[str, Any]]:
    """For each measure: both means, the mean paired difference, and whether mil_jax is worse."""
    results = {}
    for name, more_is_better in MEASURES.items():
        ours, keras = judged["mil_jax"][name], judged["keras"][name]
        difference = mean_and_error(ours - keras)
        gain = difference["mean"] if more_is_better else -difference["mean"]
        worse = bool(gain < -2 * difference["standard_error"])
        results[name] = {
            "mil_jax": mean_and_error(ours), "keras": mean_and_error(keras), "difference": difference,
            "worse_by_more_than_two_standard_errors": worse,
        }  # fmt: skip
    return results


# ---- results ----


def write(run: RunFolder, config: Config, results: dict[str, Any], judged: Judged, records: list[Any]) -> None:
    """Writes every draw's numbers, and what follows from them."""
    rows = [
        {"draw": i, "who": who, **{name: float(values[i]) for name, values in columns.items()}}
        for i in range(config.draws) for who, columns in judged.items()
    ]  # fmt: skip
    theirs = {name: version for record in records for name, version in record.pop("versions").items()}
    content = measure.describe(config) | {"versions": theirs | versions()} | results
    run.write_json("results.json", content | {"draws": rows, "keras": records})
    run.write_csv("results.csv", rows)


def print_results(results: dict[str, dict[str, Any]], config: Config) -> None:
    """The table, and whether mil_jax is worse in anything."""
    rows = []
    for name, result in results.items():
        parts = [tuple(result[part].values()) for part in ("mil_jax", "keras", "difference")]
        rows.append((name.replace("_", " "), *(with_error(mean, error, digits=4) for mean, error in parts)))
    title = f"Test bags of {config.data.dataset}, {config.draws} draws: mean ± standard error"
    print_table(Table(title, ("", "mil_jax", f"Keras ({config.backend})", "mil_jax − Keras, paired"), rows))
    worse = [name for name, of_measure in results.items() if of_measure["worse_by_more_than_two_standard_errors"]]
    what = f"in: {', '.join(worse)}" if worse else f"in none of: {', '.join(results)}"
    say(f"mil_jax is worse than Keras by more than two standard errors {what}")


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
