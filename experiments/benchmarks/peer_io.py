"""What both peers share: options, bags, scores, timings and the files of results.

`keras_peer.py` and `torch_peer.py` are the references that the benchmarks compare with. Each runs
in a process of its own and needs no part of mil_jax, so that its thread pools, its memory and its
choice of backend are its own. Whatever must be the same for both, so that a difference between two
numbers is a difference between two libraries, lives here, on the standard library and NumPy alone.

Axes: B bags · K slots per bag · C classes (2) · S members · E epochs.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

# The example's settings; the command line does not offer them, since changing one changes the peer.
LEARNING_RATE = 1e-3
ADAM_EPSILON = 1e-7
ATTENTION_UNITS = 256
L2 = 0.01


@dataclass(frozen=True)
class Split:
    """Full bags: ``instances [B, K, height, width]`` in [0, 1] and ``labels [B]``, 0 or 1."""

    instances: np.ndarray
    labels: np.ndarray

    @property
    def bag_size(self) -> int:
        """The number of instances in every bag, K."""
        return self.instances.shape[1]


@dataclass(frozen=True)
class Clock:
    """Seconds of every epoch, E of each: the whole epoch, and its training part alone."""

    epoch_seconds: list[float]
    train_seconds: list[float]


class Prediction(NamedTuple):
    """Of every test bag: ``probabilities [B, C]`` and ``attention [B, K]``."""

    probabilities: np.ndarray
    attention: np.ndarray


@dataclass(frozen=True)
class Member:
    """One member's run, with its losses per epoch: training (class-weighted), validation (not), both with L2.

    Where only the time was asked for, there is no validation loss, and no prediction.
    """

    seed: int
    parameters: int
    train_loss: list[float]
    val_loss: list[float]
    clock: Clock
    prediction: Prediction | None


def stop(message: str) -> NoReturn:
    """Print one line to the standard error and leave with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        stop(message)


