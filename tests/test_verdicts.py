"""What is made of known answers: intervals and words, explanations against the evidence, members of one ensemble."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import assert_parts, assert_same_bits, command_here, message_of, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from mil_jax import datasets
from mil_jax.datasets import SAMPLE
from mil_jax.encoders import MLPEncoder
from mil_jax.known_answers import TESTS, KnownBags, ShiftedMean, judge
from mil_jax.known_answers.explained import evidence_found, weight_on
from mil_jax.known_answers.sets import (
    Counts,
    by_group,
    digit_groups,
    digit_sets,
    principal_components,
    raff_holt_sets,
    shifted_mean_sets,
)
from mil_jax.known_answers.verdicts import judge_seeds, wilson_interval
from mil_jax.model import MIL, POOLINGS
from mil_jax.pooling import EmbeddingPooling, InstancePooling
from mil_jax.states import FitConfig

script: Any = importlib.import_module("known_answers")
FEW = settings(max_examples=20, deadline=None)


# ---- verdicts ----


@FEW
@given(st.integers(1, 60), st.floats(0, 1), st.sampled_from([0.8, 0.95]))
def test_wilson_interval(count: int, share: float, level: float) -> None:
    successes = round(share * count)
    expected = binomtest(successes, count).proportion_ci(level, method="wilson")
    np.testing.assert_allclose(wilson_interval(successes, count, level), expected, atol=1e-12)


@pytest.mark.parametrize(("train", "test", "trap", "word"), [
    ([1.0] * 8, [0.9] * 8, "counts", "passes"), ([1.0] * 8, [0.1] * 8, "counts", "counts"),
    ([1.0] * 8, [0.6] * 8, "counts", "undecided"), ([0.6] * 8, [0.9] * 8, "counts", "does not learn"),
    ([0.6] * 8, [0.1] * 8, "", "does not learn"), ([1.0] * 8, [0.6] * 8, "", "falls short"),
    ([1.0] * 8, [0.9] * 4 + [0.1] * 4, "counts", "undecided"), ([1.0], [0.9], "", "undecided"),
    ([1.0] * 3, [0.1] * 3, "counts", "undecided"), ([1.0] * 8, [np.nan] * 8, "counts", "undecided"),
])  # fmt: skip
def test_words(train: list[float], test: list[float], trap: str, word: str) -> None:
    verdict = judge_seeds(np.array(train), np.array(test), 0.75, trap)
    assert verdict.word == word
    assert (verdict.low, verdict.high) == wilson_interval(round(verdict.passes * len(test)), len(test))


def test_a_verdict_needs_seeds() -> None:
    assert_parts(message_of(judge_seeds, np.ones(0), np.ones(0), 0.7), "one or more seeds")
    assert_parts(message_of(wilson_interval, 3, 2), "successes", "0 to 2")


# ---- explanations ----


def found_by_hand(explanation: np.ndarray, sign: np.ndarray) -> tuple[float, float, float]:
    auroc = auprc = below = np.nan
    if 0 < (sign > 0).sum() < len(sign):
        auroc = roc_auc_score(sign > 0, explanation)
        auprc = average_precision_score(sign > 0, explanation)
    if 0 < (sign < 0).sum() < len(sign):
        below = average_precision_score(sign < 0, -explanation)
    sides = [side for side in (auprc, below) if not np.isnan(side)]
    return auroc, auprc, float(np.mean(sides)) if sides else np.nan


@FEW
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_explanations_against_the_evidence(seed: int, shared: bool) -> None:
    """Bag by bag with scikit-learn; what stands in empty slots changes nothing."""
    draw = np.random.default_rng(seed)
    explanation = draw.integers(0, 4, (2, 5, 4)).astype(np.float32)
    sign, mask = draw.integers(-1, 2, (2, 5, 4)), np.arange(4) < draw.integers(1, 5, (2, 5, 1))
    if shared:
        sign, mask = sign[:1].repeat(2, axis=0), mask[:1].repeat(2, axis=0)
    found = evidence_found(explanation, *((sign[0], mask[0]) if shared else (sign, mask)))
    for member in range(2):
        bags = [
            found_by_hand(*(leaf[member, bag, mask[member, bag]] for leaf in (explanation, sign))) for bag in range(5)
        ]
        for values, value in zip(zip(*bags, strict=True), (found.auroc, found.auprc, found.two_sided), strict=True):
            known = [one for one in values if not np.isnan(one)]
            np.testing.assert_allclose(value[member], np.mean(known) if known else np.nan, rtol=1e-5)
    filled = np.where(mask, explanation, 99).astype(np.float32)
    assert_same_bits(evidence_found(filled, sign, mask), evidence_found(explanation, sign, mask))


def test_a_weight_has_one_side() -> None:
    """The evidence itself finds both sides; its size alone finds one, as attention would at best."""
    sign, mask = np.array([[1, -1, 0, 0, 1]] * 2), np.ones((2, 5), bool)
    for explanation, whole in ((sign, 1.0), (np.maximum(sign, 0), 2 / 3)):
        found = evidence_found(explanation[None].astype(np.float32), sign, mask)
        np.testing.assert_allclose([found.auroc[0], found.auprc[0], found.two_sided[0]], [1, 1, whole], rtol=1e-6)
    weight = np.array([[[0.5, 0.3, 0.2], [1, 0, 0]]], np.float32)
    where = np.array([[False, True, True], [False] * 3])
    assert weight_on(weight, where).tolist() == pytest.approx([0.5])
    assert np.isnan(weight_on(weight, where & False)).all()
    assert_parts(message_of(evidence_found, weight, sign, mask), "sign", "(2, 5)")


# ---- members ----


def values_of(known: KnownBags) -> np.ndarray:
    """The instances of all bags, 0 in empty slots."""
    return np.where(known.bags.mask[..., None], np.asarray(known.bags.pool)[known.bags.rows], 0)


def test_seeds_and_groups() -> None:
    """Member s * G + g: own training bags, shared others, the poison the other way round in the test."""
    sets = raff_holt_sets(jax.random.key(0), 2, Counts(6, 4, 8), features=3)
    more = raff_holt_sets(jax.random.key(0), 3, Counts(6, 4, 8), features=3)
    assert sets.train.bags.label.shape == (6, 6) and sets.test.bags.label.shape == (6, 8)
    for name in ("train", "val", "test"):
        part = getattr(sets, name)
        values, others = (values_of(getattr(of, name)) for of in (sets, more))
        slots = min(values.shape[2], others.shape[2])  # a seed's bags do not depend on how many there are
        np.testing.assert_array_equal(values[:, :, :slots], others[:6, :, :slots])
        assert np.array_equal(values[:3], values[3:]) == (name != "train")
        poisoned = (part.kind == sets.poison).any(axis=-1)
        expected = part.bags.label == (1 if name == "test" else 0)
        assert (poisoned[[0, 1, 3, 4]] == expected[[0, 1, 3, 4]]).all() and not poisoned[[2, 5]].any()
    assert [group.problem for group in sets.groups] == list(TESTS)
    assert [part.tolist() for part in by_group(np.arange(6.0), 3)] == [[0, 3], [1, 4], [2, 5]]


def test_smaller_training_sets_are_parts_of_the_largest() -> None:
    law = ShiftedMean(1.0, 2, fewest=4, most=6)
    sets = shifted_mean_sets(jax.random.key(0), 2, law, (2, 4, 8), 4, 6)
    assert (sets.train.bags.label >= 0).sum(axis=1).tolist() == [2, 4, 8] * 2
    for seed in (0, 1):
        one, two, three = (sets.train.bags.label[3 * seed + i] for i in range(3))
        assert np.array_equal(one[:2], three[:2]) and np.array_equal(two[:4], three[:4])
        assert two[:4].sum() == 2, "balanced"
    assert not np.array_equal(sets.train.bags.rows[0], sets.train.bags.rows[3])
    (group, *_) = sets.groups
    assert 0.5 < group.order_blind_ceiling < group.ceiling < 1 and group.asked < group.order_blind_ceiling


def test_digits_of_different_halves() -> None:
    sample = datasets.load(SAMPLE)
    few = datasets.Instances(sample.train.x[:1000], sample.train.label[:1000])
    data = principal_components(dataclasses.replace(sample, train=few), 5)
    assert data.train.x.shape == (1000, 5) and (np.diff(data.train.x.std(axis=0)) < 0).all()
    assert abs(np.corrcoef(data.train.x.T) - np.eye(5)).max() < 1e-4
    sets = digit_sets(jax.random.key(0), 2, Counts(3, 4, 5), data, digit_groups()[0])
    assert sets.train.bags.label.shape == (6, 3) and sets.classes == 2
    assert not {*map(bytes, sets.val.bags.pool)} & {*map(bytes, sets.test.bags.pool)}, "no instance in both"


def test_a_seed_has_the_same_keys_in_all_groups() -> None:
    data = jax.random.key_data(judge.keys_of_seeds(jax.random.key(0), 2, 3).init)
    assert len({tuple(row) for row in data.tolist()}) == 2 and np.array_equal(data[0], data[2])


# ---- a pooling is asked ----


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Any:
    """The question on few bags, with few epochs."""
    monkeypatch.setattr(judge, "FIT", FitConfig(epochs=10, batch_size=8, patience=10))
    monkeypatch.setattr(judge, "HYPER", dataclasses.replace(judge.HYPER, learning_rate=1e-2))
    monkeypatch.setattr(judge, "COUNTS", Counts(64, 16, 64))
    return judge.known_answers


def test_two_poolings_answer(asked: Any) -> None:
    """The largest instance cannot be the absence of one; the mean takes the absence of poison for a sign."""
    good = asked(InstancePooling("max"), seeds=4)
    mil = MIL(MLPEncoder((64, 32)), EmbeddingPooling("mean"), sigmoid=True)
    sets = raff_holt_sets(jax.random.key(0), 4, judge.COUNTS)
    bad = judge.answers_of(mil, judge.fit_sets(mil, sets, jax.random.key(1)), sets)
    assert [answer.group.problem for answer in good] == [*TESTS, "shifted_mean_3"]
    assert good[0].verdict.word == "passes" and bad[0].verdict.word == "looks at the poison"
    assert bad[2].verdict.word in ("counts", "undecided", "does not learn") and bad[2].verdict.passes == 0
    assert "single_concept: passes (passed by 100% of 4 seeds [51%, 100%]; AUC" in str(good[0])
    assert bad[0].scores["poison_weight"].min() > 0.05 and np.isnan(bad[2].scores["poison_weight"]).all()


def test_the_experiment(cache: Path, tmp_path: Path) -> None:
    """A row for each problem, pooling and number of bags; a table of words; a figure."""
    options = (
        "--poolings gated_attention --repeats 2 --test-train-bags 8 --shifted-train-bags 4 8 --digit-train-bags 8 "
        "--val-bags 4 --test-bags 8 --features 3 --components 4 --hidden 4 --attention-units 3 --epochs 1"
    )
    out = tmp_path / "run"
    status, printed = command_here(script, *options.split(), "--out", str(out))
    assert status == 0
    rows, text = rows_of(out / "results.csv"), "\n".join(printed)
    problems = [*TESTS, "shifted_mean_2", "shifted_mean_2", "smil", "pos_neg", "adjacent_pairs", "four_bags"]
    assert [row["problem"] for row in rows] == problems
    assert {row["fits"] for row in rows} == {"2"} and [row["train_bags"] for row in rows[3:5]] == ["4", "8"]
    assert all(0 <= float(row["pass_rate_low"]) <= float(row["pass_rate"]) <= 1 for row in rows)
    assert float(rows[3]["ceiling"]) == pytest.approx(0.948, abs=0.003) and not rows[0]["ceiling"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["verdicts"][0]["single_concept"] == f"{rows[0]['verdict']} ({float(rows[0]['pass_rate']):.2f})"
    assert "Verdicts over 2 seeds" in text and "Wilson" in text and "18 fits" in text
    assert (out / "figures" / "auc_by_training_bags.png").exists()
    assert set(script.Config().poolings) < set(POOLINGS), "those that the time suffices for; others may be named"
    assert script.Config(poolings=tuple(POOLINGS)).poolings == tuple(POOLINGS)


@pytest.mark.parametrize(("options", "parts"), [
    ("--deltas 1 2 3", ("deltas", "one or two")), ("--deltas 0", ("--deltas", "more than 0")),
    ("--test-bags 1", ("--test-bags", "from 2")), ("--shifted-train-bags 1", ("--shifted-train-bags", "from 2")),
])  # fmt: skip
def test_what_the_experiment_refuses(options: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    status, printed = command_here(script, *options.split(), "--out", str(tmp_path / "run"))
    assert status == 2
    assert_parts("\n".join(printed), *parts)
