"""What the peers share: options, bags, timings and the files of results.

`keras_peer.py`, `torch_peer.py` and `classic_torch.py` are the references that the benchmarks compare with. Each runs
in a process of its own and needs no part of mil_jax, so that its thread pools, its memory and its choice of backend are
its own. Whatever must be the same for all lives here, on the standard library and NumPy alone.

Axes: B bags · K slots per bag · C classes (2) · S members · E epochs.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
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
PATIENCE = 10


@dataclass(frozen=True)
class Split:
    """Full bags: ``instances [B, K, height, width]`` in [0, 1] and ``labels [B]``, 0 or 1."""

    instances: np.ndarray
    labels: np.ndarray

    @property
    def class_weights(self) -> tuple[float, float]:
        """The weights of classes 0 and 1, total / (2 x count)."""
        negative, positive = np.bincount(self.labels, minlength=2).tolist()
        if not negative or not positive:
            stop(f"train_labels hold {negative} negative and {positive} positive bags: expected both classes")
        return self.labels.size / (2 * negative), self.labels.size / (2 * positive)


class Prediction(NamedTuple):
    """Of every test bag: ``probabilities [B, C]`` and ``attention [B, K]``."""

    probabilities: np.ndarray
    attention: np.ndarray


@dataclass(frozen=True)
class Member:
    """One member's run, epoch by epoch; where only the time was asked for, without validation and prediction."""

    seed: int
    parameters: int
    train_loss: list[float]  # both losses hold L2; this one is class-weighted
    val_loss: list[float]
    epoch_seconds: list[float]
    train_seconds: list[float]  # of the training part of an epoch alone
    prediction: Prediction | None = None


# ---- options ----


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


def option_parser(description: str, timing_only_epochs: int | None = None) -> OneLineParser:
    """The options of the peers that train members; each adds its own."""
    parser = OneLineParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--bags", type=Path, required=True, help="the .npz file that holds the bags")
    add("--out", type=json_path, required=True, help="the .json file to write; predictions lie beside it, as .npz")
    add("--seed", type=whole_number(0), default=0, help="seed of the first member; member i adds i")
    add("--members", type=whole_number(1), default=1, help="members, trained one after the other")
    text = "epochs without validation, of which only times are kept; the first one warms up"
    add("--timing-only-epochs", type=whole_number(2), default=timing_only_epochs, help=text)
    return parser


def keras_options() -> argparse.Namespace:
    """The command line of `keras_peer.py`."""
    parser = option_parser("The Keras example on given bags.")
    parser.add_argument("--epochs", type=whole_number(1), default=20, help="most epochs of a member")
    parser.add_argument("--backend", choices=("tensorflow", "jax"), default="tensorflow", help="Keras' backend")
    return parser.parse_args()


def torch_options() -> argparse.Namespace:
    """The command line of `torch_peer.py`."""
    parser = option_parser("The Keras example's model as a plain PyTorch loop.", timing_only_epochs=2)
    parser.add_argument("--threads", type=whole_number(1), default=1, help="threads of PyTorch")
    return parser.parse_args()


def classic_options() -> argparse.Namespace:
    """The command line of `classic_torch.py`."""
    parser = OneLineParser(description="Gated attention on feature vectors as a plain PyTorch loop.")
    add = parser.add_argument
    add("--task", type=Path, required=True, help="the .npz file of bags, folds and options")
    add("--out", type=json_path, required=True, help="the .json file to write")
    add("--first", type=whole_number(0), default=0, help="the first fit of this process")
    add("--stride", type=whole_number(1), default=1, help="it does every so manieth fit from there on")
    return parser.parse_args()


def colon_options() -> argparse.Namespace:
    """The command line of `colon_torch.py` and `colon_worker.py`."""
    parser = option_parser("The colon network with augmentation, timed.", timing_only_epochs=2)
    parser.add_argument("--threads", type=whole_number(1), default=1, help="threads of PyTorch")
    parser.add_argument("--channels-last", action="store_true", help="PyTorch's other layout of images")
    return parser.parse_args()


def features_options() -> argparse.Namespace:
    """The command line of `features_torch.py` and `features_worker.py`."""
    parser = option_parser("Gated attention on the features of slides, timed.", timing_only_epochs=2)
    parser.add_argument("--threads", type=whole_number(1), default=1, help="threads of PyTorch")
    parser.add_argument("--precision", default="float32", help="of the factors of mil_jax's products")
    return parser.parse_args()


def require(*packages: str) -> None:
    """Leave with one line that says what to install if a package is not there."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        stop(f"{' and '.join(missing)} not installed: pip install 'mil_jax[peers]' (PyTorch's CPU build suffices)")


# ---- files ----


def read_split(path: Path, name: str) -> Split:
    """The bags called ``name`` (train, val or test) in the file; stops where they do not fit."""
    expected = f"expected {name}_instances [B, K, height, width] and {name}_labels [B], 0 or 1, in a whole .npz file"
    try:
        with np.load(path) as arrays:
            instances, labels = arrays[f"{name}_instances"], arrays[f"{name}_labels"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        stop(f"--bags {path}: {expected}")
    whole = labels.shape == instances.shape[:1] and labels.size and np.isin(labels, (0, 1)).all()
    if instances.ndim != 4 or not whole:
        stop(f"--bags {path}: {expected}")
    return Split(instances.astype(np.float32), labels.astype(np.int32))


def read_task(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The options that a benchmark wrote, and its arrays, such as bytes of patches, and labels [B]."""
    with np.load(path) as arrays:
        held = dict(arrays)
    return json.loads(str(held.pop("task"))), held


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # Linux counts KiB, macOS bytes


def write_json(out: Path, content: Any) -> None:
    """Write a file that is whole or absent."""
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(out)


def write_results(out: Path, peer: dict[str, Any], members: list[Member], train: Split) -> None:
    """Write what is true of all members and each member's own; the JSON file comes last and stands for the whole.

    Where not only times were taken, the .npz file of the same name has ``probabilities [S, B, C]`` and ``attention
    [S, B, K]`` of the test bags.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    predictions = [member.prediction for member in members if member.prediction is not None]
    if predictions:
        probabilities, attention = (np.stack(arrays) for arrays in zip(*predictions, strict=True))
        np.savez(out.with_suffix(".npz"), probabilities=probabilities, attention=attention)
    write_timings(out, peer | {"bag_size": train.instances.shape[1]}, members, train.labels.size)


def write_timings(out: Path, peer: dict[str, Any], members: list[Member], steps: int) -> None:
    """Write the JSON file alone: times as microseconds per step, of which an epoch has so many."""
    records = [
        {name: value for name, value in vars(member).items() if name not in ("train_seconds", "prediction")}
        | {"microseconds_per_step_by_epoch": [1e6 * seconds / steps for seconds in member.train_seconds]}
        for member in members
    ]
    sizes = {"steps_per_epoch": steps, "usable_cores": usable_cores()}
    versions = {"python": platform.python_version(), "numpy": np.__version__} | peer["versions"]
    summary = {"versions": versions, "peak_memory_mib": peak_memory_mib(), "members": records}
    write_json(out, peer | sizes | summary)
