r"""Which pooling finds what is known to decide, and which falls into a trap?

Problems whose answer is known: the three tests of Raff and Holt (2023), in which a model that looks at what a bag
lacks, or counts, is turned round in the test; the shifted mean (Harvey et al. 2025), whose best possible AUC is known,
by number of training bags; and the four digit problems of xMIL (Hense et al. 2024), in which it is known what each
instance says for and against a class. All poolings see the same bags and start from the same seeds; nothing is tuned.

    python experiments/known_answers.py
    python experiments/known_answers.py --poolings gated_attention instance_max --repeats 8           (a look)
    python experiments/known_answers.py --dataset mnist --manual-dir FOLDER                           (full MNIST)

`results.csv` has a row for each problem, number of training bags and pooling: AUC in training and in the test, the
share of seeds that pass with its Wilson interval, the verdict, and how attention and scores agree with the evidence.
The shifted mean has 64 features here, so that a thousand bags tell; `--features 768` is the authors' and takes longer.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array

from mil_jax import datasets, plots
from mil_jax.errors import InputError, check_number, check_whole
from mil_jax.known_answers import ShiftedMean
from mil_jax.known_answers.judge import HYPER, Answer, answers_of, keys_of_seeds
from mil_jax.known_answers.sets import (
    Counts,
    Sets,
    digit_groups,
    digit_sets,
    principal_components,
    raff_holt_sets,
    shifted_mean_sets,
)
from mil_jax.known_answers.verdicts import RULE
from mil_jax.losses import Classes
from mil_jax.model import Pooling, build
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.run import cli
from mil_jax.run.ablation import train
from mil_jax.run.config import DataConfig
from mil_jax.run.fit import Task
from mil_jax.run.processes import placement_of
from mil_jax.run.screen import print_table, say
from mil_jax.run.study import PoolingsConfig, Study, begin, open_study, print_rows, summary_row
from mil_jax.text import Table
from mil_jax.training import FitConfig

Row = dict[str, Any]
# Those without parameters or with attention alone, which 45 minutes suffice for; any other may be named.
PLAIN: tuple[Pooling, ...] = (
    "gated_attention", "attention", "embedding_mean", "embedding_max", "embedding_lse",
    "instance_mean", "instance_max", "instance_noisy_or",
)  # fmt: skip


@dataclass(frozen=True)
class Config(PoolingsConfig):
    """Options of the experiment."""

    can_resume: ClassVar[bool] = False

    poolings: tuple[Pooling, ...] = PLAIN
    repeats: int = 32
    """Seeds; each has bags, initial parameters and orders of its own, the same ones for all poolings."""
    data: DataConfig = DataConfig()
    test_train_bags: int = 400
    """Bags that a seed learns each of the three tests from."""
    shifted_train_bags: tuple[int, ...] = (64, 256, 1024)
    """Bags that a seed learns the shifted mean from, a point of the curve for each number."""
    digit_train_bags: int = 500
    """Bags that a seed learns each digit problem from."""
    val_bags: int = 100
    """Bags of each problem that the epoch is chosen on."""
    test_bags: int = 500
    """Bags of each problem that nothing is chosen on."""
    deltas: tuple[float, ...] = (2.0,)
    """Shifts of the mean, one or two, in standard deviations; a panel of the figure for each."""
    features: int = 64
    """Features of the shifted mean, of which one is shifted."""
    components: int = 50
    """Principal components of the pixels that stand for a digit: frozen features."""
    hidden: tuple[int, ...] = (64, 32)
    """Widths of the encoder's dense layers."""
    attention_units: int = 32
    fit: FitConfig = FitConfig(epochs=30, batch_size=8, patience=6)
    hyper: HyperConfig = HYPER

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compute.resume:
            raise InputError("resume", True, "expected another folder: this study is started anew")
        for name in ("test_train_bags", "digit_train_bags", "val_bags", "test_bags"):
            check_whole(name, getattr(self, name), 2)  # one of each label
        if not self.shifted_train_bags or not 1 <= len(self.deltas) <= 2:
            raise InputError("deltas", self.deltas, "expected one or two, and a number of training bags")
        for count in self.shifted_train_bags:
            check_whole("shifted_train_bags", count, 2)
        for delta in self.deltas:
            check_number("deltas", delta, 0, ends="()")
        check_whole("components", self.components, 1)


def main(config: Config) -> Path:
    """Runs the experiment and returns its folder."""
    groups = max(3, len(config.shifted_train_bags))
    study = begin("known_answers", __doc__, config, groups * config.repeats)
    with study.watch.phase("data"):
        data = datasets.load(config.data.dataset, config.data.data_dir, config.data.manual_dir)
        drawn = list(draw(config, data))
    rows: list[Row] = []
    with open_study(study, {data.name: data.content_hash}) as run:
        for pooling in config.poolings:
            for sets in drawn:
                rows += measure(study, pooling, sets)
            run.write_csv("results.csv", rows)
        run.write_figure("auc_by_training_bags", draw_curves(config, rows))
        verdicts, seconds = [of_pooling(rows, pooling) for pooling in config.poolings], study.watch.read()
        run.write_json("summary.json", {"rule": RULE, "verdicts": verdicts, "rows": rows, "seconds": seconds})
    print_verdicts(verdicts, config.repeats)
    signed = [row for row in rows if row["problem"] == "pos_neg"]
    scores = ("test_auc", "attention_auroc", "scores_auroc", "attention_two_sided", "scores_two_sided")
    print_rows("Explanations against evidence with signs", signed, ("problem", "pooling"), scores)
    say(f"{sum(row['fits'] for row in rows)} fits, {seconds['total'] / 60:.1f} minutes")
    say(f"folder: {run.path}")
    return run.path


