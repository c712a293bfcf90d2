"""The ablations as a user runs them, small: what they leave, that their numbers and sentences agree, what they refuse.

All share the shapes of their ensembles where they can, so that few programs are compiled.
"""

import contextlib
import csv
import dataclasses
import importlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from mil_jax import datasets
from mil_jax.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "ablations"))
ablation: Any = importlib.import_module("ablation")
shares: Any = importlib.import_module("shares")
scripts: dict[str, Any] = {
    name: importlib.import_module(name)
    for name in ("gating", "bag_size", "regularization", "ensemble_size", "digits", "imbalance")
}

# Eight members in all, each with as many steps in an epoch, and as many bags in each set: mostly one program.
BAGS = 40
SMALL: dict[str, dict[str, Any]] = {
    "gating": {"members": 8, "patience": 2},
    "bag_size": {"members": 8, "sizes": (3, 4)},
    "regularization": {"members": 4, "l2": (0.01, 0.0), "measured_at": (1,)},
    "ensemble_size": {"members": 8, "largest": 4},
    "digits": {"members": 2, "classes": (1, 0, 7, 8), "patience": 2},
    "imbalance": {"members": 2, "shares": (0.4,), "train_bags": BAGS // 2},
}
POINTS = {"gating": 2, "bag_size": 3, "regularization": 4, "ensemble_size": 3, "digits": 4, "imbalance": 4}
FACTORS = {
    "gating": {"attention"}, "bag_size": {"size", "head"}, "regularization": {"l2", "epoch"},
    "ensemble_size": {"size"}, "digits": {"class"}, "imbalance": {"share", "treatment"},
}  # fmt: skip
EPOCHS = 2

each_script = pytest.mark.parametrize("name", list(SMALL))


def small(name: str, **more: Any) -> Any:
    """A script's config, small."""
    sizes = {"train_bags": BAGS, "val_bags": BAGS, "test_bags": BAGS, "epochs": EPOCHS}
    return scripts[name].Config(**sizes | SMALL[name] | more)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's cache folder, in which the compiled programs of all runs are kept; puts back what runs change."""
    jax.devices()  # from here on the number of devices is settled
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    level = logging.getLogger("absl").level
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        compilation_cache.reset_cache()
        yield
    logging.getLogger("absl").setLevel(level)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@dataclasses.dataclass(frozen=True)
class Ended:
    """An ablation that came to its end: its folder, and what it printed."""

    path: Path
    printed: str

    def read(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(), parse_constant=pytest.fail)

    @property
    def results(self) -> list[dict[str, str]]:
        with (self.path / "results.csv").open(newline="") as file:
            return list(csv.DictReader(file))


def run(name: str, out: Path, **more: Any) -> Ended:
    """Runs an ablation in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert scripts[name].main(small(name, out=out, **more)) == out
    return Ended(out, printed.getvalue())


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small ablations by name, each run when it is asked for first."""
    done: dict[str, Ended] = {}

    def get(name: str) -> Ended:
        if name not in done:
            done[name] = run(name, tmp_path_factory.mktemp(name) / "run")
        return done[name]

    return get


# ---- what they leave and say ----


@each_script
def test_the_folder(name: str, ended: Any) -> None:
    path = ended(name).path
    assert {each.name for each in path.iterdir()} == {
        "config.json", "results.csv", "summary.json", "figures", "report.html", "log.txt", ".lock"
    }  # fmt: skip
    config = ended(name).read("config.json")
    assert config["experiment"] == f"ablations/{name}"
    assert config["options"]["members"] == SMALL[name]["members"] and config["options"]["epochs"] == EPOCHS
    assert config["data"]["content_hash"] == datasets.load("mnist-sample").content_hash
    for figure in (path / "figures").iterdir():
        with Image.open(figure) as image:
            gray = np.asarray(image.convert("L"))
        assert min(gray.shape) >= 200 and gray.max() == 255 and gray.min() < 120


@each_script
def test_results_are_tidy(name: str, ended: Any) -> None:
    """A row for each seed of each point, and a column for each thing known of it."""
    results = ended(name).results
    columns = set(results[0])
    assert columns >= FACTORS[name] | {"seed", *ablation.MEASURES}
    points = {tuple(row[factor] for factor in FACTORS[name]) for row in results}
    assert len(points) == POINTS[name]
    assert len({(*(row[f] for f in FACTORS[name]), row["seed"]) for row in results}) == len(results)


@each_script
def test_the_table_is_that_of_the_results(name: str, ended: Any) -> None:
    summary, results = ended(name).read("summary.json"), ended(name).results
    for row in summary["rows"]:
        of_point = [r for r in results if all(r[f] == str(row[f]) for f in FACTORS[name])]
        values = np.array([float(r[row["measure"]]) for r in of_point if r[row["measure"]]])
        assert len(of_point) == row["seeds"] >= 2
        if len(values):
            assert row["mean"] == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)
            assert row["low"] - 1e-6 <= row["mean"] <= row["high"] + 1e-6
            spread = row["standard_deviation"]
            assert spread == pytest.approx(values.std(ddof=1), rel=1e-4, abs=1e-6)
        else:
            assert row["mean"] is None
        if row["difference"] is not None:
            assert row["against"] and row["difference_low"] - 1e-6 <= row["difference"] <= row["difference_high"] + 1e-6


