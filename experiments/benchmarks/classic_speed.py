"""How long does a cross-validation of gated attention take, next to a plain PyTorch loop?

    python experiments/benchmarks/classic_speed.py --data-dir FOLDER

The work of one row of `classic_benchmarks.py`: one data set, gated attention, 5 times 10 folds. mil_jax does it as it
is, from the command line, without compiled programs kept from earlier. The PyTorch loop (`classic_torch.py`) has the
same bags, folds, model, optimiser and rule to stop, and does one fit after the other; a second time as one process per
core, which share the fits. Seconds are those of training and validation, for mil_jax with compilation; without the
start of Python, reading, standardising and the test folds. As both stop early on curves of their own, the time per fit
and epoch stands beside. It writes results.json. PyTorch comes with `pip install 'mil_jax[peers]'`.
"""

import csv
import json
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import measure
import numpy as np
import peer_io

from mil_jax import datasets
from mil_jax.errors import InputError
from mil_jax.protocols import cross_validation
from mil_jax.run import cli
from mil_jax.run.folder import RunFolder
from mil_jax.run.screen import print_table, say
from mil_jax.text import Table

POOLING = "gated_attention"


@dataclass(frozen=True)
class Config:
    """Options of the benchmark; what is not here is as in classic_benchmarks."""

    data_dir: Path | None = None
    """The folder with the data sets."""
    dataset: str = "musk1"
    """Which of them."""
    repeats: int = 5
    """Draws of folds."""
    folds: int = 10
    """Folds of each draw."""
    rounds: int = 2
    """How often everything is measured; the ways take turns."""
    seed: int = 0
    """Decides folds and fits."""
    out: Path = field(default_factory=lambda: measure.default_out("classic_speed"))
    """The folder of the results."""

    def __post_init__(self) -> None:
        measure.at_least(1, self, "rounds", "repeats")


def main(config: Config) -> None:
    """Measures both and compares them."""
    if config.data_dir is None:
        raise InputError("data_dir", None, "expected the folder that holds the data sets")
    peer_io.require("torch")
    data = datasets.load_table_set(config.dataset, config.data_dir)
    measure.start(config.out)
    measure.warn_if_busy()
    ways = {"mil_jax": partial(run_ours, config, data), "PyTorch": partial(run_torch, 1)}
    if measure.CORES > 1:
        ways[f"PyTorch, {measure.CORES} processes"] = partial(run_torch, measure.CORES)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as shared:
        task = Path(shared) / "task.npz"
        for number in range(1, config.rounds + 1):
            for name, way in ways.items():
                rounds[name].append(way(task))
                say(f"round {number} of {config.rounds}  {name:22} {rounds[name][-1]['seconds']:.1f} s")
    rows = [{"way": name} | {key: median(one[key] for one in many) for key in many[0]} for name, many in rounds.items()]
    content = {**measure.describe(config), "rows": rows, "rounds": rounds}
    RunFolder(config.out, "", can_resume=False).write_json("results.json", content)
    print_rows(config, rows)
    say(f"results: {config.out}")


def run_ours(config: Config, data: datasets.BagSet, task: Path) -> dict[str, float]:
    """The experiment itself, in a process of its own; what it says of its options makes the task of the others."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        options = f"--datasets={config.dataset} --poolings={POOLING} --repeats={config.repeats} --folds={config.folds}"
        command = f"{options} --seed={config.seed} --compilation-cache=off".split()
        measure.run_scripts("../classic_benchmarks.py", [[*command, f"--data-dir={config.data_dir}", f"--out={out}"]])
        with (out / "results.csv").open() as file:
            row = next(csv.DictReader(file))
        write_task(json.loads((out / "config.json").read_text())["options"], data, task)
    epochs = float(row["epochs_run"]) * int(row["fits"])
    return {"seconds": float(row["seconds"]), "epochs": epochs, "accuracy": float(row["accuracy"])}


def write_task(options: dict[str, Any], data: datasets.BagSet, path: Path) -> None:
    """Bags, folds and options, as `classic_benchmarks.py` has them."""
    key = jax.random.fold_in(jax.random.key(options["seed"]), 0)
    law = {name: options[name] for name in ("folds", "repeats", "val_share")}
    folds = cross_validation(key, data.label, **law)._asdict()
    np.savez(path, x=data.x, sizes=data.sizes, label=data.label, options=json.dumps(options), **folds)


def run_torch(copies: int, task: Path) -> dict[str, float]:
    """The loop, in as many processes as `copies`; the slowest one's time counts."""
    parts = [["--task", str(task), "--first", str(i), "--stride", str(copies)] for i in range(copies)]
    totals = [
        {name: sum(fit[name] for fit in answer["fits"]) for name in ("seconds", "epochs", "right", "judged")}
        for answer in measure.answers_of("classic_torch.py", parts)
    ]
    epochs, right, judged = (sum(total[name] for total in totals) for name in ("epochs", "right", "judged"))
    return {"seconds": max(total["seconds"] for total in totals), "epochs": epochs, "accuracy": right / judged}


def print_rows(config: Config, rows: list[dict[str, Any]]) -> None:
    """Seconds, and as multiples of mil_jax's."""
    per_epoch = [1e3 * row["seconds"] / row["epochs"] for row in rows]
    cells = [
        [row["way"], f"{row['seconds']:.1f}", f"{row['seconds'] / rows[0]['seconds']:.1f}", f"{row['epochs']:.0f}",
         f"{one:.2f}", f"{one / per_epoch[0]:.1f}", f"{row['accuracy']:.3f}"]
        for row, one in zip(rows, per_epoch, strict=True)
    ]  # fmt: skip
    columns = ("", "seconds", "x mil_jax", "epochs", "ms per epoch", "x mil_jax", "accuracy")
    title = f"{config.dataset}, {POOLING}, {config.folds * config.repeats} fits"
    print_table(Table(title, columns, cells, f"medians of {config.rounds} rounds; epochs: of all fits together"))


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