def draw(config: Config, data: datasets.Dataset) -> Iterator[Sets]:
    """The bags of all problems, those that one program trains together."""
    key_tests, key_shifts, key_digits = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 3)
    val, test = config.val_bags, config.test_bags
    yield raff_holt_sets(key_tests, config.repeats, Counts(config.test_train_bags, val, test))
    for number, delta in enumerate(config.deltas):
        key, law = jax.random.fold_in(key_shifts, number), ShiftedMean(delta, config.features)
        yield shifted_mean_sets(key, config.repeats, law, config.shifted_train_bags, val, test)
    digits, counts = principal_components(data, config.components), Counts(config.digit_train_bags, val, test)
    for number, problems in enumerate(digit_groups()):
        yield digit_sets(jax.random.fold_in(key_digits, number), config.repeats, counts, digits, problems)


# ---- one pooling ----


def measure(study: Study, pooling: Pooling, sets: Sets) -> list[Row]:
    """The rows of a pooling on the problems of an ensemble."""
    config, groups = study.config, len(sets.groups)
    network = config.network(pooling)
    network = dataclasses.replace(network, output="sigmoid" if sets.classes == 2 else "softmax")
    mil = build(network, Classes(sets.classes))
    keys = keys_of_seeds(jax.random.fold_in(jax.random.key(config.seed), 0), config.repeats, groups)
    hyper = make_hyper(sets.train.bags, config.hyper, mil.target)
    title = f"{pooling}, {', '.join(dict.fromkeys(group.problem for group in sets.groups))}"
    task = Task(mil, keys, sets.train.bags, sets.val.bags, config.fit, hyper)
    trained, seconds = train(study, task, title)
    with study.watch.phase("evaluate"):
        answers = answers_of(mil, trained.members, sets, placement_of(config.compute, task.members))
    return [row_of(config, pooling, answer, seconds / groups) for answer in answers]


def row_of(config: Config, pooling: Pooling, answer: Answer, seconds: float) -> Row:
    """A row of results.csv."""
    group, verdict = answer.group, answer.verdict
    row = summary_row({"problem": group.problem, "pooling": pooling, "train_bags": group.train_bags}, answer.scores)
    return row | {
        "verdict": verdict.word, "pass_rate": verdict.passes, "pass_rate_low": verdict.low,
        "pass_rate_high": verdict.high, "learned_rate": verdict.learned, "trapped_rate": verdict.trapped,
        "asked": group.asked, "ceiling": group.ceiling, "order_blind_ceiling": group.order_blind_ceiling,
        "fits": config.repeats, "seconds": seconds,
    }  # fmt: skip


# ---- what is shown ----


def of_pooling(rows: Sequence[Row], pooling: str) -> dict[str, str]:
    """The verdict on each problem, and the share of seeds that pass; of a curve, that at the most training bags."""
    own = sorted((row for row in rows if row["pooling"] == pooling), key=lambda row: row["train_bags"])
    last = {row["problem"]: f"{row['verdict']} ({row['pass_rate']:.2f})" for row in own}
    return {"pooling": pooling} | {name: last[name] for name in dict.fromkeys(row["problem"] for row in rows)}


def print_verdicts(verdicts: Sequence[Mapping[str, str]], seeds: int) -> None:
    """The table of verdicts."""
    columns = [name.replace("_", " ") for name in verdicts[0]]
    rows = [[cell.replace("_", " ") for cell in row.values()] for row in verdicts]
    print_table(Table(f"Verdicts over {seeds} seeds (share of seeds that pass)", columns, rows, RULE))


def draw_curves(config: Config, rows: Sequence[Row]) -> Any:
    """Test AUC against the number of training bags, in bands of one standard error, and the ceilings."""
    panels, ceilings = {}, {}
    for delta in config.deltas:
        problem, title = f"shifted_mean_{delta:g}", f"test AUC (± 1 s. e.), shift {delta:g} s. d."
        panels[title] = {
            pooling.replace("_", " "): curve([r for r in rows if (r["problem"], r["pooling"]) == (problem, pooling)])
            for pooling in config.poolings
        }
        (row, *_) = (row for row in rows if row["problem"] == problem)
        ceilings[title] = {"Bayes": row["ceiling"], "Bayes, order unknown": row["order_blind_ceiling"]}
    return plots.panels_below_ceilings(np.array(config.shifted_train_bags), panels, ceilings, "training bags")


def curve(rows: Sequence[Row]) -> tuple[Array | np.ndarray, ...]:
    """Middle, low and high over the numbers of training bags."""
    auc, error = (np.array([row[name] for row in rows]) for name in ("test_auc", "test_auc_se"))
    return auc, auc - error, auc + error


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