@each_script
def test_it_prints_tables_and_what_was_found(name: str, ended: Any) -> None:
    done = ended(name)
    finding = done.read("summary.json")["finding"]
    assert f"found: {finding}\n" in done.printed and finding.endswith(".")
    for measure in small(name).measures:
        label = ablation.MEASURES.get(measure) or scripts[name].MORE[measure]
        assert f"\n{label}" in done.printed
    assert done.printed.endswith(f"folder: {done.path}\n")


@each_script
def test_the_report_holds_all_of_it(name: str, ended: Any) -> None:
    page = (ended(name).path / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "http" not in page.replace("http://www.w3.org", "")
    assert page.count("data:image/png") >= len(list((ended(name).path / "figures").iterdir()))
    assert ended(name).read("summary.json")["finding"].split()[0] in page


def test_differences_are_paired_by_seed(ended: Any) -> None:
    done = ended("gating")
    values = {
        attention: np.array([float(row["loss"]) for row in done.results if row["attention"] == attention])
        for attention in ("gated", "not gated")
    }
    row = next(r for r in done.read("summary.json")["rows"] if r["measure"] == "loss" and r["difference"] is not None)
    assert row["against"] == "gated"
    assert row["difference"] == pytest.approx((values["not gated"] - values["gated"]).mean(), rel=1e-4)


def test_the_same_seed_gives_the_same_results(ended: Any, tmp_path: Path) -> None:
    again = run("digits", tmp_path / "again")
    assert again.results == ended("digits").results
    assert (again.path / "figures" / "digits.png").read_bytes() == (
        ended("digits").path / "figures" / "digits.png"
    ).read_bytes()


def test_large_ensembles_are_compared_with_their_own_members(ended: Any) -> None:
    results = ended("ensemble_size").results
    alone = np.array([float(row["loss"]) for row in results if row["size"] == "1"])
    four = np.array([float(row["loss"]) for row in results if row["size"] == "4"])
    assert len(alone) == 8 and len(four) == 2
    rows = ended("ensemble_size").read("summary.json")["rows"]
    row = next(r for r in rows if r["measure"] == "loss" and r["size"] == 4)
    assert row["difference"] == pytest.approx((four - alone.reshape(2, 4).mean(axis=1)).mean(), rel=1e-4)
    assert row["difference"] < 0, "the loss is convex"


def test_every_treatment_changes_something(ended: Any) -> None:
    rows = {row["treatment"]: row for row in ended("imbalance").results if row["seed"] == "0"}
    assert set(rows) == {"nothing", "class weights", "oversampling", "initial bias"}
    assert len({row["loss"] for row in rows.values()}) == 4


def test_the_map_of_attention_is_a_mean_of_weights(ended: Any) -> None:
    summary = ended("digits").read("summary.json")
    negative = np.array(summary["weight_by_class_negative_bags"], float)
    assert negative.shape == (4, 10)
    for row, positive in zip(negative, summary["classes"], strict=True):
        assert np.isnan(row[positive]) and not np.isnan(np.delete(row, positive)).any()
    assert 0.2 < np.nanmean(negative) < 0.45


def test_a_measure_that_was_asked_for(tmp_path: Path) -> None:
    done = run("gating", tmp_path / "run", measures=("positive_mass",))
    assert "weight on positive instances" in done.printed and "hit@1    " not in done.printed


# ---- what they refuse ----

BAD: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"members": 1}, "members = 1: use at least [24]: intervals need more than one seed") for name in SMALL),
    ("gating", {"measures": ("auc", "acu")}, "measures = 'acu': unknown statistic; choose from loss, accuracy"),
    ("gating", {"measures": ()}, "measures"),
    ("gating", {"seed": -1}, "seed"),
    ("gating", {"train_bags": 0}, "train_bags"),
    ("gating", {"epochs": 0}, "epochs"),
    ("gating", {"positive_class": 10}, "positive_class"),
    ("gating", {"dataset": "mnits"}, "dataset"),
    ("bag_size", {"sizes": ()}, "sizes"),
    ("bag_size", {"sizes": (3, 3)}, "sizes"),
    ("regularization", {"l2": (0.1, -1.0)}, "l2"),
    ("ensemble_size", {"largest": 5}, "largest = 5: use 2 to 4"),
    ("digits", {"classes": (1,)}, "classes"),
    ("digits", {"classes": (1, 10)}, "classes"),
    ("imbalance", {"shares": (0.0,)}, "shares"),
    ("imbalance", {"shares": (0.001,)}, "positive_share"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=[f"{name}-{options}" for name, options, _ in BAD])
