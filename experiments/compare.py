r"""Is A better than B, by how much, how sure is that, and how many seeds would tell?

A and B are two settings of `own_bags.py`, as options or as folders of runs that have ended. They are compared bag by
bag and seed by seed: the same bags, the same folds, the same seeds. A difference has three errors, and each test knows
another part of them: the bootstrap what other groups (patients) and seeds would change, the tests over folds what other
training bags would change. Besides, what the best of n seeds and a choice on the test bags would pretend.

    python experiments/compare.py --a=--pooling=gated_attention --b=--pooling=embedding_mean --members 4
    python experiments/compare.py --a="--scale raw" --b="--scale standard" --common="--features DIR --table cohort.csv"
    python experiments/compare.py --a RUN --b RUN
    python experiments/compare.py --table results.csv --columns dataset pooling accuracy      (ranks over data sets)

Without features, the bags are those of the package's digits, in 60 groups.
"""

import csv
import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import own_bags

from mil_jax.errors import InputError, check_number, check_whole
from mil_jax.rank_tables import compare_ranks, table_of_scores
from mil_jax.run import cli
from mil_jax.run.config import aside
from mil_jax.run.pairs import Side, check_pair, judgements, load_side
from mil_jax.run.screen import print_table, say
from mil_jax.run.study import Study, StudyConfig, begin, open_study
from mil_jax.significance import (
    Difference,
    Posterior,
    bayesian_t_test,
    best_of,
    bootstrap_difference,
    choice_gap,
    corrected_t_test,
    seeds_needed,
    win_rate,
)
from mil_jax.text import Table

Row = dict[str, Any]


@dataclass(frozen=True)
class Config(StudyConfig):
    """Options of the comparison."""

    a: str = ""
    """Options of own_bags.py, in quotes, or the folder of a run that has ended."""
    b: str = ""
    """The same for the other one."""
    common: str = ""
    """Options of own_bags.py for both: the bags, the folds, how long to train."""
    members: int = 4
    """Seeds of each fit, where A and B are options."""
    rope: float = 0.01
    """Half the width of the region in which a difference of AUC counts as none."""
    table: Path | None = aside(None)
    """Instead of A and B, a table of scores of several methods on several data sets."""
    columns: tuple[str, str, str] = ("dataset", "pooling", "auc")
    """Its columns with the data sets, the methods, and the scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("members", self.members, 1)
        check_number("rope", self.rope, 0)
        for name in ("a", "b") if self.table is None else ():
            if not getattr(self, name).strip():
                raise InputError(name, getattr(self, name), "expected options of own_bags.py, or the folder of a run")


def main(config: Config) -> Path:
    """Compares, and returns the folder of the comparison."""
    return compare_two(config) if config.table is None else compare_many(config, config.table)


# ---- two settings ----


def compare_two(config: Config) -> Path:
    """A against B."""
    study = begin("compare", __doc__, config, config.members)
    settings = {name: parsed(study, name) for name in ("a", "b")}  # what cannot be run is refused before training
    sides = {
        name: load_side(setting if isinstance(setting, Path) else own_bags.main(setting), name)
        for name, setting in settings.items()
    }
    a, b = sides["a"], sides["b"]
    check_pair(a, b)
    rows, facts = summarise(config, a, b)
    with open_study(study, {name: side.content_hash for name, side in sides.items()}) as run:
        run.write_csv("results.csv", rows)
        run.write_csv("scores.csv", score_rows(a, b))
        run.write_json("summary.json", facts)
    print_table(Table(f"AUC, A: {config.a}, B: {config.b}", tuple(rows[0]), [list(row.values()) for row in rows]))
    for sentence in facts["sentences"]:
        say(sentence)
    say(f"folder: {study.out}")
    return study.out


def parsed(study: Study, name: str) -> Path | own_bags.Config:
    """The folder of a run, or the config of one to come, inside the study's folder."""
    config, text = study.config, getattr(study.config, name)
    if Path(text).is_dir():
        return Path(text)
    words = [*shlex.split(config.common), *shlex.split(text)]
    fixed = {"members": config.members, "seed": config.seed, "compute": config.compute}
    try:
        options = cli.parse(own_bags.Config, own_bags.__doc__, own_bags.Config(**fixed), words)
    except SystemExit:
        raise InputError(name, text, "expected options of own_bags.py, or the folder of a run") from None
    return dataclasses.replace(options, out=study.out.with_name(f"{study.out.name}-{name}"))


