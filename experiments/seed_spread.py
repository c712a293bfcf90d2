"""How much of the spread between seeds is due to initial parameters, order of bags, and draw of training bags.

Trains an ensemble for each of the three alone, with the other two the same for all members, and one with all three
together, and compares the standard deviations of what the members score on the same test bags.

    python experiments/seed_spread.py --dataset mnist
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mnist_bags
import numpy as np

from mil_jax import cli, runs
from mil_jax.cli import Compute, ComputeOptions
from mil_jax.errors import InputError

SCORES = ("test_auc", "test_accuracy", "test_loss", "instance_hit_at_1", "positive_bags_normalized_entropy")
RESAMPLES = 2000


@dataclass(frozen=True)
class Config:
    """Options of the experiment; what is not here is as in mnist_bags."""

    members: int = 64
    """Members of each ensemble."""
    vary: tuple[str, ...] = ("init", "order", "bags", "init,order,bags")
    """What differs between the members of each ensemble."""
    seed: int = 0
    """Decides everything that is drawn."""
    dataset: str = "mnist-sample"
    """As in mnist_bags."""
    data_dir: Path | None = None
    """Where TensorFlow Datasets keeps prepared sets."""
    manual_dir: Path | None = None
    """A folder, only read, with the canonical .gz files."""
    train_bags: int = 1000
    """Bags to learn from."""
    val_bags: int = 300
    """Bags that early stopping looks at."""
    test_bags: int = 3000
    """Bags that nothing is chosen on."""
    epochs: int = 20
    """The most epochs that a member trains for."""
    out: Path | None = None
    """The folder of results, with a run folder for each ensemble; a new one under runs/seed_spread where not given."""
    compute: ComputeOptions = field(default=Compute())


def main(config: Config) -> Path:
    """Runs the ensembles and returns the folder of results."""
    out = config.out or mnist_bags.default_out("seed_spread", config)
    if config.members < 2:
        raise InputError("members", config.members, "a spread needs at least 2")
    for parts in config.vary:
        mnist_bags.check(problem(config, parts, out))
    cli.start_jax(config.compute, config.members)
    options = dataclasses.asdict(config)
    del options["compute"]
    if config.compute.resume:
        raise InputError("resume", True, "resume the run folder of one ensemble by mnist_bags, or start anew")
    with runs.open_run(out, {"experiment": "seed_spread", "options": options}, {}, can_resume=False) as run:
        results = {parts: scores_of(mnist_bags.main(problem(config, parts, out))) for parts in config.vary}
        rows = [row for parts, scores in results.items() for row in spread_rows(parts, scores)]
        run.write_csv("results.csv", rows)
        run.write_json("summary.json", {"rows": rows})
    print_results(rows, config, out)
    return out


def problem(config: Config, parts: str, out: Path) -> mnist_bags.Config:
    """The run of mnist_bags whose members differ in `parts`."""
    shared = {each.name for each in dataclasses.fields(mnist_bags.Config)} - {"out", "vary"}
    values = {name: value for name, value in vars(config).items() if name in shared}
    return mnist_bags.Config(**values, vary=parts, plot_bags=0, out=out / parts.replace(",", "-"))


def scores_of(run: Path) -> dict[str, np.ndarray]:
    """What the members of a run scored, [S] each."""
    members = json.loads((run / "summary.json").read_text())["members"]
    return {name: np.array([member[name] for member in members]) for name in SCORES}


def spread_rows(parts: str, scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Mean and standard deviation over members, the latter with a bootstrap interval of 95 %."""
    draw = np.random.default_rng(0)
    rows = []
    for name, values in scores.items():
        index = draw.integers(len(values), size=(RESAMPLES, len(values)))
        low, high = np.quantile(values[index].std(axis=1, ddof=1), (0.025, 0.975))
        rows.append(
            {"varied": parts, "score": name, "members": len(values), "mean": values.mean(),
             "standard_deviation": values.std(ddof=1), "low": low, "high": high}
        )  # fmt: skip
    return rows


def print_results(rows: list[dict[str, Any]], config: Config, out: Path) -> None:
    for name in SCORES:
        cells = [
            (row["varied"], *(f"{row[part]:.5f}" for part in ("mean", "standard_deviation", "low", "high")))
            for row in rows
            if row["score"] == name
        ]  # fmt: skip
        title = f"{name.replace('_', ' ')}, {config.members} members on the same test bags"
        cli.print_table(title, ("varied", "mean", "standard deviation", "95 % from", "to"), cells)
    cli.say(f"folder: {out}")


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
