"""How much of the spread between seeds is due to initial parameters, order of bags, and draw of training bags.

Trains an ensemble for each of the three alone, with the other two the same for all members, and one with all three
together, and compares the standard deviations of what the members score on the same test bags.

    python experiments/seed_spread.py --dataset mnist
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax import datasets
from mil_jax.errors import InputError, check_whole
from mil_jax.model import ModelConfig
from mil_jax.optimizer import HyperConfig
from mil_jax.run import cli
from mil_jax.run.config import DataConfig, Problem, RunConfig
from mil_jax.run.experiment import run_bags
from mil_jax.run.saved import load_finished
from mil_jax.run.screen import print_table, say
from mil_jax.run.study import StudyConfig, begin, open_study
from mil_jax.sampling import BagsConfig, sample_splits, sample_splits_of_members
from mil_jax.text import Table
from mil_jax.training import FitConfig

SCORES = ("test_auc", "test_accuracy", "test_loss", "instance_hit_at_1", "positive_bags_normalized_entropy")
RESAMPLES = 2000


@dataclass(frozen=True)
class Run(RunConfig):
    """Options of the run of one ensemble, as mnist_bags has them."""

    data: DataConfig = DataConfig()
    bags: BagsConfig = BagsConfig()


@dataclass(frozen=True)
class Config(StudyConfig):
    """Options of the experiment; in `out`, each ensemble has a run folder of its own."""

    members: int = 64
    """Members of each ensemble."""
    vary: tuple[str, ...] = ("init", "order", "bags", "init,order,bags")
    """What differs between the members of each ensemble."""
    data: DataConfig = DataConfig()
    bags: BagsConfig = BagsConfig(test_bags=3000)
    model: ModelConfig = ModelConfig()
    hyper: HyperConfig = HyperConfig()
    fit: FitConfig = FitConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("members", self.members, 2)  # or there is no spread
        if not self.vary or len(set(self.vary)) < len(self.vary):
            raise InputError("vary", self.vary, "expected one or more different ones")
        for parts in self.vary:
            self.run(parts, Path("run"))

    def run(self, parts: str, out: Path) -> Run:
        """The run whose members differ in `parts`."""
        same = {name: getattr(self, name) for name in ("seed", "members", "model", "hyper", "fit", "compute")}
        return Run(**same, vary=parts, plot_bags=0, out=out / parts.replace(",", "-"), data=self.data, bags=self.bags)


def main(config: Config) -> Path:
    """Runs the ensembles and returns the folder of results."""
    study = begin("seed_spread", __doc__, config, config.members)
    data = datasets.load(config.data.dataset, config.data.data_dir, config.data.manual_dir)
    key, _ = jax.random.split(jax.random.key(config.seed))
    shared = by_member = sample_splits(key, data, config.bags)
    if any("bags" in parts.split(",") for parts in config.vary):
        by_member = sample_splits_of_members(key, data, config.bags, config.members)
    with open_study(study, {"name": data.name, "content_hash": data.content_hash}) as run:
        rows: list[dict[str, Any]] = []
        for parts in config.vary:
            splits = by_member if "bags" in parts.split(",") else shared
            problem = Problem(data.name, splits, content_hash=data.content_hash, experiment="mnist_bags")
            rows += spread_rows(parts, scores_of(finish(config.run(parts, study.out), problem)))
        run.write_csv("results.csv", rows)
        run.write_json("summary.json", {"rows": rows})
    print_results(rows, config.members)
    say(f"folder: {study.out}")
    return study.out


def finish(config: Run, problem: Problem) -> Path:
    """The folder of an ensemble's run; of what an earlier sitting did, nothing is done again."""
    out, resume = Path(config.out or ""), config.compute.resume
    if resume and (out / "summary.json").exists():
        return out
    resume = resume and (out / "config.json").exists()
    return run_bags(replace(config, compute=replace(config.compute, resume=resume)), problem)


def scores_of(run: Path) -> dict[str, np.ndarray]:
    """What the members of a run scored that have not diverged, [S] each."""
    members = [member for member in load_finished(run).summary.members if not member["diverged"]]
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


def print_results(rows: list[dict[str, Any]], members: int) -> None:
    """A table for each score."""
    for name in SCORES:
        cells = [
            (row["varied"], *(f"{row[part]:.5f}" for part in ("mean", "standard_deviation", "low", "high")))
            for row in rows
            if row["score"] == name
        ]  # fmt: skip
        title = f"{name.replace('_', ' ')}, {members} members on the same test bags"
        print_table(Table(title, ("varied", "mean", "standard deviation", "95 % from", "to"), cells))


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