def test_bad_input_is_named_and_leaves_nothing(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        scripts[name].main(small(name, out=tmp_path / "run", **options))
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_taken_is_left_as_it_is(ended: Any) -> None:
    path = ended("gating").path
    before = {each: each.stat().st_mtime_ns for each in path.rglob("*")}
    with pytest.raises(InputError, match="out"):
        scripts["digits"].main(small("digits", out=path))
    assert {each: each.stat().st_mtime_ns for each in path.rglob("*")} == before


# ---- sentences ----


def row(difference: float, low: float, high: float) -> dict[str, float]:
    return {"difference": difference, "difference_low": low, "difference_high": high}


def test_a_sentence_claims_no_more_than_the_interval() -> None:
    assert ablation.tell("AUC", row(0.01, 0.002, 0.02)) == "AUC 0.01 higher (+0.002 to +0.02)"
    assert ablation.tell("AUC", row(-0.01, -0.02, -0.002)) == "AUC 0.01 lower (-0.02 to -0.002)"
    for low, high in ((-0.002, 0.02), (0.0, 0.02), (0.0, 0.0)):
        told = ablation.tell("AUC", row(0.01, low, high))
        assert told == f"no difference in AUC beyond the interval ({low:+.3g} to {high:+.3g})"
    assert "undefined" in ablation.tell("AUC", row(np.nan, np.nan, np.nan))


def test_the_verdict_on_the_remark() -> None:
    verdict = scripts["regularization"].verdict
    rises, stays = row(0.1, 0.05, 0.2), row(0.0, -0.1, 0.1)
    assert "no overfitting" in verdict(stays, rises | {"mean": 1.0})
    assert verdict(rises, stays | {"mean": 0.5}) == "overfitted, and the weights do not become more equal"
    assert verdict(rises, rises | {"mean": 0.5}) == "overfitted, and the weights become more equal, but not equal"
    assert verdict(rises, rises | {"mean": 0.999}) == "overfitted, and the weights become equal"


def test_intervals_of_columns_of_different_lengths() -> None:
    rng = np.random.default_rng(0)
    long, short = rng.normal(size=30), np.array([1.0, np.nan, 2.0])
    mean, low, high = ablation.intervals([long, short, np.array([np.nan])], 0)
    assert mean[:2] == pytest.approx([long.mean(), 1.5], rel=1e-5) and np.isnan(mean[2])
    assert (low[1], high[1]) == (1.0, 2.0)
    alone = ablation.intervals([long], 0)
    assert (mean[0], low[0], high[0]) == pytest.approx([each[0] for each in alone], rel=1e-6)


# ---- bags of a wanted share ----


def bags_of(share: float, size: int, count: int = 400, seed: int = 0) -> Any:
    data = datasets.load("mnist-sample").train
    return shares.sample_bags(
        jax.random.key(seed), data, np.arange(5000), bag_count=count, bag_size=size, positive_class=1,
        positive_share=share,
    )  # fmt: skip


@pytest.mark.parametrize(("share", "size"), [(0.02, 3), (0.5, 40)])
def test_the_share_is_exact_and_the_bags_are_what_they_say(share: float, size: int) -> None:
    data = datasets.load("mnist-sample").train
    drawn = bags_of(share, size)
    rows, label = np.asarray(drawn.rows), np.asarray(drawn.label)
    assert label.sum() == round(share * 400)
    assert all(len(set(bag)) == size for bag in rows.tolist()) and rows.max() < 5000
    np.testing.assert_array_equal(drawn.instance_label, data.label[rows] == 1)
    np.testing.assert_array_equal(label, (data.label[rows] == 1).any(axis=1))
    assert 0 < np.flatnonzero(label).mean() / 400 < 1
    np.testing.assert_array_equal(rows, bags_of(share, size).rows)
    assert (rows != np.asarray(bags_of(share, size, seed=1).rows)).any()


def test_a_bag_is_a_uniform_draw_given_its_label() -> None:
    """As many positive instances, in the same places, as in uniform draws that hold one."""
    data = datasets.load("mnist-sample").train
    truth = np.asarray(bags_of(0.5, 6, count=8000).instance_label)
    of_positive = truth[truth.any(axis=1)]
    is_one, rng = data.label[:5000] == 1, np.random.default_rng(0)
    uniform = is_one[np.argsort(rng.random((6000, 5000)), axis=1)[:, :6]]
    uniform = uniform[uniform.any(axis=1)]
    counts = [np.bincount(each.sum(axis=1), minlength=7)[1:4] / len(each) for each in (of_positive, uniform)]
    np.testing.assert_allclose(counts[0], counts[1], atol=0.035)
    np.testing.assert_allclose(of_positive.mean(axis=0), of_positive.mean(), atol=0.03)


@pytest.mark.parametrize(
    ("share", "size", "argument"), [(0.001, 3, "positive_share"), (1.0, 3, "positive_share"), (0.5, 5000, "bag_size")]
)
def test_bags_that_there_are_not(share: float, size: int, argument: str) -> None:
    with pytest.raises(InputError) as caught:
        bags_of(share, size)
    assert caught.value.argument == argument


# ---- thresholds and repeated bags ----


def test_the_threshold_is_the_best_of_all() -> None:
    rng, best = np.random.default_rng(0), scripts["imbalance"].best_threshold
    for _ in range(50):
        score, label = rng.integers(0, 12, 30) / 12, (rng.random(30) < 0.3).astype(int)
        label[:2] = 0, 1

        def f1(threshold: float, score: Any = score, label: Any = label) -> float:
            called = score >= threshold
            return 2 * (called & (label == 1)).sum() / (called.sum() + label.sum())

        found = best(score, label)
        assert found in score and f1(found) == pytest.approx(max(map(f1, np.unique(score))))


def test_oversampling_leaves_no_bag_out_and_evens_the_classes() -> None:
    label = np.array([0, 0, 1, 0, 0, 0, 1, 0])
    index = scripts["imbalance"].oversampled(label)
    assert len(index) == 16 and set(index) == set(range(8)) and label[index].mean() == 0.5
    every = scripts["imbalance"].twice(label)
    assert len(every) == 16 and (np.bincount(every) == 2).all()