def summarise(config: Config, a: Side, b: Side) -> tuple[list[Row], dict[str, Any]]:
    """The rows of the table, and all numbers with the sentences that say them."""
    key = jax.random.key(config.seed)
    mean, low, high = bootstrap_difference(judgements(a, b), key)
    of_fits, of_seeds = (a.auc - b.auc).mean(axis=0), (a.auc - b.auc).mean(axis=1)
    folds = corrected_t_test(of_fits, a.test_per_train) if len(of_fits) > 1 else None
    belief = bayesian_t_test(of_fits, a.test_per_train, config.rope) if folds else None
    seeds = corrected_t_test(of_seeds, 0.0)
    facts = {
        "difference": mean, "low": low, "high": high, "folds": folds, "posterior": belief, "seeds": seeds,
        "wins_by_seed": win_rate(a.auc.mean(axis=1), b.auc.mean(axis=1)), "seeds_needed": seeds_needed(of_seeds),
        "best_of": {name: best_gain(side) for name, side in (("a", a), ("b", b))},
        "chosen_on_test": {name: choice_gap(side.val_loss, side.auc) for name, side in (("a", a), ("b", b))},
    }  # fmt: skip
    rows: list[Row] = [
        {"difference A - B": "bootstrap over groups and seeds", "mean": mean, "low": low, "high": high, "p": None},
        {"difference A - B": "over seeds: other initial parameters and orders", **interval(seeds)},
    ]
    if folds:
        rows.append({"difference A - B": "over folds: other training bags (corrected)", **interval(folds)})
    plain = {
        name: dataclasses.asdict(fact) if isinstance(fact, Difference | Posterior) else fact
        for name, fact in facts.items()
    }
    return rows, plain | {"sentences": sentences(config, a, facts)}


def interval(difference: Difference) -> Row:
    """Mean, interval and p of a test."""
    return {name: getattr(difference, name) for name in ("mean", "low", "high", "p")}


def best_gain(side: Side) -> float:
    """By how much the best of all seeds is better than the mean one, in the mean over folds."""
    of_seeds = side.auc.mean(axis=1)
    return best_of(of_seeds, len(of_seeds)) - float(of_seeds.mean())


def sentences(config: Config, a: Side, facts: dict[str, Any]) -> list[str]:
    """What the numbers say."""
    low, high, seeds, needed = facts["low"], facts["high"], len(a.auc), facts["seeds_needed"]
    verdict = "A is better" if low > 0 else "B is better" if high < 0 else "they cannot be told apart"
    said = [f"{verdict}: the 95 % interval over groups and seeds is {low:+.4f} to {high:+.4f}"]
    if facts["posterior"]:
        belief = facts["posterior"]
        said.append(
            f"over other training bags, A is better with probability {belief.a_better:.2f}, B with "
            f"{belief.b_better:.2f}, and with {belief.equivalent:.2f} they differ by less than {config.rope:g}"
        )
    said.append(f"A wins on {facts['wins_by_seed']:.0%} of {seeds} seeds")
    said.append(
        "no number of seeds would tell" if needed is None
        else f"to tell this difference over seeds (power 0.8), {needed} are needed; here are {seeds}"
    )  # fmt: skip
    best, test = facts["best_of"], facts["chosen_on_test"]
    said.append(
        f"the best of {seeds} seeds would pretend {best['a']:+.4f} (A), {best['b']:+.4f} (B); a seed chosen on the "
        f"test bags of each fold {test['a']:+.4f}, {test['b']:+.4f} over one chosen by validation loss"
    )
    return said


def score_rows(a: Side, b: Side) -> list[Row]:
    """The AUC of each seed and fold."""
    return [
        {"seed": seed, "fit": fit, "a": float(a.auc[seed, fit]), "b": float(b.auc[seed, fit])}
        for seed in range(len(a.auc)) for fit in range(a.auc.shape[1])
    ]  # fmt: skip


# ---- many methods, many sets ----


def compare_many(config: Config, path: Path) -> Path:
    """Ranks of methods over data sets, with the critical difference."""
    study = begin("compare", __doc__, config, 1)
    sets, methods, scores = table_of_scores(read_rows(path), *config.columns)
    ranks = compare_ranks(scores)
    order = np.argsort(ranks.mean, kind="stable")
    rows = [
        {"method": methods[i], "mean rank": float(ranks.mean[i]), **dict(zip(sets, scores[:, i].tolist(), strict=True))}
        for i in order
    ]
    alike = [[methods[i] for i in clique] for clique in ranks.cliques()]
    with open_study(study, {"table": str(path)}) as run:
        run.write_csv("results.csv", rows)
        facts = {"p": ranks.p, "friedman": ranks.chi2, "critical_difference": ranks.critical, "cliques": alike}
        run.write_json("summary.json", facts)
    print_table(Table(f"Ranks over {len(sets)} data sets", tuple(rows[0]), [list(row.values()) for row in rows]))
    say(f"any difference at all: p = {ranks.p:.3g} (Iman and Davenport)")
    say(f"critical difference of mean ranks: {ranks.critical:.2f} (Nemenyi)")
    for names in alike:
        say(f"not told apart: {', '.join(names)}")
    say(f"folder: {study.out}")
    return study.out


def read_rows(path: Path) -> Sequence[dict[str, str]]:
    """The rows of a CSV."""
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("table", str(path), f"expected a CSV that can be read ({error})") from None


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
