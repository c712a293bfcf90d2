"""Comparisons of two settings and of many: against SciPy, numbers worked by hand, and simulations with known truth."""

import csv
import dataclasses
import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import assert_parts, command_here, message_of, rows_of, unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.metrics import roc_auc_score

from mil_jax.rank_tables import compare_ranks, table_of_scores
from mil_jax.run.summary import Summary
from mil_jax.significance import (
    Judgements,
    bayesian_t_test,
    best_of,
    bootstrap_difference,
    choice_gap,
    corrected_t_test,
    seeds_needed,
    win_rate,
)

script: Any = importlib.import_module("compare")
FEW = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**32 - 1)


# ---- tests over folds ----


@FEW
@given(seeds, st.integers(2, 30))
def test_without_shared_bags_it_is_the_paired_t_test(seed: int, count: int) -> None:
    values = np.random.default_rng(seed).normal(0.3, 1, count)
    expected: Any = stats.ttest_1samp(values, 0)
    found = corrected_t_test(values, 0.0)
    np.testing.assert_allclose(found.p, expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose((found.low, found.high), expected.confidence_interval(), rtol=1e-9)


def test_corrected_t_by_hand() -> None:
    """Differences 1, 2, 3, 4 of four fits, one test bag for four: t = 2.5 / sqrt((1/4 + 1/4) 5/3) = 2.7386."""
    found = corrected_t_test(np.array([1.0, 2, 3, 4]), 0.25)
    assert found.p == pytest.approx(2 * stats.t.sf(2.7386128, 3), rel=1e-6)
    assert found.mean == 2.5 and found.high - 2.5 == pytest.approx(3.1824463 * 0.9128709, rel=1e-6)


@FEW
@given(seeds, st.floats(0, 1), st.floats(0, 0.5))
def test_posterior_is_the_integral_of_its_density(seed: int, ratio: float, rope: float) -> None:
    """Student's t with a scale that is written out here as Benavoli et al. have it, by correlation."""
    values = np.random.default_rng(seed).normal(0.2, 1, 10)
    rho = ratio / (1 + ratio)
    scale = np.sqrt((1 / 10 + rho / (1 - rho)) * values.var(ddof=1))
    density = lambda x: stats.t.pdf(x, 9, values.mean(), scale)  # noqa: E731
    found = bayesian_t_test(values, ratio, rope)
    assert found.a_better == pytest.approx(integrate.quad(density, rope, np.inf)[0], abs=1e-6)
    assert found.b_better == pytest.approx(integrate.quad(density, -np.inf, -rope)[0], abs=1e-6)
    assert found.a_better + found.equivalent + found.b_better == pytest.approx(1)
    turned = bayesian_t_test(-values, ratio, rope)
    assert (turned.a_better, turned.b_better) == pytest.approx((found.b_better, found.a_better))


def test_equal_differences() -> None:
    same = np.full(5, 0.2)
    assert corrected_t_test(same, 0.2).p == 0 and corrected_t_test(0 * same, 0.2).p == 1
    assert bayesian_t_test(same, 0.2, 0.1).a_better == 1 and bayesian_t_test(same, 0.2, 0.3).equivalent == 1


def test_the_correction_keeps_its_level() -> None:
    """Fits that share a part of their error, as folds do: without a difference the plain test cries wolf."""
    draw, fits, ratio = np.random.default_rng(0), 20, 0.25
    shared = draw.normal(size=(300, 1)) * np.sqrt(ratio)  # a correlation of 0.2
    differences = shared + draw.normal(size=(300, fits))
    plain, corrected = ([corrected_t_test(row, r).p < 0.05 for row in differences] for r in (0.0, ratio))
    assert np.mean(plain) > 0.3 and 0.01 < np.mean(corrected) < 0.1


# ---- seeds ----


def test_win_rate_by_hand() -> None:
    a, b = np.array([0.9, 0.8, 0.7]), np.array([0.8, 0.8, 0.9])
    assert win_rate(a, b) == 0.5 and win_rate(a, b, paired=False) == pytest.approx(
        (3 * 0 + 2 + 2 * 0.5) / 9 + 1 / 9, abs=0.2
    )
    assert win_rate(a, b, paired=False) == pytest.approx(roc_auc_score([1] * 3 + [0] * 3, np.r_[a, b]))


@pytest.mark.parametrize(("effect", "needed"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed(effect: float, needed: int) -> None:
    """The sizes that tables of power (Cohen 1988) give for a paired t-test, two-sided, level 0.05, power 0.8."""
    unit = np.array([-1.0, 1.0]) / np.sqrt(2)
    assert seeds_needed(unit + effect) == needed


@pytest.mark.parametrize(("effect", "needed"), [(1.5, 6), (3.0, 4), (6.4, 3), (15.0, 2)])
def test_seeds_needed_for_large_effects(effect: float, needed: int) -> None:
    """Against simulated tests: that many seeds find it with probability 0.8, one less does not."""
    assert seeds_needed(np.array([-1.0, 1.0]) / np.sqrt(2) + effect) == needed
    for count in (needed - 1, needed):
        if count > 1:
            drawn = np.random.default_rng(0).normal(effect, 1, (4000, count))
            tested: Any = stats.ttest_1samp(drawn, 0, axis=1)
            power = np.mean(tested.pvalue < 0.05)
            assert (power > 0.8) == (count == needed)


def test_seeds_needed_at_the_ends() -> None:
    assert seeds_needed(np.array([1.0, -1.0])) is None and seeds_needed(np.array([0.1, 0.1])) == 2
    assert seeds_needed(np.array([1.0, -1.0 + 1e-5])) is None


@FEW
@given(seeds, st.integers(1, 7), st.integers(1, 7))
def test_best_of_all_subsets(seed: int, members: int, count: int) -> None:
    scores = np.random.default_rng(seed).normal(size=members)
    if count > members:
        assert_parts(message_of(best_of, scores, count), "count", f"1 to {members}")
        return
    subsets = [max(subset) for subset in itertools.combinations(scores, count)]
    assert best_of(scores, count) == pytest.approx(np.mean(subsets))


def test_a_choice_on_the_test_bags_by_hand() -> None:
    """Two fits: the loss chooses seed 0 and seed 1, the test bags seed 1 and seed 1."""
    loss, test = np.array([[0.1, 0.9], [0.2, 0.3]]), np.array([[0.7, 0.6], [0.8, 0.9]])
    assert choice_gap(loss, test) == pytest.approx((0.1 + 0) / 2)


# ---- groups and seeds ----


def judged(draw: np.random.Generator, gap: float, members: int = 4, groups: int = 30) -> Judgements:
    """Two bags a group, whose scores share the group's error; A tells the label better than B by `gap`."""
    label = np.repeat(np.arange(groups) % 2, 2)
    common = np.repeat(draw.normal(size=groups), 2)
    score = lambda slope: common + slope * label + draw.normal(size=(members, len(label)))  # noqa: E731
    fold = np.broadcast_to(np.arange(len(label)) // 2 % 4 // 2, (members, len(label)))
    names = [f"g{i // 2}" for i in range(len(label))]
    return Judgements(score(1 + gap), score(1.0), label, fold, names)


def test_the_difference_is_the_mean_of_folds_and_seeds() -> None:
    pair = judged(np.random.default_rng(0), 1.0)
    by_hand = [
        roc_auc_score(pair.label[own], a[own]) - roc_auc_score(pair.label[own], b[own])
        for a, b, fold in zip(pair.a, pair.b, pair.fold, strict=True) for own in (fold == 0, fold == 1)
    ]  # fmt: skip
    mean, low, high = bootstrap_difference(pair, jax.random.key(0), 200)
    assert mean == pytest.approx(np.mean(by_hand)) and low < mean < high
    assert bootstrap_difference(pair, jax.random.key(0), 200) == (mean, low, high)
    turned = bootstrap_difference(dataclasses.replace(pair, a=pair.b, b=pair.a), jax.random.key(0), 200)
    np.testing.assert_allclose(turned, (-mean, -high, -low))
    order = np.random.default_rng(1).permutation(len(pair.label))
    groups = [str(pair.groups[i]) for i in order]
    shuffled = Judgements(pair.a[:, order], pair.b[:, order], pair.label[order], pair.fold[:, order], groups)
    np.testing.assert_allclose(bootstrap_difference(shuffled, jax.random.key(0), 200), (mean, low, high))


def test_the_interval_holds_what_it_says() -> None:
    """Without a difference it holds 0 about as often as it should; one that ignores groups and seeds would not."""
    holds = []
    for seed in range(60):
        _, low, high = bootstrap_difference(judged(np.random.default_rng(seed), 0.0), jax.random.key(seed), 200)
        holds.append(low <= 0 <= high)
    assert np.mean(holds) > 0.85
    _, low, _ = bootstrap_difference(judged(np.random.default_rng(0), 3.0), jax.random.key(0), 200)
    assert low > 0


@pytest.mark.parametrize(("change", "parts"), [
    ({"a": np.full((4, 60), np.nan)}, ("a", "diverged")), ({"groups": ["x"]}, ("groups", "60")),
    ({"a": np.ones((3, 60))}, ("a", "(4, 60)")),
])  # fmt: skip
def test_what_judgements_refuse(change: dict[str, Any], parts: tuple[str, ...]) -> None:
    pair = judged(np.random.default_rng(0), 0.0)
    assert_parts(message_of(unchecked, Judgements, **vars(pair) | change), *parts)


def test_what_comparisons_refuse() -> None:
    pair, key = judged(np.random.default_rng(0), 0.0), jax.random.key(0)
    single = dataclasses.replace(pair, a=pair.a[:1], b=pair.b[:1], fold=pair.fold[:1])
    assert_parts(message_of(bootstrap_difference, single, key), "seeds", "from 2")
    assert_parts(
        message_of(bootstrap_difference, dataclasses.replace(pair, groups=["x"] * 60), key), "groups", "from 2"
    )
    assert_parts(message_of(bootstrap_difference, dataclasses.replace(pair, label=0 * pair.label), key), "both classes")
    for call in (corrected_t_test, bayesian_t_test):
        assert_parts(message_of(call, np.array([0.1]), 0.2), "2 or more")
        assert_parts(message_of(call, np.array([0.1, np.nan]), 0.2), "diverged")
    assert_parts(message_of(win_rate, np.ones(2), np.array([1.0, np.inf])), "b", "diverged")
    assert_parts(message_of(seeds_needed, np.array([0.1])), "2 or more")


# ---- ranks ----


def test_ranks_of_demsar() -> None:
    """The 14 data sets of Demšar's table 6, and the mean ranks that the paper gives.

    Two values of its line "voting" are 0.975 as printed, and ranked as if the last one were lower. The paper's
    statistic, 9.28, is not corrected for ties; ours is, as SciPy's.
    """
    c45 = [.763, .599, .954, .628, .882, .936, .661, .583, .775, 1.0, .940, .619, .972, .957]  # fmt: skip
    m = [.768, .591, .971, .661, .888, .931, .668, .583, .838, 1.0, .962, .666, .981, .978]  # fmt: skip
    cf = [.771, .590, .968, .654, .886, .916, .609, .563, .866, 1.0, .965, .614, .975, .946]  # fmt: skip
    both = [.798, .569, .967, .657, .898, .931, .685, .625, .875, 1.0, .962, .669, .9749, .970]  # fmt: skip
    ranks = compare_ranks(np.array([c45, m, cf, both]).T)
    np.testing.assert_allclose(ranks.mean, [3.143, 2.0, 2.893, 1.964], atol=5e-4)
    np.testing.assert_allclose(ranks.chi2, stats.friedmanchisquare(c45, m, cf, both).statistic)
    assert 12 * 14 / 20 * (np.sum(ranks.mean**2) - 25) == pytest.approx(9.28, abs=5e-3)
    assert ranks.critical == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_nemenyi_quantiles(methods: int, q: float) -> None:
    """Table 5 of Demšar (2006)."""
    ranks = compare_ranks(np.random.default_rng(0).normal(size=(6, methods)))
    assert ranks.critical == pytest.approx(q * np.sqrt(methods * (methods + 1) / 36), abs=2e-3)


def test_ranks_and_cliques() -> None:
    """Four methods in the same order on 40 sets differ all; in any order, on few sets, none does."""
    clear = compare_ranks(np.arange(4.0) + np.zeros((40, 1)))
    assert clear.mean.tolist() == [4, 3, 2, 1] and clear.p < 1e-20 and clear.cliques() == []
    same = compare_ranks(np.ones((5, 3)))
    assert same.p == 1 and same.mean.tolist() == [2, 2, 2] and same.cliques() == [(0, 1, 2)]
    chain = dataclasses.replace(clear, mean=np.array([1.0, 2.0, 3.0, 4.5]), critical=1.5)
    assert chain.cliques() == [(0, 1), (1, 2)]
    two = compare_ranks(np.array([[0.9, 0.8, 0.1], [0.7, 0.9, 0.2], [0.8, 0.7, 0.3]]))
    monotone = compare_ranks(np.exp(np.array([[0.9, 0.8, 0.1], [0.7, 0.9, 0.2], [0.8, 0.7, 0.3]])))
    assert two.mean.tolist() == monotone.mean.tolist(), "ranks see the order alone"


def test_tables_of_scores() -> None:
    rows = [{"set": s, "method": m, "auc": f"{0.1 * i}"} for i, (s, m) in enumerate(itertools.product("xy", "ab"))]
    sets, methods, values = table_of_scores(rows, "set", "method", "auc")
    assert (sets, methods) == (["x", "y"], ["a", "b"]) and values.ravel().tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert_parts(message_of(table_of_scores, rows, "set", "method", "f1"), "f1", "a column")
    assert_parts(message_of(table_of_scores, [*rows, rows[0]], "set", "method", "auc"), "one row")
    assert_parts(message_of(table_of_scores, [{**rows[0], "auc": ""}], "set", "method", "auc"), "a number")
    assert_parts(message_of(compare_ranks, table_of_scores(rows[:3], "set", "method", "auc")[2]), "NaN")
    assert_parts(message_of(compare_ranks, np.ones((1, 3))), "two or more")


# ---- the script ----


def write_run(path: Path, gap: float, content: str = "0", members: int = 2, **arrays: Any) -> Path:
    """The folder of a run of own_bags: 24 bags of 12 groups, two rounds of two folds."""
    draw, count = np.random.default_rng(0), 24
    label = np.arange(count) % 2
    names = [f"bag{i:02d}" for i in range(count)]
    fold = np.stack([draw.permutation(count) % 2, 2 + draw.permutation(count) % 2])
    positive = 1 / (1 + np.exp(-draw.normal(size=(2 * members, count)) - (1 + gap) * label))
    losses = draw.uniform(0.3, 0.7, (4, members))
    of_members = [
        {"fit": fit, "best_val_loss": losses[fit, seed], "test_auc": roc_auc_score(label[own], positive[row, own])}
        for fit in range(4) for own in [fold[fit // 2] == fit] for seed in range(members)
        for row in [fit // 2 * members + seed]
    ]  # fmt: skip
    path.mkdir(parents=True)
    config = {"format": 2, "experiment": "own_bags", "options": {}, "data": {"content_hash": content}}
    fields = dataclasses.asdict(Summary(members=of_members, mean={}, standard_deviation={}, ensemble={}))
    for name, content_of in (("config", config), ("summary", fields)):
        (path / f"{name}.json").write_text(json.dumps(content_of))
    (path / "metrics.jsonl").write_text("")
    probability = np.stack([1 - positive, positive], axis=-1)
    np.savez(path / "attention.npz", **{"probability": probability, "label": label, "names": names} | arrays)
    with (path / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("bag", "group", "round", "fit"))
        for (of_round, bag), fit in np.ndenumerate(fold):
            writer.writerow((names[bag], f"g{bag // 2}", of_round, fit))
        writer.writerow(("held", "g99", "", "held out"))
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[Any]:
    """Stands for training: the configs that were asked for; attention is better by a shift."""
    asked: list[Any] = []

    def main(config: Any) -> Path:
        asked.append(config)
        return write_run(config.out, 2.0 if config.model.pooling == "attention" else 0.0)

    monkeypatch.setattr(script.own_bags, "main", main)
    return asked


def test_two_settings(trained: list[Any], tmp_path: Path) -> None:
    """Options and folders give the same numbers, and the three errors belong to one difference."""
    options = ("--a=--pooling attention", "--b=--pooling embedding_mean --scale raw", "--common=--folds 2 --seed 3")
    status, printed = command_here(script, *options, "--members", "2", "--out", str(tmp_path / "run"))
    assert status == 0, printed
    a, b = trained
    assert (a.model.pooling, b.model.pooling, b.search.scale) == ("attention", "embedding_mean", "raw")
    assert (a.members, b.members, a.drawn.folds, b.drawn.folds, a.seed) == (2, 2, 2, 2, 3)
    rows, scores = (rows_of(tmp_path / "run" / f"{name}.csv") for name in ("results", "scores"))
    summary, text = json.loads((tmp_path / "run" / "summary.json").read_text()), "\n".join(printed)
    gaps = np.array([float(row["a"]) - float(row["b"]) for row in scores]).reshape(2, 4)
    assert len(rows) == 3
    for row in rows:
        assert float(row["mean"]) == pytest.approx(gaps.mean())
        assert float(row["low"]) <= gaps.mean() <= float(row["high"])
    assert float(rows[2]["p"]) == pytest.approx(corrected_t_test(gaps.mean(axis=0), 1.0).p), "12 of 24 bags are tested"
    assert summary["posterior"] == dataclasses.asdict(bayesian_t_test(gaps.mean(axis=0), 1.0))
    of_seeds = np.array([float(row["a"]) for row in scores]).reshape(2, 4).mean(axis=1)
    assert summary["best_of"]["a"] == pytest.approx(np.ptp(of_seeds) / 2)
    assert "A is better: " in text and "A wins on 100% of 2 seeds" in text
    sides = [str(tmp_path / f"run-{name}") for name in ("a", "b")]
    status, printed = command_here(script, "--a", sides[0], "--b", sides[1], "--out", str(tmp_path / "again"))
    assert status == 0, printed
    assert (tmp_path / "again" / "results.csv").read_text() == (tmp_path / "run" / "results.csv").read_text()


def test_what_is_no_pair_is_refused(cache: Path, tmp_path: Path) -> None:
    """Other bags, a single seed, a member that diverged, what is no run, and options that do not exist."""
    run = write_run(tmp_path / "run", 0.0)
    single = write_run(tmp_path / "single", 0.0, members=1)
    diverged = write_run(tmp_path / "nan", 0.0, probability=np.full((4, 24, 2), np.nan))
    three = write_run(tmp_path / "three", 0.0, probability=np.ones((4, 24, 3)))
    other = write_run(tmp_path / "other", 0.0, content="1")
    more = write_run(tmp_path / "more", 0.0, members=3)
    for a, b, parts in (
        (run, other, ("--b", "the bags and folds of A")), (run, diverged, ("--b", "diverged (NaN)")),
        (single, single, ("--members", "two seeds or more")), (run, more, ("--b", "3 seeds", "expected 2")),
        (run, three, ("--b", "two classes")), (run, tmp_path, ("--b", "expected a run")),
        (run, "", ("--b", "folder of a run")), ("--no-such-option", run, ("--a", "expected options of own_bags.py")),
    ):  # fmt: skip
        status, printed = command_here(script, f"--a={a}", f"--b={b}", "--out", str(tmp_path / "none"))
        assert status == 2 and not (tmp_path / "none").exists()
        assert_parts(printed[-1], *parts)


def test_a_rank_table(tmp_path: Path) -> None:
    table, draw = tmp_path / "scores.csv", np.random.default_rng(0)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("dataset", "pooling", "auc"))
        for data, (i, name) in itertools.product(range(6), enumerate(("low", "middle", "high"))):
            writer.writerow((f"set{data}", name, i + draw.uniform(0, 0.1)))
    status, printed = command_here(script, "--table", str(table), "--out", str(tmp_path / "run"))
    assert status == 0
    rows = rows_of(tmp_path / "run" / "results.csv")
    assert [row["method"] for row in rows] == ["high", "middle", "low"] and "not told apart" in "\n".join(printed)
    status, printed = command_here(script, "--table", str(tmp_path / "no.csv"), "--out", str(tmp_path / "none"))
    assert status == 2 and "--table" in printed[-1]