def whole_number(minimum: int) -> Callable[[str], int]:
    """The type of an option: a whole number, at least ``minimum``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {minimum}")
        return int(text)

    return parse


def json_path(text: str) -> Path:
    """A path that ends in .json, so that the .npz file beside it cannot be the same file."""
    if Path(text).suffix != ".json":
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name that ends in .json")
    return Path(text)


def option_parser(description: str) -> OneLineParser:
    """The options that both peers have; each adds its own."""
    parser = OneLineParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add, count = parser.add_argument, whole_number(1)
    add("--bags", type=Path, required=True, help="the .npz file that holds the bags")
    add("--out", type=json_path, required=True, help="the .json file to write; the .npz lies beside it")
    add("--seed", type=whole_number(0), default=0, help="seed of the first member; member i adds i")
    add("--members", type=count, default=1, help="members, trained one after the other")
    add("--epochs", type=count, default=20, help="most epochs of a member")
    add("--patience", type=count, default=10, help="epochs without a better validation loss")
    class_weights = "weigh the training loss by total / (2 x count of the class)"
    add("--class-weights", action=argparse.BooleanOptionalAction, default=True, help=class_weights)
    # At least 2: the first epoch warms up and does not count.
    timing = "train so many epochs without validation, and write times only"
    add("--timing-only-epochs", type=whole_number(2), help=timing)
    return parser


def require(*packages: str) -> None:
    """Leave with one line that says what to install if a package is not there."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        stop(f"{' and '.join(missing)} not installed: pip install 'mil_jax[peers]' (PyTorch's CPU build suffices)")


def read_split(path: Path, name: str) -> Split:
    """The bags called ``name`` (train, val or test) in the file; stops where they do not fit."""
    if not path.is_file():
        stop(f"--bags {path}: no such file")
    try:
        with np.load(path) as arrays:
            instances, labels = arrays[f"{name}_instances"], arrays[f"{name}_labels"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        stop(f"--bags {path}: expected a whole .npz file with {name}_instances and {name}_labels")
    if instances.ndim != 4 or labels.shape != instances.shape[:1] or not labels.size:
        shapes = f"{name}_instances {instances.shape} and {name}_labels {labels.shape}"
        stop(f"--bags {path}: {shapes}: expected [B, K, height, width] and [B] with B at least 1")
    if not np.isin(labels, (0, 1)).all():
        stop(f"--bags {path}: {name}_labels: expected 0 or 1")
    return Split(instances.astype(np.float32), labels.astype(np.int32))


def class_weights(labels: np.ndarray, enabled: bool) -> tuple[float, float]:
    """The weights of classes 0 and 1, total / (2 x count); both 1 where not enabled."""
    if not enabled:
        return 1.0, 1.0
    negative, positive = np.bincount(labels, minlength=2).tolist()
    if not negative or not positive:
        bags = f"{negative} negative and {positive} positive bags"
        stop(f"train_labels hold {bags}: class weights need both classes, or --no-class-weights")
    return labels.size / (2 * negative), labels.size / (2 * positive)


def area_under_roc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The Mann-Whitney statistic by midranks; None where a class is missing.

    Tied scores share the mean of their ranks, so a tied pair counts one half.
    """
    positive = labels == 1
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    midrank = np.cumsum(size) - (size - 1) / 2
    above = midrank[group][positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def member_record(member: Member, train: Split, test: Split | None) -> dict[str, Any]:
    """One member as it is written to the JSON file; the best epoch counts from 0."""
    steps = [1e6 * seconds / train.labels.size for seconds in member.clock.train_seconds]
    record: dict[str, Any] = {
        "seed": member.seed,
        "epochs_run": len(steps),
        "parameters": member.parameters,
        "train_loss": member.train_loss,
        "epoch_seconds": member.clock.epoch_seconds,
        "microseconds_per_step_by_epoch": steps,
        "microseconds_per_step": steady_median(steps),
    }
    if test is None or member.prediction is None:
        return record
    probabilities, labels = member.prediction.probabilities, test.labels
    of_label = probabilities[np.arange(labels.size), labels].astype(np.float64)
    return record | {
        "val_loss": member.val_loss,
        "best_epoch": int(np.argmin(member.val_loss)),
        "test_loss": float(-np.mean(np.log(np.clip(of_label, 1e-7, 1.0)))),  # without L2; the margin is Keras'
        "test_accuracy": float(np.mean(probabilities.argmax(axis=1) == labels)),
        "test_auc": area_under_roc(probabilities[:, 1], labels),
    }


def steady_median(per_epoch: list[float]) -> float | None:
    """Median over the epochs after the first, which compiles and warms up; None without any."""
    return statistics.median(per_epoch[1:]) if len(per_epoch) > 1 else None


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def write_json(out: Path, content: Any) -> None:
    """Write a file that is whole or absent."""
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(out)


def write_results(out: Path, peer: dict[str, Any], members: list[Member], train: Split, test: Split | None) -> None:
    """Write the results of a run; the JSON file comes last, so that it stands for the whole.

    Args:
        out: the JSON file; ``probabilities [S, B, C]`` and ``attention [S, B, K]`` of the test bags
            go to the .npz file of the same name, except where only times were taken.
        peer: what is true of all members: name, backend, versions, threads.
        members: the S members.
        train: the training bags, one step each.
        test: the test bags, or None where only times were taken.
    """
    records = [member_record(member, train, test) for member in members]
    steady = [us for record in records for us in record["microseconds_per_step_by_epoch"][1:]]
    predictions = [member.prediction for member in members if member.prediction is not None]
    if predictions:
        probabilities, attention = (np.stack(arrays) for arrays in zip(*predictions, strict=True))
        np.savez(out.with_suffix(".npz"), probabilities=probabilities, attention=attention)
    summary = {
        "mode": "timing" if test is None else "full",
        "bag_size": train.bag_size,
        "steps_per_epoch": train.labels.size,
        "parameters": records[0]["parameters"],
        "microseconds_per_step": statistics.median(steady) if steady else None,
        "usable_cores": usable_cores(),
        "peak_memory_mib": peak_memory_mib(),
        "members": records,
    }
    write_json(out, peer | summary)


def run_members(
    options: argparse.Namespace,
    peer: dict[str, Any],
    fit_member: Callable[[argparse.Namespace, int, Split, Split, Split], Member],
    time_member: Callable[[argparse.Namespace, int, Split], Member],
) -> None:
    """Read the bags, train or time the members one after the other, write the results."""
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # better known before training than after it
    except OSError as problem:
        stop(f"--out {options.out}: the folder cannot be made: {problem.strerror}")
    peer["versions"] = {"python": platform.python_version(), "numpy": np.__version__} | peer["versions"]
    train, test = read_split(options.bags, "train"), None
    if options.timing_only_epochs:
        members = [time_member(options, i, train) for i in range(options.members)]
    else:
        val, test = read_split(options.bags, "val"), read_split(options.bags, "test")
        members = [fit_member(options, i, train, val, test) for i in range(options.members)]
    write_results(options.out, peer, members, train, test)
